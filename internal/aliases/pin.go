package aliases

import (
	"context"
	"sync/atomic"
)

// pin is what a transaction sees: the state, and what the hook said.
type pin struct {
	state   atomic.Pointer[state]
	answers cache
}

type pinKey struct{}

// Pin returns a context in which all look-ups see the files and settings that the first of them saw, and the hook is asked at most once for
// each address. It belongs to one transaction: what a
// recipient meant when it was accepted is what it means when the message is queued.
func Pin(ctx context.Context) context.Context { return context.WithValue(ctx, pinKey{}, &pin{}) }

// stateFor is the state for a look-up.
func (r *Resolver) stateFor(ctx context.Context) *state {
	p, ok := ctx.Value(pinKey{}).(*pin)
	if !ok {
		return r.now.Load()
	}
	p.state.CompareAndSwap(nil, r.now.Load())
	return p.state.Load()
}
