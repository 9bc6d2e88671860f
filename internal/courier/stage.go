package courier

import (
	"fmt"

	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Stage is where in a delivery something happened.
type Stage uint8

// The stages, in order.
const (
	StageDNS Stage = iota
	StageConnect
	StageGreeting
	StageHello
	StageTLS
	StageAuth
	StageMail
	StageRcpt
	StageData
	StageBody // sending the message, and the answer to its end
	StageLocal
)

// prefix starts error texts, as logs and notices of existing installations show them.
func (s Stage) prefix() string {
	switch s {
	case StageDNS:
		return "Could not find mail server: "
	case StageConnect:
		return "Could not dial: "
	case StageGreeting:
		return "Error creating client: "
	case StageHello:
		return "Error saying hello: "
	case StageTLS:
		return "TLS error: "
	case StageAuth:
		return "AUTH "
	case StageMail, StageRcpt:
		return "MAIL+RCPT "
	case StageData:
		return "DATA "
	case StageBody:
		return "DATA closing "
	}
	return ""
}

// ReplyError is a refusal by the remote server at some stage of the session.
type ReplyError struct {
	Stage Stage
	Reply smtp.Reply
}

// Error renders the stage, the code and the quoted text, as existing logs and notices have it: `MAIL+RCPT 550 "5.1.1 unknown"`.
func (e *ReplyError) Error() string {
	text := e.Reply.Text
	if enh := e.Reply.Enh.String(); enh != "" {
		text = enh + " " + text
	}
	return fmt.Sprintf("%s%d %q", e.Stage.prefix(), e.Reply.Code, text)
}

// Unwrap returns the reply.
func (e *ReplyError) Unwrap() error { return e.Reply }

// StageError is a failure that is not the remote's reply: the network, TLS, or words that are not SMTP.
type StageError struct {
	Stage Stage
	Err   error
}

// Error renders the stage and the error.
func (e *StageError) Error() string { return e.Stage.prefix() + e.Err.Error() }

// Unwrap returns the error.
func (e *StageError) Unwrap() error { return e.Err }
