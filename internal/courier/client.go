package courier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// client is one SMTP or LMTP connection as its client sees it. It is used by one goroutine at a time.
type client struct {
	env  *clientEnv
	key  poolKey
	host string // the name that policies and certificates are about
	mta  string // "mx.example.org [192.0.2.1]:25"

	raw, conn net.Conn // conn is raw, or TLS over it
	rr        *smtp.ReplyReader
	caps      caps
	state     *tls.ConnectionState // nil on plain text
	pkix      error                // why the certificate is not valid for host under the system's roots; nil: it is
	level     tlspolicy.Level      // by the certificate and the system's roots
	proven    tlspolicy.Level      // level, or better if a policy of the present job's domain proved more
	vouched   string               // the policies that are satisfied for the present job
	lmtp      bool

	messages  int    // transactions begun
	dirty     bool   // an unfinished transaction is open on the server: RSET comes first
	broken    bool   // the stream is out of step or gone: close, never use again
	spent     bool   // in step, but not to be used again
	reused    bool   // came from the pool for the present job
	reported  string // the domain whose policies were told about this connection last
	idleSince time.Time
	limit     time.Time // the job's deadline; zero: none
	armed     time.Time // the deadline set last
	guard     *guard    // while bound to a context
	log       transcript
}

// clientEnv is what all clients of a courier share.
type clientEnv struct {
	hostname string // for EHLO, in ASCII
	timeouts Timeouts
	metrics  *metrics
	tls      *tls.Config
	guards   guards
}

// fail is why a connection could not be used. It says what becomes of the recipients if no other server helps.
type fail struct {
	mail.Outcome
	tls    bool // TLS did not come about: plain text may be tried where it is allowed
	noMail bool // the host says that it never takes mail (RFC 7504)
}

// hello says how to begin a session.
type hello struct {
	implicit bool   // TLS from the first byte
	noTLS    bool   // do not use STARTTLS: it failed before
	user     string // authenticate as, if not empty: then TLS is a must
	password string
}

func newClient(env *clientEnv, conn net.Conn, host string, addr netip.AddrPort) *client {
	c := &client{env: env, host: host, raw: conn, conn: conn, rr: smtp.NewReplyReader(conn)}
	switch {
	case !addr.IsValid():
		c.mta = host
	case addr.Addr().Unmap().String() == host:
		c.mta = "[" + host + "]:" + strconv.Itoa(int(addr.Port()))
	default:
		c.mta = host + " [" + addr.Addr().Unmap().String() + "]:" + strconv.Itoa(int(addr.Port()))
	}
	return c
}

// bind makes the end of ctx end the session, until release.
func (c *client) bind(ctx context.Context) {
	c.limit, _ = ctx.Deadline()
	if ctx.Done() != nil {
		c.guard = c.env.guards.of(ctx)
		c.guard.add(c)
	}
}

// release ends what bind began.
func (c *client) release() {
	if g := c.guard; g != nil {
		c.guard = nil
		if !g.remove(c) {
			c.broken = true
		}
	}
}

// within sets the time for what comes next: reading and writing.
func (c *client) within(d time.Duration) {
	t := time.Now().Add(d)
	if !c.limit.IsZero() && c.limit.Before(t) {
		t = c.limit
	}
	c.armed = t
	c.conn.SetDeadline(t)
}

// start takes a new connection up to where MAIL may follow: greeting, TLS, EHLO, AUTH.
// allowed is asked once it is known how the connection is protected, before anything confidential is said on it.
func (c *client) start(ctx context.Context, h hello, allowed func() *fail) *fail {
	if h.implicit {
		if f := c.handshake(ctx); f != nil {
			return f
		}
	}
	if f := c.greeting(); f != nil {
		return f
	}
	if f := c.hello(); f != nil {
		return f
	}
	if c.caps.starttls && !h.noTLS && c.state == nil && !c.lmtp {
		if f := c.startTLS(ctx); f != nil {
			return f
		}
		if f := c.hello(); f != nil {
			return f
		}
	}
	if !c.lmtp {
		c.env.metrics.tls(c.level, false, c.state)
	}
	if f := allowed(); f != nil {
		return f
	}
	if h.user != "" {
		return c.auth(h.user, h.password)
	}
	return nil
}

func (c *client) greeting() *fail {
	begin := time.Now()
	defer func() { c.env.metrics.took(stageBanner, begin) }()
	c.within(c.env.timeouts.Greeting)
	code, err := c.read(cmdConnect)
	switch {
	case err != nil:
		return c.lost(StageGreeting, err)
	case code == 220:
		return nil
	}
	f := c.refusal(StageGreeting)
	f.Disposition = mail.Deferred // it may be about us, or pass: another server or another day (RFC 5321 section 3.1)
	f.noMail = code == 521        // RFC 7504 section 3
	return f
}

// hello says EHLO, or HELO to those who do not know it (RFC 5321 section 4.1.1.1), or LHLO (RFC 2033 section 4.1).
func (c *client) hello() *fail {
	begin := time.Now()
	defer func() { c.env.metrics.took(stageEHLO, begin) }()
	c.caps = caps{} // what was said before TLS is forgotten (RFC 3207 section 4.2)
	verb := "EHLO "
	if c.lmtp {
		verb = "LHLO "
	}
	code, err := c.cmd(c.env.timeouts.Hello, cmdEHLO, verb+c.env.hostname)
	if err != nil {
		return c.lost(StageHello, err)
	}
	if code/100 == 2 {
		first := true
		c.rr.Lines(func(l []byte) {
			if !first {
				c.caps.add(l)
			}
			first = false
		})
		return nil
	}
	if code/100 == 5 && !c.lmtp && c.state == nil {
		if code, err = c.cmd(c.env.timeouts.Hello, cmdEHLO, "HELO "+c.env.hostname); err != nil {
			return c.lost(StageHello, err)
		} else if code/100 == 2 {
			return nil
		}
	}
	f := c.refusal(StageHello)
	f.Disposition = mail.Deferred
	f.noMail = code == 521
	return f
}

// startTLS begins TLS (RFC 3207). Whatever the server sent after its 220 and before the handshake is dropped unread.
func (c *client) startTLS(ctx context.Context) *fail {
	code, err := c.cmd(c.env.timeouts.Hello, cmdSTARTTLS, "STARTTLS")
	if err != nil {
		f := c.lost(StageTLS, err)
		f.tls = true
		c.env.metrics.tls(tlspolicy.Plain, true, nil)
		return f
	}
	if code != 220 {
		f := c.refusal(StageTLS)
		f.Disposition, f.Reason, f.tls = mail.Deferred, mail.ReasonTLS, true
		f.Err = &StageError{StageTLS, fmt.Errorf("%w: %w", tlspolicy.ErrSTARTTLS, f.Err)}
		c.env.metrics.tls(tlspolicy.Plain, true, nil)
		return f
	}
	return c.handshake(ctx)
}

// handshake does the TLS handshake and finds out whether the certificate is valid for the host. It fails only if there is no
// encryption at all: what an invalid certificate means is for the policies.
func (c *client) handshake(ctx context.Context) *fail {
	begin := time.Now()
	defer func() { c.env.metrics.took(stageSTARTTLS, begin) }()
	conf := c.env.tls.Clone()
	if _, err := netip.ParseAddr(c.host); err != nil {
		conf.ServerName = c.host
	}
	tc := tls.Client(c.raw, conf)
	c.within(c.env.timeouts.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		c.broken = true
		c.env.metrics.tls(tlspolicy.Plain, true, nil)
		return &fail{tls: true, Outcome: mail.Outcome{Reason: mail.ReasonTLS, MTA: c.mta, Err: &StageError{StageTLS, err}}}
	}
	if n := c.rr.Reset(tc); n > 0 {
		trace.From(ctx).Printf("dropped %d bytes sent before the TLS handshake by %s", n, c.mta)
	}
	c.conn = tc
	state := tc.ConnectionState()
	c.pkix = verifyPKIX(&state, c.host, conf)
	c.state, c.level = &state, tlspolicy.TLSInsecure
	if c.pkix == nil {
		c.level = tlspolicy.TLSSecure
	}
	return nil
}

// cmd sends one command and reads the reply.
func (c *client) cmd(timeout time.Duration, command int, line string) (int, error) {
	c.within(timeout)
	c.log.sent(line)
	if err := c.write([]byte(line + "\r\n")); err != nil {
		return 0, err
	}
	return c.read(command)
}

// write sends bytes; an error makes the connection useless.
func (c *client) write(b []byte) error {
	if _, err := c.conn.Write(b); err != nil {
		c.broken = true
		return err
	}
	return nil
}

// read reads the next reply, to the given command.
func (c *client) read(command int) (int, error) {
	code, err := c.rr.Next()
	if err != nil {
		c.broken = true
		c.log.note(err)
		return 0, err
	}
	c.log.got(code, c.rr.Raw())
	var enh smtp.EnhancedCode
	if code >= 400 {
		enh = c.rr.Reply().Enh
		if code == 421 {
			c.broken = true // the server closes (RFC 5321 section 3.8)
		}
	}
	c.env.metrics.reply(command, code, enh)
	return code, nil
}

// refusal is the failure that the last reply makes at this stage; codes that mean nothing here count by their first digit,
// and a yes in the wrong place counts as nonsense that may pass.
func (c *client) refusal(stage Stage) *fail {
	r := c.rr.Reply()
	o := mail.Outcome{Disposition: mail.Deferred, Reply: r, MTA: c.mta, Err: &ReplyError{stage, r}}
	if r.Permanent() {
		o.Disposition = mail.Failed
	} else if !r.Temporary() {
		c.broken = true
		o.Err = &StageError{stage, fmt.Errorf("unexpected reply %q", r.String())}
	}
	o.Reason = Classify(r, nil, stage)
	return &fail{Outcome: o}
}

// lost is the failure of a connection that broke, timed out or spoke nonsense: worth another attempt.
func (c *client) lost(stage Stage, err error) *fail {
	c.broken = true
	if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		err = fmt.Errorf("timed out: %w", err)
	}
	return &fail{Outcome: mail.Outcome{Reason: Classify(smtp.Reply{}, err, stage), MTA: c.mta, Err: &StageError{stage, err}}}
}

// quit ends the session politely without waiting for the answer, and closes.
func (c *client) quit() {
	if !c.broken {
		begin := time.Now()
		c.conn.SetDeadline(begin.Add(time.Second))
		c.conn.Write([]byte("QUIT\r\n"))
		c.env.metrics.took(stageQuit, begin)
	}
	c.close()
}

func (c *client) close() {
	c.broken = true
	c.conn.Close()
}

// protection says how the connection is protected and who demands it, for people: "secure TLS1.3 (MTA-STS)".
func (c *client) protection() string {
	if c.state == nil {
		return "plain"
	}
	s := "insecure "
	if c.proven == tlspolicy.TLSSecure {
		s = "secure "
	}
	s += versionName(c.state.Version)
	if c.vouched != "" {
		s += " (" + c.vouched + ")"
	}
	return s
}
