package courier

import (
	"encoding/base64"
	"errors"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// auth authenticates to a smarthost (RFC 4954) with PLAIN (RFC 4616) or, if that is not offered, LOGIN. It never does so in
// the clear. A refusal is a matter of our configuration, so the mail waits.
func (c *client) auth(user, password string) *fail {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	plain := b64("\x00" + user + "\x00" + password)
	var f *fail
	switch {
	case c.state == nil:
		f = c.lost(StageAuth, errors.New("the server offers no TLS, so no password is sent to it"))
	case c.caps.authPlain:
		f = c.say("AUTH PLAIN "+plain, "AUTH PLAIN ***", 235)
	case c.caps.authLogin:
		f = c.say("AUTH LOGIN", "AUTH LOGIN", 334)
		if f == nil {
			f = c.say(b64(user), "***", 334)
		}
		if f == nil {
			f = c.say(b64(password), "***", 235)
		}
	default:
		f = c.lost(StageAuth, errors.New("the server offers neither AUTH PLAIN nor AUTH LOGIN"))
	}
	if f == nil {
		return nil
	}
	f.Disposition, f.Reason = mail.Deferred, mail.ReasonInternal
	for _, secret := range []string{plain, b64(password), password} {
		if secret != "" && strings.Contains(f.Reply.Text, secret) { // a server that repeats what it should keep
			f.Reply.Text = "(the answer repeats the password)"
			f.Err = &ReplyError{StageAuth, f.Reply}
		}
	}
	return f
}

// say sends a line that the transcript shows as shown, and expects the code want. It is not counted as a reply to a command.
func (c *client) say(line, shown string, want int) *fail {
	c.within(c.env.timeouts.Hello)
	c.log.sent(shown)
	if err := c.write([]byte(line + "\r\n")); err != nil {
		return c.lost(StageAuth, err)
	}
	code, err := c.rr.Next()
	if err != nil {
		return c.lost(StageAuth, err)
	}
	c.log.got(code, nil) // a challenge or a refusal may repeat what was sent
	if code != want {
		return c.refusal(StageAuth)
	}
	return nil
}
