package reload

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/log"
)

type fixable struct{ error }

func (fixable) Remedy() string { return "put it right" }

type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

// captureLog collects what the process log gets while f runs.
func captureLog(t *testing.T, f func()) string {
	t.Helper()
	old := log.Default
	defer func() { log.Default = old }()
	b := &buffer{}
	log.Default = log.New(b)
	log.Default.LogTime = false
	f()
	return b.String()
}

// TestN2OtherStepsGoOn: a step that fails or panics is reported and does not keep the others from running.
func TestN2OtherStepsGoOn(t *testing.T) {
	var ran []string
	step := func(name string, do func() error) Step {
		return Step{name, func(context.Context, *Report) error { ran = append(ran, name); return do() }}
	}
	reg := expvarom.New()
	r := New(Config{Metrics: reg, Steps: []Step{
		step("users", func() error { return errors.Join(errors.New("one"), fixable{errors.New("two")}) }),
		step("aliases", func() error { panic("boom") }),
		step("certs", func() error { return nil }),
	}})
	var err error
	out := captureLog(t, func() { err = r.Now(t.Context(), Signal).Err() })
	if strings.Join(ran, " ") != "users aliases certs" {
		t.Errorf("ran %v", ran)
	}
	last := r.Last()
	if err == nil || len(last.Errors) != 3 || last.Trigger != Signal || !last.Good.IsZero() {
		t.Errorf("%v, status %+v", err, last)
	}
	for _, want := range []string{"users: one", "users: two", "To fix: put it right", "panic while reloading aliases: boom", "reload_test.go"} {
		if !strings.Contains(out, want) {
			t.Errorf("the log lacks %q:\n%s", want, out)
		}
	}
	if last.Errors[1].Remedy() != "put it right" || last.Errors[0].Remedy() != "" {
		t.Errorf("remedies %q %q", last.Errors[0].Remedy(), last.Errors[1].Remedy())
	}
	m := r.metrics
	if m.reloads.With("signal", "error").Value() != 1 || m.last.Value() != 0 || m.panics.Value() != 1 || m.good.Value() != 0 {
		t.Error("wrong metrics")
	}
}

// TestLogsOnce: a file that stays bad is one line, and one when it is good again.
func TestLogsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		r := New(Config{Steps: []Step{{"users", func(_ context.Context, rep *Report) error {
			if bad.Load() {
				rep.Warnings, rep.Restart = []string{"a warning"}, []string{"data_dir: a -> b"}
				return errors.New("bad file")
			}
			return nil
		}}}})
		out := captureLog(t, func() {
			ctx, cancel := context.WithCancel(t.Context())
			go r.Run(ctx)
			time.Sleep(3*time.Minute + time.Second) // six rounds
			bad.Store(true)
			time.Sleep(3 * time.Minute)
			bad.Store(false)
			time.Sleep(3 * time.Minute)
			cancel()
			synctest.Wait()
		})
		for text, n := range map[string]int{"bad file": 1, "users: a warning": 1, "at the next restart: data_dir": 1, "good again": 1} {
			if got := strings.Count(out, text); got != n {
				t.Errorf("%q %d times, want %d:\n%s", text, got, n, out)
			}
		}
		if got := r.metrics.reloads.With("periodic", "ok").Value() + r.metrics.reloads.With("periodic", "error").Value(); got != 18 {
			t.Errorf("%v rounds in 9 minutes", got)
		}
		if r.metrics.last.Value() != 1 || r.Last().Good.IsZero() || len(r.Last().Errors) != 0 {
			t.Errorf("status %+v", r.Last())
		}
	})
}

// TestHold: while reloads are held none runs, and one that runs ends first.
func TestHold(t *testing.T) {
	ran := 0
	r := New(Config{Steps: []Step{{"step", func(context.Context, *Report) error {
		ran++
		return nil
	}}}})
	release := r.Hold()
	if err := r.Now(t.Context(), Signal).Err(); !errors.Is(err, ErrHeld) || ran != 0 {
		t.Errorf("%v, ran %d times", err, ran)
	}
	release()
	if err := r.Now(t.Context(), Signal).Err(); err != nil || ran != 1 {
		t.Errorf("%v, ran %d times", err, ran)
	}
}

// TestChanges: what a reload changed is logged and kept until another one changes something.
func TestChanges(t *testing.T) {
	changes := []string{"max_recipients: 1 -> 2"}
	r := New(Config{Steps: []Step{{"settings", func(_ context.Context, rep *Report) error {
		if rep.Trigger == Operator {
			rep.Changes = changes
		}
		return nil
	}}}})
	var first, second Status
	out := captureLog(t, func() { first, second = r.Now(t.Context(), Operator), r.Now(t.Context(), Periodic) })
	if len(first.Changes) != 1 || len(second.Changes) != 0 || second.LastChanges[0] != changes[0] || !second.ChangedAt.Equal(first.At) {
		t.Errorf("%+v, then %+v", first, second)
	}
	if strings.Count(out, "Reload: max_recipients: 1 -> 2") != 1 {
		t.Errorf("log:\n%s", out)
	}
}
