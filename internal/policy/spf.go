package policy

import (
	"context"
	"sync"

	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/spf"
)

// SPF refuses mail from hosts that the sender's domain says do not send for it; other results are recorded. It is a MailCheck for
// clients that did not authenticate.
type SPF struct {
	checker *spf.Checker

	mu    sync.RWMutex
	texts map[spfResult]*spfTexts
}

// NewSPF returns the check.
func NewSPF(c *spf.Checker) *SPF { return &SPF{checker: c, texts: map[spfResult]*spfTexts{}} }

// spfResult is a result and its reason: constants both, so that there are few.
type spfResult struct{ value, reason string }

// spfTexts is how a result is told.
type spfTexts struct {
	authRes, note string
	header        []byte
}

// maxSPFTexts bounds what is kept, should the reasons be no constants some day.
const maxSPFTexts = 256

// text returns how the result is told.
func (c *SPF) text(r spf.Result) *spfTexts {
	k := spfResult{r.Value, r.Reason}
	c.mu.RLock()
	t := c.texts[k]
	c.mu.RUnlock()
	if t != nil {
		return t
	}
	text := spfText(r)
	t = &spfTexts{authRes: "spf=" + text, note: "spf=" + r.Value, header: []byte("Received-SPF: " + text + "\r\n")}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.texts) < maxSPFTexts {
		c.texts[k] = t
	}
	return t
}

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
	text := c.text(r)
	t.Results.AuthRes = append(t.Results.AuthRes, text.authRes)
	v := Verdict{Note: text.note, Header: text.header}
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
