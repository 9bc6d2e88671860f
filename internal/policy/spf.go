package policy

import (
	"context"

	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/spf"
)

// SPF refuses mail from hosts that the sender's domain says do not send for it; other results are recorded. It is a MailCheck for
// clients that did not authenticate.
type SPF struct{ checker *spf.Checker }

// NewSPF returns the check.
func NewSPF(c *spf.Checker) *SPF { return &SPF{c} }

// Name is for metrics and the timeline.
func (*SPF) Name() string { return "spf" }

// Mail checks the MAIL FROM identity, or the HELO identity of the null sender.
func (c *SPF) Mail(ctx context.Context, t *Transaction) Verdict {
	if t.Session.Authenticated() {
		return Verdict{}
	}
	r := c.checker.Check(ctx, t.Session.Remote.Addr(), t.Session.EHLO, t.Env.From)
	t.Results.SPF, t.Results.SPFReason, t.Results.SPFDomain = r.Value, r.Reason, r.Domain
	if r.Value == spf.TempError && r.Domain != "" {
		t.Results.Pending = append(t.Results.Pending, r.Domain)
	}
	text := spfText(r)
	if t.Results.AuthRes == nil {
		t.Results.AuthRes = make([]string, 0, 4)
	}
	t.Results.AuthRes = append(t.Results.AuthRes, "spf="+text)
	v := Verdict{Note: "spf=" + r.Value, Header: []byte("Received-SPF: " + text + "\r\n")}
	if r.Value == spf.Fail { // RFC 7208 section 8.4; the code is that of RFC 7372 section 3.2
		v.Refuse = &smtp.Reply{Code: 550, Enh: smtp.EnhancedCode{5, 7, 23}, Text: "SPF check failed: " + r.Reason}
		v.Reason = "failed SPF: " + r.Reason
		v.Label = "spf_fail"
	}
	return v
}

// spfText is a result with its reason, as Received-SPF (RFC 7208 section 9.1) and Authentication-Results have them.
func spfText(r spf.Result) string {
	if r.Reason == "" {
		return r.Value + " (<nil>)" // as existing installations write it
	}
	return r.Value + " (" + r.Reason + ")"
}
