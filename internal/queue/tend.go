package queue

import (
	"context"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dsn"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// tendLoop looks at every message once a minute, for what no attempt brings about.
func (q *Queue) tendLoop(ctx context.Context) {
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	for {
		q.tend(ctx, time.Now(), noChore)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// chore is what a message needs besides attempts.
type chore uint8

const (
	noChore  chore = iota
	closeIt        // a notice or the removal could not be written
	saveIt         // a state could not be written
	expireIt       // its time is up while it waits for a slot, perhaps of a dead site
	delayIt        // its sender is to be told that it takes longer
	tellIt         // its sender is to be told of some recipients while others take longer
)

// tend does what messages need besides attempts, or one kind of it. It walks over the records in slices, so that it keeps nobody waiting for the lock.
func (q *Queue) tend(ctx context.Context, now time.Time, only chore) {
	type task struct {
		m uint32
		l *live
		c chore
	}
	for m := uint32(1); ctx.Err() == nil; {
		var tasks []task
		q.mu.Lock()
		end := min(m+slice, q.index.next)
		for ; m < end; m++ {
			if c := q.chore(m, now); c != noChore && (only == noChore || c == only) {
				tasks = append(tasks, task{m, q.take(m), c})
			}
		}
		done := m >= q.index.next
		q.mu.Unlock()
		for _, t := range tasks {
			q.record(func() { q.doChore(ctx, t.m, t.l, t.c, now) })
		}
		if done {
			return
		}
	}
}

// chore tells what the message needs. q.mu is held.
func (q *Queue) chore(m uint32, now time.Time) chore {
	r := q.index.at(m)
	if r.state != waiting {
		return noChore
	}
	if r.flags&closing != 0 {
		return closeIt
	}
	if l := q.live[m]; l != nil && len(l.dirty) > 0 {
		return saveIt
	}
	c := q.conf()
	end := int64(r.arrived) + int64(c.GiveUpAfter/time.Second)
	if own, ok := q.index.giveUp[m]; ok {
		end = int64(own)
	}
	if now.Unix() > end && q.waitsForSlot(m) {
		return expireIt
	}
	if r.flags&delayDone == 0 && c.DelayNoticeAfter > 0 && now.Unix() >= int64(r.arrived)+int64(c.DelayNoticeAfter/time.Second) {
		return delayIt
	}
	if r.flags&isMany != 0 && q.tellNow(m, r, now) {
		return tellIt
	}
	return noChore
}

// tellNow reports whether one of tellAges has passed and there is something to tell. q.mu is held.
func (q *Queue) tellNow(m uint32, r *record, now time.Time) (yes bool) {
	age := now.Sub(time.Unix(int64(r.arrived), 0))
	if int(r.stage) >= len(tellAges) || age < tellAges[r.stage] {
		return false
	}
	for int(r.stage) < len(tellAges) && age >= tellAges[r.stage] {
		r.stage++
	}
	q.index.each(m, func(_ int, r *ref) { yes = yes || r.status != Pending && !r.quiet })
	return yes
}

// waitsForSlot reports whether a recipient of the message would be attempted, or given up, if there were a slot. q.mu is held.
func (q *Queue) waitsForSlot(m uint32) (yes bool) {
	q.index.each(m, func(_ int, r *ref) {
		yes = yes || r.status == Pending && r.unit != 0 && q.sched.WaitsForSlot(r.unit)
	})
	return yes
}

// doChore does it, as a job of the message.
func (q *Queue) doChore(ctx context.Context, m uint32, l *live, c chore, now time.Time) {
	if err := q.load(l); err != nil {
		q.mu.Lock()
		q.unread(m, l, err)
		q.mu.Unlock()
		return
	}
	ctx, span := trace.StartMessage(context.WithoutCancel(ctx), trace.QueueItem, string(l.entry.ID), l.entry.Env.Trace)
	defer span.Finish()
	w := wish(0)
	switch c {
	case expireIt:
		q.expireWaiting(m, l, now)
	case delayIt:
		w = delay
	case tellIt:
		w = tell
	}
	q.conclude(ctx, m, l, w)
}

// expireWaiting gives up the recipients whose time is up and that are not being attempted.
func (q *Queue) expireWaiting(m uint32, l *live, now time.Time) {
	e := &l.entry
	var events []*timeline.Event
	q.mu.Lock()
	q.index.each(m, func(i int, r *ref) {
		if r.status != Pending || r.held || r.unit == 0 || now.Before(q.expiry(&e.Env, &e.Env.Rcpts[i])) {
			return
		}
		k := r.unit
		if !q.sched.Claim(k) {
			return // it is being attempted
		}
		q.explain(&e.Status[i], k)
		o := expired
		q.decide(m, l, i, &o, now, 0)
		q.replan(m, e, k, now)
		events = append(events, &timeline.Event{Kind: timeline.Attempt, ID: e.ID, Trace: e.Env.Trace, From: e.Env.From,
			MessageID: e.Env.MessageID, Rcpt: &e.Env.Rcpts[i], N: e.Status[i].Attempts, Outcome: &o})
	})
	q.mu.Unlock()
	for _, ev := range events {
		q.observe(ev)
	}
}

// explain says of a recipient that was never attempted what keeps its site from being used. q.mu is held.
func (q *Queue) explain(st *RcptStatus, k sched.Key) {
	if st.Text != "" {
		return
	}
	if site, ok := q.sched.Site(q.sched.DestOf(k)); ok && site.LastErr != "" {
		st.Text = clip("the hosts of the destination cannot be used: " + site.LastErr)
	}
}

// delayed returns the notice that a message takes longer, which a sender gets once (RFC 5321 section 4.5.4.1, RFC 3461 section 5.2.6).
// q.mu is held.
func (q *Queue) delayed(m uint32, l *live, now time.Time) note {
	e := &l.entry
	n := note{kind: dsn.Delay, to: e.Env.From}
	q.index.each(m, func(i int, r *ref) {
		st := &e.Status[i]
		if r.status == Pending && !r.held && st.Notified&NotifiedDelay == 0 && dsn.Wanted(dsn.Delay, &e.Env, &e.Env.Rcpts[i]) &&
			!e.Env.Rcpts[i].NotBefore.After(now) {
			n.rcpts = append(n.rcpts, i)
			if r.unit != 0 {
				q.explain(st, r.unit)
			}
		}
	})
	return n
}
