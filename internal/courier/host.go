package courier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// host tries one server: a waiting connection first, then its addresses. reached says that it came to a transaction; stop
// that no further server must be tried.
func (d *delivery) host(ctx context.Context, t *target) (reached, stop bool) {
	d.name, d.tried = t.name, d.tried[:0]
	p, err := d.s.hostPolicy(ctx, d.job.Route.Domain, t.name, d.rules)
	if err != nil && !d.advice() {
		d.failed(mail.Outcome{Reason: mail.ReasonTLS, MTA: t.name, Err: fmt.Errorf("the security policy of %s cannot be found out now: %w", t.name, err)})
		return false, false
	}
	d.relax(&p)
	if source, err := p.allowHost(t.name); err != nil {
		d.failed(mail.Outcome{Reason: policyReason(source), MTA: t.name, Err: fmt.Errorf("%s does not allow the server %s: %w", sourceName(source), t.name, err)})
		return false, false
	}
	if c := d.waiting(t, &p); c != nil {
		d.hosts++
		stale, more := d.session(ctx, c)
		if !stale && !more {
			return true, false
		}
		reached = !stale
		d.hosts--
	}
	addrs, own, err := d.s.addrs(ctx, t)
	switch {
	case err != nil && !t.named:
		d.failed(noAddress(t.name, err))
		return reached, false
	case err != nil:
		addrs = []netip.AddrPort{{}} // perhaps the operating system knows the name
	case len(addrs) == 0 && own:
		o := loopOutcome(t.name + " is this server")
		o.MTA = t.name
		d.failed(o)
		return reached, true // the others are no better than we are (RFC 5321 section 5.1)
	}
	d.hosts++
	for range len(d.job.Rcpts) {
		ok, more := d.fresh(ctx, t, &p, addrs)
		reached = reached || ok
		if !more {
			break
		}
	}
	return reached, false
}

// waiting finds an idle connection to the server that the policies allow, and throws out closed ones on the way.
func (d *delivery) waiting(t *target, p *policy) *client {
	now := time.Now()
	for {
		c := d.s.pool.get(t.key(d.relayKey()))
		switch {
		case c == nil:
			return nil
		case !c.alive(now):
			c.close()
			continue
		}
		level, vouched, source, err := p.check(t.name, c.state, c.pkix, c.level)
		if domain := d.job.Route.Domain; domain != c.reported {
			p.report(c.host, source, err)
			c.reported = domain
		}
		if err != nil {
			d.s.pool.put(c)
			return nil
		}
		c.proven, c.vouched, c.reused = level, vouched, true
		return c
	}
}

func (d *delivery) relayKey() string {
	if d.relay != nil {
		return d.job.Route.Target
	}
	return ""
}

// fresh connects to the server, address after address, until a session comes about. more says that recipients are left that
// the server will take on a further connection.
func (d *delivery) fresh(ctx context.Context, t *target, p *policy, addrs []netip.AddrPort) (reached, more bool) {
	for noTLS := false; len(addrs) > 0 && ctx.Err() == nil; {
		conn, addr, err := d.dial(ctx, t, addrs)
		if err != nil {
			d.failed(mail.Outcome{Reason: Classify(smtp.Reply{}, err, StageConnect), MTA: t.name, Err: &StageError{StageConnect, err}})
			return false, false
		}
		c := newClient(d.s.env, conn, t.name, addr)
		c.key = t.key(d.relayKey())
		f := d.open(ctx, c, p, noTLS)
		if f == nil {
			_, more = d.session(ctx, c)
			return true, more
		}
		if f.tls {
			f.Reason = policyReason(p.demandsTLS())
		}
		d.failed(f.Outcome)
		c.log.dump(d.span)
		c.quit()
		if f.tls && !noTLS {
			p.failed(t.name, f.Err)
			if p.demandsTLS() == "" {
				d.span.Printf("TLS with %s does not work: trying again without", c.mta)
				noTLS, addrs = true, []netip.AddrPort{addr}
				continue
			}
		}
		if f.noMail {
			d.refuse++
			return false, false
		}
		noTLS = false
		addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.AddrPort) bool { return a == addr })
	}
	return false, false
}

func (d *delivery) dial(ctx context.Context, t *target, addrs []netip.AddrPort) (net.Conn, netip.AddrPort, error) {
	if addrs[0].IsValid() {
		return d.s.dialAny(ctx, addrs)
	}
	ctx, cancel := context.WithTimeout(ctx, d.s.cfg.Timeouts.Connect)
	defer cancel()
	conn, err := d.s.cfg.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", t.name, t.port))
	return conn, netip.AddrPort{}, err
}

// open starts the session on a new connection.
func (d *delivery) open(ctx context.Context, c *client, p *policy, noTLS bool) *fail {
	h := hello{noTLS: noTLS}
	if d.relay != nil {
		h.implicit, h.user = d.relay.Implicit, d.relay.User
	}
	if h.user != "" {
		if d.s.cfg.Password == nil {
			return &fail{Outcome: internalError(errors.New("no password is configured for the smarthost"))}
		}
		pw, err := d.s.cfg.Password(d.job.Route.Target)
		if err != nil {
			return &fail{Outcome: internalError(fmt.Errorf("the password for the smarthost cannot be read: %w", err))}
		}
		h.password = pw
	}
	c.bind(ctx)
	defer c.release()
	return c.start(ctx, h, func() *fail { return d.allowed(c, p) })
}

// allowed checks a new connection against the policies.
func (d *delivery) allowed(c *client, p *policy) *fail {
	level, vouched, source, err := p.check(c.host, c.state, c.pkix, c.level)
	p.report(c.host, source, err)
	c.reported = d.job.Route.Domain
	c.proven, c.vouched = level, vouched
	if err != nil {
		return &fail{Outcome: mail.Outcome{Reason: policyReason(source), MTA: c.mta, TLS: c.protection(), Err: err}}
	}
	d.span.Printf("connected to %s: %s", c.mta, c.protection())
	if c.state != nil && level != tlspolicy.TLSSecure {
		d.span.Printf("the certificate is not valid for %s: %v", c.host, c.pkix)
	}
	return nil
}

// session hands over as many recipients as the server takes, and keeps the connection for later or ends it. stale says that a
// waiting connection turned out to be dead before the server said anything: nothing happened; more is as in fresh.
func (d *delivery) session(ctx context.Context, c *client) (stale, more bool) {
	d.prune()
	c.bind(ctx)
	c.log.reset()
	c.rr.StartBudget()
	switch o := d.ready(ctx, c); {
	case o != nil:
		d.failed(*o)
	default:
		stale, more = d.transactions(ctx, c)
	}
	c.release()
	if d.trouble {
		c.log.dump(d.span)
		d.trouble = false
	}
	if stale {
		d.span.Printf("the waiting connection to %s was dead: making a new one", c.mta)
	}
	if c.broken || c.spent || d.full(c) {
		c.quit()
	} else {
		d.s.pool.put(c)
	}
	return stale, more
}

// full reports a connection that takes no further message.
func (d *delivery) full(c *client) bool {
	return c.messages >= d.s.cfg.MaxMessages || c.caps.mailMax > 0 && c.messages >= c.caps.mailMax
}

// ready does what comes before MAIL: the ledger's word on the level, and the message itself.
func (d *delivery) ready(ctx context.Context, c *client) *mail.Outcome {
	if d.s.cfg.Ledger != nil {
		ok := true
		d.eachDomain(func(_ int, domain string) {
			pass := d.s.cfg.Ledger.CheckOutgoing(ctx, domain, c.proven)
			d.s.metrics.levelCheck(pass)
			ok = ok && pass
		})
		if !ok && !d.advice() {
			return &mail.Outcome{Reason: mail.ReasonSecurityLevel, MTA: c.mta, TLS: c.protection(),
				Err: fmt.Errorf("Security level check failed (level:%s)", c.proven)}
		}
	}
	if err := d.msg.load(); err != nil {
		o := internalError(err)
		return &o
	}
	return nil
}

// eachDomain calls f for each domain whose mail this is: the route's, or behind servers of a forward those of the recipients
// (and once for each recipient, i). Behind a smarthost it does not: what is demanded of that connection is in its address.
func (d *delivery) eachDomain(f func(i int, domain string)) {
	switch {
	case d.job.Route.Transport == mail.SMTP:
		f(0, d.job.Route.Domain)
	case d.relay == nil:
		for n, i := range d.left {
			if dom := d.job.Rcpts[i].To.Domain; n == 0 || dom != d.job.Rcpts[d.left[n-1]].To.Domain {
				f(i, dom)
			}
		}
	}
}

// transactions sends the message in as many transactions as the server's limits make of it.
func (d *delivery) transactions(ctx context.Context, c *client) (stale, more bool) {
	todo, o := d.fit(c)
	if o != nil {
		d.failed(*o)
	}
	delivered, ran := false, false
	for len(todo) > 0 {
		if c.broken || c.spent || d.full(c) {
			more = ran && !c.broken
			break
		}
		ran = true
		n := d.batch(c, todo)
		t := transaction{d: d, c: c, idx: todo[:n]}
		if f := t.run(); f != nil {
			if c.reused && !t.answered {
				return true, false
			}
			d.trouble = true
			if d.again(&t) {
				d.span.Printf("%s ends the session: making a new one", c.mta)
				return false, true
			}
			d.failed(f.Outcome)
			break
		}
		rest := todo[n:]
		if delivered = delivered || t.delivered; t.delivered && len(t.over) > 0 {
			rest = append(t.over, rest...) // RFC 5321 section 4.5.3.1.10
		}
		todo = rest
	}
	if delivered && d.s.cfg.Ledger != nil {
		d.eachDomain(func(i int, domain string) {
			if d.job.Route.Transport == mail.SMTP || d.out[i].Disposition == mail.Delivered {
				d.s.cfg.Ledger.RecordOutgoing(ctx, domain, c.proven)
			}
		})
	}
	return false, more
}

// again reports a session that the server ended with 421 before it had the message, for enough of what is no fault of the recipients left:
// what was before on a waiting connection, or unknown recipients of this message if there is no other server. Those who are left get a new
// one at once.
func (d *delivery) again(t *transaction) bool {
	refused := slices.ContainsFunc(t.idx, func(i int) bool { return d.out[i].Disposition == mail.Failed })
	if !t.hungUp || !t.c.reused && !(refused && d.lastHost) || d.hungUp == maxSessions {
		return false
	}
	d.hungUp++
	return true
}

// batch is how many recipients the next transaction takes (RFC 9422 section 4).
func (d *delivery) batch(c *client, todo []int) int {
	n := min(len(todo), d.s.cfg.MaxRcpts)
	if c.caps.rcptMax > 0 {
		n = min(n, c.caps.rcptMax)
	}
	if c.caps.rcptDomainMax > 0 {
		var seen []string
		for i, r := range todo[:n] {
			dom := d.job.Rcpts[r].To.Domain
			if slices.Contains(seen, dom) {
				continue
			}
			if seen = append(seen, dom); len(seen) > c.caps.rcptDomainMax {
				return i
			}
		}
	}
	return n
}
