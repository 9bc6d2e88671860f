package aliases

import (
	"context"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// Owns reports whether the user, as he logged in, may call the address his own: it is his name, or mail for it ends in his mailbox. A user
// who logged in without a domain has that name in all of ours.
func (r *Resolver) Owns(ctx context.Context, user, from address.Address) (bool, error) {
	if user.Domain == "" && !r.elsewhere(from) {
		user.Domain = from.Domain
	}
	rules := r.stateFor(pinOf(ctx)).rules
	own := user
	var err error
	if own.Local, _, err = rules.clean(user.Local); err != nil {
		return false, err
	}
	local, err := rules.exact(from.Local)
	if err != nil {
		return false, nil // no user has such a name
	}
	if own.Domain == from.Domain && local == own.Local {
		return true, nil
	}
	if r.elsewhere(from) {
		return false, nil
	}
	rcpts, err := r.Resolve(ctx, from)
	for _, rcpt := range rcpts {
		if rcpt.Kind == mail.Email && rcpt.To == own {
			return true, nil
		}
	}
	return false, err
}
