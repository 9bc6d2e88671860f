package aliases

import (
	"context"
	"errors"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

var (
	replyLoop = smtp.NewReply(554, "5.4.6", "The aliases of this address lead in a circle or to too many recipients")
	replyTemp = smtp.NewReply(451, "4.4.3", "Temporary error checking address, try again later")
)

// Reply is what a client may be told of an error of Resolve, Exists or Expand.
func Reply(err error) smtp.Reply {
	if errors.Is(err, ErrRecursion) || errors.Is(err, ErrTooMany) {
		return replyLoop
	}
	return replyTemp
}

// Error is an error of Expand. It unwraps to the reply for the client and to the cause.
type Error struct {
	Addr string
	Err  error
}

func (e *Error) Error() string { return "resolving " + e.Addr + ": " + e.Err.Error() }

// Unwrap returns the reply and the cause.
func (e *Error) Unwrap() []error { return []error{Reply(e.Err), e.Err} }

// Expand replaces the recipients as they were accepted by the final ones, without duplicates. A final recipient inherits the parameters and
// the times of the one it came from, and has it as Orig unless that one has an Orig already. What Exists found out for the same transaction
// (see Pin) is not looked up again. An error is an *Error.
func (r *Resolver) Expand(ctx context.Context, rcpts []mail.Recipient) ([]mail.Recipient, error) {
	p := pinOf(ctx)
	x := expansion{out: make([]mail.Recipient, 0, len(rcpts))}
	for _, rcpt := range rcpts {
		if rcpt.Orig.IsNull() {
			rcpt.Orig = rcpt.To
		}
		if rcpt.Kind != mail.Email || r.elsewhere(rcpt.To) {
			x.add(rcpt)
			continue
		}
		finals, ok := p.meaning(rcpt.To, r.program.Exists())
		if !ok {
			var err error
			if finals, err = r.Resolve(ctx, rcpt.To); err != nil {
				return nil, &Error{Addr: rcpt.To.String(), Err: err}
			}
		}
		for _, f := range finals {
			f.Orig, f.Params, f.NotBefore, f.GiveUp = rcpt.Orig, rcpt.Params, rcpt.NotBefore, rcpt.GiveUp
			x.add(f)
		}
	}
	return x.out, nil
}

// expansion collects final recipients.
type expansion struct {
	out  []mail.Recipient
	seen map[expandKey]struct{} // of out, made when it has more than one
}

// expandKey: recipients who asked for different notices (RFC 3461) are not one and the same.
type expandKey struct {
	rcpt   recipientKey
	params string
}

func expandKeyOf(f mail.Recipient) expandKey { return expandKey{keyOf(f), f.Params.String()} }

func (x *expansion) add(f mail.Recipient) {
	if len(x.out) > 0 {
		if x.seen == nil {
			x.seen = map[expandKey]struct{}{expandKeyOf(x.out[0]): {}}
		}
		key := expandKeyOf(f)
		if _, dup := x.seen[key]; dup {
			return
		}
		x.seen[key] = struct{}{}
	}
	x.out = append(x.out, f)
}
