package policy

import (
	"context"
	"errors"
	"io"
	"slices"

	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// DKIMVerify verifies the signatures of mail from clients that did not authenticate. It is a BodyCheck and refuses nothing.
type DKIMVerify struct{ verifier *dkim.Verifier }

// NewDKIMVerify returns the check.
func NewDKIMVerify(v *dkim.Verifier) *DKIMVerify { return &DKIMVerify{v} }

// Name is for metrics and the timeline.
func (*DKIMVerify) Name() string { return "dkim_verify" }

// Body verifies the message.
func (c *DKIMVerify) Body(ctx context.Context, t *Transaction, content Content) Verdict {
	if t.Session.Authenticated() {
		return Verdict{}
	}
	h, err := t.Header(content)
	if err != nil {
		return refuseHeader(err)
	}
	v, err := c.verifier.Verify(ctx, h, func() (io.Reader, error) { return t.Body(content) })
	if err != nil {
		return refuseHeader(err)
	}
	res := v.AuthRes()
	t.Results.AuthRes = append(slices.Grow(t.Results.AuthRes, len(res)+1), res...) // DMARC has one more
	if v.Found == 0 {
		return Verdict{Note: "dkim=none"}
	}
	note := "dkim=" + dkim.Fail
	for i := range v.Results {
		r := &v.Results[i]
		t.Results.DKIM = append(t.Results.DKIM, r.Value)
		if r.Value == dkim.TempError {
			t.Results.Pending = append(t.Results.Pending, r.Domain)
		}
	}
	t.Results.DKIMPass = v.Domains()
	if v.Valid() > 0 {
		note = "dkim=" + dkim.Pass
	}
	return Verdict{Note: note}
}

// DKIMSign signs mail of authenticated users with the keys of the domain they send from. It is a BodyCheck, and comes after those
// that change the header of the message itself.
type DKIMSign struct{ signer *dkim.Signer }

// NewDKIMSign returns the check.
func NewDKIMSign(s *dkim.Signer) *DKIMSign { return &DKIMSign{s} }

// Name is for metrics and the timeline.
func (*DKIMSign) Name() string { return "dkim_sign" }

// Body signs the message.
func (c *DKIMSign) Body(ctx context.Context, t *Transaction, content Content) Verdict {
	if !t.Session.Authenticated() || !c.signer.Has(t.Env.From.Domain) {
		return Verdict{}
	}
	h, err := t.Header(content)
	if err != nil {
		return refuseHeader(err)
	}
	fields, err := c.signer.Sign(ctx, t.Env.From.Domain, h, func() (io.Reader, error) { return t.Body(content) })
	if errors.Is(err, message.ErrTooBig) {
		return refuseHeader(err)
	}
	if err != nil {
		return Verdict{
			Refuse: &smtp.Reply{Code: 451, Enh: smtp.EnhancedCode{4, 3, 0}, Text: "DKIM signing failed, please try again later"},
			Reason: "DKIM signing: " + err.Error(),
			Label:  "other",
		}
	}
	return Verdict{Below: fields, Note: "signed"}
}
