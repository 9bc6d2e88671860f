package history

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// start opens a history in dir and runs it; stop ends it.
func start(t *testing.T, conf Config) (h *History, stop func()) {
	t.Helper()
	h, err := Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go h.Run(ctx)
	stop = func() {
		cancel()
		<-h.done
	}
	t.Cleanup(stop)
	return h, stop
}

var testTrace = trace.ID{0xab, 0xcd, 1, 2, 3}

// deliver observes the timeline of one message that is delivered, or deferred and left in the queue.
func deliver(h *History, id mail.ID, from, to string, final bool) {
	a, b := address.MustParse(from), address.MustParse(to)
	at := time.Now()
	h.Observe(&timeline.Event{Kind: timeline.Check, At: at, ID: id, Text: "spf: pass"})
	h.Observe(&timeline.Event{Kind: timeline.Queued, At: at, ID: id, Trace: testTrace, From: a, Rcpts: []address.Address{b}, Client: "192.0.2.7:4444",
		MessageID: string(id) + "@msg.test", Size: 1234})
	o := &mail.Outcome{Disposition: mail.Delivered, Reply: smtp.NewReply(250, "2.0.0", "Ok: queued as REMOTE"+string(id)), MTA: "mx.test [192.0.2.1]:25", TLS: "secure TLS1.3"}
	if !final {
		o = &mail.Outcome{Reason: mail.ReasonGreylist, Reply: smtp.NewReply(450, "4.2.0", "later"), Err: errors.New("450 4.2.0 later")}
	}
	h.Observe(&timeline.Event{Kind: timeline.Attempt, At: at.Add(time.Second), ID: id, From: a, Rcpt: &mail.Recipient{To: b, Orig: b}, Outcome: o, N: 1, Took: time.Second})
	if final {
		h.Observe(&timeline.Event{Kind: timeline.Final, At: at.Add(2 * time.Second), ID: id, From: a})
	}
}

func search(t *testing.T, h *History, q Query) []string {
	t.Helper()
	found, _, err := h.Search(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, m := range found {
		ids = append(ids, string(m.ID))
	}
	slices.Sort(ids)
	return ids
}

// TestFind looks a message up by everything it can be found by, and checks that near misses find nothing.
func TestFind(t *testing.T) {
	h, _ := start(t, Config{Path: filepath.Join(t.TempDir(), "h.db")})
	deliver(h, "MSGID001", "Alice@from.test", "bob@to.test", true)
	deliver(h, "MSGID002", "carol@other.test", "dan@else.test", true)
	h.Observe(&timeline.Event{Kind: timeline.Refused, Client: "198.51.100.9:5", From: address.MustParse("bad@evil.test"), Text: "relay not allowed", Reply: smtp.NewReply(503, "5.7.1", "no")})
	for text, want := range map[string]string{
		"MSGID001": "MSGID001", testTrace.String(): "MSGID001 MSGID002", testTrace.Short(): "MSGID001 MSGID002", "<msgid001@msg.test>": "MSGID001",
		"alice@from.test": "MSGID001", "from.test": "MSGID001", "BOB@to.test": "MSGID001", "192.0.2.7": "MSGID001 MSGID002", "REMOTEMSGID001": "MSGID001",
		"": " MSGID001 MSGID002", "lice@from.test": "", "MSGID00": "", "bad@evil.test": "", "198.51.100.9": "", "nobody@to.test": "",
	} {
		got := search(t, h, Query{Text: text})
		if text == "bad@evil.test" || text == "198.51.100.9" {
			if len(got) != 1 {
				t.Errorf("%q finds %q, want the refusal", text, got)
			}
			continue
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q finds %q, want %q", text, got, want)
		}
	}
	if got := search(t, h, Query{State: "refused"}); len(got) != 1 {
		t.Errorf("refused: %q", got)
	}
	if got := search(t, h, Query{Since: time.Now().Add(time.Hour)}); len(got) != 0 {
		t.Errorf("from the future: %q", got)
	}
	found, more, err := h.Search(t.Context(), Query{Limit: 1})
	if err != nil || len(found) != 1 || !more {
		t.Errorf("limit 1: %d found, more=%v, %v", len(found), more, err)
	}
}

// TestContent checks that everything an event says comes back.
func TestContent(t *testing.T) {
	h, _ := start(t, Config{Path: filepath.Join(t.TempDir(), "h.db")})
	deliver(h, "MSGID001", "alice@from.test", "bob@to.test", true)
	m, ok, err := h.Get(t.Context(), "MSGID001")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if m.State != "delivered" || m.From != "alice@from.test" || !slices.Equal(m.Rcpts, []string{"bob@to.test"}) || m.Size != 1234 || m.Took != 2*time.Second ||
		m.MessageID != "MSGID001@msg.test" || m.Client != "192.0.2.7:4444" || m.Trace != testTrace.String() || len(m.Events) != 4 {
		t.Errorf("message: %+v", m)
	}
	a := m.Events[2]
	if a.Kind != "attempt" || a.Disposition != "delivered" || a.MTA != "mx.test [192.0.2.1]:25" || a.TLS != "secure TLS1.3" || a.Attempt != 1 || a.Took != time.Second ||
		a.Reply != "250 2.0.0 Ok: queued as REMOTEMSGID001" || !slices.Equal(a.Rcpts, []string{"bob@to.test"}) {
		t.Errorf("attempt: %+v", a)
	}
}

// TestRestart checks that what had ended and what lingered are both found after a restart, and that the latter goes on.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.db")
	h, stop := start(t, Config{Path: path})
	deliver(h, "ENDED", "a@x.test", "b@y.test", true)
	deliver(h, "WAITING", "a@x.test", "b@y.test", false)
	stop()
	h, _ = start(t, Config{Path: path})
	if got := search(t, h, Query{Text: "a@x.test"}); !slices.Equal(got, []string{"ENDED", "WAITING"}) {
		t.Fatalf("after the restart: %q", got)
	}
	h.Observe(&timeline.Event{Kind: timeline.Final, ID: "WAITING"})
	m, ok, err := h.Get(t.Context(), "WAITING")
	if err != nil || !ok || len(m.Events) != 4 || m.State != "bounced" {
		t.Errorf("the message that lingered: %v %v %+v", ok, err, m)
	}
	if got := search(t, h, Query{State: "queued"}); len(got) != 0 {
		t.Errorf("still unfinished: %q", got)
	}
}

// TestUnderWay checks that a message is found while it is on its way, and is one message still when it has ended.
func TestUnderWay(t *testing.T) {
	h, _ := start(t, Config{Path: filepath.Join(t.TempDir(), "h.db")})
	deliver(h, "WAITING", "a@x.test", "b@y.test", false)
	if got := search(t, h, Query{Text: "b@y.test", State: "queued"}); !slices.Equal(got, []string{"WAITING"}) {
		t.Errorf("on its way: %q", got)
	}
	h.Observe(&timeline.Event{Kind: timeline.Final, ID: "WAITING"})
	if got := search(t, h, Query{Text: "b@y.test"}); !slices.Equal(got, []string{"WAITING"}) {
		t.Errorf("ended: %q", got)
	}
}

// TestChecksBeforeID checks that what was found out about a message before it had an id is part of it, and no message of its own.
func TestChecksBeforeID(t *testing.T) {
	h, _ := start(t, Config{Path: filepath.Join(t.TempDir(), "h.db")})
	h.Observe(&timeline.Event{Kind: timeline.Check, Trace: testTrace, Text: "spf: spf=pass"})
	h.Observe(&timeline.Event{Kind: timeline.Check, Trace: trace.ID{9}, Text: "of a client that went away"})
	deliver(h, "MSGID001", "a@x.test", "b@y.test", true)
	found, _, err := h.Search(t.Context(), Query{})
	if err != nil || len(found) != 1 {
		t.Fatalf("%d messages, %v", len(found), err)
	}
	if texts := fmt.Sprint(found[0].Events); !strings.Contains(texts, "spf: spf=pass") {
		t.Errorf("the verdict is not part of the message: %s", texts)
	}
}

// TestPrivacy checks that hashed addresses are in no file, and still found.
func TestPrivacy(t *testing.T) {
	dir := t.TempDir()
	h, stop := start(t, Config{Path: filepath.Join(dir, "h.db"), Settings: Settings{HashAddresses: true}})
	deliver(h, "MSGID001", "alice@from.test", "bob@to.test", true)
	if got := search(t, h, Query{Text: "Alice@from.test"}); !slices.Equal(got, []string{"MSGID001"}) {
		t.Errorf("search for an address finds %q", got)
	}
	stop()
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if b, _ := os.ReadFile(f); strings.Contains(string(b), "alice") || strings.Contains(string(b), "bob@") {
			t.Errorf("%s holds an address in clear", f)
		}
	}
}

// TestN2Configure: settings change while it works; what was written under the old ones is found.
func TestN2Configure(t *testing.T) {
	h, _ := start(t, Config{Path: filepath.Join(t.TempDir(), "h.db")})
	deliver(h, "MSGID001", "alice@from.test", "bob@to.test", true)
	h.Configure(Settings{HashAddresses: true, Keep: time.Hour})
	deliver(h, "MSGID002", "alice@from.test", "bob@to.test", true)
	found := search(t, h, Query{Text: "alice@from.test"})
	slices.Sort(found)
	if !slices.Equal(found, []string{"MSGID001", "MSGID002"}) {
		t.Errorf("found %q", found)
	}
	for id, clear := range map[string]bool{"MSGID001": true, "MSGID002": false} {
		if m, _, err := h.Get(t.Context(), id); err != nil || strings.Contains(fmt.Sprint(m), "alice") != clear {
			t.Errorf("%s shows addresses: want %v: %v %v", id, clear, m, err)
		}
	}
	h.Configure(Settings{})
	if found := search(t, h, Query{Text: "alice@from.test"}); len(found) != 2 {
		t.Errorf("after hashing was switched off: %q", found)
	}
	if s := h.settings.Load(); s.Keep != DefaultDays*24*time.Hour || s.MaxBytes != DefaultBytes {
		t.Errorf("settings %+v", s)
	}
}

// TestDamaged checks that a file that is no database is set aside and does not stop anything.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "h.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is not a database", 500)), 0600); err != nil {
		t.Fatal(err)
	}
	h, _ := start(t, Config{Path: path})
	deliver(h, "MSGID001", "a@x.test", "b@y.test", true)
	if got := search(t, h, Query{}); !slices.Equal(got, []string{"MSGID001"}) {
		t.Errorf("finds %q", got)
	}
	if aside, _ := filepath.Glob(path + ".damaged-*"); len(aside) != 1 {
		t.Errorf("set aside: %q", aside)
	}
}

// TestBounds checks that neither a stuck writer nor one endless message grows memory, and that drops are counted.
func TestBounds(t *testing.T) {
	reg := expvarom.New()
	h, err := Open(Config{Path: filepath.Join(t.TempDir(), "h.db"), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 5000)
	for range 10000 {
		h.Observe(&timeline.Event{Kind: timeline.LoopEnd, ID: "ENDLESS", Text: text})
	}
	if len(h.buf) > maxBuffered+maxText+100 {
		t.Errorf("%d bytes wait", len(h.buf))
	}
	if h.m.dropped.Value() == 0 {
		t.Error("no drop was counted")
	}
	h.take(nil)
	if n := len(h.pending["ENDLESS"].events); n > maxEvents {
		t.Errorf("one message holds %d bytes", n)
	}
	h.db.close()
}

// TestTrim checks both limits.
func TestTrim(t *testing.T) {
	h, stop := start(t, Config{Path: filepath.Join(t.TempDir(), "h.db")})
	for i := range 3*batchMessages + 1 {
		deliver(h, mail.ID(fmt.Sprintf("M%06d", i)), "a@x.test", "b@y.test", true)
		if i%200 == 0 {
			h.sync(t.Context())
		}
	}
	h.sync(t.Context())
	count := func() (n int) {
		if err := h.db.sql.QueryRow(`select count(*) from batches`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	if err := h.db.trim(time.Now().Add(-time.Hour), 1<<40); err != nil || count() != before {
		t.Errorf("trimmed without need: %d of %d left, %v", count(), before, err)
	}
	if err := h.db.trim(time.Now().Add(-time.Hour), 150<<10); err != nil || count() >= before {
		t.Errorf("not trimmed to the size: %d of %d left, %v", count(), before, err)
	}
	if err := h.db.trim(time.Now().Add(time.Hour), 1<<40); err != nil || count() != 1 {
		t.Errorf("not trimmed by age: %d left, %v", count(), err)
	}
	stop()
}

// TestRemoteID finds the ids of common servers in their replies.
func TestRemoteID(t *testing.T) {
	for reply, want := range map[string]string{
		"250 2.0.0 Ok: queued as 4Z7x1y2k9": "4Z7x1y2k9", "250 OK id=1rJabc-0004Fx-2B": "1rJabc-0004Fx-2B", "250 2.0.0 message accepted, queued as <ABCDEF>": "ABCDEF",
		"250 ok": "", "": "", "250 2.0.0 queued as x": "",
	} {
		if got := string(remoteID([]byte(reply))); got != want {
			t.Errorf("remoteID(%q) = %q, want %q", reply, got, want)
		}
	}
}

// TestIDOnce checks that a message is found by its id, which only one of its events has, whatever the first event is, before and after a
// restart; and that messages of earlier versions, with the id in each event, are the same.
func TestIDOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.db")
	h, stop := start(t, Config{Path: path})
	deliver(h, "WHOLE", "a@x.test", "b@y.test", true)
	deliver(h, "WAITING", "a@x.test", "b@y.test", false)
	h.Observe(&timeline.Event{Kind: timeline.LoopEnd, At: time.Now(), ID: "MIDDLE"})
	h.Observe(&timeline.Event{Kind: timeline.Final, At: time.Now(), ID: "LAST"})
	h.Observe(&timeline.Event{Kind: timeline.Refused, At: time.Now(), ID: "REFUSED", Trace: testTrace})
	for range 2 {
		for _, id := range []mail.ID{"WHOLE", "WAITING", "MIDDLE", "LAST", "REFUSED"} {
			if m, ok, err := h.Get(t.Context(), string(id)); !ok || err != nil || m.ID != id {
				t.Errorf("%s: found %v, %v: %+v", id, ok, err, m)
			}
		}
		stop()
		h, stop = start(t, Config{Path: path})
		h.Observe(&timeline.Event{Kind: timeline.Final, At: time.Now(), ID: "WAITING"})
	}
	var events []byte
	if err := h.db.sql.QueryRow(`select events from data order by id limit 1`).Scan(&events); err != nil {
		t.Fatal(err)
	}
	messages(events, func(b []byte) bool {
		if n := strings.Count(string(b), "WHOLE"); n != 3 { // once as the id, in the Message-ID and in the remote's
			t.Errorf("the message has the id %d times", n)
		}
		now := newMessage(b)
		var old []byte
		for rest := b; len(rest) > 0; {
			_, after, _ := decodeEvent(rest)
			old = appendID(append(old, rest[:len(rest)-len(after)]...), now.ID)
			rest = after
		}
		if len(old) <= len(b) {
			t.Error("the copy with ids in each event is no longer")
		}
		was := newMessage(old)
		for i := range now.Events {
			now.Events[i].ID, was.Events[i].ID = "", ""
		}
		if d := cmp.Diff(now, was, cmpopts.IgnoreUnexported(Event{})); d != "" {
			t.Errorf("as earlier versions wrote it, it is another message:\n%s", d)
		}
		return false
	})
}

// TestKeys checks the keys and the filter against their plain definitions.
func TestKeys(t *testing.T) {
	for _, text := range []string{"", "abc", "Alice@Example.TEST", "ÄÖ@x.test", "a\xffB", "[İ]", "@[`{"} {
		if hashLower([]byte(text)) != hashKey(strings.ToLower(text)) {
			t.Errorf("another key for %q", text)
		}
	}
	for _, n := range []int{0, 1, 500, 5000} {
		var set keySet
		for round := range 2 { // the second in used memory
			var keys []uint64
			for i := range n {
				keys = append(keys, hashKey(fmt.Sprint(round, i/2)))
			}
			if n > 1 {
				keys = append(keys, 0, 0)
			}
			for _, k := range keys {
				set.add(k)
			}
			slices.Sort(keys)
			keys = slices.Compact(keys)
			want := make([]byte, max(8, (len(keys)*bloomBits+7)/8))
			for _, k := range keys {
				bloomProbe(want, k, func(i uint64) bool { want[i/8] |= 1 << (i % 8); return true })
			}
			if got := newBloom(&set); !slices.Equal(got, want) {
				t.Errorf("%d keys, round %d: another filter, of %d bytes instead of %d", n, round, len(got), len(want))
			}
			set.reset()
		}
	}
}

// FuzzDecode checks that no bytes of a damaged database can hurt.
func FuzzDecode(f *testing.F) {
	e := &timeline.Event{Kind: timeline.Queued, ID: "x", At: time.Unix(1, 0), From: address.MustParse("a@b.test"), Size: 7}
	b := encoder{}.append(nil, e)
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		appendKeys(nil, b)
		if _, _, ok := decodeEvent(b); ok {
			newMessage(b)
		}
		messages(b, func([]byte) bool { return true })
	})
}

func BenchmarkObserve(b *testing.B) {
	h := &History{wake: make(chan struct{}, 1)}
	h.m = &metrics{dropped: (*expvarom.Registry)(nil).Counter("x_total", "")}
	b.ReportAllocs()
	for b.Loop() {
		deliver(h, "MSGID001", "alice@from.test", "bob@to.test", true)
		h.buf = h.buf[:0]
	}
}

// BenchmarkWrite is the cost of a message of four events, from the events in memory to the database.
func BenchmarkWrite(b *testing.B) {
	h, err := Open(Config{Path: filepath.Join(b.TempDir(), "h.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer h.db.close()
	var spare []byte
	for i := 0; b.Loop(); i++ {
		deliver(h, mail.ID(fmt.Sprintf("M%08d", i)), fmt.Sprintf("alice%d@from.test", i%1000), fmt.Sprintf("bob%d@to.test", i), true)
		if i%1000 == 0 {
			spare = h.take(spare)
			h.flush(false)
		}
	}
}

// relayed observes the timeline of a message that came in by SMTP and went on to another server.
type relayed struct {
	events [7]timeline.Event
	out    mail.Outcome
	to     mail.Recipient
	rcpts  [1]address.Address
}

func (r *relayed) observe(h *History, n int) {
	at := time.Now()
	var tr trace.ID
	binary.BigEndian.PutUint64(tr[:], uint64(n)*0x9e3779b97f4a7c15)
	id := mail.ID(fmt.Sprintf("335qhe%010d", n))
	if n == 0 {
		from, orig, to := address.MustParse("from@sender.test"), address.MustParse("u0@bench.test"), address.MustParse("u0@sink.test")
		r.out = mail.Outcome{Disposition: mail.Delivered, Reply: smtp.NewReply(250, "2.0.0", "ok"), MTA: "mx.sink.test [192.0.2.25]:25", TLS: "plain"}
		r.to, r.rcpts = mail.Recipient{To: to, Orig: orig}, [1]address.Address{orig}
		r.events = [7]timeline.Event{
			{Kind: timeline.Check, Took: 500 * time.Microsecond, Text: "spf: spf=pass"},
			{Kind: timeline.Check, Took: 50 * time.Microsecond, Text: "dkim_verify: dkim=none"},
			{Kind: timeline.Check, Took: 50 * time.Microsecond, Text: "dmarc: dmarc=pass"},
			{Kind: timeline.Queued, Client: "127.0.0.1:43236", MessageID: "10000001@sender.test", From: from, Rcpts: r.rcpts[:], Size: 573, Took: time.Millisecond, Text: "smtp"},
			{Kind: timeline.Expanded, Rcpt: &r.to},
			{Kind: timeline.Attempt, Rcpt: &r.to, N: 1, Outcome: &r.out, Reply: r.out.Reply, Took: 2 * time.Millisecond},
			{Kind: timeline.Final, Size: 573, Took: 30 * time.Millisecond},
		}
	}
	for i := range r.events {
		e := &r.events[i]
		e.At, e.Trace = at, tr
		if i > 0 {
			e.ID = id
		}
		h.Observe(e)
	}
}

// BenchmarkRelayed is the whole cost of a message that is relayed, of which "observe" is what the session and the queue wait for.
func BenchmarkRelayed(b *testing.B) {
	run := func(b *testing.B, write bool) {
		h, err := Open(Config{Path: filepath.Join(b.TempDir(), "h.db")})
		if err != nil {
			b.Fatal(err)
		}
		defer h.db.close()
		var r relayed
		var spare []byte
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			r.observe(h, n)
			if !write {
				h.buf = h.buf[:0]
			} else if n%1000 == 999 {
				spare = h.take(spare)
				h.flush(false)
			}
		}
	}
	b.Run("observe", func(b *testing.B) { run(b, false) })
	b.Run("write", func(b *testing.B) { run(b, true) })
}

// BenchmarkSearch finds one message among a million; CHASQUID_BENCH_ROWS changes the number.
func BenchmarkSearch(b *testing.B) {
	rows := 1_000_000
	if n := os.Getenv("CHASQUID_BENCH_ROWS"); n != "" {
		fmt.Sscan(n, &rows)
	}
	h, err := Open(Config{Path: filepath.Join(b.TempDir(), "h.db")})
	if err != nil {
		b.Fatal(err)
	}
	var spare []byte
	for i := range rows {
		deliver(h, mail.ID(fmt.Sprintf("M%08d", i)), fmt.Sprintf("alice%d@from.test", i%1000), fmt.Sprintf("bob%d@to.test", i), true)
		if i%1000 == 0 {
			spare = h.take(spare)
			h.flush(false)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go h.Run(ctx)
	for i := 0; b.Loop(); i++ {
		want := fmt.Sprintf("bob%d@to.test", (i*7919)%rows)
		found, _, err := h.Search(ctx, Query{Text: want})
		if err != nil || len(found) != 1 {
			b.Fatalf("%s: %d found, %v", want, len(found), err)
		}
	}
}
