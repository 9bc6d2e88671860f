package queue

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Op is what an operator can do with messages.
type Op uint8

// The operations.
const (
	Hold    Op = iota // attempt nothing until released
	Release           // the opposite
	Retry             // attempt what is left now
	Bounce            // fail what is left and tell the sender
	Drop              // remove without telling anybody
)

var opNames = [...]string{"hold", "release", "retry", "bounce", "drop"}

// String returns the name of the operation.
func (o Op) String() string { return opNames[o%5] }

// ParseOp is the inverse of String.
func ParseOp(s string) (Op, error) {
	for i, n := range opNames {
		if n == s {
			return Op(i), nil
		}
	}
	return 0, fmt.Errorf("unknown queue operation %q", s)
}

// target is one message that a filter selected.
type target struct {
	m  uint32
	id idKey
}

// Operate does the operation to all messages that the filter selects now, and returns how many there were. who is told to the timeline of
// each. Attempts that run are not interrupted: what they deliver is delivered. An error of the store does not stop the rest.
func (q *Queue) Operate(ctx context.Context, op Op, f Filter, who string) (n int, err error) {
	var targets []target
	if err := q.scan(ctx, &f, func(m uint32) { targets = append(targets, target{m, q.index.at(m).id}) }); err != nil {
		return 0, err
	}
	log.Infof("queue: %v of %d messages by %q", op, len(targets), who)
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wait sync.WaitGroup
	for _, t := range targets {
		if err := ctx.Err(); err != nil {
			wait.Wait()
			return int(done.Load()), err
		}
		q.tokens <- struct{}{}
		wait.Go(func() {
			defer func() { <-q.tokens }()
			if ok, err := q.operate(ctx, op, t, who); err != nil {
				failed.Store(&err)
			} else if ok {
				done.Add(1)
			}
		})
	}
	wait.Wait()
	if p := failed.Load(); p != nil {
		err = *p
	}
	return int(done.Load()), err
}

// operate does the operation to one message; ok is false if it has gone meanwhile.
func (q *Queue) operate(ctx context.Context, op Op, t target, who string) (ok bool, err error) {
	q.mu.Lock()
	if q.index.at(t.m).id != t.id {
		q.mu.Unlock()
		return false, nil
	}
	l := q.take(t.m)
	q.mu.Unlock()
	if err := q.load(l); err != nil {
		return q.operateUnreadable(op, t.m, l, err)
	}
	e := &l.entry
	ctx, span := trace.StartMessage(context.WithoutCancel(ctx), trace.QueueItem, string(e.ID), e.Env.Trace)
	defer span.Finish()
	q.observe(&timeline.Event{Kind: timeline.Operator, ID: e.ID, Trace: e.Env.Trace, From: e.Env.From, MessageID: e.Env.MessageID,
		User: who, Text: op.String() + " by " + who})
	now, w := time.Now(), wish(0)
	q.mu.Lock()
	switch op {
	case Hold, Release:
		q.setHeld(t.m, l, op == Hold, now)
	case Retry:
		q.retry(t.m, now)
	case Bounce:
		q.freeze(t.m, returned)
		w = tell
	case Drop:
		q.freeze(t.m, dropped)
	}
	q.mu.Unlock()
	q.conclude(ctx, t.m, l, w)
	q.poke()
	return true, nil
}

// operateUnreadable does what can be done to a message whose envelope cannot be read: drop it.
func (q *Queue) operateUnreadable(op Op, m uint32, l *live, err error) (bool, error) {
	if op == Drop {
		if rerr := q.erase(l); rerr == nil {
			err = ErrNotFound
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unread(m, l, err)
	if err == ErrNotFound {
		q.m.removed("dropped")
		return true, nil
	}
	return false, err
}

// setHeld holds or releases what is left of a message. q.mu is held.
func (q *Queue) setHeld(m uint32, l *live, hold bool, now time.Time) {
	q.index.each(m, func(i int, r *ref) {
		if r.status != Pending || r.held == hold {
			return
		}
		r.held = hold
		l.entry.Status[i].Held = hold
		l.dirty = append(l.dirty, i)
		if r.unit == 0 || !q.sched.Claim(r.unit) {
			return // running: what is planned for it afterwards respects this
		}
		if hold {
			q.sched.Hold(r.unit)
		} else {
			q.sched.Defer(r.unit, now, now)
		}
	})
	q.kick()
}

// freeze marks a message, and lets no further attempt start, so that it is not a list's last one that ends it. q.mu is held.
func (q *Queue) freeze(m uint32, f flags) {
	q.index.at(m).flags |= f
	q.index.each(m, func(_ int, r *ref) {
		if r.status == Pending && r.unit != 0 && q.sched.Claim(r.unit) {
			q.sched.Hold(r.unit)
		}
	})
}

// retry makes what is left of a message due, and its sites be probed if they are thought dead. q.mu is held.
func (q *Queue) retry(m uint32, now time.Time) {
	q.index.each(m, func(_ int, r *ref) {
		if r.status != Pending || r.held || r.unit == 0 {
			return
		}
		if q.sched.Claim(r.unit) {
			q.sched.Defer(r.unit, now, now)
		}
		q.sched.Probe(r.unit, now)
	})
	q.kick()
}
