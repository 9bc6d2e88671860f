package spool

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

func encode(e *queue.Entry, st *stub) []byte { return appendMessage(nil, st, e) }

// FuzzDecode: no bytes make the decoders panic or use memory out of proportion, and what they accept they would write again in a
// form that they read the same.
func FuzzDecode(f *testing.F) {
	e := entry("id", "a@example.org", "b@example.org")
	e.Status[1] = queue.RcptStatus{Status: queue.Failed, Attempts: 3, Reply: smtp.NewReply(550, "5.1.1", "no"), Next: time.Unix(5, 5).UTC()}
	st := stub{serial: 7, id: "id", rcpts: 2, content: content{prefixLen: 3, inlineLen: 5, chunks: []chunkRef{{at: loc{1, 2}, len: 3}}, fileLen: 70_000, fileCRCs: []uint32{1, 2}}}
	f.Add(encode(e, &st))
	f.Add(appendResult(nil, &result{id: "x", serial: 9, us: []queue.RcptUpdate{{Rcpt: 1, State: e.Status[1]}}}))
	f.Add(appendRemoved(nil, removed{seg: 1, id: "y", serial: 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, st, err := decodeMessage(b); err == nil {
			again := encode(&e, &st)
			e2, st2, err := decodeMessage(again)
			if err != nil || !bytes.Equal(again, encode(&e2, &st2)) {
				t.Errorf("message: %v\n%+v\n%+v", err, e, e2)
			}
		}
		var r, r2 result
		d := decoder{b: b}
		if d.result(&r); !d.bad {
			d2 := decoder{b: appendResult(nil, &r)}
			if d2.result(&r2); d2.bad || !reflect.DeepEqual(r, r2) {
				t.Errorf("result: %+v\n%+v", r, r2)
			}
			checkRefs(t, b, &r)
		}
		d = decoder{b: b}
		if r := d.removed(); !d.bad {
			d2 := decoder{b: appendRemoved(nil, r)}
			if r2 := d2.removed(); r != r2 {
				t.Errorf("removed: %+v %+v", r, r2)
			}
		}
	})
}

// checkRefs: the quick reading of a result at start sees the same recipients as the whole.
func checkRefs(t *testing.T, b []byte, r *result) {
	d := decoder{b: b}
	d.string()
	d.uvarint()
	one, which := d.resultRcpts()
	if d.bad || len(which) > 0 && len(which) != len(r.us) || len(which) == 0 && len(r.us) > 1 {
		t.Fatalf("recipients %d %v of %+v", one, which, r)
	}
	for i, u := range r.us {
		if len(which) > 0 && int(which[i]) != u.Rcpt || len(which) == 0 && int(one) != u.Rcpt {
			t.Errorf("recipients %d %v of %+v", one, which, r)
		}
	}
}

// FuzzSegment: whatever stands in a segment, the store opens and every message it has can be asked for. With seal the records get
// good checksums, so that their contents are reached.
func FuzzSegment(f *testing.F) {
	f.Add([]byte("nothing"), false)
	mem := vfs.NewMem()
	s := openTest(f, testConfig(mem))
	must(f, put(s, entry("one"), "prefix", "body"))
	must(f, put(s, entry("two", "a@b.c", "d@e.f"), "", randomBody(70_000)))
	must(f, s.Update("two", queue.RcptUpdate{Rcpt: 1}))
	must(f, s.Remove("one"))
	must(f, s.Close())
	seg, err := vfs.ReadFile(mem, "data/queue/00000001.seg")
	must(f, err)
	salt := s.w.seg.salt
	records := seg[segmentPage:s.w.tail]
	f.Add(append([]byte(nil), records...), true)
	f.Add(append([]byte(nil), records[:800]...), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		mem := vfs.NewMem()
		must(t, vfs.MkdirAll(mem, "data/queue", 0700))
		b = bytes.Clone(b[:min(len(b), minSegmentSize-segmentPage)])
		if seal {
			reseal(b, salt)
		}
		must(t, vfs.WriteFile(mem, "data/queue/00000001.seg", append(appendSegmentPage(nil, 1, salt), b...), 0600))
		s, err := Open(testConfig(mem))
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range s.All() {
			if err == nil {
				read(s, e.ID)
				if err := s.Remove(e.ID); err != nil {
					t.Errorf("Remove: %v", err)
				}
			}
		}
		s.care()
		must(t, put(s, entry("new"), "", "x"))
		must(t, s.Close())
	})
}

// reseal gives the bytes that look like records the checksums of records.
func reseal(b []byte, salt uint32) {
	for pos := 0; pos+recordHead <= len(b); pos += recordAlign {
		if h, ok := parseHeader(b[pos:], int64(len(b)-pos)); ok && pos+recordHead+int(h.metaLen) <= len(b) {
			sealRecord(b[pos:], h, salt)
			pos += int(h.size()) - recordAlign
		}
	}
}

// TestCodec: any entry comes back as it was.
func TestCodec(t *testing.T) {
	text := rapid.StringN(0, 20, 60)
	adr := rapid.Custom(func(t *rapid.T) address.Address {
		return address.Address{Local: text.Draw(t, "local"), Domain: text.Draw(t, "domain")}
	})
	params := rapid.Custom(func(t *rapid.T) (ps smtp.Params) {
		for range rapid.IntRange(0, 3).Draw(t, "params") {
			ps = append(ps, smtp.Param{Keyword: text.Draw(t, "k"), Value: text.Draw(t, "v"), HasValue: rapid.Bool().Draw(t, "has")})
		}
		return ps
	})
	when := rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.Bool().Draw(t, "zero") {
			return time.Time{}
		}
		return time.Unix(0, rapid.Int64Range(1, 1<<62).Draw(t, "time")).UTC()
	})
	rapid.Check(t, func(t *rapid.T) {
		e := queue.Entry{ID: "id", Env: mail.Envelope{From: adr.Draw(t, "from"), Params: params.Draw(t, "params"), Arrived: when.Draw(t, "arrived"),
			Client: text.Draw(t, "client"), Auth: text.Draw(t, "auth"), Source: mail.Source(rapid.IntRange(0, 3).Draw(t, "source")),
			MessageID: text.Draw(t, "message id"), UTF8: rapid.Bool().Draw(t, "utf8"), Body: mail.Body(rapid.IntRange(0, 2).Draw(t, "body"))}}
		copy(e.Env.Trace[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "trace"))
		for range rapid.IntRange(1, 4).Draw(t, "recipients") {
			r := mail.Recipient{Kind: mail.Kind(rapid.IntRange(0, 2).Draw(t, "kind")), To: adr.Draw(t, "to"), Command: text.Draw(t, "command"),
				Orig: adr.Draw(t, "orig"), Detail: text.Draw(t, "detail"), Params: params.Draw(t, "params"), NotBefore: when.Draw(t, "not before"), GiveUp: when.Draw(t, "give up")}
			for range rapid.IntRange(0, 2).Draw(t, "via") {
				r.Via = append(r.Via, text.Draw(t, "host"))
			}
			e.Env.Rcpts = append(e.Env.Rcpts, r)
			st := queue.RcptStatus{}
			if rapid.Bool().Draw(t, "tried") {
				st = queue.RcptStatus{Status: queue.Status(rapid.IntRange(0, 2).Draw(t, "status")), Attempts: rapid.IntRange(0, 1000).Draw(t, "attempts"),
					Next: when.Draw(t, "next"), Reason: mail.Reason(rapid.IntRange(0, 17).Draw(t, "reason")), MTA: text.Draw(t, "mta"), Text: text.Draw(t, "text"),
					Relayed: rapid.Bool().Draw(t, "relayed"), Notified: queue.Notified(rapid.IntRange(0, 7).Draw(t, "notified")), Held: rapid.Bool().Draw(t, "held"),
					Reply: smtp.Reply{Code: rapid.IntRange(0, 599).Draw(t, "code"), Enh: smtp.EnhancedCode{5, 1, 999}, Text: text.Draw(t, "reply")}}
			}
			e.Status = append(e.Status, st)
		}
		st := stub{serial: rapid.Uint64().Draw(t, "serial"), id: e.ID, rcpts: uint32(len(e.Env.Rcpts))}
		got, _, err := decodeMessage(encode(&e, &st))
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Fatalf("%v\n%+v\n%+v", err, got, e)
		}
	})
}
