package monitoring

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Limits of what is remembered.
const (
	keptAuths    = 100
	keptFailures = 50
	keptDests    = 400
	keptUsers    = 200
	keptNetworks = 200
	keptTook     = 32
	keptText     = 300
	userStep     = 5 * time.Minute
	userSteps    = 12
)

// Recent remembers the last happenings that the pages show: it observes the timeline, in bounded memory.
type Recent struct {
	mu       sync.Mutex
	auths    ring[AuthAttempt]
	failures ring[Failure] // bounces
	byReason [mail.NumReasons]Failure
	dests    topk[*destTally]
	users    topk[*userTally]
	networks topk[*networkTally]
}

// NewRecent returns an observer to be listed among those of the timeline, and given to the server.
func NewRecent() *Recent {
	return &Recent{auths: ring[AuthAttempt]{max: keptAuths}, failures: ring[Failure]{max: keptFailures},
		dests: newTopk[*destTally](keptDests), users: newTopk[*userTally](keptUsers), networks: newTopk[*networkTally](keptNetworks)}
}

// AuthAttempt is one login.
type AuthAttempt struct {
	At     time.Time `json:"at"`
	Mode   string    `json:"mode,omitempty"`
	Client string    `json:"client"`
	User   string    `json:"user"`
	Error  string    `json:"error,omitempty"` // empty when it succeeded
}

// Failure is one attempt to deliver that failed.
type Failure struct {
	At     time.Time `json:"at"`
	ID     mail.ID   `json:"id"`
	Trace  trace.ID  `json:"trace,omitzero"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Reason string    `json:"reason"`
	MTA    string    `json:"mta,omitempty"`
	Text   string    `json:"text"`
	Final  bool      `json:"bounced"`
}

// destTally is what is known of the deliveries to one domain.
type destTally struct {
	delivered, deferred, failed int
	lastFailure                 Failure
	mta, tls                    string
	last                        time.Time
	took                        [keptTook]time.Duration
	tookN                       int
}

// userTally is to how many recipients one user sent, in steps of time.
type userTally struct {
	steps [userSteps]int
	step  int64 // number of the latest
	total int
	last  trace.ID
	seen  time.Time
}

// networkTally is the failed logins from one network.
type networkTally struct {
	failed int
	users  int
	user   string // the last one tried
	last   time.Time
}

// Observe takes an event of the timeline.
func (r *Recent) Observe(e *timeline.Event) {
	switch e.Kind {
	case timeline.Auth:
		r.auth(e)
	case timeline.Attempt:
		r.attempt(e)
	case timeline.Queued:
		if e.User != "" {
			r.submitted(e)
		}
	}
}

func (r *Recent) auth(e *timeline.Event) {
	a := AuthAttempt{At: e.At, Mode: e.Mode, Client: e.Client, User: clip(e.User)}
	if e.Err != nil {
		a.Error = clip(e.Err.Error())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auths.add(a)
	if e.Err == nil {
		return
	}
	n, _ := r.networks.get(network(e.Client), func() *networkTally { return &networkTally{} })
	n.failed++
	if n.user != a.User {
		n.user = a.User
		n.users++
	}
	n.last = e.At
}

// network is the /24 or /64 an address belongs to.
func network(client string) string {
	ap, err := netip.ParseAddrPort(client)
	if err != nil {
		return "other"
	}
	ip, bits := ap.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 24
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return "other"
	}
	return p.String()
}

func (r *Recent) attempt(e *timeline.Event) {
	o := e.Outcome
	if o == nil || e.Rcpt == nil {
		return
	}
	name := destination(e.Rcpt)
	var f Failure
	if o.Disposition != mail.Delivered {
		f = Failure{At: e.At, ID: e.ID, Trace: e.Trace, From: clip(e.From.LogString()), To: clip(e.Rcpt.Target()), Reason: o.Reason.String(),
			MTA: clip(o.MTA), Text: clip(outcomeText(o)), Final: o.Disposition == mail.Failed}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d, _ := r.dests.get(name, func() *destTally { return &destTally{} })
	d.last = e.At
	if o.MTA != "" {
		d.mta = clip(o.MTA)
	}
	if o.TLS != "" {
		d.tls = o.TLS
	}
	if e.Took > 0 {
		d.took[d.tookN%keptTook] = e.Took
		d.tookN++
	}
	switch o.Disposition {
	case mail.Delivered:
		d.delivered++
		return
	case mail.Failed:
		d.failed++
		r.failures.add(f)
	default:
		d.deferred++
	}
	d.lastFailure = f
	r.byReason[o.Reason%mail.NumReasons] = f
}

// destination names where a recipient is: its domain, or that it is a command.
func destination(r *mail.Recipient) string {
	if r.Kind == mail.Pipe {
		return "(commands)"
	}
	return clip(strings.ToLower(r.To.Domain))
}

// outcomeText is a failure in words: those of the other server, if it said any.
func outcomeText(o *mail.Outcome) string {
	switch {
	case o.MTA != "" && o.Reply.Code != 0:
		return o.Reply.String()
	case o.Err != nil:
		return o.Err.Error()
	case o.Reply.Code != 0:
		return o.Reply.String()
	}
	return o.Reason.String()
}

func (r *Recent) submitted(e *timeline.Event) {
	step := e.At.Unix() / int64(userStep/time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	u, _ := r.users.get(clip(e.User), func() *userTally { return &userTally{step: step} })
	u.forward(step)
	u.steps[step%userSteps] += len(e.Rcpts)
	u.total += len(e.Rcpts)
	u.last, u.seen = e.Trace, e.At
}

// forward empties the steps between the latest and now.
func (u *userTally) forward(step int64) {
	for i := u.step + 1; i <= step && i <= u.step+userSteps; i++ {
		u.steps[i%userSteps] = 0
	}
	u.step = max(u.step, step)
}

// Sender is how much one user sent lately.
type Sender struct {
	User     string    `json:"user"`
	LastHour int       `json:"recipients_last_hour"`
	Total    int       `json:"recipients"`
	Seen     time.Time `json:"seen"`
	Trace    trace.ID  `json:"trace,omitzero"` // of the last message
}

// Senders returns the users who sent to the most recipients in the last hour.
func (r *Recent) Senders(now time.Time, n int) []Sender {
	if r == nil {
		return nil
	}
	step := now.Unix() / int64(userStep/time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Sender
	for name, u := range r.users.all() {
		u.forward(step)
		s := Sender{User: name, Total: u.total, Seen: u.seen, Trace: u.last}
		for _, k := range u.steps {
			s.LastHour += k
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Sender) int {
		if a.LastHour != b.LastHour {
			return b.LastHour - a.LastHour
		}
		return strings.Compare(a.User, b.User)
	})
	return list[:min(n, len(list))]
}

// Auths returns the last logins, newest first.
func (r *Recent) Auths() []AuthAttempt {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.auths.list()
}

// Bounces returns the last recipients that failed for good, newest first.
func (r *Recent) Bounces(n int) []Failure {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.failures.list()
	return l[:min(n, len(l))]
}

// Example returns the last failure of a reason, ok false if there was none.
func (r *Recent) Example(reason mail.Reason) (f Failure, ok bool) {
	if r == nil || reason >= mail.NumReasons {
		return f, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f = r.byReason[reason]
	return f, !f.At.IsZero()
}

// clip bounds a text from outside.
func clip(s string) string {
	if len(s) > keptText {
		s = s[:keptText] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}
