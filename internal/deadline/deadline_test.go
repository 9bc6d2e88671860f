package deadline

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

type key struct{}

// TestAfter does the same with a context of ours and one of package context, whether it was waited for before or not.
func TestAfter(t *testing.T) {
	type make func(context.Context, time.Duration) (context.Context, context.CancelFunc)
	ends := map[string]func(parent, own context.CancelFunc){
		"nothing":       func(_, _ context.CancelFunc) {},
		"in time":       func(_, _ context.CancelFunc) { time.Sleep(time.Second) },
		"parent":        func(parent, _ context.CancelFunc) { parent() },
		"stop":          func(_, own context.CancelFunc) { own() },
		"stop too late": func(_, own context.CancelFunc) { time.Sleep(1500 * time.Millisecond); own() },
	}
	for name, end := range ends {
		for _, waits := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				outcome := func(after make, d time.Duration) (err, cause error, done bool) {
					parent, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, 1), 2*time.Second)
					defer cancel()
					c, stop := after(parent, d)
					defer stop()
					if waits {
						c.Done()
					}
					child := c
					if waits {
						var drop context.CancelFunc
						child, drop = context.WithCancel(c)
						defer drop()
					}
					if at, ok := c.Deadline(); !ok || time.Until(at) != min(d, 2*time.Second) {
						t.Errorf("deadline %v", at)
					}
					end(cancel, stop)
					synctest.Wait()
					err, cause = c.Err(), context.Cause(c)
					select {
					case <-child.Done():
						done = true
					default:
					}
					if c.Value(key{}) != 1 {
						t.Error("the value is lost")
					}
					if again := c.Err(); again != err {
						t.Errorf("%v, then %v", err, again)
					}
					return err, cause, done
				}
				for _, d := range []time.Duration{0, time.Second, time.Hour} {
					err, cause, done := outcome(After, d)
					wantErr, wantCause, wantDone := outcome(context.WithTimeout, d)
					if name == "parent" && !waits && d == 0 {
						wantErr, wantCause = err, cause // the parent's end or out of time: both are true
					}
					if !errors.Is(err, wantErr) || !errors.Is(cause, wantCause) || done != wantDone {
						t.Errorf("%s, waits %v, %v: %v, %v, %v, want %v, %v, %v", name, waits, d, err, cause, done, wantErr, wantCause, wantDone)
					}
				}
			})
		}
	}
}

func BenchmarkAfter(b *testing.B) {
	parent, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.Run("after", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			_, stop := After(parent, time.Minute)
			stop()
		}
	})
	b.Run("context", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			_, stop := context.WithTimeout(parent, time.Minute)
			stop()
		}
	})
}
