package queue

import (
	"context"
	"errors"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dsn"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// apply takes the outcomes into memory, gives the slot of the unit back and plans its next attempt. What must be written is done by conclude.
func (a *attempt) apply() {
	q, e, now := a.q, &a.l.entry, time.Now()
	shift := jitter()
	q.mu.Lock()
	defer q.mu.Unlock()
	verdict, why := sched.Neutral, ""
	if tried := a.out[a.tried:]; len(tried) > 0 {
		verdict = sched.Judge(tried)
		if verdict != sched.Good {
			why = failureText(&tried[0])
		}
	}
	for n, i := range a.rcpts {
		q.decide(a.m, a.l, i, &a.out[n], now, shift)
	}
	q.sched.Done(a.k, verdict, why, now, jitter())
	q.replan(a.m, e, a.k, now)
	q.kick()
}

// decide takes one outcome into memory. q.mu is held.
func (q *Queue) decide(m uint32, l *live, i int, o *mail.Outcome, now time.Time, shift float64) {
	e := &l.entry
	st, r := &e.Status[i], q.index.rcpt(m, i)
	if o.Reason != mail.ReasonExpired {
		st.Attempts++
		st.Reply, st.MTA, st.Relayed = o.Reply, clip(o.MTA), o.Relayed
		st.Text = ""
		if o.Disposition != mail.Delivered {
			st.Text = clip(failureText(o))
		}
	} else { // the last failure is what there is to tell
		q.m.gaveUp()
	}
	st.Reason, r.reason = o.Reason, o.Reason
	switch o.Disposition {
	case mail.Delivered:
		st.Status = Sent
	case mail.Failed:
		st.Status = Failed
	default:
		st.Next = now.Add(sched.Delay(st.Attempts, o.RetryAfter, shift))
		if end := q.expiry(&e.Env, &e.Env.Rcpts[i]); end.Before(st.Next) {
			st.Next = end
		}
	}
	if st.Status != Pending {
		q.index.setStatus(r, st.Status)
		if r.quiet = !q.tellable(e, i, r); r.quiet && st.Status == Failed {
			q.m.notice(dsn.Failure, noticeSuppressed)
		}
		q.m.final(r.transport, o, st.Attempts, now.Sub(e.Env.Arrived), e.Env.Trace)
	}
	l.dirty = append(l.dirty, i)
}

// replan puts a claimed unit back into the schedule, or removes it if it has no recipients left. q.mu is held.
func (q *Queue) replan(m uint32, e *Entry, k sched.Key, now time.Time) {
	var next time.Time
	left, hold := false, false
	q.index.each(m, func(i int, r *ref) {
		if r.unit != k {
			return
		}
		if r.status != Pending {
			r.unit = 0
			return
		}
		if t := due(&e.Env.Rcpts[i], &e.Status[i]); !left || t.Before(next) {
			next = t
		}
		left, hold = true, hold || r.held
	})
	switch {
	case !left:
		q.sched.Remove(k)
	case hold:
		q.sched.Hold(k)
	default:
		q.sched.Defer(k, next, now)
		q.poke()
	}
}

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText]
	}
	return s
}

// record runs f, which writes to the store, without making a worker wait for the disk: the next attempts go on meanwhile, and what many
// want to write becomes durable together. Only so many may wait; then the workers do.
func (q *Queue) record(f func()) {
	q.tokens <- struct{}{}
	q.work.Add(1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				q.panicked("the writing of an outcome", p)
			}
			<-q.tokens
			q.work.Done()
		}()
		f()
	}()
}

// wish is what a conclusion is to do besides writing down what is new.
type wish uint8

const (
	tell  wish = 1 << iota // tell the sender of recipients that are done with, though others are left
	delay                  // tell the sender that it takes longer
)

// conclude ends a job of a message: it makes durable what is new, tells the sender what is to be told, and removes the message if nothing is
// left to do.
//
// The order is the promise. Outcomes are written before a notice tells them, so that a recipient that a notice calls failed is never tried
// again. Notices are durable before the message goes. A message that everybody got, and of which nobody is told, needs no outcomes written:
// its removal says it all. Whatever cannot be written is tried again by tend, and the message stays (beyond X-1).
//
// One goroutine at a time concludes a message. Others hand their jobs to it and go.
func (q *Queue) conclude(ctx context.Context, m uint32, l *live, w wish) {
	q.mu.Lock()
	l.handed++
	l.wishes |= w
	if l.busy {
		q.mu.Unlock()
		return
	}
	l.busy = true
	c := conclusion{q: q, ctx: ctx, m: m, l: l}
	for l.handed > 0 {
		c.pass()
	}
	event := c.end()
	q.mu.Unlock()
	if event != nil {
		q.observe(event)
		event.Free()
	}
	for _, n := range c.notices {
		q.accept(ctx, n)
	}
}

// conclusion is the work of one goroutine on one message.
type conclusion struct {
	q       *Queue
	ctx     context.Context
	m       uint32
	l       *live
	jobs    int     // that were handed to it
	final   bool    // nothing is left to attempt
	ok      bool    // everything was written
	notices []*live // durable, to be scheduled once their message knows of them
}

// pass does what is to be done now. q.mu is held, but not while something is written.
func (c *conclusion) pass() {
	q, m, l := c.q, c.m, c.l
	c.jobs += l.handed
	w := l.wishes
	l.handed, l.wishes = 0, 0
	q.obey(m, l, c.jobs)
	c.final = l.jobs == c.jobs && !q.index.pending(m)
	var notes []note
	if c.final || w&tell != 0 {
		notes = q.notes(m, l)
	}
	late := note{}
	if w&delay != 0 && !c.final {
		if late = q.delayed(m, l, time.Now()); len(late.rcpts) > 0 {
			notes = append(notes, late)
		}
	}
	q.mu.Unlock()
	c.ok = c.write(notes)
	q.mu.Lock()
	if w&delay != 0 && c.ok && !wantsDelay(&l.entry) {
		q.index.at(m).flags |= delayDone
	}
}

// write writes what a pass found to be written, and reports whether all of it was. A panic is a failure: the message stays.
func (c *conclusion) write(notes []note) (ok bool) {
	q, l := c.q, c.l
	defer func() {
		if p := recover(); p != nil {
			q.panicked("the conclusion of "+string(l.entry.ID), p)
			ok = false
		}
	}()
	if (!c.final || len(notes) > 0) && q.save(l) != nil {
		return false
	}
	ctx := c.ctx
	if len(notes) > 0 {
		var span *trace.Span
		ctx, span = trace.StartMessage(ctx, trace.QueueItem, string(l.entry.ID), l.entry.Env.Trace)
		defer span.Finish()
	}
	for _, n := range notes {
		notice, err := q.notice(ctx, l, n)
		if err != nil {
			return false
		}
		q.notified(c.m, l, n)
		if notice != nil {
			c.notices = append(c.notices, notice)
		}
	}
	if c.final {
		return q.erase(l) == nil
	}
	return q.save(l) == nil
}

// complain logs what goes wrong with the store. When a disk fails, it does for many messages, every minute: some of them will do.
func (q *Queue) complain(format string, a ...any) {
	const perMinute = 20
	minute := time.Now().Unix() / 60
	if q.complaints.minute.Swap(minute) != minute {
		q.complaints.n.Store(0)
	}
	switch n := q.complaints.n.Add(1); {
	case n < perMinute:
		log.Errorf(format, a...)
	case n == perMinute:
		log.Errorf(format+"; further ones of this minute are not logged", a...)
	}
}

// erase removes the message from the store.
func (q *Queue) erase(l *live) error {
	err := q.conf().Store.Remove(l.entry.ID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		q.complain("queue: cannot remove message %s, trying again: %v", l.entry.ID, err)
		return err
	}
	return nil
}

// end gives up the jobs, and the message if it is final and all is written, and returns the event to be told, if any. q.mu is held.
func (c *conclusion) end() *timeline.Event {
	q, m, l, e := c.q, c.m, c.l, &c.l.entry
	event := func(k timeline.Kind) *timeline.Event {
		ev := timeline.New(k)
		ev.ID, ev.Trace, ev.From, ev.MessageID, ev.Size = e.ID, e.Env.Trace, e.Env.From, e.Env.MessageID, e.Size
		return ev
	}
	l.busy = false
	if c.final && c.ok && l.jobs == c.jobs {
		ev := event(timeline.Final)
		ev.Took = time.Since(e.Env.Arrived)
		q.m.removed(q.fate(m, e))
		q.forget(m)
		return ev
	}
	if c.final { // also if somebody took it meanwhile, who will then end it
		q.index.at(m).flags |= closing
	}
	l.jobs -= c.jobs - 1
	q.release(m, l)
	if l.jobs == 0 && !c.final && q.index.at(m).state == waiting {
		ev := event(timeline.LoopEnd)
		ev.Wait = q.untilNext(m)
		return ev
	}
	return nil
}

// fate is why a message leaves, as the metric has it.
func (q *Queue) fate(m uint32, e *Entry) string {
	switch f := q.index.at(m).flags; {
	case f&dropped != 0:
		return "dropped"
	case f&returned != 0:
		return "admin"
	}
	fate := "delivered"
	for i := range e.Status {
		if e.Status[i].Status == Failed {
			if fate = "bounced"; e.Status[i].Reason == mail.ReasonExpired {
				return "expired"
			}
		}
	}
	return fate
}

// untilNext is how long until the next attempt for some recipient of the message. q.mu is held.
func (q *Queue) untilNext(m uint32) time.Duration {
	var next time.Time
	q.index.each(m, func(_ int, r *ref) {
		if r.status == Pending && r.unit != 0 {
			if t := q.sched.Info(r.unit).Due; next.IsZero() || t.Before(next) {
				next = t
			}
		}
	})
	return max(0, time.Until(next))
}

// forget removes a message from memory. q.mu is held.
func (q *Queue) forget(m uint32) {
	q.index.each(m, func(_ int, r *ref) {
		if r.unit != 0 && q.sched.Group(r.unit) == m && q.sched.Claim(r.unit) {
			q.sched.Remove(r.unit)
		}
	})
	q.index.remove(m)
	delete(q.live, m)
	q.items.Add(-1)
}

// save makes the statuses durable that are not yet. They are read when they are written, and one goroutine at a time does that, so the
// newest always wins.
func (q *Queue) save(l *live) error {
	q.mu.Lock()
	dirty := l.dirty
	l.dirty = nil
	ups := make([]RcptUpdate, 0, len(dirty))
	seen := make(map[int]bool, len(dirty))
	for _, i := range dirty {
		if !seen[i] {
			seen[i] = true
			ups = append(ups, RcptUpdate{Rcpt: i, State: l.entry.Status[i]})
		}
	}
	q.mu.Unlock()
	if len(ups) == 0 {
		return nil
	}
	err := q.conf().Store.Update(l.entry.ID, ups...)
	if errors.Is(err, ErrNotFound) { // somebody removed it behind our back; the next to look for it will notice
		return nil
	}
	if err != nil {
		q.complain("queue: cannot write the state of message %s, trying again: %v", l.entry.ID, err)
		q.mu.Lock()
		l.dirty = append(dirty, l.dirty...)
		q.mu.Unlock()
	}
	return err
}

// obey does what an operator wanted, once no jobs but these are left. q.mu is held.
func (q *Queue) obey(m uint32, l *live, jobs int) {
	f := q.index.at(m).flags
	if f&(dropped|returned) == 0 || l.jobs > jobs {
		return
	}
	now := time.Now()
	q.index.each(m, func(i int, r *ref) {
		if r.status != Pending {
			return
		}
		if r.unit != 0 && q.sched.Claim(r.unit) {
			q.sched.Remove(r.unit)
		}
		r.unit, r.held = 0, false
		if f&dropped != 0 {
			q.index.setStatus(r, Failed)
			l.entry.Status[i].Status = Failed
		} else {
			q.decide(m, l, i, &byOperator, now, 0)
		}
	})
}

// byOperator is the outcome of a recipient whose message an operator returned to its sender.
var byOperator = mail.Outcome{Disposition: mail.Failed, Reason: mail.ReasonPolicy, Err: errors.New("returned by the administrator of the mail server")}
