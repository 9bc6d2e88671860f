package main

import (
	"context"
	"sync"
)

// loops are goroutines that stop together. They may be started again after that.
type loops struct {
	mu     sync.Mutex
	cancel []context.CancelFunc
	wg     sync.WaitGroup
}

// start runs the functions until stop, or until they return.
func (l *loops) start(ctx context.Context, fs ...func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	l.mu.Lock()
	l.cancel = append(l.cancel, cancel)
	l.mu.Unlock()
	for _, f := range fs {
		l.wg.Go(func() { f(ctx) })
	}
}

// stop ends the contexts of the functions and returns when they have returned. It may be called several times.
func (l *loops) stop() {
	l.mu.Lock()
	for _, cancel := range l.cancel {
		cancel()
	}
	l.cancel = nil
	l.mu.Unlock()
	l.wg.Wait()
}
