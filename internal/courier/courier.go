// Package courier delivers: over SMTP and LMTP, into a Maildir, to a command.
//
// Router answers where a recipient goes and why. Mux takes a job to the transport its route names. Each transport gives one
// outcome per recipient, in the order of the job, and classifies every failure once (Classify).
package courier

import (
	"context"
	"fmt"
	"runtime/debug"

	"blitiri.com.ar/go/log"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Courier attempts one job. It returns one outcome per recipient, in the same order, within a bounded time that ctx can only shorten.
type Courier interface {
	Deliver(ctx context.Context, job mail.Job) []mail.Outcome
}

// Mux hands each job to the courier of its route's transport.
type Mux struct {
	Local Courier // MDA, LMTP or Maildir
	SMTP  Courier // by MX, and through named servers
	Pipe  Courier // commands of aliases

	OnPanic func() // counts a recovered panic; may be nil
}

// Deliver implements Courier. A panic of a transport is logged and defers the job's recipients; a transport that is not
// configured defers them too.
func (m *Mux) Deliver(ctx context.Context, job mail.Job) (out []mail.Outcome) {
	defer func() {
		if p := recover(); p != nil {
			log.Errorf("courier: panic while delivering %s: %v\n%s", job.ID, p, debug.Stack())
			if m.OnPanic != nil {
				m.OnPanic()
			}
			out = same(job, internalError(fmt.Errorf("internal error while delivering: %v", p)))
		}
	}()
	var c Courier
	switch job.Route.Transport {
	case mail.Local:
		c = m.Local
	case mail.SMTP, mail.Relay:
		c = m.SMTP
	case mail.Command:
		c = m.Pipe
	}
	if c == nil {
		return same(job, internalError(fmt.Errorf("no transport for %v delivery is configured", job.Route.Transport)))
	}
	return c.Deliver(ctx, job)
}

// same gives every recipient of the job the same outcome.
func same(job mail.Job, o mail.Outcome) []mail.Outcome {
	out := make([]mail.Outcome, len(job.Rcpts))
	for i := range out {
		out[i] = o
	}
	return out
}

// internalError is a failure on our side: always worth another attempt (a fault here must not cost anybody a message).
func internalError(err error) mail.Outcome {
	return mail.Outcome{Disposition: mail.Deferred, Reason: mail.ReasonInternal, Err: err}
}

// refused is a permanent failure that we decide ourselves, with the reply a server would have given.
func refused(reason mail.Reason, code int, enh, text string) mail.Outcome {
	r := smtp.NewReply(code, enh, text)
	return mail.Outcome{Disposition: mail.Failed, Reason: reason, Reply: r, Err: r}
}

// notedOutcomes is how many recipients' failures a span tells of one job.
const notedOutcomes = 10

// noteOutcome annotates the context's span with what became of a job, and for failures why.
func noteOutcome(ctx context.Context, job *mail.Job, out []mail.Outcome) {
	span := trace.From(ctx)
	if span == nil {
		return
	}
	shown := 0
	for i := range out {
		if o := &out[i]; o.Err != nil {
			if shown++; shown > notedOutcomes {
				span.Printf("… and so on for further recipients")
				return
			}
			span.Printf("%s: %s (%s): %v", job.Rcpts[i].Target(), o.Disposition, o.Reason, o.Err)
		}
	}
}
