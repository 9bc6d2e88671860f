package courier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// SMTP delivers over SMTP: by MX, through named servers, through a smarthost. It is safe for concurrent use.
type SMTP struct {
	cfg     Config
	env     *clientEnv
	pool    *pool
	metrics *metrics
	extra   map[string]string // providers of the installation
}

// NewSMTP returns an SMTP courier.
func NewSMTP(cfg Config) *SMTP {
	s := newSMTP(cfg)
	s.metrics.newProviders(cfg.Metrics, cfg.Providers)
	return s
}

func newSMTP(cfg Config) *SMTP {
	cfg = cfg.withDefaults()
	m := newMetrics(cfg.Metrics)
	hostname := cfg.Hostname
	if ascii, err := address.DomainToASCII(hostname); err == nil { // RFC 6531 section 3.7.1
		hostname = ascii
	}
	return &SMTP{
		cfg: cfg, metrics: m, extra: cfg.Providers,
		pool: newPool(cfg.MaxIdle, cfg.IdleTimeout),
		env: &clientEnv{hostname: hostname, timeouts: cfg.Timeouts, metrics: m, tls: &tls.Config{
			MinVersion:         tls.VersionTLS12, // RFC 8996
			RootCAs:            cfg.Roots,
			InsecureSkipVerify: true, // verifyPKIX does it, and the policies decide what it means
			ClientSessionCache: tls.NewLRUClientSessionCache(256),
		}},
	}
}

// Close ends the idle connections. Deliveries under way go on.
func (s *SMTP) Close() { s.pool.close() }

// delivery is one call of Deliver.
type delivery struct {
	s        *SMTP
	job      *mail.Job
	span     *trace.Span
	out      []mail.Outcome
	left     []int        // recipients without a final outcome
	few      [4]int       // where left is, if they are few
	last     mail.Outcome // why the last server did not help; Err is nil if none was tried
	hosts    int          // servers tried
	refuse   int          // of these, servers that say they never take mail
	hungUp   int          // sessions that ended with 421 and were begun anew
	lastHost bool         // no server comes after the present one
	tried    []int        // recipients that the present server refused
	trouble  bool         // the dialogue of the present session is worth keeping
	secure   bool         // the servers' names are not a stranger's invention
	rules    []tlspolicy.Rule
	relay    *Smarthost
	msg      payload
	begin    time.Time
	name     string // the last server tried

	rewrite func(*mail.Recipient) address.Address // the address to give the server, if it is not the recipient\'s
}

func newDelivery(ctx context.Context, s *SMTP, job *mail.Job) *delivery {
	d := new(delivery)
	d.init(ctx, s, job)
	return d
}

func (d *delivery) init(ctx context.Context, s *SMTP, job *mail.Job) {
	*d = delivery{s: s, job: job, span: trace.From(ctx), out: make([]mail.Outcome, len(job.Rcpts)), begin: time.Now()}
	d.left = d.few[:0]
	for i := range job.Rcpts {
		d.left = append(d.left, i)
	}
	d.msg.job = job
}

// jobs are used by one call of Deliver after the other. One that ends in a panic is not used again.
var jobs = sync.Pool{New: func() any { return new(jobDelivery) }}

// jobDelivery is a delivery and its job.
type jobDelivery struct {
	delivery
	room mail.Job
}

// Deliver implements Courier.
func (s *SMTP) Deliver(ctx context.Context, job mail.Job) []mail.Outcome {
	d := jobs.Get().(*jobDelivery)
	d.room = job
	d.init(ctx, s, &d.room)
	out := d.deliver(ctx)
	*d = jobDelivery{}
	jobs.Put(d)
	return out
}

func (d *delivery) deliver(ctx context.Context) []mail.Outcome {
	defer d.msg.release()
	if o := d.run(ctx); o != nil {
		d.settle(o)
	} else {
		d.exhausted()
	}
	if d.job.Route.Transport == mail.SMTP {
		d.s.metrics.attempts(d.s.provider(d.name), d.out)
	}
	noteOutcome(ctx, d.job, d.out)
	return d.out
}

// run tries server after server while recipients are left. A returned outcome is for all of them; nil means that the servers
// had their say.
func (d *delivery) run(ctx context.Context) *mail.Outcome {
	route := &d.job.Route
	if strings.Contains(route.Target, "://") {
		relay, err := ParseSmarthost(route.Target)
		if err != nil {
			o := internalError(fmt.Errorf("smarthost: %w", err))
			return &o
		}
		d.relay = &relay
	}
	ts, secure, o := d.s.targets(ctx, route)
	if o != nil {
		return o
	}
	d.secure = secure
	if o := d.policies(ctx); o != nil {
		return o
	}
	sessions := 0
	for i := range ts {
		if len(d.left) == 0 || ctx.Err() != nil || sessions >= maxSessions || time.Since(d.begin) > attemptLimit {
			break
		}
		d.lastHost = i == len(ts)-1
		reached, stop := d.host(ctx, &ts[i])
		d.prune()
		if stop {
			break
		}
		if reached {
			sessions++
		}
	}
	if ctx.Err() != nil { // what broke because of it says nothing about the servers
		d.last = internalError(fmt.Errorf("the attempt was interrupted: %w", context.Cause(ctx)))
	}
	return nil
}

// policies collects what is demanded of any connection for this job.
func (d *delivery) policies(ctx context.Context) *mail.Outcome {
	byMX := d.job.Route.Transport == mail.SMTP && len(d.job.Route.Hosts) == 0 && !strings.HasPrefix(d.job.Route.Domain, "[")
	if byMX { // servers somebody named are used by that word, not by the domain's policy
		rules, err := d.s.domainRules(ctx, d.job.Route.Domain)
		if err != nil {
			return &mail.Outcome{Reason: mail.ReasonSTSPolicy, Err: fmt.Errorf("the security policy of %s cannot be found out now: %w", d.job.Route.Domain, err)}
		}
		d.rules = rules
	}
	if d.mustTLS() { // a password, or a demand for TLS, is worth nothing if anybody can be the server
		d.rules = append(d.rules, tlspolicy.Rule{Source: smarthostRule, RequireTLS: true, RequirePKIX: true})
	}
	if d.requireTLS() {
		if byMX && !d.secure && !slices.ContainsFunc(d.rules, func(r tlspolicy.Rule) bool { return r.AllowMX != nil }) {
			o := refused(mail.ReasonTLS, 550, "5.7.30", "REQUIRETLS is not possible: nothing vouches for the names of the mail servers") // RFC 8689 section 4.2.1
			return &o
		}
		d.rules = append(slices.Clip(d.rules), tlspolicy.Rule{Source: "requiretls", RequireTLS: true, RequirePKIX: true})
	}
	return nil
}

// advice reports whether the message makes the policies of the domain and its hosts mere advice. REQUIRETLS overrules that
// (RFC 8689).
func (d *delivery) advice() bool { return !d.requireTLS() && d.msg.tlsOptional() }

// relax takes the demands out of a policy, but for those of the smarthost's owner, if the message asks for it. The policies'
// owners are still told what became of the connection.
func (d *delivery) relax(p *policy) {
	ours := func(r tlspolicy.Rule) bool { return r.Source == smarthostRule }
	if len(p.rules) == 0 || !slices.ContainsFunc(p.rules, func(r tlspolicy.Rule) bool { return !ours(r) }) || !d.advice() {
		return
	}
	d.span.Printf("TLS-Required: No in the message: TLS policies are reported on but not enforced")
	rules := make([]tlspolicy.Rule, len(p.rules))
	for i, r := range p.rules {
		if rules[i] = r; !ours(r) {
			rules[i] = tlspolicy.Rule{Source: r.Source, Report: r.Report}
		}
	}
	p.rules = rules
}

// smarthostRule is the source of what a smarthost's address demands.
const smarthostRule = "smarthost"

// requireTLS reports a sender who asked for TLS all the way (RFC 8689).
func (d *delivery) requireTLS() bool { return d.job.Env != nil && d.job.Env.Params.Has("REQUIRETLS") }

// mustTLS reports a smarthost that is never spoken to in the clear.
func (d *delivery) mustTLS() bool { return d.relay != nil && (d.relay.Implicit || d.relay.User != "") }

// failed notes why a server did not help. A failure that may pass outweighs those that may not.
func (d *delivery) failed(o mail.Outcome) {
	d.span.Printf("%v", o.Err)
	if d.last.Err == nil || d.last.Disposition == mail.Failed || o.Disposition != mail.Failed {
		d.last = o
	}
}

// set stores the outcome of one recipient with the present server.
func (d *delivery) set(i int, o mail.Outcome) {
	d.out[i] = o
	if o.Disposition != mail.Delivered {
		d.trouble = true
		d.tried = append(d.tried, i)
	}
}

// prune drops the recipients with a final outcome from those left.
func (d *delivery) prune() {
	d.left = slices.DeleteFunc(d.left, func(i int) bool { return d.out[i].Disposition != mail.Deferred })
}

// settle gives all recipients that are left the same outcome.
func (d *delivery) settle(o *mail.Outcome) {
	for _, i := range d.left {
		d.out[i] = *o
	}
	d.hint()
}

// exhausted gives the recipients that no server took or refused for good their outcome: what the last server said to them, or
// why there was no talking to it.
func (d *delivery) exhausted() {
	if d.hosts > 0 && d.refuse == d.hosts { // RFC 7504 section 4: nobody there ever takes mail
		d.last.Disposition, d.last.Reason = mail.Failed, mail.ReasonNoMX
	}
	what := "all MXs returned transient failures"
	if d.job.Route.Transport == mail.Relay {
		what = "all servers returned transient failures"
	}
	for _, i := range d.left {
		o := &d.out[i]
		if o.Err == nil {
			*o = d.last
		}
		if o.Err == nil {
			*o = internalError(errors.New("no server was tried"))
		}
		if o.Disposition == mail.Deferred && d.hosts > 0 {
			o.Err = fmt.Errorf("%s (last: %w)", what, o.Err)
		}
	}
	d.hint()
}

// hint fills in when a deferred recipient is worth another attempt.
func (d *delivery) hint() {
	for _, i := range d.left {
		if o := &d.out[i]; o.Disposition == mail.Deferred {
			o.RetryAfter = RetryAfter(o.Reason, o.Reply)
		}
	}
}
