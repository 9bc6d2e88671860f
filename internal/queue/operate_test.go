package queue

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// backlog is a queue with 60 deferred messages: 40 to slow.test from 4 senders, 20 to dead.test from one.
func backlog(t *testing.T) *world {
	w := newWorld(t)
	w.courier.took = time.Second // so that the site is tried as often as its first concurrency allows
	w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
		switch r.To.Domain {
		case "slow.test":
			return greylist
		case "dead.test":
			return timeout
		}
		return delivered
	}
	for i := range 40 {
		w.put(envelope(fmt.Sprintf("S%d@them.test", i%4), fmt.Sprintf("r%d@slow.test", i)))
	}
	time.Sleep(20 * time.Second)
	for i := range 20 {
		w.put(envelope("flood@other.test", fmt.Sprintf("r%d@dead.test", i), "done@us.test"))
	}
	time.Sleep(20 * time.Second)
	synctest.Wait()
	w.courier.took = 0
	return w
}

var ctx = context.Background()

func TestFilters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		first := w.store.ids()[0]
		for _, c := range []struct {
			f    Filter
			want int
		}{
			{Filter{}, 60},
			{Filter{ID: first}, 1},
			{Filter{ID: "nothing"}, 0},
			{Filter{Sender: "s1@THEM.test"}, 10},
			{Filter{Sender: "@them.test"}, 40},
			{Filter{Sender: "<>"}, 0},
			{Filter{Recipient: "r3@slow.test"}, 1},
			{Filter{Recipient: "@dead.test"}, 20},
			{Filter{Recipient: "done@us.test"}, 0}, // that recipient is done with
			{Filter{Destination: "slow.test"}, 40},
			{Filter{Destination: "nowhere.test"}, 0},
			{Filter{Reason: "remote_greylist"}, 40},
			{Filter{Reason: "connect_timeout"}, 5}, // the others wait for the dead site and were not attempted
			{Filter{State: "waiting"}, 60},
			{Filter{State: "held"}, 0},
			{Filter{OlderThan: 30 * time.Second}, 40},
			{Filter{YoungerThan: 30 * time.Second}, 20},
			{Filter{Sender: "@them.test", Recipient: "r3@slow.test"}, 1},
			{Filter{Sender: "@other.test", Recipient: "r3@slow.test"}, 0},
		} {
			n, err := w.Count(ctx, c.f)
			if err != nil || n != c.want {
				t.Errorf("%+v selects %d (%v), want %d", c.f, n, err, c.want)
			}
			if l, err := w.List(ctx, c.f, Page{}); err != nil || l.Total != c.want || len(l.Items) != c.want {
				t.Errorf("%+v lists %d of %d (%v)", c.f, len(l.Items), l.Total, err)
			}
		}
		for _, f := range []Filter{{Reason: "bad mood"}, {State: "asleep"}, {Reason: "none"}} {
			if _, err := w.Count(ctx, f); err == nil {
				t.Errorf("%+v is accepted", f)
			}
		}
		if _, err := w.List(ctx, Filter{}, Page{Sort: "beauty"}); err == nil {
			t.Error("a bad order is accepted")
		}
		for _, after := range []string{"x", "1-", "1-zz", "-", "1-00"} {
			if _, err := w.List(ctx, Filter{}, Page{After: after}); err == nil {
				t.Errorf("page %q is accepted", after)
			}
		}
		w.stop()
	})
}

// Pages in any order cover every message once.
func TestListPages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		for _, sort := range []string{"", "age", "-age", "next", "size", "attempts"} {
			var got []mail.ID
			p := Page{Sort: sort, Limit: 7}
			for {
				l, err := w.List(ctx, Filter{}, p)
				if err != nil || l.Total != 60 || len(l.Items) > 7 {
					t.Fatalf("%s: %d of %d, %v", sort, len(l.Items), l.Total, err)
				}
				for i, it := range l.Items {
					got = append(got, it.ID)
					if i > 0 {
						a, b := l.Items[i-1], it
						if sort == "" && b.Arrived.Before(a.Arrived) || sort == "-age" && a.Arrived.Truncate(time.Second).Before(b.Arrived.Truncate(time.Second)) || sort == "next" && b.Next.Before(a.Next) || sort == "size" && b.Size > a.Size {
							t.Errorf("%s: %s is listed after %s", sort, b.ID, a.ID)
						}
					}
				}
				if p.After = l.Next; l.Next == "" {
					break
				}
			}
			slices.Sort(got)
			if n := len(slices.Compact(got)); n != 60 || len(got) != 60 {
				t.Errorf("%s: %d messages listed, %d different", sort, len(got), n)
			}
		}
		w.stop()
	})
}

func TestItem(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		id := w.store.ids()[0]
		it, err := w.Item(id)
		if err != nil {
			t.Fatal(err)
		}
		r := it.Rcpts[0]
		if it.State != "waiting" || it.From != "S0@them.test" || r.To != "r0@slow.test" || r.Status != "PENDING" || r.Attempts != 1 || r.Reason != "remote_greylist" ||
			r.Destination != "slow.test" || r.Doing != "waiting" || !r.Next.After(time.Now()) || !it.Next.Equal(r.Next) || r.LastFailure != "450 later" || it.Trace == "" ||
			r.GiveUp.Sub(it.Arrived) != 5*24*time.Hour {
			t.Errorf("%+v", it)
		}
		if _, err := w.Item("nothing"); err != ErrNotFound {
			t.Errorf("%v", err)
		}
		w.store.setFail(func(string, mail.ID) error { return ErrCorrupt })
		if it, err := w.Item(id); err != nil || it.Error == "" || it.ID != id {
			t.Errorf("%+v %v", it, err)
		}
		w.store.setFail(nil)
		w.stop()
		w.Queue = New(testConfig(w.store, w.courier))
		if _, err := w.Item("nothing"); err != ErrNotFound {
			t.Errorf("in an empty queue: %v", err)
		}
	})
}

func TestGroups(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		names := func(by string) (out []string) {
			gs, err := w.Groups(ctx, Filter{}, by, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range gs {
				out = append(out, fmt.Sprintf("%s %d %d", g.Name, g.Messages, g.Recipients))
			}
			return out
		}
		for by, want := range map[string][]string{
			"destination": {"slow.test 40 40", "dead.test 20 20"},
			"reason":      {"remote_greylist 40 40", "none 15 15", "connect_timeout 5 5"},
			"sender":      {"flood@other.test 20 20", "s0@them.test 10 10", "s1@them.test 10 10", "s2@them.test 10 10", "s3@them.test 10 10"},
		} {
			got := names(by)
			if by == "sender" {
				slices.Sort(got[1:])
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", by, diff)
			}
		}
		if gs, _ := w.Groups(ctx, Filter{}, "sender", 1); len(gs) != 1 {
			t.Errorf("%d groups", len(gs))
		}
		if _, err := w.Groups(ctx, Filter{}, "colour", 1); err == nil {
			t.Error("grouped by colour")
		}
		ds := w.Destinations(ctx, 10)
		if len(ds) != 2 || ds[0].Name != "slow.test" || ds[0].Units != 40 || ds[1].Name != "dead.test" || !ds[1].Dead || ds[1].LastErr == "" || ds[1].Why == "" {
			t.Errorf("destinations %+v", ds)
		}
		if st := w.Stats(); st.Messages != 60 || st.Waiting != 60 || st.Capacity != 1_000_000 || st.Oldest < 30*time.Second || st.Oldest > 40*time.Second {
			t.Errorf("stats %+v", st)
		}
		w.stop()
	})
}

func (w *world) operate(op Op, f Filter, want int) {
	w.Helper()
	if n, err := w.Operate(ctx, op, f, "root"); n != want || err != nil {
		w.Errorf("%v %+v: %d (%v), want %d", op, f, n, err, want)
	}
}

// What is held is not attempted, also after a restart, nor given up, until it is released.
func TestHoldRelease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		before := len(w.courier.times("r1@slow.test"))
		w.operate(Hold, Filter{Sender: "s1@them.test"}, 10)
		w.operate(Hold, Filter{Sender: "s1@them.test"}, 10) // again, without harm
		if st := w.Stats(); st.Held != 10 || st.Waiting != 50 {
			t.Errorf("stats %+v", st)
		}
		w.stop()
		w.start()
		time.Sleep(6 * 24 * time.Hour)
		if n := len(w.courier.times("r1@slow.test")); n != before {
			t.Errorf("%d attempts while held", n-before)
		}
		if st := w.Stats(); st.Held != 10 || st.Messages != 10 {
			t.Errorf("after six days: %+v", st)
		}
		id := w.store.ids()[0]
		if it, _ := w.Item(id); it.State != "held" || !it.Rcpts[0].Held || it.Rcpts[0].Doing != "held" {
			t.Errorf("%+v", it)
		}
		w.courier.deliver = nil
		w.operate(Release, Filter{State: "held"}, 10)
		time.Sleep(time.Minute)
		if n := w.Stats().Messages; n != 0 {
			t.Errorf("%d messages left after the release", n)
		}
		if !slices.Contains(w.events.of(id), "operator") {
			t.Errorf("events %v", w.events.of(id))
		}
		w.stop()
	})
}

func TestRetry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		w.courier.deliver = nil
		w.operate(Retry, Filter{Destination: "slow.test"}, 40)
		if n, err := w.Operate(ctx, Retry, Filter{Destination: "dead.test"}, "root"); n == 0 || err != nil { // the first open the way for the rest
			t.Errorf("retried %d, %v", n, err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		w.mustBeEmpty()
		w.stop()
	})
}

func TestBounceAndDrop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		w.operate(Bounce, Filter{Sender: "s1@them.test"}, 10)
		w.operate(Drop, Filter{Sender: "s2@them.test"}, 10)
		w.operate(Bounce, Filter{Destination: "dead.test"}, 20)
		time.Sleep(time.Second)
		for to, want := range map[string]int{"S1@them.test": 10, "S2@them.test": 0, "flood@other.test": 20} {
			if n := len(w.courier.times(to)); n != want {
				t.Errorf("%s got %d notices, want %d", to, n, want)
			}
		}
		if n := w.Stats().Messages; n != 20 {
			t.Errorf("%d messages left", n)
		}
		for fate, want := range map[string]float64{"admin": 30, "dropped": 10, "bounced": 0, "delivered": 30} {
			if got := w.m.fates[fate].Value(); got != want {
				t.Errorf("%v removed as %s, want %v", got, fate, want)
			}
		}
		w.operate(Drop, Filter{}, 20)
		w.mustBeEmpty()
		w.stop()
	})
}

// An operation on a message that is being attempted waits for the attempt: what it delivers is delivered, and nothing is attempted after it.
func TestOperateWhileSending(t *testing.T) {
	for op, notices := range map[Op]int{Bounce: 1, Drop: 0, Hold: 0} {
		t.Run(op.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.MaxBatch = 1 })
				w.courier.took = 10 * time.Second
				w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
					if r.To.Local == "slow" {
						return greylist
					}
					return delivered
				}
				w.put(envelope("a@them.test", "slow@x.test", "b@x.test"))
				var list []string
				for i := range 100 {
					list = append(list, fmt.Sprintf("r%d@y.test", i))
				}
				w.put(envelope("a@them.test", list...))
				time.Sleep(time.Second)
				w.operate(op, Filter{State: "sending"}, 2)
				time.Sleep(time.Minute)
				jobs := w.courier.count()
				if n := len(w.courier.times("a@them.test")); n != notices*2 {
					t.Errorf("%d notices", n)
				}
				if jobs > 15 {
					t.Errorf("%d jobs", jobs)
				}
				time.Sleep(time.Hour)
				if n := w.courier.count(); n != jobs {
					t.Errorf("%d more jobs", n-jobs)
				}
				if op == Hold {
					if st := w.Stats(); st.Held != 2 {
						t.Errorf("%+v", st)
					}
					w.operate(Drop, Filter{}, 2)
				}
				w.mustBeEmpty()
				w.stop()
			})
		})
	}
}

// slowOperator makes an operation take its time between taking a message and doing something to it.
type slowOperator struct{ *events }

func (s slowOperator) Observe(e *timeline.Event) {
	s.events.Observe(e)
	if e.Kind == timeline.Operator {
		time.Sleep(10 * time.Second)
	}
}

// A message that ends while an operation is about to be done to it ends once.
func TestOperateWhileEnding(t *testing.T) {
	for n, op := range []Op{Hold, Release, Retry, Bounce, Drop, Hold, Release, Retry, Bounce, Drop} {
		wait := time.Second // while it is being attempted
		if n >= 5 {
			wait = 3500 * time.Millisecond // while it is being removed
		}
		bubble(t, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Observer = slowOperator{c.Observer.(*events)} })
			w.courier.took = 3 * time.Second
			w.courier.deliver = func(_ context.Context, j *mail.Job, r *mail.Recipient) mail.Outcome {
				if r.To.Local == "c" && j.Attempt == 1 {
					return greylist
				}
				return delivered
			}
			w.store.flush = time.Second
			w.put(envelope("a@them.test", "b@x.test"))
			time.Sleep(wait)
			var done sync.WaitGroup
			done.Go(func() { w.operate(op, Filter{}, 1) })
			time.Sleep(5 * time.Second)
			other := w.put(envelope("a@them.test", "c@x.test")) // takes the place of the first in memory
			done.Wait()
			time.Sleep(30 * time.Second)
			if it, err := w.Item(other); err != nil || it.State != "waiting" || it.Rcpts[0].Status != "PENDING" || it.Rcpts[0].Held {
				t.Errorf("%v: another message was hit: %+v, %v", op, it, err)
			}
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			w.mustBeEmpty()
			if n := w.courier.count(); n != 3 {
				t.Errorf("%v: %d jobs", op, n)
			}
			w.stop()
		})
	}
}

func TestDropUnreadable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		w.store.setFail(func(op string, _ mail.ID) error {
			if op == "load" {
				return ErrCorrupt
			}
			return nil
		})
		if _, err := w.Operate(ctx, Hold, Filter{}, "root"); err == nil {
			t.Error("held what cannot be read")
		}
		w.operate(Drop, Filter{}, 60)
		w.mustBeEmpty()
		w.stop()
	})
}

func TestParseOp(t *testing.T) {
	for _, op := range []Op{Hold, Release, Retry, Bounce, Drop} {
		if got, err := ParseOp(op.String()); got != op || err != nil {
			t.Errorf("%v: %v %v", op, got, err)
		}
	}
	if _, err := ParseOp("explode"); err == nil {
		t.Error("an unknown operation is accepted")
	}
}

// MON-3: the layout that existing tools read.
func TestMON3Dump(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := backlog(t)
		id := w.store.ids()[59]
		var b strings.Builder
		if err := w.WriteDump(ctx, &b, 100); err != nil {
			t.Fatal(err)
		}
		got := b.String()
		if !regexp.MustCompile(`^# .*\n\ndate: 2000-01-01 .*\nlength: 60\n\n## Item `).MatchString(got) {
			t.Errorf("begins %q", got[:80])
		}
		i := strings.Index(got, "## Item "+string(id))
		want := regexp.MustCompile(`^## Item ` + string(id) + `
created at: 2000-01-01 .*
from: flood@other\.test
to: \[r19@dead\.test done@us\.test\]
PENDING r19@dead\.test \(EMAIL\)
	original address: r19@dead\.test
	last failure: ".*"
SENT done@us\.test \(EMAIL\)
	original address: done@us\.test
	last failure: ""
`)
		if i < 0 || !want.MatchString(got[i:]) {
			t.Errorf("item %q", got[max(0, i):])
		}
		if n := strings.Count(got, "## Item"); n != 60 {
			t.Errorf("%d items", n)
		}
		b.Reset()
		w.WriteDump(ctx, &b, 7)
		if n := strings.Count(b.String(), "## Item"); n != 7 {
			t.Errorf("%d items of 7", n)
		}
		w.stop()
	})
}
