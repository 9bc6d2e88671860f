package courier

import (
	"context"
	"errors"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Pipe gives messages to the commands of aliases. It is safe for concurrent use.
type Pipe struct{ local *Local }

// NewPipe returns a courier for pipe aliases. Of the configuration it uses what concerns programs.
func NewPipe(cfg LocalConfig) *Pipe {
	cfg = cfg.withDefaults()
	return &Pipe{&Local{cfg: cfg, metrics: newMetrics(cfg.Metrics)}}
}

// Deliver implements Courier.
func (p *Pipe) Deliver(ctx context.Context, job mail.Job) []mail.Outcome {
	out := p.local.each(&job, func(r *mail.Recipient) mail.Outcome { return p.run(ctx, &job, r) })
	for i := range out {
		if out[i].Disposition == mail.Delivered {
			p.local.metrics.sent[mail.Command].Add(float64(job.Size))
		}
	}
	noteOutcome(ctx, &job, out)
	return out
}

// run gives the message, with LF line ends, to the recipient's command. There is no shell: the command is words separated by
// spaces. What it should know of the envelope is in its environment.
func (p *Pipe) run(ctx context.Context, job *mail.Job, r *mail.Recipient) mail.Outcome {
	cfg := &p.local.cfg
	words := strings.Fields(r.Command)
	if len(words) == 0 {
		return pipeFault(errors.New("the alias names no command"))
	}
	in, err := content(job, true)
	if err != nil {
		return internalError(err)
	}
	defer in.Close()
	trace.From(ctx).Printf("running %q", words)
	begin := time.Now()
	res := cfg.Runner.Run(ctx, command.Spec{
		Path: words[0], Args: words[1:], Dir: cfg.Dir, Env: pipeEnv(ctx, cfg, job, r), Stdin: in, Timeout: cfg.Timeout,
	})
	p.local.metrics.took(stageExec, begin)
	if out := append(res.Stdout[:len(res.Stdout):len(res.Stdout)], res.Stderr...); len(out) > 0 {
		trace.From(ctx).Printf("it said %q", out[:min(len(out), transcriptLine)])
	}
	switch {
	case res.Err == nil && res.Started && res.Exit == 0:
		return mail.Outcome{Disposition: mail.Delivered}
	case res.TimedOut:
		return pipeFault(errors.New("operation timed out"))
	}
	o := pipeFault(programError(&res))
	if res.Started && res.Exit > 0 && res.Exit != exTempFail {
		o.Disposition = mail.Failed
	}
	return o
}

func pipeFault(err error) mail.Outcome {
	return mail.Outcome{Disposition: mail.Deferred, Reason: mail.ReasonPipe, Err: err}
}

// pipeEnv is the environment of a pipe command: the server's, and the envelope.
func pipeEnv(ctx context.Context, cfg *LocalConfig, job *mail.Job, r *mail.Recipient) []string {
	_, _, detail := cfg.cutDetail(r.Orig.Local)
	to := r.To
	if to.IsNull() {
		to = r.Orig
	}
	env := append(cfg.Env[:len(cfg.Env):len(cfg.Env)],
		"SENDER="+job.From.String(),
		"RECIPIENT="+to.String(),
		"ORIGINAL_RECIPIENT="+r.Orig.String(),
		"DETAIL="+detail,
		"QUEUE_ID="+string(job.ID))
	return append(env, traceparent(ctx, job)...)
}
