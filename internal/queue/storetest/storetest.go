// Package storetest is the acceptance suite of queue.Store: what any implementation has to do, and to survive.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// Subject is the implementation under test.
type Subject struct {
	// Open opens the store kept in fsys, or a new one if there is none. For a store without files fsys means nothing.
	Open func(fsys vfs.FS) (queue.Store, error)

	// Durable says that the store survives being closed, killed and cut off from power. Stores that do not are only tested while
	// they are open.
	Durable bool

	// Care does the store's housekeeping now. A durable store must not do any by itself during the suite: crashes are tried at
	// every operation, which has to be the same in each run. Nil if there is none.
	Care func(queue.Store)

	// Large is a body size that the store treats in its most laborious way.
	Large int

	// Thorough tries every operation of the longer histories, not a sample. It takes a minute or two.
	Thorough bool

	// Sizes are the body sizes of random histories; nil: from nothing to Large.
	Sizes []int

	// Golden is a file with the operations that commits and updates are expected to perform; empty: not tested. UpdateGolden
	// rewrites it.
	Golden       string
	UpdateGolden bool
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	if s.Large == 0 {
		s.Large = 300 << 10
	}
	if s.Care == nil {
		s.Care = func(queue.Store) {}
	}
	t.Run("Messages", s.testMessages)
	t.Run("Entry", s.testEntry)
	t.Run("Drafts", s.testDrafts)
	t.Run("Updates", s.testUpdates)
	t.Run("All", s.testAll)
	t.Run("Readers", s.testReaders)
	t.Run("Errors", s.testErrors)
	t.Run("Concurrent", s.testConcurrent)
	t.Run("Closed", s.testClosed)
	t.Run("Histories", s.testHistories)
	if !s.Durable {
		t.Log("not durable: restarts, crashes and failures of the disk are not tested")
		return
	}
	t.Run("Exclusive", s.testExclusive)
	t.Run("Restart", s.testRestart)
	t.Run("CrashAtEveryOperation", s.testCrashes)
	t.Run("FailEveryOperation", s.testFailures)
	t.Run("FullDisk", s.testFullDisk)
	t.Run("FailedFlush", s.testFailedFlush)
	if s.Golden != "" {
		t.Run("Golden", s.testGolden)
	}
}

// open opens a store that the test closes.
func (s Subject) open(t *testing.T, fsys vfs.FS) queue.Store {
	t.Helper()
	st, err := s.Open(fsys)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// newEntry makes an entry with n recipients.
func newEntry(id mail.ID, n int) *queue.Entry {
	e := &queue.Entry{ID: id, Env: mail.Envelope{
		From:    address.Address{Local: "from", Domain: "example.org"},
		Arrived: time.Unix(1_700_000_000, 0).UTC(),
	}}
	for i := range n {
		to := address.Address{Local: fmt.Sprintf("rcpt%d", i), Domain: "example.net"}
		e.Env.Rcpts = append(e.Env.Rcpts, mail.Recipient{To: to, Orig: to})
	}
	return e
}

// commit writes body in uneven pieces and commits it.
func commit(st queue.Store, e *queue.Entry, prefix, body string) error {
	d, err := st.Create()
	if err != nil {
		return err
	}
	defer d.Discard()
	for piece := 1; body != ""; piece = piece*3 + 1 {
		n := min(piece, len(body))
		if _, err := io.WriteString(d, body[:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	return d.Commit(e, []byte(prefix))
}

func readBody(st queue.Store, id mail.ID) (string, error) {
	r, err := st.Open(id)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return string(b), err
}

// text returns n bytes that differ from those of other seeds.
func text(seed, n int) string {
	rng := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
	var b strings.Builder
	b.Grow(n + 12)
	for b.Len() < n {
		for x := rng.Uint64(); x >= 1<<4; x >>= 5 {
			b.WriteByte("abcdefghijklmnopqrstuvwxyz  \r\n\x00\xff"[x&31])
		}
	}
	return b.String()[:n]
}

func ids(t *testing.T, st queue.Store) (all []mail.ID) {
	t.Helper()
	for e, err := range st.All() {
		if err != nil {
			t.Errorf("All: %s: %v", e.ID, err)
		}
		all = append(all, e.ID)
	}
	return all
}

func (s Subject) testMessages(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	for i, n := range []int{0, 1, 4096, 8192, 8193, 65535, 65536, 65537, 200_000, s.Large} {
		id := mail.ID(fmt.Sprintf("size-%d", n))
		prefix, body := strings.Repeat("Received: x\r\n", i), text(i, n)
		if err := commit(st, newEntry(id, 1), prefix, body); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		for range 2 {
			if got, err := readBody(st, id); err != nil || got != prefix+body {
				t.Errorf("%s: read %d bytes of %d: %v", id, len(got), len(prefix+body), err)
			}
		}
		if e, err := st.Load(id); err != nil || e.ID != id || e.Size != int64(len(prefix+body)) {
			t.Errorf("%s: Load: %s, size %d, %v", id, e.ID, e.Size, err)
		}
		if err := commit(st, newEntry(id, 1), "", "another"); !errors.Is(err, queue.ErrExists) {
			t.Errorf("%s again: %v", id, err)
		}
		if got, _ := readBody(st, id); got != prefix+body {
			t.Errorf("%s: changed by a second commit", id)
		}
	}
	if err := st.Remove("size-1"); err != nil {
		t.Error(err)
	}
	if _, err := st.Load("size-1"); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("Load after Remove: %v", err)
	}
	if _, err := st.Open("size-1"); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("Open after Remove: %v", err)
	}
	if err := commit(st, newEntry("size-1", 1), "", "new life"); err != nil {
		t.Errorf("an id whose message was removed: %v", err)
	}
	if got, err := readBody(st, "size-1"); got != "new life" {
		t.Errorf("new life: %q, %v", got, err)
	}
}

// fullEntry has a value in every field.
func fullEntry(id mail.ID) *queue.Entry {
	at := func(h int) time.Time { return time.Date(2031, 2, 3, h, 5, 6, 789, time.UTC) }
	p := smtp.Params{{Keyword: "RET", Value: "HDRS", HasValue: true}, {Keyword: "SMTPUTF8"}}
	adr := func(l string) address.Address { return address.Address{Local: l, Domain: "exämple.org"} }
	return &queue.Entry{
		ID: id,
		Env: mail.Envelope{
			From: adr("sendér"), Params: p, Arrived: at(1), Trace: trace.ID{1, 2, 15: 16}, Client: "[2001:db8::1]:25",
			Auth: "user@exämple.org", Source: mail.FromSubmission, MessageID: "abc@def", UTF8: true, Body: mail.BodyBinary, LongLines: true,
			Rcpts: []mail.Recipient{
				{To: adr("a b"), Orig: adr("c"), Detail: "tag", Params: p, NotBefore: at(2), GiveUp: at(3)},
				{Kind: mail.Pipe, Command: "prog -x 'y'", Orig: adr("d")},
				{Kind: mail.Forward, To: adr("e"), Via: []string{"host", "other:26"}, Orig: adr("e")},
			},
		},
		Status: []queue.RcptStatus{
			{Status: queue.Failed, Attempts: 7, Next: at(4), Reason: mail.ReasonMailbox, Reply: smtp.NewReply(550, "5.1.1", "no\nno"),
				MTA: "mx [192.0.2.1]:25", Text: "no such", Relayed: true, Notified: queue.NotifiedDelay | queue.NotifiedFailure, Held: true},
			{},
			{Status: queue.Sent, Attempts: 1},
		},
	}
}

// unset returns the fields below v that are zero: those that fullEntry forgets.
func unset(v reflect.Value, path string) (names []string) {
	if v.Kind() != reflect.Struct || v.Type() == reflect.TypeFor[time.Time]() {
		if v.IsZero() {
			return []string{path}
		}
		return nil
	}
	for i := range v.NumField() {
		names = append(names, unset(v.Field(i), path+"."+v.Type().Field(i).Name)...)
	}
	return names
}

func (s Subject) testEntry(t *testing.T) {
	full := fullEntry("x")
	full.Size = 1
	rcpt := full.Env.Rcpts[0]
	rcpt.Kind, rcpt.Command, rcpt.Via = mail.Pipe, "as in another", []string{"as in another"}
	for _, v := range []any{*full, rcpt, full.Status[0]} {
		if names := unset(reflect.ValueOf(v), reflect.TypeOf(v).Name()); len(names) > 0 {
			t.Fatalf("fullEntry has no value in %v", names)
		}
	}
	st := s.open(t, vfs.NewMem())
	for _, id := range []mail.ID{mail.NewID(), "x", "q2jJ-_Zx91A", mail.ID(strings.Repeat("long", 20)), "ünïcode"} {
		want := fullEntry(id)
		if err := commit(st, want, "p", "body"); err != nil {
			t.Fatal(err)
		}
		want.Size = 5
		got, err := st.Load(id)
		if err != nil || !reflect.DeepEqual(got, *want) {
			t.Errorf("Load: %v\n got %+v\nwant %+v", err, got, *want)
		}
		for got, err := range st.All() {
			if err != nil || !reflect.DeepEqual(got, *want) {
				t.Errorf("All: %v\n got %+v\nwant %+v", err, got, *want)
			}
		}
		if err := st.Remove(id); err != nil {
			t.Error(err)
		}
	}
	many := newEntry("many", 5000)
	if err := commit(st, many, "", "x"); err != nil {
		t.Fatal(err)
	}
	many.Size, many.Status = 1, make([]queue.RcptStatus, 5000)
	if got, err := st.Load("many"); err != nil || !reflect.DeepEqual(got, *many) {
		t.Errorf("5000 recipients: %d come back, %v", len(got.Env.Rcpts), err)
	}
}

func (s Subject) testDrafts(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	body := text(1, s.Large)
	d, err := st.Create()
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(body); i += 30_000 {
		if n, err := io.WriteString(d, body[i:min(i+30_000, len(body))]); err != nil || n != min(30_000, len(body)-i) {
			t.Fatalf("Write: %d, %v", n, err)
		}
		if i%90_000 == 0 {
			so := body[:min(i+30_000, len(body))]
			if got, err := io.ReadAll(d.Content()); err != nil || string(got) != so {
				t.Fatalf("Content after %d bytes: %d, %v", len(so), len(got), err)
			}
			if d.Size() != int64(len(so)) {
				t.Fatalf("Size %d after %d bytes", d.Size(), len(so))
			}
		}
	}
	c := d.Content()
	for _, at := range []int64{0, 1, 65_536, int64(len(body)) - 3, int64(len(body)), int64(len(body)) + 9} {
		if n, err := c.Seek(at, io.SeekStart); n != at || err != nil {
			t.Fatalf("Seek %d: %d, %v", at, n, err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != body[min(at, int64(len(body))):] {
			t.Fatalf("Content from %d: %d bytes, %v", at, len(got), err)
		}
	}
	if n, err := c.Seek(-10, io.SeekEnd); n != int64(len(body))-10 || err != nil {
		t.Errorf("Seek from the end: %d, %v", n, err)
	}
	if _, err := c.Seek(-1, io.SeekStart); err == nil {
		t.Error("Seek before the beginning succeeds")
	}
	d.Discard()
	d.Discard()
	if _, err := d.Write([]byte("x")); err == nil {
		t.Error("Write after Discard succeeds")
	}
	if err := d.Commit(newEntry("x", 1), nil); err == nil {
		t.Error("Commit after Discard succeeds")
	}
	if got := ids(t, st); len(got) != 0 {
		t.Errorf("a discarded message is there: %v", got)
	}
	d, _ = st.Create()
	if err := d.Commit(newEntry("y", 1), nil); err != nil {
		t.Fatal(err)
	}
	d.Discard()
	if got := ids(t, st); !slices.Equal(got, []mail.ID{"y"}) {
		t.Errorf("Discard after Commit: %v", got)
	}
}

func (s Subject) testUpdates(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	for _, n := range []int{1, 3} {
		id := mail.ID(fmt.Sprintf("m%d", n))
		if err := commit(st, newEntry(id, n), "", "x"); err != nil {
			t.Fatal(err)
		}
		want := make([]queue.RcptStatus, n)
		check := func() {
			t.Helper()
			if e, err := st.Load(id); err != nil || !reflect.DeepEqual(e.Status, want) {
				t.Errorf("%s: states %+v, %v, want %+v", id, e.Status, err, want)
			}
		}
		check()
		for i := range 10 {
			r := i % n
			want[r] = queue.RcptStatus{Attempts: i + 1, Next: time.Unix(int64(i), 1).UTC(), Text: "later", Reason: mail.ReasonDNS}
			if err := st.Update(id, queue.RcptUpdate{Rcpt: r, State: want[r]}); err != nil {
				t.Fatal(err)
			}
			check()
		}
		var us []queue.RcptUpdate
		for r := range n {
			want[r].Status = queue.Sent
			us = append(us, queue.RcptUpdate{Rcpt: r, State: want[r]})
		}
		if err := st.Update(id, us...); err != nil {
			t.Fatal(err)
		}
		check()
		if err := st.Update(id, queue.RcptUpdate{Rcpt: n}); err == nil {
			t.Error("an update of a recipient that does not exist succeeds")
		}
		if err := st.Update(id, queue.RcptUpdate{Rcpt: -1}); err == nil {
			t.Error("an update of recipient -1 succeeds")
		}
		if err := st.Update(id); err != nil {
			t.Errorf("an empty update: %v", err)
		}
		check()
	}
	if err := st.Update("none", queue.RcptUpdate{}); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("Update of nothing: %v", err)
	}
}

func (s Subject) testAll(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	var want []mail.ID
	for i := range 700 {
		id := mail.ID(fmt.Sprintf("%03d", 999-i))
		want = append(want, id)
		if err := commit(st, newEntry(id, 1), "", "x"); err != nil {
			t.Fatal(err)
		}
	}
	if got := ids(t, st); !slices.Equal(got, want) {
		t.Errorf("%d messages, or not in order of arrival", len(got))
	}
	n := 0
	for range st.All() {
		if n++; n == 3 {
			break
		}
	}
	// Removing while iterating: what is gone does not come, what remains comes once.
	seen := map[mail.ID]int{}
	for e, err := range st.All() {
		if err != nil {
			t.Fatal(err)
		}
		seen[e.ID]++
		st.Remove(want[len(want)-1])
		want = want[:len(want)-1]
		if len(want) < 2 {
			break
		}
	}
	for _, id := range want {
		if seen[id] != 1 {
			t.Errorf("%s came %d times", id, seen[id])
		}
	}
}

// testReaders: a body that is being read can be read to its end, whatever happens to the message.
func (s Subject) testReaders(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	body := text(5, s.Large)
	for i := range 8 {
		if err := commit(st, newEntry(mail.ID(fmt.Sprint(i)), 1), "", body); err != nil {
			t.Fatal(err)
		}
	}
	var rs []io.ReadCloser
	for i := range 8 {
		r, err := st.Open(mail.ID(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	for i := range 8 {
		if err := st.Remove(mail.ID(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	s.Care(st)
	for i := range 20 {
		if err := commit(st, newEntry(mail.ID(fmt.Sprint("later", i)), 1), "", text(i, 60_000)); err != nil {
			t.Fatal(err)
		}
	}
	s.Care(st)
	for i, r := range rs {
		var b bytes.Buffer
		if _, err := io.Copy(&b, r); err != nil || b.String() != body[100:] {
			t.Errorf("reader %d: %d bytes, %v", i, b.Len(), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	s.Care(st)
	if r, err := st.Open("later0"); err != nil {
		t.Error(err)
	} else {
		r.Close()
	}
}

func (s Subject) testErrors(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	if err := commit(st, newEntry("", 1), "", "x"); err == nil {
		t.Error("a message without id is taken")
	}
	if err := commit(st, newEntry("a", 0), "", "x"); err == nil {
		t.Error("a message without recipients is taken")
	}
	e := newEntry("a", 2)
	e.Status = make([]queue.RcptStatus, 1)
	if err := commit(st, e, "", "x"); err == nil {
		t.Error("one state for two recipients is taken")
	}
	for _, id := range []mail.ID{"", "none"} {
		if err := st.Remove(id); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("Remove of nothing: %v", err)
		}
		if _, err := st.Load(id); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("Load of nothing: %v", err)
		}
		if _, err := st.Open(id); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("Open of nothing: %v", err)
		}
	}
	if got := ids(t, st); len(got) != 0 {
		t.Errorf("messages that were refused are there: %v", got)
	}
}

// testConcurrent: many clients at once, each with its own messages, all of them fighting for one id.
func (s Subject) testConcurrent(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	var wg sync.WaitGroup
	var mu sync.Mutex
	won, want := 0, map[mail.ID]string{}
	for c := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(c), 1))
			for i := range 12 {
				id := mail.ID(fmt.Sprintf("%d-%d", c, i))
				body := text(c*100+i, rng.IntN(100_000)>>rng.IntN(12))
				if err := commit(st, newEntry(id, 2), "p", body); err != nil {
					t.Error(err)
					return
				}
				if err := st.Update(id, queue.RcptUpdate{Rcpt: i % 2, State: queue.RcptStatus{Attempts: i}}); err != nil {
					t.Error(err)
				}
				if e, err := st.Load(id); err != nil || e.Status[i%2].Attempts != i {
					t.Errorf("Load %s: %+v, %v", id, e.Status, err)
				}
				if got, err := readBody(st, id); err != nil || got != "p"+body {
					t.Errorf("read %s: %d bytes of %d, %v", id, len(got), len(body)+1, err)
				}
				if i%3 > 0 {
					if err := st.Remove(id); err != nil {
						t.Error(err)
					}
					continue
				}
				mu.Lock()
				want[id] = "p" + body
				mu.Unlock()
			}
			switch err := commit(st, newEntry("contested", 1), "", fmt.Sprint(c)); {
			case err == nil:
				mu.Lock()
				won++
				want["contested"] = fmt.Sprint(c)
				mu.Unlock()
			case !errors.Is(err, queue.ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d clients committed the same id", won)
	}
	for _, id := range ids(t, st) {
		if got, err := readBody(st, id); err != nil || want[id] == "" || got != want[id] {
			t.Errorf("%s: %d bytes, want %d, %v", id, len(got), len(want[id]), err)
		}
		delete(want, id)
	}
	if len(want) > 0 {
		t.Errorf("lost: %d messages", len(want))
	}
}

func (s Subject) testClosed(t *testing.T) {
	st := s.open(t, vfs.NewMem())
	if err := commit(st, newEntry("a", 1), "", "x"); err != nil {
		t.Fatal(err)
	}
	d, err := st.Create()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(d, "x")
	if err := st.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	_, cerr := st.Create()
	_, lerr := st.Load("a")
	_, oerr := st.Open("a")
	for i, err := range []error{cerr, lerr, oerr, d.Commit(newEntry("b", 1), nil), st.Update("a", queue.RcptUpdate{}), st.Remove("a"), st.Close()} {
		if !errors.Is(err, queue.ErrClosed) {
			t.Errorf("call %d after Close: %v", i, err)
		}
	}
}
