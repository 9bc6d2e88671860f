package smtpsrv

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the goroutines that wait for the next connection.
const (
	maxIdleWorkers = 64
	workerIdle     = time.Second
)

// workers runs the sessions of a listener, one goroutine for each. A goroutine that has served one waits a moment for the next: its
// stack has grown by then, and growing it anew for every connection of a busy server costs more than parsing what comes over it.
type workers struct {
	wg    sync.WaitGroup
	next  chan *session
	idle  atomic.Int32
	ended chan struct{}
}

func newWorkers() *workers {
	return &workers{next: make(chan *session), ended: make(chan struct{})}
}

// serve runs the session on a waiting goroutine, or a new one.
func (w *workers) serve(ctx context.Context, s *session) {
	select {
	case w.next <- s:
	default:
		w.wg.Go(func() { w.work(ctx, s) })
	}
}

func (w *workers) work(ctx context.Context, s *session) {
	s.run(ctx)
	if w.idle.Add(1) > maxIdleWorkers {
		w.idle.Add(-1)
		return
	}
	defer w.idle.Add(-1)
	timer := time.NewTimer(workerIdle)
	defer timer.Stop()
	for {
		select {
		case s = <-w.next:
			w.idle.Add(-1)
			s.run(ctx)
			w.idle.Add(1)
			timer.Reset(workerIdle)
		case <-timer.C:
			return
		case <-w.ended:
			return
		}
	}
}

// wait returns when all sessions have ended; none may be started any more.
func (w *workers) wait() {
	close(w.ended)
	w.wg.Wait()
}
