package policy

import (
	"context"
	"errors"
	"fmt"

	"blitiri.com.ar/go/chasquid/internal/dmarc"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/spf"
)

// DMARC evaluates the author's domain of mail from clients that did not authenticate. It is a BodyCheck, and comes after SPF and
// DKIMVerify. Unless it enforces, it refuses nothing.
type DMARC struct {
	checker *dmarc.Checker
	enforce bool
}

// NewDMARC returns the check. If enforce is set, a message that fails is refused where its domain asks for that, and so is one
// whose author cannot be made out.
func NewDMARC(c *dmarc.Checker, enforce bool) *DMARC { return &DMARC{c, enforce} }

// Name is for metrics and the timeline.
func (*DMARC) Name() string { return "dmarc" }

// Body evaluates the message.
func (c *DMARC) Body(ctx context.Context, t *Transaction, content Content) Verdict {
	if t.Session.Authenticated() {
		return Verdict{}
	}
	h, err := t.Header(content)
	if err != nil {
		return refuseHeader(err)
	}
	in := dmarc.Input{Header: h, DKIM: t.Results.DKIMPass, Maybe: t.Results.Pending}
	if t.Results.SPF == spf.Pass {
		in.SPF = t.Results.SPFDomain
	}
	r := c.checker.Check(ctx, in)
	t.Results.DMARC = r.Value
	note := dmarcNote(r.Value)
	t.Results.AuthRes = append(t.Results.AuthRes, dmarcText(note, r))
	v := Verdict{Note: note}
	if !c.enforce {
		return v
	}
	var author *dmarc.AuthorError
	switch {
	case r.Domain == "" && errors.As(r.Author, &author):
		v.Refuse = &smtp.Reply{Code: 554, Enh: smtp.EnhancedCode{5, 6, 0}, Text: authorText(author)}
		v.Reason, v.Label = "DMARC: "+author.Error(), "bad_from"
	case r.Value == dmarc.Fail && r.Policy == dmarc.PolicyReject:
		v.Refuse = &smtp.Reply{Code: 550, Enh: smtp.EnhancedCode{5, 7, 1},
			Text: "Refused by the DMARC policy of the domain in the From field: neither SPF nor DKIM passed for it"}
		v.Reason, v.Label = fmt.Sprintf("DMARC policy of %s", r.Domain), "dmarc_fail"
	}
	return v
}

// authorText tells a client what is wrong with the From field.
func authorText(e *dmarc.AuthorError) string {
	if e.Line == 0 {
		return "The message has no From field"
	}
	return fmt.Sprintf("The From field in line %d of the message names no valid address", e.Line)
}

// dmarcNote is the result in a word.
func dmarcNote(value string) string {
	switch value { // what most mail has, without making a string
	case dmarc.Pass:
		return "dmarc=" + dmarc.Pass
	case dmarc.None:
		return "dmarc=" + dmarc.None
	case dmarc.Fail:
		return "dmarc=" + dmarc.Fail
	}
	return "dmarc=" + value
}

// dmarcText is the result for Authentication-Results (RFC 8601 section 2.7.2, RFC 9989 section 9.1), which begins with the note.
func dmarcText(note string, r dmarc.Result) string {
	text := note
	switch {
	case r.Value == dmarc.Fail && r.Policy != "":
		text += " (p=" + string(r.Policy) + ")"
	case r.Reason != "" && r.Value != dmarc.None:
		text += " (" + r.Reason + ")"
	}
	if r.Domain != "" {
		text += "  header.from=" + r.Domain
	}
	return text
}
