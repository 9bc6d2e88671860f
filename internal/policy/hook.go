package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Defaults and bounds of the post-data hook.
const (
	DefaultHookTimeout = time.Minute
	DefaultHooks       = 64 // that run at once; more wait

	hookReject  = 20       // the exit code that refuses the message for good
	maxHookOut  = 64 << 10 // bytes of header fields a hook may add
	maxHookText = 400      // bytes of its reason that the client gets to see
)

// HookConfig is what a Hook needs. Path must be set.
type HookConfig struct {
	Path    string        // without the file there is no hook
	Dir     string        // its working directory; empty: ours
	Environ []string      // our environment, of which USER, PWD, SHELL and PATH are handed on
	Timeout time.Duration // 0: DefaultHookTimeout
	Max     int           // that run at once; 0: DefaultHooks
	Runner  command.Runner

	Local  func(domain string) bool // whether we are responsible for the domain
	Expand func(ctx context.Context, rcpts []mail.Recipient) ([]mail.Recipient, error)

	Metrics *expvarom.Registry
}

// Hook runs the post-data hook, a program that sees each message before it is queued. It may add header fields, refuse the message
// for good (exit code 20) or for now (any other failure), with its last line of output as the reason. It is a BodyCheck, and comes
// after those that add header fields themselves: the hook sees them.
type Hook struct {
	cfg     HookConfig
	program *command.Program
	base    []string // the environment that is the same for all messages
	slots   chan struct{}
	metrics *hookMetrics
}

// NewHook returns the check.
func NewHook(cfg HookConfig) *Hook {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultHookTimeout
	}
	if cfg.Max == 0 {
		cfg.Max = DefaultHooks
	}
	if cfg.Runner == nil {
		cfg.Runner = command.Exec{}
	}
	h := &Hook{cfg: cfg, program: command.NewProgram(cfg.Path), slots: make(chan struct{}, cfg.Max), metrics: newHookMetrics(cfg.Metrics)}
	for _, k := range []string{"USER", "PWD", "SHELL", "PATH"} {
		v := k + "="
		for _, e := range cfg.Environ {
			if strings.HasPrefix(e, k+"=") {
				v = e
			}
		}
		h.base = append(h.base, v)
	}
	return h
}

// Name is for metrics and the timeline.
func (*Hook) Name() string { return "hook" }

// Body runs the hook on the message.
func (h *Hook) Body(ctx context.Context, t *Transaction, c Content) Verdict {
	if !h.program.Exists() {
		h.metrics.count(hookSkip)
		return Verdict{}
	}
	ctx, span := trace.Start(ctx, trace.Hook, "post-data")
	defer span.Finish()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		h.metrics.count(hookTimeout)
		return hookTrouble(span.Errorf("no hook could be started in time: %w", ctx.Err()))
	}
	h.metrics.running.Inc()
	res := h.cfg.Runner.Run(ctx, command.Spec{
		Path: h.cfg.Path, Dir: h.cfg.Dir, Env: h.environ(ctx, t, span), Stdin: hookInput(t, c), Timeout: h.cfg.Timeout, MaxOut: maxHookOut,
	})
	h.metrics.running.Dec()
	h.metrics.duration.ObserveTrace(res.Duration.Seconds(), t.Env.Trace)
	v, result := judgeHook(res)
	h.metrics.count(result)
	if res.Err != nil {
		span.Errorf("%v; output %q, standard error %q", res.Err, clipBytes(res.Stdout), clipBytes(res.Stderr))
	}
	span.Printf("%s after %v", v.Note, res.Duration.Round(time.Millisecond))
	return v
}

// hookInput is the message as it will be queued, but for what the hook adds, with LF line ends.
func hookInput(t *Transaction, c Content) io.Reader {
	var prefix []byte
	if t.Prefix != nil {
		prefix = t.Prefix()
	}
	return message.ToLF(io.MultiReader(bytes.NewReader(prefix), bytes.NewReader(t.Added), c.Content()))
}

// judgeHook makes a verdict of a run, and says how to count it.
func judgeHook(res command.Result) (Verdict, hookResult) {
	switch {
	case !res.Started:
		return hookTrouble(fmt.Errorf("the hook cannot be started: %w", res.Err)), hookExecError
	case res.Exit == hookReject:
		return hookRefusal(554, res, replyHookReject), hookPermanent
	case res.TimedOut:
		return hookRefusal(451, res, replyHookTrouble), hookTimeout
	case res.Err != nil && res.Exit == 0: // it saw only a part of the message
		return hookTrouble(res.Err), hookTemporary
	case res.Err != nil || res.Exit != 0:
		return hookRefusal(451, res, replyHookDefer), hookTemporary
	}
	if len(res.Stdout) == 0 {
		return Verdict{Note: "hook=accept"}, hookSuccess
	}
	header, err := hookHeader(res)
	if err != nil {
		return Verdict{Note: "hook=accept, its output is ignored: " + err.Error()}, hookBadOutput
	}
	return Verdict{Note: "hook=accept with header fields", Header: header}, hookSuccess
}

var (
	replyHookReject  = smtp.NewReply(554, "5.7.1", "The message was refused by a filter")
	replyHookDefer   = smtp.NewReply(451, "4.7.1", "The message was put off by a filter, please try again later")
	replyHookTrouble = smtp.NewReply(451, "4.3.0", "Temporary problem with a filter, please try again later")
)

// hookTrouble is the verdict when the hook could not do its work: the fault is ours.
func hookTrouble(err error) Verdict {
	return Verdict{Refuse: &replyHookTrouble, Reason: "post-data hook: " + err.Error(), Label: "other", Note: "hook=error"}
}

// hookRefusal refuses with the hook's own words as they are, if it has any. No enhanced code is added to them: hooks give their own.
func hookRefusal(code int, res command.Result, otherwise smtp.Reply) Verdict {
	reply := otherwise
	if text := hookText(res.Stdout, code); text != "" {
		reply = smtp.Reply{Code: code, Text: text}
	}
	word := "defer"
	if code >= 500 {
		word = "reject"
	}
	return Verdict{
		Refuse: &reply, Label: "hook_reject", Note: "hook=" + word + ": " + reply.Text,
		Reason: fmt.Sprintf("post-data hook: %v: %s", res.Err, reply.Text),
	}
}

// hookText is the last complete line of the output, made fit for a reply: printable ASCII, not too long, without an enhanced code
// that contradicts the code.
func hookText(out []byte, code int) string {
	end := bytes.LastIndexByte(out, '\n')
	if end < 0 {
		return ""
	}
	line := out[:end]
	line = line[bytes.LastIndexByte(line, '\n')+1:]
	text := strings.Map(func(c rune) rune {
		switch {
		case c == '\t' || c == '\r':
			return ' '
		case c < ' ' || c > '~':
			return '?'
		}
		return c
	}, string(line))
	text = strings.TrimSpace(text[:min(len(text), maxHookText)])
	word, rest, _ := strings.Cut(text, " ")
	if e, ok := smtp.ParseEnhancedCode(word); ok && int(e[0]) != code/100 {
		text = strings.TrimSpace(rest)
	}
	return text
}

// Errors of hookHeader.
var (
	errHookCut    = errors.New("it is too long")
	errHookEnd    = errors.New("the last line has no end")
	errHookEmpty  = errors.New("it has an empty line")
	errHookFold   = errors.New("it begins with a continuation line")
	errHookField  = errors.New("it has a line that is no header field")
	errHookBytes  = errors.New("it has control characters or is not UTF-8")
	errHookLength = errors.New("it has a line over 998 bytes") // RFC 5322 section 2.1.1
)

// hookHeader checks the hook's output and returns it as header lines in the wire form.
func hookHeader(res command.Result) ([]byte, error) {
	if res.Cut {
		return nil, errHookCut
	}
	text, ok := bytes.CutSuffix(res.Stdout, []byte("\n"))
	if !ok {
		return nil, errHookEnd
	}
	out := make([]byte, 0, len(res.Stdout)+32)
	for first := true; ; first = false {
		line, rest, more := bytes.Cut(text, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if err := hookLine(line, first); err != nil {
			return nil, err
		}
		out = append(append(out, line...), '\r', '\n')
		if !more {
			return out, nil
		}
		text = rest
	}
}

func hookLine(line []byte, first bool) error {
	if len(bytes.TrimSpace(line)) == 0 {
		return errHookEmpty
	}
	if len(line) > 998 {
		return errHookLength
	}
	if !utf8.Valid(line) || bytes.ContainsFunc(line, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
		return errHookBytes
	}
	if line[0] == ' ' || line[0] == '\t' {
		if first {
			return errHookFold
		}
		return nil
	}
	name, _, ok := bytes.Cut(line, []byte(":"))
	name = bytes.TrimRight(name, " \t")                                                                      // RFC 5322 section 4.5, obsolete
	if !ok || len(name) == 0 || bytes.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }) { // section 2.2
		return errHookField
	}
	return nil
}

func clipBytes(b []byte) []byte { return b[:min(len(b), 512)] }
