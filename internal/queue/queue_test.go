package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/srs"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// bubble runs a test on a clock of its own.
func bubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

// A message that everybody gets at once costs two records: the message and its removal.
func TestDelivered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		id := w.put(envelope("a@them.test", "b@us.test", "c@x.test", "d@x.test", "e@y.test"))
		synctest.Wait()
		w.mustBeEmpty()
		if got := w.store.operations(map[mail.ID]string{id: "A"}); got[0] != "commit A" || got[len(got)-1] != "remove A" {
			t.Errorf("operations %v", got)
		}
		if n := w.courier.count(); n != 3 {
			t.Errorf("%d jobs, want one for each destination", n)
		}
		one := w.put(envelope("a@them.test", "b@us.test"))
		synctest.Wait()
		got := w.store.operations(map[mail.ID]string{one: "B"})
		if want := []string{"commit B", "remove B"}; !slices.Equal(got[len(got)-2:], want) {
			t.Errorf("operations %v, want %v", got, want)
		}
		want := []string{"queued", "attempt", "final"}
		if got := w.events.of(one); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
		w.stop()
	})
}

func TestJob(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		env := envelope("a@them.test", "b@x.test", "c@y.test", "d@x.test")
		id := w.put(env)
		synctest.Wait()
		i := slices.IndexFunc(w.courier.jobs, func(j mail.Job) bool { return j.Route.Domain == "x.test" })
		job := w.courier.jobs[i]
		if job.ID != id || job.Attempt != 1 || len(job.Rcpts) != 2 || job.Rcpts[1].To != addr("d@x.test") || len(job.Env.Rcpts) != 3 ||
			job.From != addr("a@them.test") || job.Size != int64(len("Received: x\r\n"+content)) || job.Route.Transport != mail.SMTP {
			t.Errorf("job %+v", job)
		}
		w.stop()
	})
}

func TestOpenReadsPrefixAndBody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		var got string
		w.courier.deliver = func(_ context.Context, job *mail.Job, _ *mail.Recipient) mail.Outcome {
			r, err := job.Open()
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(r)
			got = string(b)
			return delivered
		}
		w.put(envelope("a@them.test", "b@x.test"))
		synctest.Wait()
		if got != "Received: x\r\n"+content {
			t.Errorf("read %q", got)
		}
		w.stop()
	})
}

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
		got, want := ts[i].Sub(ts[i-1]), sched.Delay(i, 0)
		if diff := (got - want).Abs(); diff > want/10+time.Second {
			t.Errorf("attempt %d came %v after the one before, want about %v", i+1, got, want)
		}
	}
	if len(ts) < 115 || len(ts) > 130 {
		t.Errorf("%d attempts in five days", len(ts))
	}
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
			if d := want[i] - want[i-1]; d < sched.Delay(i, -1) {
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

// A crash between the notice and the removal of its message makes no second notice.
func TestNoticeIsNotRepeatedAfterCrash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "them.test" {
				return greylist // the notice waits
			}
			return noUser
		}
		w.store.setFail(func(op string, _ mail.ID) error {
			if op == "remove" {
				return errors.New("crash")
			}
			return nil
		})
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(10 * time.Second)
		if n := len(w.store.ids()); n != 2 {
			t.Fatalf("%d messages, want the original and its notice", n)
		}
		w.stop()
		// The crash also loses that the notice was sent.
		w.store.lose(id, func(e *Entry) { e.Status[0].Notified = 0 })
		w.store.setFail(nil)
		w.start()
		time.Sleep(time.Minute)
		ids := w.store.ids()
		if len(ids) != 1 || ids[0] == id {
			t.Errorf("the store holds %v, want one notice", ids)
		}
		if n := len(w.courier.times("b@x.test")); n != 1 {
			t.Errorf("the failed recipient was tried %d times", n)
		}
		w.stop()
	})
}

// The same when the notice can be delivered at once after the restart: what was interrupted is concluded first.
func TestNoticeIsNotRepeatedByRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		var up atomic.Bool
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			switch {
			case r.To.Domain != "them.test":
				return noUser
			case up.Load():
				return delivered
			}
			return greylist
		}
		w.store.setFail(func(op string, _ mail.ID) error {
			if op == "remove" {
				return errors.New("crash")
			}
			return nil
		})
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(10 * time.Second)
		w.stop()
		before := len(w.courier.times("a@them.test"))
		w.store.lose(id, func(e *Entry) { e.Status[0].Notified = 0 })
		w.store.setFail(nil)
		w.store.flush = time.Second // so that what is attempted overtakes what is written
		up.Store(true)
		time.Sleep(10 * time.Minute)
		w.start()
		time.Sleep(10 * time.Minute)
		w.mustBeEmpty()
		if n := len(w.courier.times("a@them.test")) - before; n != 1 {
			t.Errorf("the notice was delivered %d times", n)
		}
		w.stop()
	})
}

// Many destinations that end at the same moment, over a slow disk: one removal, no count lost.
func TestConcurrentConclusions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.flush = time.Second
		for range 20 {
			go w.try(envelope("a@them.test", "b@v.test", "b@w.test", "b@x.test", "b@y.test", "b@z.test"))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		w.mustBeEmpty()
		if n := w.courier.count(); n != 100 {
			t.Errorf("%d jobs", n)
		}
		if n := w.m.fates["delivered"].Value(); n != 20 {
			t.Errorf("%v messages removed", n)
		}
		w.stop()
	})
}

// startOnQueued runs the queue at the moment when a message is durable but not yet scheduled.
type startOnQueued struct{ start func() }

func (s *startOnQueued) Observe(e *timeline.Event) {
	if e.Kind == timeline.Queued {
		s.start()
	}
}

// A message that becomes durable while the store is loaded is scheduled once.
func TestCommitWhileLoading(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store, courier := newFakeStore(), &fakeCourier{}
		conf := testConfig(store, courier)
		obs := &startOnQueued{}
		conf.Observer = obs
		q := New(conf)
		ctx, cancel := context.WithCancel(context.Background())
		var wait sync.WaitGroup
		obs.start = func() {
			wait.Go(func() { q.Run(ctx) })
			synctest.Wait()
		}
		w := &world{TB: t, Queue: q, store: store, courier: courier}
		w.put(envelope("a@them.test", "b@x.test"))
		synctest.Wait()
		if n := courier.count(); n != 1 {
			t.Errorf("%d attempts", n)
		}
		w.mustBeEmpty()
		cancel()
		wait.Wait()
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

// a notice that cannot be written keeps its message, is tried again, and is sent once.
func TestX1NoticeThatCannotBeWrittenKeepsMessage(t *testing.T) {
	for _, op := range []string{"create", "open", "commit", "update", "remove", "expand"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var broken atomic.Bool
				w := newWorld(t, func(c *Config) {
					c.Expand = func(_ context.Context, rs []mail.Recipient) ([]mail.Recipient, error) {
						if broken.Load() && op == "expand" {
							return nil, errors.New("hook failed")
						}
						return rs, nil
					}
				})
				w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
					if r.To.Domain == "x.test" {
						broken.Store(true)
						return noUser
					}
					return delivered
				}
				w.store.setFail(func(o string, _ mail.ID) error {
					if broken.Load() && o == op {
						return ErrBroken
					}
					return nil
				})
				id := w.put(envelope("a@them.test", "b@x.test"))
				time.Sleep(10*time.Minute + time.Second)
				if !w.store.has(id) {
					t.Fatal("the message is gone before its notice is durable")
				}
				if st := w.state(id); st != waiting {
					t.Errorf("the message is %v", st)
				}
				broken.Store(false)
				time.Sleep(2 * time.Minute)
				w.mustBeEmpty()
				if n := len(w.courier.times("a@them.test")); n != 1 {
					t.Errorf("%d notices", n)
				}
				if n := len(w.courier.times("b@x.test")); n != 1 {
					t.Errorf("the failed recipient was tried %d times", n)
				}
				w.stop()
			})
		})
	}
}

func (q *Queue) state(id mail.ID) msgState {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.index.at(q.index.find(id)).state
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

func TestRefusals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.MaxItems = 2
			c.Expand = func(_ context.Context, rs []mail.Recipient) ([]mail.Recipient, error) {
				switch rs[0].To.Local {
				case "hook":
					return nil, errors.New("exit status 1")
				case "loop":
					return nil, fmt.Errorf("resolving: %w", smtp.NewReply(554, "5.4.6", "loop"))
				case "nobody":
					return nil, nil
				}
				return rs, nil
			}
		})
		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return greylist }
		refused := func(what string, err error, want string) {
			t.Helper()
			var r smtp.Reply
			if !errors.As(err, &r) || !strings.HasPrefix(r.String(), want) {
				t.Errorf("%s: %v (reply %v), want %s", what, err, r, want)
			}
			if strings.Contains(r.Text, "exit") {
				t.Errorf("%s: the reply %q shows the cause", what, r)
			}
		}
		for local, want := range map[string]string{"hook": "451 4.3.0", "loop": "554 5.4.6", "nobody": "554 5.1.1"} {
			_, err := w.try(envelope("a@them.test", local+"@x.test"))
			refused(local, err, want)
		}
		for op, c := range map[string]struct {
			err  error
			want string
		}{"commit": {ErrFull, "452 4.3.1"}, "create": {ErrFull, "452 4.3.1"}} {
			w.store.setFail(func(o string, _ mail.ID) error {
				if o == op {
					return fmt.Errorf("disk: %w", c.err)
				}
				return nil
			})
			_, err := w.try(envelope("a@them.test", "b@x.test"))
			refused(op, err, c.want)
		}
		w.store.setFail(func(string, mail.ID) error { return ErrBroken })
		_, err := w.try(envelope("a@them.test", "b@x.test"))
		refused("broken", err, "451 4.3.0")
		w.store.setFail(nil)

		w.put(envelope("a@them.test", "b@x.test"))
		w.put(envelope("a@them.test", "b@x.test"))
		_, err = w.try(envelope("a@them.test", "b@x.test"))
		refused("max items", err, "452 4.3.1")
		if n := w.m.putCount.Value(); n != 6 {
			t.Errorf("putCount %d: it counts what the limit did not refuse", n)
		}
		if n := w.m.puts[mail.FromSMTP][putFull].Value(); n != 2 {
			t.Errorf("%v puts refused for lack of room", n)
		}
		if n := w.items.Load(); n != 2 {
			t.Errorf("%d items", n)
		}
		w.stop()
	})
}

// S-10: notices are never refused by the item limit.
func TestS10NoticesAreExemptFromLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxItems = 1 })
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "x.test" {
				return noUser
			}
			return greylist
		}
		w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		if len(w.store.ids()) != 1 || len(w.courier.times("a@them.test")) != 1 {
			t.Errorf("no notice: %v", w.store.ids())
		}
		if _, err := w.try(envelope("a@them.test", "b@x.test")); err == nil {
			t.Error("accepted beyond the limit")
		}
		w.stop()
	})
}

func TestExpandAndDedupe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.Expand = func(_ context.Context, rs []mail.Recipient) (out []mail.Recipient, err error) {
				for _, r := range rs {
					for _, to := range []string{"one@x.test", "two@us.test"} {
						f := r
						f.To = addr(to)
						out = append(out, f)
					}
					out = append(out, mail.Recipient{Kind: mail.Pipe, Command: "/bin/true", Orig: r.Orig})
				}
				return out, nil
			}
		})
		env := envelope("a@them.test", "list@us.test", "other@us.test")
		id := w.put(env)
		synctest.Wait()
		if env.Rcpts[0].To != addr("list@us.test") {
			t.Error("the caller's envelope was changed")
		}
		for _, to := range []string{"one@x.test", "two@us.test", "|/bin/true"} {
			if n := len(w.courier.times(to)); n != 1 {
				t.Errorf("%s got %d copies", to, n)
			}
		}
		if r := w.courier.jobs[0].Rcpts[0]; r.Orig != addr("list@us.test") {
			t.Errorf("original address %v", r.Orig)
		}
		if got, want := w.events.of(id)[:4], []string{"queued", "expanded", "expanded", "expanded"}; !slices.Equal(got, want) {
			t.Errorf("events %v", got)
		}
		w.mustBeEmpty()
		w.stop()
	})
}

// A courier that panics, or answers for the wrong number of recipients, defers; the process lives, others go on.
func TestPanicInCourier(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		bad := true
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "panic.test" && bad {
				bad = false
				panic("boom")
			}
			return delivered
		}
		id := w.put(envelope("a@them.test", "b@panic.test"))
		w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		if !w.store.has(id) || len(w.store.ids()) != 1 {
			t.Errorf("the store holds %v", w.store.ids())
		}
		if st := w.store.status(id)[0]; st.Attempts != 1 || st.Reason != mail.ReasonInternal {
			t.Errorf("status %+v", st)
		}
		if w.m.panics.Value() != 1 {
			t.Errorf("%v panics counted", w.m.panics.Value())
		}
		time.Sleep(2 * time.Minute)
		w.mustBeEmpty()
		w.stop()
	})
}

type wrongCourier struct{}

func (wrongCourier) Deliver(context.Context, mail.Job) []mail.Outcome {
	return []mail.Outcome{delivered, delivered}
}

func TestWrongNumberOfOutcomes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Courier = wrongCourier{} })
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		if st := w.store.status(id)[0]; st.Status != Pending || st.Attempts != 1 {
			t.Errorf("status %+v", st)
		}
		w.stop()
	})
}

// Drain: no new attempt, running ones finish within the grace, what comes later is durable and waits for the next start.
func TestDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.took = 10 * time.Second
		w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		start := time.Now()
		stopped := make(chan struct{})
		go func() { w.stop(); close(stopped) }()
		synctest.Wait()
		late := w.put(envelope("a@them.test", "b@y.test"))
		<-stopped
		if d := time.Since(start); d != 9*time.Second {
			t.Errorf("drained in %v", d)
		}
		if ids := w.store.ids(); len(ids) != 1 || ids[0] != late || w.courier.count() != 1 {
			t.Errorf("store %v, %d jobs", ids, w.courier.count())
		}
		w.start()
		time.Sleep(time.Minute)
		w.mustBeEmpty()
		w.stop()
	})
}

func TestDrainInterruptsAfterGrace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Grace = 5 * time.Second })
		w.courier.took = time.Hour
		w.courier.deliver = func(ctx context.Context, _ *mail.Job, _ *mail.Recipient) mail.Outcome {
			return mail.Outcome{Reason: mail.ReasonInternal, Err: ctx.Err()}
		}
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		start := time.Now()
		w.stop()
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("drained in %v", d)
		}
		if st := w.store.status(id)[0]; st.Attempts != 1 {
			t.Errorf("the interrupted attempt left %+v", st)
		}
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
		time.Sleep(5 * 24 * time.Hour)
		w.mustBeEmpty()
		for i := range n {
			if got := len(w.courier.times(fmt.Sprintf("s%d@them.test", i))); got != 2 {
				t.Fatalf("sender %d got %d notices", i, got)
			}
		}
		w.stop()
	})
}

// Failures are told together; when another recipient takes long, not much later than they happen.
func TestFailureNoticeDoesNotWaitForSlowRecipient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			switch r.To.Domain {
			case "bad1.test", "bad2.test":
				return noUser
			case "slow.test":
				return greylist
			}
			return delivered
		}
		w.put(envelope("a@them.test", "b@bad1.test", "c@bad2.test", "d@slow.test"))
		time.Sleep(4 * time.Minute)
		if n := len(w.courier.times("a@them.test")); n != 1 {
			t.Errorf("%d notices after some minutes, want one about both", n)
		}
		time.Sleep(6 * 24 * time.Hour)
		if n := len(w.courier.times("a@them.test")); n != 3 {
			t.Errorf("%d notices in all, want failure, delay, failure", n)
		}
		w.mustBeEmpty()
		w.stop()
	})
}

// D45: a list whose recipients fail one by one over hours makes few notices, and each failure is told once.
func TestD45FewNoticesForList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxBatch = 1 })
		told := map[string]int{}
		w.courier.deliver = func(_ context.Context, j *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "them.test" {
				rd, _ := j.Open()
				b, _ := io.ReadAll(rd)
				for l := range strings.SplitSeq(string(b), "\n") {
					if to, ok := strings.CutPrefix(l, "Final-Recipient: utf-8; "); ok {
						told[strings.TrimSpace(to)]++
					}
				}
				return delivered
			}
			if n, _ := strconv.Atoi(r.To.Local[1:]); j.Attempt > n%12 {
				return noUser
			}
			return greylist
		}
		var to []string
		for i := range 500 {
			to = append(to, fmt.Sprintf("r%d@d%d.test", i, i%50))
		}
		ps, _ := smtp.ParseParams("NOTIFY=FAILURE")
		env := envelope("a@them.test", to...)
		for i := range env.Rcpts {
			env.Rcpts[i].Params = ps
		}
		w.put(env)
		time.Sleep(24 * time.Hour)
		w.mustBeEmpty()
		if n := len(w.courier.times("a@them.test")); n < 3 || n > 8 {
			t.Errorf("%d notices", n)
		}
		for _, r := range to {
			if told[r] != 1 {
				t.Errorf("%s was told %d times", r, told[r])
			}
		}
		w.stop()
	})
}

func TestNoticeContent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var signed string
		w := newWorld(t, func(c *Config) {
			c.Sign = func(_ context.Context, domain string, content io.Reader) ([]byte, error) {
				b, err := io.ReadAll(content)
				signed = domain + " " + string(b[:5])
				return []byte("DKIM-Signature: x\r\n"), err
			}
		})
		var notice string
		w.courier.deliver = func(_ context.Context, job *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "x.test" {
				return noUser
			}
			rd, _ := job.Open()
			b, _ := io.ReadAll(rd)
			notice = string(b)
			if !job.From.IsNull() || job.Env.Source != mail.FromDSN || r.Orig != addr("a@us.test") {
				t.Errorf("notice from %v, %+v", job.From, r)
			}
			return delivered
		}
		w.put(envelope("a@us.test", "b@x.test"))
		synctest.Wait()
		for _, want := range []string{"DKIM-Signature: x\r\nFrom: Mail Delivery System <postmaster-dsn@us.test>\r\nTo: <a@us.test>\r\n",
			"Status: 5.1.1", "Diagnostic-Code: smtp; 550 5.1.1 no such user", "Remote-MTA: dns; mx.test", "Received: x\r\nSubject: x"} {
			if !strings.Contains(notice, want) {
				t.Errorf("no %q in\n%s", want, notice)
			}
		}
		if signed != "us.test From:" {
			t.Errorf("signed %q", signed)
		}
		w.mustBeEmpty()
		w.stop()
	})
}

func TestC60SuccessNotices(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		ps, _ := smtp.ParseParams("NOTIFY=SUCCESS,FAILURE")
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			o := delivered
			o.Relayed = r.To.Domain == "old.test"
			return o
		}
		send := func(to string, want int) {
			t.Helper()
			before := len(w.courier.times("a@them.test"))
			env := envelope("a@them.test", to)
			env.Rcpts[0].Params = ps
			w.put(env)
			synctest.Wait()
			if n := len(w.courier.times("a@them.test")) - before; n != want {
				t.Errorf("%s: %d notices, want %d", to, n, want)
			}
		}
		send("b@us.test", 1)  // delivered
		send("b@old.test", 1) // relayed to a host without DSN
		send("b@new.test", 0) // that one reports
		w.mustBeEmpty()
		w.stop()
	})
}

func TestNoNoticeWhenNotWanted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return noUser }
		never, _ := smtp.ParseParams("NOTIFY=NEVER")
		env := envelope("a@them.test", "b@x.test")
		env.Rcpts[0].Params = never
		w.put(env)
		id := w.put(envelope("<>", "b@x.test"))
		synctest.Wait()
		w.mustBeEmpty()
		if n := w.courier.count(); n != 2 {
			t.Errorf("%d jobs", n)
		}
		if got, want := w.events.of(id), []string{"queued", "attempt", "final"}; !slices.Equal(got, want) {
			t.Errorf("events %v", got)
		}
		w.stop()
	})
}

// Notices that fail go to the double bounce address if there is one, and end there.
func TestDoubleBounce(t *testing.T) {
	for to, want := range map[string]int{"<>": 0, "postmaster@us.test": 1} {
		t.Run(to, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.DoubleBounceTo = addr(to) })
				w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return noUser }
				w.put(envelope("a@them.test", "b@x.test"))
				time.Sleep(time.Minute)
				w.mustBeEmpty()
				if n := len(w.courier.times("postmaster@us.test")); n != want {
					t.Errorf("%d double bounces, want %d", n, want)
				}
				w.stop()
			})
		})
	}
}

// S-7: the sender of mail from elsewhere that an alias sends out is rewritten, and a bounce to it comes back to the true sender.
func TestS7Forwarding(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.SRS = srs.New([]byte("secret"))
			c.LocalDomain = func(d string) bool { return d == local || d == "second.test" }
			c.Expand = func(_ context.Context, rs []mail.Recipient) ([]mail.Recipient, error) {
				out := slices.Clone(rs)
				for i := range out {
					if out[i].To == addr("alias@us.test") {
						out[i].To = addr("b@x.test")
					}
				}
				return out, nil
			}
		})
		for _, c := range []struct {
			from, to  string
			rewritten bool
		}{
			{"a@them.test", "alias@us.test", true},
			{"a@us.test", "alias@us.test", false}, // local senders
			{"a@second.test", "alias@us.test", false},
			{"<>", "alias@us.test", false},      // bounces
			{"a@them.test", "b@x.test", false},  // relayed for a user, not forwarded by an alias
			{"a@them.test", "c@us.test", false}, // delivered here
		} {
			w.put(envelope(c.from, c.to))
			synctest.Wait()
			job := w.courier.jobs[w.courier.count()-1]
			if got := srs.Is(job.From); got != c.rewritten || !got && job.From != addr(c.from) || got && job.From.Domain != "us.test" {
				t.Errorf("%s to %s went from %s", c.from, c.to, job.From)
			}
			if job.Env.From != addr(c.from) {
				t.Errorf("the envelope says %s", job.Env.From)
			}
		}
		w.put(envelope("<>", w.courier.jobs[0].From.String()))
		synctest.Wait()
		if n := len(w.courier.times("a@them.test")); n != 1 {
			t.Errorf("the bounce did not come back to the sender")
		}
		w.mustBeEmpty()
		w.stop()
	})
}

// Recipients of one destination go together, at most MaxBatch in one job, each once.
func TestBatches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxBatch = 100 })
		w.courier.took = time.Second
		var to []string
		for i := range 1050 {
			to = append(to, fmt.Sprintf("r%d@d%d.test", i, i%3))
		}
		w.put(envelope("a@them.test", to...))
		time.Sleep(time.Minute)
		if n := w.courier.count(); n != 12 {
			t.Errorf("%d jobs", n)
		}
		seen := map[string]int{}
		for _, j := range w.courier.jobs {
			if len(j.Rcpts) > 100 {
				t.Errorf("a job with %d recipients", len(j.Rcpts))
			}
			for _, r := range j.Rcpts {
				seen[r.To.String()]++
				if r.To.Domain != j.Route.Domain {
					t.Errorf("%s in a job for %s", r.To, j.Route.Domain)
				}
			}
		}
		if len(seen) != 1050 || slices.Max(slices.Collect(values(seen))) != 1 {
			t.Errorf("%d recipients tried", len(seen))
		}
		w.mustBeEmpty()
		w.stop()
	})
}

func values(m map[string]int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
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
		gone := w.put(envelope("a@them.test", "c@x.test"))
		w.put(envelope("a@them.test", "d@x.test"))
		w.start()
		synctest.Wait()
		w.mustBeEmpty()

		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return greylist }
		bad, gone = w.put(envelope("a@them.test", "b@x.test")), w.put(envelope("a@them.test", "c@x.test"))
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

func TestDraftEndsOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		d, err := w.Begin(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		d.Discard()
		if _, err := d.Commit(context.Background(), envelope("a@x.test", "b@x.test"), nil); err == nil {
			t.Error("committed after Discard")
		}
		if _, err := d.Write([]byte("x")); err == nil {
			t.Error("written after Discard")
		}
		d, _ = w.Begin(context.Background())
		d.Commit(context.Background(), envelope("a@x.test", "b@x.test"), nil)
		d.Discard()
		if _, err := d.Commit(context.Background(), envelope("a@x.test", "b@x.test"), nil); err == nil {
			t.Error("committed twice")
		}
		synctest.Wait()
		w.mustBeEmpty()
		w.stop()
	})
}

func TestSitesAreAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		asked := make(chan string, 10)
		w := newWorld(t, func(c *Config) {
			c.Sites = func(_ context.Context, domain string) (string, error) {
				asked <- domain
				if domain == "x.test" {
					return "", errors.New("no such domain")
				}
				return "mx.shared.test", nil
			}
		})
		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return greylist }
		w.put(envelope("a@them.test", "b@x.test", "c@y.test", "d@z.test", "e@us.test"))
		synctest.Wait()
		var got []string
		for len(asked) > 0 {
			got = append(got, <-asked)
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"x.test", "y.test", "z.test"}, got); diff != "" {
			t.Error(diff)
		}
		time.Sleep(2 * time.Minute)
		w.mu.Lock()
		if st, ok := w.sched.Site(w.sched.Lookup("y.test")); !ok || st.Site != "mx.shared.test" {
			t.Errorf("site %+v", st)
		}
		w.mu.Unlock()
		w.stop()
	})
}
