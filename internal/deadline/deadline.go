// Package deadline makes contexts that end in time, and cost next to nothing if they are not waited for.
package deadline

import (
	"context"
	"sync"
	"time"
)

// After is as context.WithTimeout, but the timer comes into being when somebody first waits for the end: work that finds everything it
// needs in memory never does.
func After(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	c := newLazy(parent, d)
	return c, c.stop // inlined, so that the caller has the function for nothing
}

func newLazy(parent context.Context, d time.Duration) *lazy {
	return &lazy{parent: parent, at: time.Now().Add(d)}
}

// lazy is a context with a deadline that makes a real one of itself when it has to.
type lazy struct {
	parent context.Context
	at     time.Time // the parent may end earlier

	mu     sync.Mutex
	err    error           // the end, if it came before there was a real context
	real   context.Context // nil until needed
	cancel context.CancelFunc
}

func (c *lazy) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real != nil {
		c.cancel()
	} else if c.ended() == nil {
		c.err = context.Canceled
	}
}

// ended returns why the context ended, nil if it did not. c.mu is held, and there is no real context.
func (c *lazy) ended() error {
	if c.err == nil {
		if c.err = c.parent.Err(); c.err == nil && !time.Now().Before(c.at) {
			c.err = context.DeadlineExceeded
		}
	}
	return c.err
}

// Deadline implements context.Context.
func (c *lazy) Deadline() (time.Time, bool) {
	if at, ok := c.parent.Deadline(); ok && at.Before(c.at) {
		return at, true
	}
	return c.at, true
}

// Done implements context.Context.
func (c *lazy) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.real != nil:
	case c.err != nil:
		real, end := context.WithCancelCause(c.parent)
		c.real, c.cancel = real, func() {}
		end(c.err)
	default:
		c.real, c.cancel = context.WithDeadline(c.parent, c.at)
	}
	return c.real.Done()
}

// Err implements context.Context.
func (c *lazy) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real == nil {
		return c.ended()
	}
	if c.err != nil {
		return c.err
	}
	return c.real.Err()
}

// Value implements context.Context.
func (c *lazy) Value(key any) any {
	c.mu.Lock()
	real := c.real
	c.mu.Unlock()
	if real != nil { // it knows the cause of its end
		return real.Value(key)
	}
	return c.parent.Value(key)
}
