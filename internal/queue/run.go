package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Run loads what the store holds and delivers until ctx ends. Then it starts no new attempt, waits for the running ones for the time of
// grace, interrupts what still runs, and returns when nothing does. Messages may be put into the queue after that, too. Called again, it goes
// on from there, or after Forget from what the store holds.
func (q *Queue) Run(ctx context.Context) error {
	q.own = context.WithoutCancel(ctx)
	attempts, interrupt := context.WithCancel(q.own)
	defer interrupt()
	q.ctx = attempts
	if !q.ready.Load() {
		if err := q.loadAll(ctx); err != nil {
			return err
		}
	}
	// What a crash kept from being concluded is concluded before anything is attempted: a notice that is in the store already must not be
	// delivered and gone when its message comes to write it.
	q.tend(ctx, time.Now(), closeIt)
	q.work.Wait()
	q.mu.Lock()
	q.running = true
	q.kick()
	q.mu.Unlock()

	var loops sync.WaitGroup
	loops.Go(func() { q.askSites(ctx) })
	loops.Go(func() { q.tendLoop(ctx) })
	q.clock(ctx)
	loops.Wait()
	q.drain(interrupt)
	return nil
}

// clock makes units ready when their time comes.
func (q *Queue) clock(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		case <-timer.C:
		}
		q.mu.Lock()
		now := time.Now()
		next := q.sched.Tick(now)
		q.kick()
		close(q.ticked)
		q.ticked = make(chan struct{})
		q.mu.Unlock()
		switch {
		case next.IsZero():
			timer.Stop()
		default:
			timer.Reset(max(0, next.Sub(now)))
		}
	}
}

// Probe returns when the schedule has been looked at after the call, or ctx has ended: then the queue is stuck, and the error says so.
// While Run is not running there is no schedule to look at, and nothing is stuck.
func (q *Queue) Probe(ctx context.Context) error {
	free := make(chan (<-chan struct{}), 1)
	go func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if !q.running {
			free <- nil
			return
		}
		free <- q.ticked
	}()
	var ticked <-chan struct{}
	select {
	case ticked = <-free:
	case <-ctx.Done():
		return errors.New("its lock is held")
	}
	if ticked == nil {
		return nil
	}
	q.poke()
	select {
	case <-ticked:
		return nil
	case <-ctx.Done():
		return errors.New("the schedule is not looked at")
	}
}

// drain lets the workers finish.
func (q *Queue) drain(interrupt func()) {
	q.mu.Lock()
	q.running = false
	for _, w := range q.idle {
		q.waking++
		w <- struct{}{}
	}
	q.idle = nil
	n := q.sched.Running()
	q.mu.Unlock()
	limit := q.conf().Grace
	if n > 0 {
		log.Infof("queue: waiting up to %v for %d running deliveries", limit, n)
	}
	grace := time.AfterFunc(limit, interrupt)
	q.work.Wait()
	grace.Stop()
}

// Forget empties the memory of the queue, so that the next Run loads what the store holds: another process may have changed it. Run must
// have returned, and no message may be being put into the queue.
func (q *Queue) Forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.index, q.live, q.ours = newIndex(), map[uint32]*live{}, map[mail.ID]struct{}{}
	q.sched = sched.New(q.conf().limits())
	q.items.Store(0)
	q.ready.Store(false)
}

// loadAll takes everything the store holds into memory. What this process put into the
// queue itself is there already, or was.
func (q *Queue) loadAll(ctx context.Context) error {
	ctx, span := trace.Start(ctx, trace.Reload, "queue")
	defer span.Finish()
	start, n, bad := time.Now(), 0, 0
	for e, err := range q.conf().Store.All() {
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = check(&e)
		}
		if err != nil {
			bad++
			log.Errorf("queue: message %q in the store cannot be used: %v", e.ID, err)
			continue
		}
		n += q.loadOne(ctx, &e)
	}
	q.ready.Store(true)
	q.mu.Lock()
	q.ours = nil
	q.mu.Unlock()
	span.Printf("loaded %d messages, %d unusable, in %v", n, bad, time.Since(start))
	if n > 0 || bad > 0 {
		log.Infof("queue: loaded %d messages, %d unusable, in %v", n, bad, time.Since(start).Round(time.Millisecond))
	}
	return nil
}

// check reports what is wrong with an entry that a store hands out.
func check(e *Entry) error {
	switch {
	case e.ID == "":
		return errors.New("it has no id")
	case len(e.Status) != len(e.Env.Rcpts):
		return fmt.Errorf("%d recipients with %d states", len(e.Env.Rcpts), len(e.Status))
	}
	return nil
}

func (q *Queue) loadOne(ctx context.Context, e *Entry) int {
	now := time.Now()
	p := q.plan(ctx, e, now)
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ours := q.ours[e.ID]; ours || q.index.find(e.ID) != 0 {
		return 0
	}
	m := q.schedule(e, &p, now)
	q.index.at(m).flags |= loaded
	q.items.Add(1)
	return 1
}

// askSites finds out which hosts the destinations belong to.
func (q *Queue) askSites(ctx context.Context) {
	const timeout = 20 * time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case domain := <-q.sites:
			ask, cancel := context.WithTimeout(ctx, timeout)
			site, err := q.conf().Sites(ask, domain)
			cancel()
			if err != nil {
				log.Debugf("queue: site of %s: %v", domain, err)
				continue
			}
			q.mu.Lock()
			q.sched.SetSite(domain, site)
			q.mu.Unlock()
		}
	}
}
