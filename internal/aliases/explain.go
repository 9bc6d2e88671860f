package aliases

import (
	"context"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// Step is one step of a resolution, for people.
type Step struct {
	Depth   int // how many aliases lead here
	Address address.Address
	Text    string // "is the mailbox a@d", "line 3 of domains/d/aliases: a@d, | program"
}

// Explain resolves the address as Resolve does and says how it got there. The steps are there with an error, too: they lead to it.
func (r *Resolver) Explain(ctx context.Context, addr address.Address) ([]Step, []mail.Recipient, error) {
	x := r.newResolution(ctx, pinOf(ctx))
	x.explain = true
	err := x.walk(addr, nil)
	for i := range x.out {
		x.out[i].Orig = addr
	}
	return x.steps, x.out, err
}

func (x *resolution) note(depth int, addr address.Address, text string) {
	if x.explain {
		x.steps = append(x.steps, Step{Depth: depth, Address: addr, Text: text})
	}
}

func (x *resolution) noteTargets(depth int, addr address.Address, source string, ts []target) {
	if !x.explain {
		return
	}
	words := make([]string, len(ts))
	for i, t := range ts {
		words[i] = t.String()
	}
	x.note(depth, addr, source+": "+strings.Join(words, ", "))
}
