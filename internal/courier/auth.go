package courier

import (
	"encoding/base64"
	"errors"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// auth authenticates to a smarthost (RFC 4954) with PLAIN (RFC 4616) or, if that is not offered, LOGIN. It never does so in
// the clear. A refusal is a matter of our configuration, so the mail waits.
func (c *client) auth(user, password string) *fail {
	var f *fail
	switch {
	case c.state == nil:
		f = c.lost(StageAuth, errors.New("the server offers no TLS, so no password is sent to it"))
	case c.caps.authPlain:
		f = c.say(StageAuth, "AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)), "AUTH PLAIN ***", 235)
	case c.caps.authLogin:
		for _, step := range []struct {
			line, shown string
			want        int
		}{
			{"AUTH LOGIN", "AUTH LOGIN", 334},
			{base64.StdEncoding.EncodeToString([]byte(user)), "***", 334},
			{base64.StdEncoding.EncodeToString([]byte(password)), "***", 235},
		} {
			if f = c.say(StageAuth, step.line, step.shown, step.want); f != nil {
				break
			}
		}
	default:
		f = c.lost(StageAuth, errors.New("the server offers neither AUTH PLAIN nor AUTH LOGIN"))
	}
	if f != nil {
		f.Disposition, f.Reason = mail.Deferred, mail.ReasonInternal
	}
	return f
}

// say sends a line that the transcript shows as shown, and expects the code want. It is not counted as a reply to a command.
func (c *client) say(stage Stage, line, shown string, want int) *fail {
	c.within(c.env.timeouts.Hello)
	c.log.sent(shown)
	if err := c.write([]byte(line + "\r\n")); err != nil {
		return c.lost(stage, err)
	}
	code, err := c.rr.Next()
	if err != nil {
		return c.lost(stage, err)
	}
	c.log.got(code, nil) // a challenge or a refusal may repeat what was sent
	if code != want {
		return c.refusal(stage)
	}
	return nil
}
