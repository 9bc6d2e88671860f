package maillog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// TestLOG6 pins the line of every event to the layouts that existing log readers parse.
func TestLOG6(t *testing.T) {
	a, b := address.MustParse("a@x.test"), address.MustParse("b@y.test")
	rcpt := &mail.Recipient{To: b}
	for _, c := range []struct {
		e    timeline.Event
		want string
	}{
		{timeline.Event{Kind: timeline.Listen, Text: "[::]:25"}, "daemon listening on [::]:25"},
		{timeline.Event{Kind: timeline.Auth, Client: "1.2.3.4:5", User: "u@x.test"}, "1.2.3.4:5 auth succeeded for u@x.test"},
		{timeline.Event{Kind: timeline.Auth, Client: "1.2.3.4:5", User: "u\nv@x.test", Err: errors.New("no")}, `1.2.3.4:5 auth failed for u\nv@x.test`},
		{timeline.Event{Kind: timeline.Refused, Client: "1.2.3.4:5", From: a, Rcpts: []address.Address{b}, Text: "relay not allowed"},
			"1.2.3.4:5 rejected from=a@x.test to=[b@y.test] - relay not allowed"},
		{timeline.Event{Kind: timeline.Refused, Client: "1.2.3.4:5", Text: "malformed address: x"}, "1.2.3.4:5 rejected - malformed address: x"},
		{timeline.Event{Kind: timeline.Refused, Client: "1.2.3.4:5", Rcpts: []address.Address{a, b}, Text: "r"},
			"1.2.3.4:5 rejected from=<> to=[a@x.test b@y.test] - r"},
		{timeline.Event{Kind: timeline.Queued, ID: "ID", From: a, Client: "1.2.3.4:5", Rcpts: []address.Address{a, b}},
			"ID from=a@x.test queued ip=1.2.3.4:5 to=[a@x.test b@y.test]"},
		{timeline.Event{Kind: timeline.Attempt, ID: "ID", Rcpt: rcpt, Outcome: &mail.Outcome{Disposition: mail.Delivered}}, "ID from=<> to=b@y.test sent"},
		{timeline.Event{Kind: timeline.Attempt, ID: "ID", From: a, Rcpt: rcpt, Outcome: &mail.Outcome{Disposition: mail.Failed, Err: errors.New("no such user")}},
			"ID from=a@x.test to=b@y.test failed (permanent): no such user"},
		{timeline.Event{Kind: timeline.Attempt, ID: "ID", From: a, Rcpt: rcpt, Outcome: &mail.Outcome{Reply: smtp.NewReply(450, "4.2.1", "later")}},
			"ID from=a@x.test to=b@y.test failed (temporary): 450 4.2.1 later"},
		{timeline.Event{Kind: timeline.LoopEnd, ID: "ID", From: a, Wait: 61 * time.Second}, "ID from=a@x.test completed loop, next in 1m1s"},
		{timeline.Event{Kind: timeline.Final, ID: "ID", From: a}, "ID from=a@x.test all done"},
		{timeline.Event{Kind: timeline.Check}, ""},
	} {
		if got := string(appendLine(nil, &c.e)); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.e.Kind, got, c.want)
		}
	}
}

// TestHasLine checks that all kinds of events are told apart as appendLine does.
func TestHasLine(t *testing.T) {
	e := timeline.Event{Rcpt: &mail.Recipient{}, Outcome: &mail.Outcome{}}
	for ; e.Kind.String() != "unknown"; e.Kind++ {
		if has := len(appendLine(nil, &e)) > 0; has != hasLine(e.Kind) {
			t.Errorf("%s has a line: %v", e.Kind, has)
		}
	}
}

// BenchmarkRelayed is the lines of a message that is relayed: three for seven events.
func BenchmarkRelayed(b *testing.B) {
	from, orig, to := address.MustParse("from@sender.test"), address.MustParse("u0@bench.test"), address.MustParse("u0@sink.test")
	l, err := Open(Config{Path: filepath.Join(b.TempDir(), "log")})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	rcpt := &mail.Recipient{To: to, Orig: orig}
	check := timeline.Event{Kind: timeline.Check, ID: "335qheph1c4zyvrm", From: from, Text: "dkim_verify: dkim=none"}
	events := []timeline.Event{check, check, check,
		{Kind: timeline.Queued, ID: check.ID, From: from, Client: "127.0.0.1:43236", Rcpts: []address.Address{orig}},
		{Kind: timeline.Expanded, ID: check.ID, From: from, Rcpt: rcpt},
		{Kind: timeline.Attempt, ID: check.ID, From: from, Rcpt: rcpt, Outcome: &mail.Outcome{Disposition: mail.Delivered}},
		{Kind: timeline.Final, ID: check.ID, From: from}}
	b.ReportAllocs()
	for b.Loop() {
		at := time.Now()
		for i := range events {
			events[i].At = at
			l.Observe(&events[i])
		}
		l.mu.Lock()
		l.buf = l.buf[:0]
		l.mu.Unlock()
	}
}

// TestFile checks that lines reach the file in order, stamped, and that Reopen moves to a new file.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "mail.log")
	l, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 4, 5, 6, 7, 8000, time.Local)
	for _, id := range []mail.ID{"one", "two"} {
		l.Observe(&timeline.Event{Kind: timeline.Final, ID: id, At: at})
	}
	l.Observe(&timeline.Event{Kind: timeline.Check, At: at})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Observe(&timeline.Event{Kind: timeline.Final, ID: "three", At: at})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	both, last := read(t, path+".1")+read(t, path), read(t, path)
	const stamp = "2026-03-04 05:06:07.000008 "
	if want := stamp + "one from=<> all done\n" + stamp + "two from=<> all done\n" + stamp + "three from=<> all done\n"; both != want {
		t.Errorf("log is\n%swant\n%s", both, want)
	}
	if !strings.Contains(last, "three") {
		t.Errorf("line after Reopen is not in the new file: %q", last)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type broken struct{ writes int }

func (b *broken) Write([]byte) (int, error) { b.writes++; return 0, errors.New("disk gone") }
func (*broken) Close() error                { return nil }

// TestWriteErrors checks that failed writes and dropped lines are counted, and that a stuck destination does not grow memory.
func TestWriteErrors(t *testing.T) {
	errs := 0
	l := &Log{onError: func() { errs++ }, dest: &Destination{path: "x", timed: true, w: &broken{}}}
	l.write(l.dest, []byte("line\n"))
	if errs != 1 || !l.failing {
		t.Errorf("after a failed write: %d errors, failing=%v", errs, l.failing)
	}
	l.buf = make([]byte, maxBuffered+1)
	l.Observe(&timeline.Event{Kind: timeline.Final, ID: "x"})
	if errs != 2 || len(l.buf) != maxBuffered+1 {
		t.Errorf("over the limit: %d errors, %d bytes buffered", errs, len(l.buf))
	}
}

// TestOpenError checks that an unusable path is reported with the path, as start-up prints it.
func TestOpenError(t *testing.T) {
	_, err := Open(Config{Path: filepath.Join(t.TempDir(), "dir") + "/"})
	if err == nil {
		t.Fatal("a directory was opened as a log")
	}
}

// countingWriter counts writes and the lines in them.
type countingWriter struct {
	mu            sync.Mutex
	writes, lines int
}

func (w *countingWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes++
	w.lines += bytes.Count(b, []byte("\n"))
	return len(b), nil
}

func (w *countingWriter) Close() error { return nil }

// TestGather checks that the first line is written at once, that those of a moment are written together, and that none is lost at the end.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &countingWriter{}
		l := &Log{dest: &Destination{timed: true, w: w}, wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{})}
		l.onError = func() { t.Error("a line was not written") }
		go l.run()
		e := &timeline.Event{Kind: timeline.Final, At: time.Now()}
		l.Observe(e)
		synctest.Wait()
		if w.writes != 1 {
			t.Errorf("%d writes after the first line", w.writes)
		}
		for range 100 {
			l.Observe(e)
			synctest.Wait()
		}
		time.Sleep(gather)
		synctest.Wait()
		if w.writes != 2 || w.lines != 101 {
			t.Errorf("%d writes, %d lines after a moment", w.writes, w.lines)
		}
		l.Observe(e)
		synctest.Wait()
		if err := l.Close(); err != nil || w.lines != 102 {
			t.Errorf("%d lines at the end, %v", w.lines, err)
		}
	})
}

// TestN2Use: another destination gets what comes from then on, the old one what came before, each in its own layout.
func TestN2Use(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	l, err := Open(Config{Path: one})
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.dest.timed = false // as syslog has it
	l.mu.Unlock()
	l.Observe(&timeline.Event{Kind: timeline.Final, ID: "one"})
	if _, err := OpenDestination(dir); err == nil {
		t.Error("a directory can be opened")
	}
	d, err := OpenDestination(two)
	if err != nil {
		t.Fatal(err)
	}
	l.Use(d)
	l.Observe(&timeline.Event{Kind: timeline.Final, ID: "two", At: time.Date(2026, 3, 4, 5, 6, 7, 8000, time.Local)})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, one), "one from=<> all done"; got != want {
		t.Errorf("the first got %q, want %q", got, want)
	}
	if got, want := read(t, two), "2026-03-04 05:06:07.000008 two from=<> all done\n"; got != want {
		t.Errorf("the second got %q, want %q", got, want)
	}
}
