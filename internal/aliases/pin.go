package aliases

import (
	"context"
	"sync"
	"sync/atomic"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// Limits of what a transaction keeps.
const (
	maxCached = 4096 // answers of the hook: three look-ups for each of a thousand recipients, and some
	maxKept   = 128  // addresses with their final recipients
	maxFinals = 1000 // final recipients of all of them
)

// pin is a context that knows what its transaction sees: the state, what the hook said, and what addresses were found to mean. A nil pin
// keeps nothing.
type pin struct {
	context.Context
	state atomic.Pointer[state]

	mu      sync.Mutex
	answers map[address.Address]answer
	kept    []meaning
	finals  int // in kept

	first [1]meaning // room for kept: most messages have one recipient
}

// answer is what the hook said.
type answer struct {
	targets []target
	err     error
}

// meaning is the final recipients of an address. They are not changed any more.
type meaning struct {
	addr   address.Address
	hooked bool // there was a hook
	finals []mail.Recipient
}

type pinKey struct{}

// Pin returns a context in which all look-ups see the files and settings that the first of them saw, the hook is asked at most once for
// each address, and what Exists found an address to mean is what Expand makes of it. It belongs to one transaction: what a recipient meant
// when it was accepted is what it means when the message is queued.
func Pin(ctx context.Context) context.Context { return &pin{Context: ctx} }

// Value returns what the context carries under the key.
func (p *pin) Value(key any) any {
	if _, ok := key.(pinKey); ok {
		return p
	}
	return p.Context.Value(key)
}

// pinOf is the pin of a context, nil if it has none.
func pinOf(ctx context.Context) *pin {
	p, _ := ctx.Value(pinKey{}).(*pin)
	return p
}

// stateFor is the state for a look-up.
func (r *Resolver) stateFor(p *pin) *state {
	if p == nil {
		return r.now.Load()
	}
	if s := p.state.Load(); s != nil {
		return s
	}
	p.state.CompareAndSwap(nil, r.now.Load())
	return p.state.Load()
}

// answer is what the hook said of the address before.
func (p *pin) answer(a address.Address) (ans answer, ok bool) {
	if p == nil {
		return answer{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	ans, ok = p.answers[a]
	return ans, ok
}

func (p *pin) remember(a address.Address, ans answer) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers == nil {
		p.answers = map[address.Address]answer{}
	}
	if len(p.answers) < maxCached {
		p.answers[a] = ans
	}
}

// keep notes what an address means. The recipients must not be changed from then on.
func (p *pin) keep(m meaning) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.kept) == maxKept || p.finals+len(m.finals) > maxFinals {
		return
	}
	if p.kept == nil {
		p.kept = p.first[:0]
	}
	p.kept = append(p.kept, m)
	p.finals += len(m.finals)
}

// meaning returns the final recipients of an address, if they were found before and the hook has neither come nor gone since.
func (p *pin) meaning(addr address.Address, hooked bool) (finals []mail.Recipient, ok bool) {
	if p == nil {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.kept {
		if m := &p.kept[i]; m.addr == addr && m.hooked == hooked {
			return m.finals, true
		}
	}
	return nil, false
}
