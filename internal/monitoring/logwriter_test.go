package monitoring

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// writes keeps what was written, by write.
type writes struct {
	mu  sync.Mutex
	all []string
	err error
}

func (w *writes) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, string(b))
	return len(b), w.err
}

func (w *writes) Close() error { return nil }

func (w *writes) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.all
	w.all = nil
	return all
}

// TestLogBytes checks that lines are byte for byte what package log writes by itself, time and place included.
func TestLogBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the time stands still between two lines
		for setting := range 8 {
			plain, ours := &sink{}, &sink{}
			var gs []*log.Logger
			for _, out := range []*sink{plain, ours} {
				g := log.New(out)
				g.Level, g.LogTime, g.LogLevel, g.LogCaller = log.Debug, setting&1 != 0, setting&2 != 0, setting&4 != 0
				gs = append(gs, g)
			}
			l := NewLog(gs[1], nil)
			l.Gather(true)
			gs[1] = l.Logger()
			for _, text := range []string{"text", "", "two\nlines", "ends\n\n", "100%", strings.Repeat("long ", 2000), "\xff…"} {
				for _, g := range gs {
					for _, level := range []log.Level{log.Debug, log.Info, log.Error, log.Fatal} {
						g.Log(level, 0, "%s", text)
					}
					g.Infof("%s\n", text)
				}
				time.Sleep(1234567 * time.Microsecond)
			}
			l.Gather(false)
			got := ours.String()
			if want := plain.String(); got != want {
				t.Errorf("setting %d: the log is\n%.3000s\nwant\n%.3000s", setting, got, want)
			}
		}
	})
}

// TestLogGather checks that a line is written at once after a pause, that those of a moment are written together, and that errors do not wait.
func TestLogGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &writes{}
		next := log.New(out)
		next.LogTime, next.LogCaller = false, false
		reg := expvarom.New()
		l := NewLog(next, reg)
		expect := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			if got, want := strings.Join(out.take(), "|"), strings.Join(want, "|"); got != want {
				t.Errorf("%s: wrote %.100q, want %.100q", what, got, want)
			}
		}
		l.Line(log.Info, 0, nil, "a")
		l.Line(log.Info, 0, nil, "b")
		expect("not gathering", "_ a\n", "_ b\n")
		time.Sleep(time.Second)
		l.Gather(true)
		l.Line(log.Info, 0, nil, "first")
		expect("after a pause", "_ first\n")
		l.Line(log.Info, 0, nil, "second")
		time.Sleep(gatherTime / 2)
		l.Debug("third")
		expect("too early")
		time.Sleep(gatherTime / 2)
		expect("in time", "_ second\n_ debug: third\n")
		l.Line(log.Info, 0, nil, "fourth")
		l.Line(log.Error, 0, nil, "fifth")
		expect("an error", "_ fourth\nE fifth\n")
		l.Line(log.Info, 0, nil, "sixth")
		l.Logger().Log(log.Fatal, 0, "%s", "the end")
		expect("a fatal error", "_ sixth\n☠ the end\n")
		l.Line(log.Info, 0, nil, "seventh")
		l.Gather(false)
		expect("switched off", "_ seventh\n")
		l.Gather(true)
		half := strings.Repeat("x", gatherBytes/2-3)
		for range 3 {
			l.Line(log.Info, 0, nil, half)
		}
		expect("much", "_ "+half+"\n_ "+half+"\n")
		time.Sleep(gatherTime)
		expect("the rest", "_ "+half+"\n")
		time.Sleep(time.Second)
		expect("nothing left")
		out.mu.Lock()
		out.err = errors.New("disk full")
		out.mu.Unlock()
		l.Line(log.Info, 0, nil, "lost")
		l.Line(log.Info, 0, nil, "lost")
		l.Line(log.Info, 0, nil, "lost")
		time.Sleep(gatherTime)
		expect("failing", "_ lost\n", "_ lost\n_ lost\n")
		if got := l.w.failed.Value(); got != 3 {
			t.Errorf("%v lines counted as lost", got)
		}
	})
}

// TestLogFiles has two processes' logs write to one file, which is moved away meanwhile: every line is there, whole, once and in order.
func TestLogFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const loggers, lines = 4, 500
	var wg sync.WaitGroup
	var all []*Log
	for range 2 {
		next, err := log.NewFile(path)
		if err != nil {
			t.Fatal(err)
		}
		next.LogTime, next.LogCaller, next.LogLevel = false, false, false
		l := NewLog(next, nil)
		l.Gather(true)
		all = append(all, l)
		for g := range loggers {
			wg.Go(func() {
				for n := range lines {
					level := log.Info
					if n%100 == 99 {
						level = log.Error
					}
					l.Line(level, 0, nil, fmt.Sprintf("%p/%d %d", l, g, n))
				}
			})
		}
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if err := l.Reopen(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for _, l := range all {
		l.Line(log.Info, 0, nil, "end 0")
		l.Gather(false)
	}
	first, _ := os.ReadFile(path + ".1")
	second, err := os.ReadFile(path)
	if err != nil || bytes.Count(second, []byte("end 0\n")) != 2 {
		t.Errorf("the new file: %v\n%s", err, second)
	}
	next := map[string]int{}
	for line := range strings.Lines(string(first) + strings.ReplaceAll(string(second), "end 0\n", "")) {
		var who string
		var n int
		if _, err := fmt.Sscanf(line, "%s %d\n", &who, &n); err != nil || next[who] != n {
			t.Fatalf("line %q, want number %d: %v", line, next[who], err)
		}
		next[who]++
	}
	for who, n := range next {
		if n != lines {
			t.Errorf("%d lines of %s", n, who)
		}
	}
	if len(next) != 2*loggers {
		t.Errorf("%d loggers", len(next))
	}
}

// TestLogSyslog checks that without gathering a write is one message, as syslog needs it, however many come at once.
func TestLogSyslog(t *testing.T) {
	out := &writes{}
	next := log.New(out)
	l := NewLog(next, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.Line(log.Info, 0, nil, "first\nsecond")
			}
		})
	}
	wg.Wait()
	for _, w := range out.all {
		if strings.Count(w, "\n") != 2 {
			t.Fatalf("wrote %q", w)
		}
	}
	if len(out.all) != 800 {
		t.Errorf("%d writes", len(out.all))
	}
}

// BenchmarkLogLine is what a line costs that is written for every message, to a file.
func BenchmarkLogLine(b *testing.B) {
	next, err := log.NewFile(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		gather bool
		place  *trace.Place
	}{{"at once", false, nil}, {"gathered", true, nil}, {"gathered, place known", true, new(trace.Place)}} {
		b.Run(c.name, func(b *testing.B) {
			l := NewLog(next, nil)
			l.Gather(c.gather)
			b.ReportAllocs()
			for b.Loop() {
				l.Line(log.Info, 0, c.place, "Queue.SendLoop 17e3c8a4b2f1d059: bob@example.com sent")
			}
			l.Gather(false)
		})
	}
}
