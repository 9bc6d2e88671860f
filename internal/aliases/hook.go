package aliases

import (
	"bytes"
	"errors"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// HookError is a failure of the alias-resolve hook. Its text is what became of the program.
type HookError struct {
	Addr  string
	Local bool // the program did not run to its end: a fault of ours, not a verdict of its own
	Err   error
}

func (e *HookError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *HookError) Unwrap() error { return e.Err }

// hook asks the hook for aliases of addr, unless the transaction asked before.
func (x *resolution) hook(addr address.Address) ([]target, error) {
	ans, ok := x.pin.answer(addr)
	if !ok {
		ans = x.r.runHook(x, addr)
		if x.ctx.Err() == nil {
			x.pin.remember(addr, ans)
		}
	}
	var he *HookError
	if x.asking && errors.As(ans.err, &he) && !he.Local {
		x.forgave = true
		return nil, nil
	}
	return ans.targets, ans.err
}

func (r *Resolver) runHook(x *resolution, addr address.Address) answer {
	raw := addr.Local + "@" + addr.Domain
	ctx, span := trace.Start(x.ctx, trace.Hook, "alias-resolve "+addr.String())
	defer span.Finish()
	select {
	case r.hooks <- struct{}{}:
		defer func() { <-r.hooks }()
	case <-ctx.Done():
		return answer{err: span.Error(&HookError{Addr: raw, Local: true, Err: ctx.Err()})}
	}
	done := r.metrics.begin(x.asking)
	res := r.cfg.Runner.Run(ctx, command.Spec{
		Path: r.cfg.Hook, Args: []string{raw}, Env: r.cfg.HookEnv, Dir: r.cfg.HookDir, Timeout: x.state.hookTimeout,
	})
	ans, result := judge(raw, addr.Domain, res)
	done(res.Duration, span.ID(), result)
	if ans.err != nil {
		span.Printf("standard error: %q", res.Stderr)
	}
	return answer{targets: ans.targets, err: span.Error(ans.err)}
}

// judge makes an answer of a run of the hook, and says how to count it.
func judge(raw, domain string, res command.Result) (ans answer, result hookResult) {
	fail := func(local bool, err error, result hookResult) (answer, hookResult) {
		return answer{err: &HookError{Addr: raw, Local: local, Err: err}}, result
	}
	switch {
	case !res.Started:
		return fail(true, res.Err, hookExecError)
	case res.TimedOut:
		return fail(true, res.Err, hookTimeout)
	case res.Err != nil: // killed by a signal: by the kernel, short of memory, or because the client is gone
		return fail(res.Exit == -1, res.Err, hookFailed)
	case res.Cut:
		return fail(false, errors.New("the alias-resolve hook writes too much"), hookBadOutput)
	}
	out := bytes.TrimSpace(res.Stdout)
	if bytes.ContainsAny(out, "\r\n\x00") {
		return fail(false, errors.New("the alias-resolve hook writes more than one line"), hookBadOutput)
	}
	ts, err := parseTargets(string(out), domain)
	if err != nil {
		return fail(false, err, hookBadOutput)
	}
	return answer{targets: ts}, hookSuccess
}
