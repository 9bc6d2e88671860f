package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Five days of temporary failures: retries as S-4 says, a delay notice after four hours, and in the end a failure notice that is durable
// before the message goes.
func TestS4S6FiveDays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "slow.test" {
				return greylist
			}
			return delivered
		}
		start := time.Now()
		id := w.put(envelope("sender@them.test", "b@slow.test"))
		time.Sleep(3*time.Hour + 58*time.Minute)
		if n := len(w.courier.times("sender@them.test")); n != 0 {
			t.Fatalf("%d notices before four hours", n)
		}
		time.Sleep(4 * time.Minute)
		if n := len(w.courier.times("sender@them.test")); n != 1 {
			t.Fatalf("%d notices after four hours, want 1", n)
		}
		time.Sleep(5*24*time.Hour - 5*time.Hour)
		if n := len(w.courier.times("sender@them.test")); n != 1 {
			t.Fatalf("%d notices before the end, want 1", n)
		}
		time.Sleep(3 * time.Hour)
		w.mustBeEmpty()
		if n := len(w.courier.times("sender@them.test")); n != 2 {
			t.Fatalf("%d notices at the end, want 2", n)
		}
		checkRetries(t, w.courier.times("b@slow.test"))
		if last := w.courier.times("sender@them.test")[1].Sub(start); last < 5*24*time.Hour || last > 5*24*time.Hour+2*time.Minute {
			t.Errorf("given up after %v", last)
		}
		ops := w.store.operations(map[mail.ID]string{id: "A"})
		n := len(ops)
		if !strings.HasPrefix(ops[n-4], "update A 0=FAILED") || !strings.HasPrefix(ops[n-3], "commit ") || ops[n-2] != "remove A" || !strings.HasPrefix(ops[n-1], "remove ") {
			t.Errorf("last operations %v: want outcome, notice, removal, removal of the notice", ops[n-4:])
		}
		evs := w.events.of(id)
		if evs[len(evs)-1] != "final" || evs[len(evs)-2] != "notice" || evs[len(evs)-3] != "attempt" || !slices.Contains(evs, "wait") {
			t.Errorf("last events %v", evs[len(evs)-4:])
		}
		w.stop()
	})
}

func checkRetries(t *testing.T, ts []time.Time) {
	t.Helper()
	for i := 1; i < len(ts); i++ {
		got, want := ts[i].Sub(ts[i-1]), sched.Delay(i, 0, 0)
		if diff := (got - want).Abs(); diff > want/10+time.Second {
			t.Errorf("attempt %d came %v after the one before, want about %v", i+1, got, want)
		}
	}
	if len(ts) < 115 || len(ts) > 130 {
		t.Errorf("%d attempts in five days", len(ts))
	}
}

// A server that says when to come again is not asked earlier, and one that says nothing is asked as ever.
func TestRetryAfter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		asked := []time.Duration{7 * time.Minute, 2 * time.Minute, 0, time.Hour}
		w.courier.deliver = func(_ context.Context, j *mail.Job, _ *mail.Recipient) mail.Outcome {
			if j.Attempt > len(asked) {
				return delivered
			}
			o := greylist
			o.RetryAfter = asked[j.Attempt-1]
			return o
		}
		w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(3 * time.Hour)
		w.mustBeEmpty()
		ts := w.courier.times("b@x.test")
		for i, want := range []time.Duration{7 * time.Minute, 5 * time.Minute, 10 * time.Minute, time.Hour} {
			got := ts[i+1].Sub(ts[i])
			if got < asked[i] || (got-want).Abs() > want/10+time.Second {
				t.Errorf("attempt %d came after %v, want about %v", i+2, got, want)
			}
		}
		w.stop()
	})
}

// The times of retries are persisted: after a restart nothing is attempted early, and the number of attempts goes on.
func TestRestartKeepsSchedule(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return greylist }
		var want []time.Duration
		start := time.Now()
		id := w.put(envelope("a@them.test", "b@x.test"))
		for range 8 {
			time.Sleep(7 * time.Minute)
			w.stop()
			if !w.store.has(id) {
				t.Fatal("lost")
			}
			time.Sleep(time.Minute)
			w.start()
		}
		synctest.Wait()
		for _, at := range w.courier.times("b@x.test") {
			want = append(want, at.Sub(start))
		}
		if n := len(want); n < 4 || n > 6 {
			t.Errorf("attempts at %v", want)
		}
		for i := 1; i < len(want); i++ {
			if d := want[i] - want[i-1]; d < sched.Delay(i, 0, -1) {
				t.Errorf("attempt %d came after %v", i+1, d)
			}
		}
		if last := w.courier.jobs[len(w.courier.jobs)-1]; last.Attempt != len(want) {
			t.Errorf("the last is attempt %d of %d", last.Attempt, len(want))
		}
		w.stop()
	})
}

// A recipient recorded as delivered is never tried again, also after a crash.
func TestDeliveredIsNeverTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Local == "b" {
				return delivered
			}
			return greylist
		}
		w.put(envelope("a@them.test", "b@x.test", "c@x.test"))
		time.Sleep(30 * time.Second)
		w.stop() // as a crash would: the store is all that is left
		w.start()
		time.Sleep(3 * time.Hour)
		if n := len(w.courier.times("b@x.test")); n != 1 {
			t.Errorf("b was tried %d times", n)
		}
		if n := len(w.courier.times("c@x.test")); n < 4 {
			t.Errorf("c was tried %d times", n)
		}
		w.stop()
	})
}

// A message that only waits is not read from the store again and again.
func TestWaitingMessagesAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "x.test" {
				return greylist
			}
			return delivered
		}
		never := envelope("a@them.test", "b@x.test")
		never.Rcpts[0].Params, _ = smtp.ParseParams("NOTIFY=NEVER")
		w.put(never)
		w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(12 * time.Hour)
		attempts := len(w.courier.times("b@x.test"))
		w.store.mu.Lock()
		if n := w.store.loads; n > attempts+1 {
			t.Errorf("read %d times for %d attempts", n, attempts)
		}
		w.store.mu.Unlock()
		w.stop()
	})
}

// A state that cannot be written is written later; the recipient is not tried again meanwhile.
func TestUnwrittenStateIsWrittenLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Local == "b" {
				return delivered
			}
			return greylist
		}
		w.store.setFail(func(op string, _ mail.ID) error {
			if op == "update" {
				return ErrBroken
			}
			return nil
		})
		id := w.put(envelope("a@them.test", "b@x.test", "c@x.test"))
		time.Sleep(30 * time.Second)
		w.store.setFail(nil)
		time.Sleep(time.Minute)
		if st := w.store.status(id); st[0].Status != Sent || st[1].Attempts == 0 {
			t.Errorf("stored %+v", st)
		}
		w.stop()
	})
}

// A dead destination: its mail waits without being attempted, the sender is told of the delay and in the end of the failure.
func TestDeadDestination(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "dead.test" {
				return timeout
			}
			return delivered
		}
		const n = 200
		for i := range n {
			w.put(envelope(fmt.Sprintf("s%d@them.test", i), "b@dead.test"))
		}
		time.Sleep(4*time.Hour + 2*time.Minute)
		if jobs := len(w.courier.times("b@dead.test")); jobs > 60 {
			t.Errorf("a dead site was tried %d times in four hours", jobs)
		}
		for i := range n {
			if got := len(w.courier.times(fmt.Sprintf("s%d@them.test", i))); got != 1 {
				t.Fatalf("sender %d got %d delay notices", i, got)
			}
		}
		time.Sleep(5*24*time.Hour - 4*time.Hour + time.Minute) // no later than that, though the site is left alone for a quarter of an hour at a time
		synctest.Wait()
		w.mustBeEmpty()
		for i := range n {
			if got := len(w.courier.times(fmt.Sprintf("s%d@them.test", i))); got != 2 {
				t.Fatalf("sender %d got %d notices", i, got)
			}
		}
		w.stop()
	})
}

// When the configuration changes, recipients that must go another way do so at the next attempt.
func TestRouteChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var moved atomic.Bool
		w := newWorld(t, func(c *Config) {
			c.Route = func(_ context.Context, r mail.Recipient, _ *mail.Envelope) (mail.Route, error) {
				if moved.Load() && r.To.Local != "stay" {
					return mail.Route{Transport: mail.Relay, Hosts: []string{"smart.test"}}, nil
				}
				return mail.Route{Transport: mail.SMTP, Domain: r.To.Domain}, nil
			}
		})
		w.courier.deliver = func(_ context.Context, j *mail.Job, _ *mail.Recipient) mail.Outcome {
			if j.Route.Transport == mail.Relay {
				return delivered
			}
			return greylist
		}
		w.put(envelope("a@them.test", "b@x.test"))
		w.put(envelope("a@them.test", "b@y.test", "stay@y.test", "c@z.test"))
		time.Sleep(10 * time.Second)
		moved.Store(true)
		time.Sleep(2 * time.Minute)
		if n := len(w.store.ids()); n != 1 {
			t.Errorf("%d messages left, want the one with a recipient that stays", n)
		}
		for _, to := range []string{"b@x.test", "b@y.test", "c@z.test"} {
			if n := len(w.courier.times(to)); n != 2 {
				t.Errorf("%s was tried %d times", to, n)
			}
		}
		if n := len(w.courier.times("stay@y.test")); n != 2 {
			t.Errorf("stay was tried %d times", n)
		}
		w.stop()
	})
}

func TestRouteError(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var fixed atomic.Bool
		w := newWorld(t, func(c *Config) {
			c.Route = func(_ context.Context, r mail.Recipient, _ *mail.Envelope) (mail.Route, error) {
				if !fixed.Load() {
					return mail.Route{}, errors.New("bad configuration")
				}
				return mail.Route{Domain: r.To.Domain, Transport: mail.SMTP}, nil
			}
		})
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(10 * time.Second)
		if st := w.store.status(id)[0]; st.Status != Pending || !strings.Contains(st.Text, "bad configuration") {
			t.Errorf("status %+v", st)
		}
		fixed.Store(true)
		time.Sleep(2 * time.Minute)
		w.mustBeEmpty()
		w.stop()
	})
}

// A message that is not to be sent before a time waits for it, and its five days start then.
func TestNotBeforeAndGiveUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "x.test" {
				return greylist
			}
			return delivered
		}
		start := time.Now()
		env := envelope("a@them.test", "b@x.test")
		env.Rcpts[0].NotBefore = start.Add(48 * time.Hour)
		w.put(env)
		time.Sleep(time.Second)
		w.stop()
		w.start()
		time.Sleep(47 * time.Hour)
		if w.courier.count() != 0 {
			t.Fatal("attempted too early, or told of a delay that was asked for")
		}
		time.Sleep(6 * 24 * time.Hour)
		if got := w.courier.times("b@x.test"); got[0].Sub(start) != 48*time.Hour || got[len(got)-1].Sub(start) < 6*24*time.Hour {
			t.Errorf("attempts from %v to %v", got[0].Sub(start), got[len(got)-1].Sub(start))
		}
		w.mustBeEmpty()

		before := len(w.courier.times("a@them.test"))
		start = time.Now()
		env = envelope("a@them.test", "b@x.test")
		env.Rcpts[0].GiveUp = start.Add(time.Hour)
		w.put(env)
		time.Sleep(59 * time.Minute)
		if n := len(w.courier.times("a@them.test")) - before; n != 0 {
			t.Errorf("given up early")
		}
		time.Sleep(2 * time.Minute)
		if n := len(w.courier.times("a@them.test")) - before; n != 1 {
			t.Errorf("%d notices after the time was up", n)
		}
		w.mustBeEmpty()
		w.stop()
	})
}

// What the store cannot hand out does not stop the rest, and what it cannot read now is tried later.
func TestUnreadableMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.stop()
		bad := w.put(envelope("a@them.test", "b@x.test"))
		w.put(envelope("a@them.test", "c@x.test"))
		w.put(envelope("a@them.test", "d@x.test"))
		w.start()
		synctest.Wait()
		w.mustBeEmpty()

		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return greylist }
		bad = w.put(envelope("a@them.test", "b@x.test"))
		gone := w.put(envelope("a@them.test", "c@x.test"))
		synctest.Wait()
		w.courier.deliver = nil
		w.store.setFail(func(op string, id mail.ID) error {
			if op == "load" && id == bad {
				return ErrCorrupt
			}
			return nil
		})
		w.store.Remove(gone)
		time.Sleep(2 * time.Minute)
		if w.Queue.find(gone) {
			t.Error("a message that is gone is still scheduled")
		}
		if !w.Queue.find(bad) {
			t.Error("a message that cannot be read was forgotten")
		}
		w.store.setFail(nil)
		time.Sleep(time.Hour)
		if w.Queue.find(bad) {
			t.Error("the message was not tried again")
		}
		w.stop()
	})
}

func (q *Queue) find(id mail.ID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.index.find(id) != 0
}

// Entries with ids of any form, without Next, as imports have them, are attempted at once.
func TestImportedEntries(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.stop()
		for _, id := range []mail.ID{"x", "abc-_DEF123", mail.ID(strings.Repeat("long", 30)), mail.ID(strings.Repeat("long", 30) + "2")} {
			in, _ := w.store.Create()
			io.WriteString(in, content)
			env := envelope("a@them.test", "b@x.test")
			env.Rcpts[0].Orig = addr("<>")
			env.Arrived = time.Now()
			if err := in.Commit(&Entry{ID: id, Env: *env, Status: make([]RcptStatus, 1), Size: int64(len(content))}, nil); err != nil {
				t.Fatal(err)
			}
		}
		w.start()
		synctest.Wait()
		if n := w.courier.count(); n != 4 {
			t.Errorf("%d jobs", n)
		}
		w.mustBeEmpty()
		w.stop()
	})
}
