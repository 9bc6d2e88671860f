package trace

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatch checks that a watch sees all of what has to do with a client, and keeps it.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, r := recording(Config{})
		flood(ctx, 100)
		w, err := r.Watch("Bob@Example", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		lines := w.Lines()
		cctx, conn := Start(ctx, SMTPConn, "192.0.2.1:25")
		conn.Printf("EHLO x")
		_, tx := StartMessage(cctx, SMTPTransaction, "192.0.2.1:25", NewID())
		tx.Printf("MAIL FROM someone else")
		tx.Errorf("RCPT TO <bob@example.org> fails\n")
		_, other := StartMessage(ctx, SMTPTransaction, "another", NewID())
		other.Printf("unrelated")
		other.Finish()
		tx.Finish()
		_, item := StartMessage(ctx, QueueItem, "x", tx.ID())
		item.Printf("later")
		w.Close()
		w.Close()
		item.Finish()
		var got []string
		for line := range lines {
			_, text, _ := strings.Cut(line, ": ")
			got = append(got, text)
		}
		want := []string{`error: RCPT TO <bob@example.org> fails\n`, "ends badly after 0s", "begins", "later"}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if _, more := <-w.Lines(); more {
			t.Error("a closed watch says something")
		}
		if !r.Kept(tx.ID()) || r.Kept(other.ID()) {
			t.Errorf("kept: %v, %v", r.Kept(tx.ID()), r.Kept(other.ID()))
		}
		r.check(t)
	})
}

func TestWatchLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, r := recording(Config{})
		w, err := r.Watch("192.0.2.1", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		lines := w.Lines()
		cctx, conn := Start(ctx, SMTPConn, "192.0.2.1:25")
		_, tx := StartMessage(cctx, SMTPTransaction, "its message", NewID())
		tx.Errorf("bad\n")
		_, other := Start(ctx, SMTPConn, "198.51.100.1:25")
		other.Finish()
		time.Sleep(time.Second)
		tx.Finish()
		time.Sleep(time.Hour) // it ends by itself
		conn.Finish()
		var got []string
		for line := range lines {
			got = append(got, strings.ReplaceAll(strings.ReplaceAll(line, conn.ID().Short(), "C"), tx.ID().Short(), "T"))
		}
		want := `00:00:00.000 C SMTP.Conn 192.0.2.1:25: begins
00:00:00.000 T SMTP.Transaction its message: begins
00:00:00.000 T SMTP.Transaction its message: error: bad\n
00:00:01.000 T SMTP.Transaction its message: ends badly after 1s`
		if strings.Join(got, "\n") != want {
			t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), want)
		}
	})
}

func TestWatchLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, r := recording(Config{})
		for _, bad := range []string{"", strings.Repeat("x", maxWatchText+1)} {
			if _, err := r.Watch(bad, time.Minute); err == nil {
				t.Errorf("a watch for %q", bad)
			}
		}
		var ws []*Watch
		for range maxWatches {
			w, err := r.Watch("x", 24*time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			ws = append(ws, w)
		}
		if _, err := r.Watch("x", time.Minute); !errors.Is(err, errWatches) {
			t.Error(err)
		}
		for range maxWatchTraces + 100 {
			_, s := Start(ctx, DNS, "x")
			s.Finish()
		}
		if n := len(ws[0].ids); n != maxWatchTraces {
			t.Errorf("%d traces are followed", n)
		}
		if n := ws[0].Dropped(); n != 2*maxWatchTraces-watchLines || ws[0].Dropped() != 0 {
			t.Errorf("%d lines dropped", n)
		}
		time.Sleep(maxWatchTime)
		synctest.Wait()
		if r.watches.Load() != nil {
			t.Error("watches do not end")
		}
	})
}

// TestWatchRace closes watches while spans come and go. Run it with -race.
func TestWatchRace(t *testing.T) {
	ctx, r := recording(Config{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range 100 {
				message(ctx, i)
			}
		})
	}
	for range 100 {
		w, err := r.Watch("example", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for range w.Lines() {
			}
		}()
		w.Close()
	}
	wg.Wait()
}

// TestLogDebug checks that lines of level debug can be had for a while, without those that are logged anyway.
func TestLogDebug(t *testing.T) {
	r := New(Config{Log: true})
	var lines []string
	r.LogDebug(func(l string) { lines = append(lines, l) })
	_, s := Start(WithRecorder(t.Context(), r), SMTPConn, "192.0.2.1:25")
	s.Debugf("said %q", "a\n")
	r.LogDebug(nil)
	s.Debugf("unheard")
	s.Finish()
	if len(lines) != 1 || !strings.Contains(lines[0], "192.0.2.1:25: said") || strings.Contains(lines[0], "\n") {
		t.Errorf("lines %q", lines)
	}
}
