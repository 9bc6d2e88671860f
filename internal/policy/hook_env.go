package policy

import (
	"cmp"
	"context"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// maxEnv bounds one variable of a hook: the kernel takes 128 KiB with the name, and refuses to start a program that has more.
const maxEnv = 120 << 10

// environ is what the post-data hook is told of the message.
func (h *Hook) environ(ctx context.Context, t *Transaction, span *trace.Span) []string {
	s := t.Session
	local := t.Env.From.IsNull() || h.cfg.Local != nil && h.cfg.Local(t.Env.From.Domain)
	env := make([]string, len(h.base), len(h.base)+13)
	copy(env, h.base)
	set := func(k, v string) { env = append(env, k+"="+strings.ReplaceAll(v, "\x00", "")) }
	set("REMOTE_ADDR", s.Remote.String())
	set("EHLO_DOMAIN", cleanEHLO(s.EHLO))
	set("EHLO_DOMAIN_RAW", s.EHLO)
	set("MAIL_FROM", t.Env.From.LogString())
	set("RCPT_TO", h.list(t.Env.Rcpts, span))
	set("AUTH_AS", s.User)
	set("ON_TLS", flag(s.TLS != nil))
	set("FROM_LOCAL_DOMAIN", flag(local))
	set("SPF_PASS", flag(t.Results.SPF == "pass"))
	set("QUEUE_ID", string(t.ID))
	set("TRACEPARENT", cmp.Or(span.Traceparent(), trace.Traceparent(t.Env.Trace, trace.SpanID{})))
	set("EXPANDED_RCPT_TO", h.expanded(ctx, t, span))
	return env
}

// expanded is the final recipients that are mailboxes. If they cannot be told now, the message will not be queued anyway.
func (h *Hook) expanded(ctx context.Context, t *Transaction, span *trace.Span) string {
	if h.cfg.Expand == nil {
		return ""
	}
	rcpts, err := h.cfg.Expand(ctx, t.Env.Rcpts)
	if err != nil {
		span.Printf("recipients cannot be expanded: %v", err)
		return ""
	}
	return h.list(rcpts, span)
}

// list is the addresses separated by spaces. What does not fit is left out.
func (h *Hook) list(rcpts []mail.Recipient, span *trace.Span) string {
	var b strings.Builder
	for i := range rcpts {
		if rcpts[i].Kind == mail.Pipe {
			continue
		}
		a := rcpts[i].To.String()
		if b.Len()+1+len(a) > maxEnv {
			span.Printf("the hook is told %d of %d recipients", i, len(rcpts))
			break
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	return b.String()
}

// cleanEHLO keeps what a host name or an address literal is made of.
func cleanEHLO(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-.[]:", c) {
			return c
		}
		return -1
	}, s)
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}
