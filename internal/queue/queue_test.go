package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/test/patience"
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

// What fails for good while attempts are interrupted is told at once: its notice is signed and durable when the queue has stopped.
func TestNoticeAfterGrace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		signed := 0
		w := newWorld(t, func(c *Config) {
			c.Grace = 5 * time.Second
			c.Sign = func(ctx context.Context, _ string, _ io.Reader) ([]byte, error) {
				if ctx.Err() == nil {
					signed++
				}
				return nil, ctx.Err()
			}
		})
		w.courier.took = time.Hour
		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return noUser }
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		w.stop()
		if ids := w.store.ids(); len(ids) != 1 || ids[0] == id || signed != 1 {
			t.Errorf("the store holds %v, the message was %s; %d signed", ids, id, signed)
		}
	})
}

// The goroutines that attempt carry the labels of a message while they work on it, and those that write what became of it do not.
func TestLabels(t *testing.T) {
	labels := func() string {
		var b strings.Builder
		pprof.Lookup("goroutine").WriteTo(&b, 1)
		if strings.Contains(b.String(), `"family":"Queue.SendLoop"`) {
			return "labelled"
		}
		return ""
	}
	w := &world{TB: t, store: newFakeStore(), courier: &fakeCourier{}, events: &events{}, rec: trace.New(trace.Config{Labels: true})}
	w.start()
	defer w.stop()
	attempting, writing := make(chan string, 1), make(chan string, 1)
	w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome {
		attempting <- labels()
		return delivered
	}
	w.store.setFail(func(op string, _ mail.ID) error {
		if op == "remove" {
			time.Sleep(patience.Limit(5 * time.Millisecond)) // the worker is asleep by then
			writing <- labels()
		}
		return nil
	})
	w.put(envelope("a@them.test", "b@x.test"))
	if got := <-attempting; got != "labelled" {
		t.Error("nobody carries labels while a message is attempted")
	}
	if got := <-writing; got != "" {
		t.Error("a goroutine carries the labels of a message that it does not work on any more")
	}
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
