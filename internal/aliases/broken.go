package aliases

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// maxBroken bounds the aliases that Broken looks at, so that a start with very many of them is not slow.
const maxBroken = 20000

// Broken returns an error for each alias that leads back to itself, too deep, or to too many: mail for it cannot be delivered. The hook
// is not asked.
func (r *Resolver) Broken(ctx context.Context) (errs []error) {
	tables := r.now.Load().tables
	n := 0
	for _, domain := range slices.Sorted(maps.Keys(tables)) {
		t := tables[domain]
		for _, user := range slices.Sorted(maps.Keys(t.entries)) {
			if n++; n > maxBroken || ctx.Err() != nil {
				return errs
			}
			if user == "*" {
				continue
			}
			x := r.newResolution(ctx, pinOf(ctx))
			x.hooked = false
			if err := x.walk(address.Address{Local: user, Domain: domain}, nil); errors.Is(err, ErrRecursion) || errors.Is(err, ErrTooMany) {
				errs = append(errs, &brokenError{fmt.Errorf("%q line %d: %w", t.path, t.entries[user].line, err)})
			}
		}
	}
	return errs
}

type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

// Remedy says what to do.
func (e *brokenError) Remedy() string {
	return "let one of these addresses lead elsewhere; until then mail for them is not taken"
}
