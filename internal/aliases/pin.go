package aliases

import (
	"context"
	"sync/atomic"
)

// pin is the state that a transaction sees.
type pin struct{ state atomic.Pointer[state] }

type pinKey struct{}

// Pin returns a context in which all look-ups see the files and settings that the first of them saw. It belongs to one transaction: what a
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
