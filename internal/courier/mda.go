package courier

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// exTempFail is the exit code of a program that wants to be called again later (EX_TEMPFAIL of sysexits.h).
const exTempFail = 75

// runMDA delivers to one recipient by a program, which gets the message with CRLF line ends on its standard input.
//
// In its arguments %from%, %from_user%, %from_domain%, %to%, %to_user%, %to_domain%, %to_detail% and %to_original% stand for
// the sender, the recipient, the part of the recipient after the suffix separator, and the recipient as it was at RCPT.
func (l *Local) runMDA(ctx context.Context, job *mail.Job, r *mail.Recipient) mail.Outcome {
	args, err := l.cfg.mdaArgs(job, r)
	if err != nil {
		return refused(mail.ReasonMDA, 553, "5.1.3", "the address cannot be given to the delivery program safely")
	}
	in, err := content(job, false)
	if err != nil {
		return internalError(err)
	}
	defer in.Close()
	trace.From(ctx).Printf("running %q %q", l.cfg.MDA, args)
	begin := time.Now()
	res := l.cfg.Runner.Run(ctx, command.Spec{
		Path: l.cfg.MDA, Args: args, Dir: l.cfg.Dir, Timeout: l.cfg.Timeout,
		Env: append(l.cfg.Env[:len(l.cfg.Env):len(l.cfg.Env)], traceparent(ctx, job)...), Stdin: in,
	})
	l.metrics.took(stageExec, begin)
	return mdaOutcome(&res)
}

// traceparent is the environment variable by which programs join the message's trace.
func traceparent(ctx context.Context, job *mail.Job) []string {
	if job.Env == nil {
		return nil
	}
	if tp := trace.Traceparent(job.Env.Trace, trace.From(ctx).SpanID()); tp != "" {
		return []string{"TRACEPARENT=" + tp}
	}
	return nil
}

// mdaOutcome says what the end of the program means. Only what it says itself, by an exit code other than 75, is for good: a
// program that could not start, ran out of time or was killed may do better next time.
func mdaOutcome(res *command.Result) mail.Outcome {
	switch {
	case res.Err == nil && res.Started && res.Exit == 0:
		return mail.Outcome{Disposition: mail.Delivered}
	case res.TimedOut:
		return localFault(errors.New("operation timed out"))
	}
	err := fmt.Errorf("MDA delivery failed: %w - %q", programError(res), append(res.Stdout[:len(res.Stdout):len(res.Stdout)], res.Stderr...))
	o := localFault(err)
	if res.Started && res.Exit > 0 && res.Exit != exTempFail {
		o.Disposition = mail.Failed
	}
	return o
}

// programError is why a program failed; Err says it, if it is set.
func programError(res *command.Result) error {
	if res.Err != nil {
		return res.Err
	}
	return fmt.Errorf("exit status %d", res.Exit)
}

var errOption = errors.New("the address would be taken for an option")

// mdaArgs fills in the arguments. An address never becomes an option: one that would begin an argument with "-" is refused if
// it is the recipient, and loses the dashes if it is only told.
func (c *LocalConfig) mdaArgs(job *mail.Job, r *mail.Recipient) ([]string, error) {
	from, fromUser, fromDomain := "<>", "<>", ""
	if !job.From.IsNull() {
		from, fromUser, fromDomain = clean(job.From.String()), clean(job.From.Local), clean(job.From.Domain)
	}
	to, toUser := clean(r.To.Local+"@"+r.To.Domain), clean(r.To.Local)
	if r.To.Domain == "" {
		to = toUser
	}
	_, detail := c.detail(r)
	fill := strings.NewReplacer("%from%", from, "%from_user%", fromUser, "%from_domain%", fromDomain,
		"%to%", to, "%to_user%", toUser, "%to_domain%", clean(r.To.Domain),
		"%to_detail%", clean(detail), "%to_original%", clean(r.Orig.String()))
	args := make([]string, len(c.Args))
	for i, tmpl := range c.Args {
		arg := fill.Replace(tmpl)
		if strings.HasPrefix(arg, "-") && !strings.HasPrefix(tmpl, "-") {
			if strings.HasPrefix(tmpl, "%to%") || strings.HasPrefix(tmpl, "%to_user%") {
				return nil, errOption
			}
			arg = strings.TrimLeft(arg, "-")
		}
		args[i] = arg
	}
	return args, nil
}

// clean deletes what a shell or a path might give a meaning to: programs that get addresses are not always careful.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune("/;\"'\\|*&$%()[]{}`!", r) {
			return -1
		}
		return r
	}, s)
}
