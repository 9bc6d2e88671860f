package courier

import (
	"context"
	"sync"
)

// guards makes the end of a context end the sessions bound to it. All deliveries of a queue share one context, so there is nearly always
// one guard only: to register a session with it is cheaper than to have the context call back for each.
type guards struct {
	mu   sync.Mutex
	last *guard
}

// guard is the sessions bound to one context.
type guard struct {
	done <-chan struct{}

	mu    sync.Mutex
	bound map[*client]struct{}
	ended bool
}

// of returns the guard of a context that can end.
func (gs *guards) of(ctx context.Context) *guard {
	done := ctx.Done()
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.last == nil || gs.last.done != done {
		g := &guard{done: done, bound: map[*client]struct{}{}}
		context.AfterFunc(ctx, g.end)
		gs.last = g
	}
	return gs.last
}

// end closes the connections of all sessions bound.
func (g *guard) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for c := range g.bound {
		c.raw.Close()
	}
	clear(g.bound)
}

// add binds a session. If the context has ended, its connection is closed at once.
func (g *guard) add(c *client) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		c.raw.Close()
		return
	}
	g.bound[c] = struct{}{}
}

// remove ends the binding. It reports false if the context ended before.
func (g *guard) remove(c *client) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.bound, c)
	return !g.ended
}
