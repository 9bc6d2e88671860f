package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// kick sees that somebody attempts what is ready: it wakes one worker, or starts one. That one wakes the next. q.mu is held.
func (q *Queue) kick() {
	if !q.running || q.waking > 0 || !q.sched.Ready() {
		return
	}
	if n := len(q.idle); n > 0 {
		w := q.idle[n-1]
		q.idle = q.idle[:n-1]
		q.waking++
		w <- struct{}{}
		return
	}
	// The schedule bounds what is ready, and a worker is started only for something that is, so it bounds the workers.
	q.workers++
	q.waking++
	q.work.Add(1)
	go q.worker()
}

// worker attempts what is ready, and sleeps.
func (q *Queue) worker() {
	defer q.work.Done()
	w := make(chan struct{}, 1)
	q.mu.Lock()
	q.waking--
	for {
		k, ok := sched.Key(0), false
		if q.running {
			k, ok = q.sched.Next(time.Now())
		}
		switch {
		case ok:
			q.kick()
			q.attempt(k)
		case !q.running || len(q.idle) >= maxIdle:
			q.workers--
			q.mu.Unlock()
			return
		default:
			q.idle = append(q.idle, w)
			q.mu.Unlock()
			<-w
			q.mu.Lock()
			q.waking--
		}
	}
}

// attempt is one attempt for the recipients of one unit.
type attempt struct {
	q     *Queue
	k     sched.Key
	m     uint32
	l     *live
	ctx   context.Context
	began time.Time
	took  time.Duration // by the courier

	rcpts []int          // places in the envelope of the recipients with an outcome
	out   []mail.Outcome // theirs, in the same order
	tried int            // the first of these that the courier was asked for; before are those given up
	route mail.Route
	from  address.Address // as the next hop sees it
	one   [1]int          // room for rcpts
}

// attempt attempts the unit. q.mu is held, but not while that is done.
func (q *Queue) attempt(k sched.Key) {
	m := q.sched.Group(k)
	l := q.take(m)
	r := q.index.at(m)
	resumed := r.flags&loaded != 0
	r.flags &^= loaded
	lag := time.Since(q.sched.Info(k).Due)
	q.mu.Unlock()
	defer q.mu.Lock()
	q.m.lag.Observe(max(0, lag.Seconds()))

	a := &attempt{q: q, k: k, m: m, l: l, began: time.Now()}
	if err := q.load(l); err != nil {
		a.unreadable(err)
		return
	}
	e := &l.entry
	begin := func() (context.Context, *trace.Span) {
		if resumed {
			return trace.Resume(q.ctx, trace.QueueItem, string(e.ID), e.Env.Trace, e.Env.Arrived)
		}
		return trace.StartMessage(q.ctx, trace.QueueItem, string(e.ID), e.Env.Trace)
	}
	ctx, span := begin()
	a.ctx = ctx
	a.deliver()
	a.report(span)
	a.apply()
	span.Finish() // here, on the goroutine that began it: what follows is done on others
	q.record(func() { q.conclude(q.own, m, l, 0) })
}

// take counts one job more for a message and keeps its envelope in memory until that is over. q.mu is held.
func (q *Queue) take(m uint32) *live {
	l := q.live[m]
	if l == nil {
		l = &live{entry: Entry{ID: q.index.id(m)}}
		q.live[m] = l
	}
	l.jobs++
	q.index.setState(m, sending)
	return l
}

// release ends a job of a message. q.mu is held.
func (q *Queue) release(m uint32, l *live) {
	l.jobs--
	if l.jobs > 0 || q.live[m] != l {
		return
	}
	if q.index.allHeld(m) {
		q.index.setState(m, held)
	} else {
		q.index.setState(m, waiting)
	}
	if len(l.dirty) == 0 {
		delete(q.live, m)
	}
}

// load reads the entry from the store unless it is in memory.
func (q *Queue) load(l *live) error {
	l.once.Do(func() {
		e, err := q.conf().Store.Load(l.entry.ID)
		if l.err = err; err == nil {
			l.entry = e
		}
	})
	return l.err
}

// unreadable ends an attempt whose envelope cannot be read.
func (a *attempt) unreadable(err error) {
	q, now := a.q, time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sched.Done(a.k, sched.Neutral, "", now, 0)
	q.sched.Defer(a.k, now.Add(unreadableDelay), now)
	q.poke()
	q.unread(a.m, a.l, err)
}

// unread ends a job for which the envelope could not be read. q.mu is held.
func (q *Queue) unread(m uint32, l *live, err error) {
	gone := errors.Is(err, ErrNotFound)
	if !gone {
		q.complain("queue: cannot read message %s, trying again in %v: %v", q.index.id(m), unreadableDelay, err)
	}
	q.release(m, l)
	if q.live[m] == l {
		delete(q.live, m) // so that whoever comes next reads it again
	}
	if gone && l.jobs == 0 {
		q.forget(m)
	}
}

const unreadableDelay = 10 * time.Minute

// deliver fills a.out. Whatever panics in it defers the recipients.
func (a *attempt) deliver() {
	q, e := a.q, &a.l.entry
	a.rcpts = a.one[:0]
	q.mu.Lock()
	q.index.each(a.m, func(i int, r *ref) {
		if r.unit == a.k && r.status == Pending && !r.held {
			a.rcpts = append(a.rcpts, i)
		}
	})
	number := q.sched.Attempted(a.k)
	q.mu.Unlock()
	defer func() {
		if p := recover(); p != nil {
			q.panicked("an attempt for "+string(e.ID), p)
			a.fail(mail.Outcome{Reason: mail.ReasonInternal, Err: errPanic})
		}
	}()
	a.expire()
	if a.tried == len(a.rcpts) {
		return
	}
	if err := a.chooseRoute(); err != nil {
		a.fail(mail.Outcome{Reason: mail.ReasonInternal, Err: fmt.Errorf("no route: %w", err)})
		return
	}
	a.call(number)
}

// expire moves the recipients whose time is up to the front, with an outcome that says so.
func (a *attempt) expire() {
	env := &a.l.entry.Env
	isLate := func(i int) bool { return !a.began.Before(a.q.expiry(env, &env.Rcpts[i])) }
	if !slices.ContainsFunc(a.rcpts, isLate) {
		return
	}
	var late, rest []int
	for _, i := range a.rcpts {
		if isLate(i) {
			late = append(late, i)
		} else {
			rest = append(rest, i)
		}
	}
	a.rcpts, a.tried = append(late, rest...), len(late)
	a.out = make([]mail.Outcome, len(late))
	for n := range a.out {
		a.out[n] = expired
	}
}

// expired is the outcome of a recipient that is given up.
var expired = mail.Outcome{Disposition: mail.Failed, Reason: mail.ReasonExpired, Err: errExpired}

// fail gives every recipient that has none this outcome.
func (a *attempt) fail(o mail.Outcome) {
	for len(a.out) < len(a.rcpts) {
		a.out = append(a.out, o)
	}
}

// chooseRoute asks for the route again, as the configuration may have changed, and leaves those recipients to other units that must go
// another way.
func (a *attempt) chooseRoute() error {
	q, l := a.q, a.l
	if l.routed {
		a.route, a.from, l.routed = l.route, l.from, false
		return nil
	}
	q.mu.Lock()
	here := q.sched.Name(q.sched.DestOf(a.k))
	q.mu.Unlock()
	stay := a.rcpts[:a.tried:a.tried]
	var chosen *group
	move := map[group][]int{}
	for _, i := range a.rcpts[a.tried:] {
		g, route, err := q.groupOf(a.ctx, &l.entry, i, a.began)
		if err != nil {
			a.route = route
			return err
		}
		if chosen == nil && g.dest == here {
			chosen, a.route, a.from = &g, route, g.from
		}
		if chosen != nil && g == *chosen {
			stay = append(stay, i)
		} else {
			move[g] = append(move[g], i)
		}
	}
	a.rcpts = stay
	if len(move) > 0 {
		a.move(move)
	}
	return nil
}

// move makes units of recipients that no longer belong to this one; they are due at once.
func (a *attempt) move(groups map[group][]int) {
	q := a.q
	q.mu.Lock()
	defer q.mu.Unlock()
	for g, rcpts := range groups {
		for _, i := range rcpts {
			if st := &a.l.entry.Status[i]; st.Next.After(a.began) { // somebody had it tried before its time: it shall not wait for that now
				st.Next = a.began
			}
		}
		for size := q.batch(g.via); len(rcpts) > 0; {
			n := min(size, len(rcpts))
			q.addUnit(a.m, &a.l.entry, &g, rcpts[:n], false, a.began)
			rcpts = rcpts[n:]
		}
	}
	q.kick()
}

// call has the courier deliver. One that answers for the wrong number of recipients deferred them all.
func (a *attempt) call(number int) {
	q, e, rcpts := a.q, &a.l.entry, a.rcpts[a.tried:]
	if len(rcpts) == 0 {
		return
	}
	job := mail.Job{ID: e.ID, Env: &e.Env, Route: a.route, From: a.from, Attempt: number, Size: e.Size,
		Open: func() (io.ReadCloser, error) { return q.conf().Store.Open(e.ID) }}
	if len(rcpts) == len(e.Env.Rcpts) {
		job.Rcpts = e.Env.Rcpts
	} else {
		job.Rcpts = make([]mail.Recipient, len(rcpts))
		for n, i := range rcpts {
			job.Rcpts[n] = e.Env.Rcpts[i]
		}
	}
	gauge := q.m.inFlight[a.route.Transport&3]
	gauge.Inc()
	defer gauge.Dec()
	start := time.Now()
	out := q.conf().Courier.Deliver(a.ctx, job)
	a.took = time.Since(start)
	if len(out) != len(rcpts) {
		err := trace.From(a.ctx).Errorf("queue: the courier gave %d outcomes for %d recipients", len(out), len(rcpts))
		a.fail(mail.Outcome{Reason: mail.ReasonInternal, Err: err})
		return
	}
	if len(a.out) == 0 {
		a.out = out
	} else {
		a.out = append(a.out, out...)
	}
	q.m.attemptTook(a.route.Transport, out, a.took, e.Env.Trace)
}

func (q *Queue) panicked(where string, p any) {
	q.m.panics.Inc()
	log.Errorf("queue: panic in %s: %v\n%s", where, p, debug.Stack())
}

var (
	errPanic   = errors.New("internal error of the delivery")
	errExpired = errors.New("not delivered in time")
)

// report tells the observers, the trace and the metrics about the attempt.
func (a *attempt) report(span *trace.Span) {
	q, e := a.q, &a.l.entry
	for n, i := range a.rcpts {
		r, o := &e.Env.Rcpts[i], &a.out[n]
		if n >= a.tried {
			q.m.attempted(r.Kind, a.route.Transport, o)
		}
		switch o.Disposition {
		case mail.Delivered:
			span.Info(&q.sent, r.Target()+" sent")
		case mail.Failed:
			span.Errorf("%s failed permanently: %s", r.Target(), failureText(o))
		default:
			span.Errorf("%s deferred: %s", r.Target(), failureText(o))
		}
		ev := timeline.New(timeline.Attempt)
		ev.ID, ev.Trace, ev.From, ev.MessageID = e.ID, e.Env.Trace, e.Env.From, e.Env.MessageID
		ev.Rcpt, ev.N, ev.Outcome, ev.Reply, ev.Took = r, e.Status[i].Attempts+1, o, o.Reply, a.took
		q.observe(ev)
		ev.Free()
	}
}

// failureText is a failure in words.
func failureText(o *mail.Outcome) string {
	switch {
	case o.Err != nil:
		return o.Err.Error()
	case !o.Reply.IsZero():
		return o.Reply.String()
	}
	return o.Reason.String()
}

func jitter() float64 { return rand.Float64()*2 - 1 }
