package queue

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// again runs the queue again.
func (w *world) again() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		if err := w.Queue.Run(ctx); err != nil {
			w.Errorf("Run: %v", err)
		}
		close(done)
	}()
	w.stop = func() { cancel(); <-done }
}

// TestRunAgain: a queue that was stopped takes messages, and delivers them when it runs again; nothing is loaded or tried twice.
func TestRunAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, job *mail.Job, _ *mail.Recipient) mail.Outcome {
			if job.Attempt == 1 {
				return greylist
			}
			return delivered
		}
		w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		w.stop()
		w.put(envelope("a@them.test", "b@y.test"))
		time.Sleep(time.Second)
		if n := w.courier.count(); n != 1 {
			t.Fatalf("%d attempts, the last while the queue was stopped", n)
		}
		loads := w.store.loadCount()
		w.again()
		synctest.Wait()
		if n := w.courier.count(); n != 2 || w.store.loadCount() != loads {
			t.Errorf("%d attempts, %d loads", n, w.store.loadCount()-loads)
		}
		time.Sleep(time.Hour)
		w.mustBeEmpty()
		if n := w.courier.count(); n != 4 {
			t.Errorf("%d attempts", n)
		}
		w.stop()
	})
}

// TestForget: a queue that gave its store away and got it back delivers what the store holds then, and not what it remembers.
func TestForget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		slot := &Slot{}
		w := newWorld(t, func(c *Config) {
			slot.Put(c.Store)
			c.Store = slot
		})
		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return greylist }
		mine := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		w.stop()
		if err := slot.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Begin(t.Context()); err == nil {
			t.Error("a message was begun without a store")
		}
		// The other process delivers one and takes another.
		if err := w.store.Remove(mine); err != nil {
			t.Fatal(err)
		}
		in, err := w.store.Create()
		if err != nil {
			t.Fatal(err)
		}
		theirs := Entry{ID: "theirs", Env: *envelope("a@them.test", "c@x.test"), Status: make([]RcptStatus, 1), Size: int64(len(content))}
		theirs.Env.Arrived = time.Now()
		if _, err := in.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := in.Commit(&theirs, nil); err != nil {
			t.Fatal(err)
		}
		w.courier.deliver = nil
		w.Forget()
		slot.Put(w.store)
		w.again()
		time.Sleep(time.Second)
		w.mustBeEmpty()
		if got := w.courier.times("b@x.test"); len(got) != 1 {
			t.Errorf("a message that is gone was tried %d times", len(got))
		}
		if got := w.courier.times("c@x.test"); len(got) != 1 {
			t.Errorf("the message of the other process was tried %d times", len(got))
		}
		if st := w.Stats(); st.Messages != 0 {
			t.Errorf("%+v", st)
		}
		w.stop()
	})
}

// TestEmptySlot: without a store, everything fails, and nothing is there.
func TestEmptySlot(t *testing.T) {
	s := &Slot{}
	_, create := s.Create()
	_, load := s.Load("x")
	_, open := s.Open("x")
	for what, err := range map[string]error{"create": create, "load": load, "open": open, "update": s.Update("x"), "remove": s.Remove("x")} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for e := range s.All() {
		t.Errorf("%+v", e)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestProbe: a queue that looks at its schedule passes, one whose lock is held does not; and one that does not run is not stuck.
func TestProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		synctest.Wait()
		probe := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return w.Probe(ctx)
		}
		for range 3 {
			if err := probe(); err != nil {
				t.Error(err)
			}
		}
		w.stop()
		if err := probe(); err != nil {
			t.Errorf("stopped: %v", err)
		}
		w.mu.Lock()
		w.running = true // but no Run looks
		w.mu.Unlock()
		if err := probe(); err == nil {
			t.Error("a queue whose schedule nobody looks at passes")
		}
	})
}

// TestProbeLocked is outside of a bubble, whose time does not pass while somebody waits for a lock.
func TestProbeLocked(t *testing.T) {
	q := New(testConfig(newFakeStore(), &fakeCourier{}))
	q.mu.Lock()
	defer q.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := q.Probe(ctx); err == nil {
		t.Error("a queue whose lock is held passes")
	}
}

// loadCount is how many entries were read.
func (s *fakeStore) loadCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loads
}
