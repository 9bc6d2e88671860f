package queue

import (
	"context"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/log"
)

// live is a message whose envelope is in memory: new, or being worked on.
type live struct {
	once  sync.Once // loads the entry
	err   error     // of loading
	entry Entry     // Status is guarded by Queue.mu, the rest does not change once loaded

	// Guarded by Queue.mu.
	jobs   int   // attempts and what follows them, operations, chores; at zero the envelope may leave memory
	busy   bool  // being concluded
	handed int   // jobs for whoever concludes it
	wishes wish  // and what they want
	dirty  []int // recipients whose status the store does not have

	// What a message with one recipient needs, without allocating it.
	status [1]RcptStatus
	route  mail.Route      // of the only recipient, for its first attempt
	from   address.Address // as the next hop sees it, likewise
	routed bool
}

// group is what the recipients of one unit have in common.
type group struct {
	dest   string
	site   string
	from   address.Address // the sender as the next hop sees it
	target string
	held   bool // kept apart when a message is put into the schedule
	via    mail.Transport
}

// destination names what a route leads to, and the site it belongs to if that is known beforehand.
func destination(r *mail.Route) (dest, site string) {
	switch r.Transport {
	case mail.SMTP:
		return r.Domain, ""
	case mail.Relay:
		site = "relay:" + strings.Join(r.Hosts, ",")
		if r.Target != "" {
			site += " " + r.Target
		}
		if r.Domain != "" {
			return site + " for " + r.Domain, site
		}
		return site, site
	case mail.Local:
		return "local:" + r.Domain, "local"
	}
	return "pipe", "pipe"
}

// sender returns the sender that the next hop is to see: rewritten for mail from elsewhere that an alias of ours sends out (beyond S-7).
func (q *Queue) sender(env *mail.Envelope, r *mail.Recipient, route *mail.Route, now time.Time) address.Address {
	from, c := env.From, q.conf()
	if c.SRS == nil || from.IsNull() || route.Transport != mail.SMTP && route.Transport != mail.Relay ||
		r.Orig.IsNull() || r.Orig == r.To && r.Kind != mail.Forward || !c.LocalDomain(r.Orig.Domain) || c.LocalDomain(from.Domain) {
		return from
	}
	rewritten, err := c.SRS.Forward(from, r.Orig.Domain, now)
	if err != nil {
		log.Debugf("queue: sender of a forwarded message stays as it is: %v", err)
	}
	return rewritten
}

// routeOf asks for the route of a recipient. If there is none now, the unit waits for its domain, and the attempt will fail with the error.
func (q *Queue) routeOf(ctx context.Context, r *mail.Recipient, env *mail.Envelope) (mail.Route, error) {
	route, err := q.conf().Route(ctx, *r, env)
	if err != nil {
		route = mail.Route{Transport: mail.SMTP, Domain: r.To.Domain}
		if r.Kind == mail.Pipe {
			route = mail.Route{Transport: mail.Command}
		}
	}
	return route, err
}

func (q *Queue) groupOf(ctx context.Context, e *Entry, i int, now time.Time) (group, mail.Route, error) {
	r := &e.Env.Rcpts[i]
	route, err := q.routeOf(ctx, r, &e.Env)
	g := group{target: route.Target, via: route.Transport, from: q.sender(&e.Env, r, &route, now)}
	g.dest, g.site = destination(&route)
	if route.Transport == mail.Command {
		g.target = r.Command
	}
	return g, route, err
}

// batch is how many recipients one unit may have.
func (q *Queue) batch(t mail.Transport) int {
	switch t {
	case mail.Local:
		return localBatch
	case mail.Command:
		return 1
	}
	return q.conf().MaxBatch
}

// plan is the units of a message, made without the lock.
type plan struct {
	groups []group
	rcpts  [][]int

	// Of a message with one recipient, instead.
	single bool
	only   group
	route  mail.Route
	routed bool // there was one
}

// firstOnly are the places of the recipients of a message with one.
var firstOnly = []int{0}

func (q *Queue) plan(ctx context.Context, e *Entry, now time.Time) plan {
	if len(e.Status) == 1 {
		if e.Status[0].Status != Pending {
			return plan{}
		}
		g, route, err := q.groupOf(ctx, e, 0, now)
		g.held = e.Status[0].Held
		return plan{single: true, only: g, route: route, routed: err == nil}
	}
	var p plan
	open := map[group]int{}
	for i := range e.Status {
		if e.Status[i].Status != Pending {
			continue
		}
		g, _, _ := q.groupOf(ctx, e, i, now)
		g.held = e.Status[i].Held
		n, ok := open[g]
		if !ok || len(p.rcpts[n]) >= q.batch(g.via) {
			n = len(p.groups)
			open[g] = n
			p.groups, p.rcpts = append(p.groups, g), append(p.rcpts, nil)
		}
		p.rcpts[n] = append(p.rcpts[n], i)
	}
	return p
}

// due is when a recipient is to be attempted next.
func due(r *mail.Recipient, st *RcptStatus) time.Time {
	if st.Next.After(r.NotBefore) {
		return st.Next
	}
	return r.NotBefore
}

// expiry is when a recipient is given up.
func (q *Queue) expiry(env *mail.Envelope, r *mail.Recipient) time.Time {
	if !r.GiveUp.IsZero() {
		return r.GiveUp
	}
	from := env.Arrived
	if r.NotBefore.After(from) {
		from = r.NotBefore
	}
	return from.Add(q.conf().GiveUpAfter)
}

// schedule makes a record of the entry and puts its units into the schedule. q.mu is held.
func (q *Queue) schedule(e *Entry, p *plan, now time.Time) (m uint32) {
	x := &q.index
	m = x.insert(e, wantsDelay(e))
	for i := range e.Env.Rcpts {
		if r := &e.Env.Rcpts[i]; !r.GiveUp.IsZero() || !r.NotBefore.IsZero() {
			end := uint32(max(0, q.expiry(&e.Env, r).Unix()))
			if old, ok := x.giveUp[m]; !ok || end < old {
				x.giveUp[m] = end
			}
		}
	}
	for n := range p.groups {
		q.addUnit(m, e, &p.groups[n], p.rcpts[n], len(p.groups) == 1, now)
	}
	if p.single {
		q.addUnit(m, e, &p.only, firstOnly, true, now)
	} else if len(p.groups) == 0 {
		x.at(m).flags |= closing
	}
	x.each(m, func(i int, r *ref) { r.quiet = r.status != Pending && !q.tellable(e, i, r) })
	if x.allHeld(m) {
		x.setState(m, held)
	}
	return m
}

// addUnit puts one unit into the schedule. q.mu is held.
func (q *Queue) addUnit(m uint32, e *Entry, g *group, rcpts []int, solo bool, now time.Time) {
	d, ask := q.sched.Intern(g.dest, g.site, g.via, now)
	u := sched.Unit{Dest: d, Group: m, Solo: solo, Held: q.index.rcpt(m, rcpts[0]).held}
	for n, i := range rcpts {
		st := &e.Status[i]
		if t := due(&e.Env.Rcpts[i], st); n == 0 || t.Before(u.Due) {
			u.Due = t
		}
		u.Attempts = max(u.Attempts, st.Attempts)
	}
	k := q.sched.Add(u, now)
	q.sched.Release(d)
	for _, i := range rcpts {
		r := q.index.rcpt(m, i)
		r.unit = k
		q.index.setTransport(r, g.via)
	}
	if ask && q.conf().Sites != nil {
		select {
		case q.sites <- g.dest:
		default: // it stays a site of its own until it is asked for again
		}
	}
	if u.Due.After(now) {
		q.poke()
	}
}

// poke makes Run look at the schedule again.
func (q *Queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}
