package queue

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
)

// Filter selects messages. Empty fields select everything; a message is selected if all others fit it, and for those about recipients, if
// one recipient that is left fits them.
type Filter struct {
	ID          mail.ID
	Sender      string // "user@domain", "@domain", or "<>"
	Recipient   string // "user@domain" or "@domain"
	Destination string // as Item and Groups name it: a domain, "relay:host", "local:domain", "pipe"
	Reason      string // why the last attempt failed: a mail.Reason
	State       string // "waiting", "sending", "held"
	OlderThan   time.Duration
	YoungerThan time.Duration
}

// MaxList is how many messages one List returns at most.
const MaxList = 1000

// Page says which part of a list is wanted.
type Page struct {
	Sort  string // "age" (oldest first, the default), "-age", "next", "size" (largest first), "attempts" (most first)
	After string // List.Next of the page before; empty: the first
	Limit int    // default 100, at most MaxList
}

// List is one page of messages.
type List struct {
	Items []Item
	Total int    // messages that the filter selects, on all pages
	Next  string // where the next page begins, empty on the last
}

// Item is one message as people see it.
type Item struct {
	ID        mail.ID    `json:"id"`
	State     string     `json:"state"`
	From      string     `json:"from"`
	Arrived   time.Time  `json:"arrived"`
	Size      int64      `json:"size"`
	Next      time.Time  `json:"next,omitzero"` // of the first recipient to be attempted
	Source    string     `json:"source"`
	Client    string     `json:"client,omitempty"`
	User      string     `json:"user,omitempty"`
	MessageID string     `json:"message_id,omitempty"`
	Trace     string     `json:"trace,omitempty"`
	Rcpts     []ItemRcpt `json:"recipients"`
	Error     string     `json:"error,omitempty"` // why nothing more can be told
}

// ItemRcpt is one recipient of an Item.
type ItemRcpt struct {
	To          string    `json:"to"`
	Orig        string    `json:"original"`
	Kind        string    `json:"kind"`
	Status      string    `json:"status"`
	Held        bool      `json:"held,omitempty"`
	Attempts    int       `json:"attempts"`
	Next        time.Time `json:"next,omitzero"`
	GiveUp      time.Time `json:"give_up,omitzero"`
	Destination string    `json:"destination,omitempty"`
	Doing       string    `json:"doing,omitempty"` // "waiting", "ready" for a slot, "running", "held"
	Reason      string    `json:"reason,omitempty"`
	LastFailure string    `json:"last_failure,omitempty"`
	MTA         string    `json:"mta,omitempty"`
}

// matcher is a filter made ready. It holds only as long as q.mu is.
type matcher struct {
	q           *Queue
	m           uint32 // of the only message, 0 for any
	none        bool
	from        *uint32
	fromDom     *uint32
	rcpt, dom   *uint32
	dest        sched.Dest
	reason      mail.Reason
	state       msgState
	first, last uint32 // arrival
}

var errFilter = errors.New("bad filter")

// matcher checks the filter. q.mu is held.
func (q *Queue) matcher(f *Filter, now time.Time) (mt matcher, err error) {
	mt = matcher{q: q, last: math.MaxUint32}
	x := &q.index
	if f.ID != "" {
		mt.m = x.find(f.ID)
		mt.none = mt.m == 0
	}
	mt.from, mt.fromDom = x.selector(f.Sender)
	mt.rcpt, mt.dom = x.selector(f.Recipient)
	if f.Destination != "" {
		mt.dest = q.sched.Lookup(f.Destination)
		mt.none = mt.none || mt.dest == 0
	}
	if f.Reason != "" {
		r, ok := mail.ParseReason(f.Reason)
		if !ok || r == mail.ReasonNone {
			return mt, fmt.Errorf("%w: unknown reason %q", errFilter, f.Reason)
		}
		mt.reason = r
	}
	if f.State != "" {
		for s := waiting; s < numStates; s++ {
			if s.String() == f.State {
				mt.state = s
			}
		}
		if mt.state == free {
			return mt, fmt.Errorf("%w: unknown state %q", errFilter, f.State)
		}
	}
	if f.OlderThan > 0 {
		mt.last = uint32(max(0, now.Add(-f.OlderThan).Unix()))
	}
	if f.YoungerThan > 0 {
		mt.first = uint32(max(0, now.Add(-f.YoungerThan).Unix()))
	}
	return mt, nil
}

// selector returns the hash to compare with an address, or with a domain.
func (x *index) selector(s string) (addr, dom *uint32) {
	switch {
	case s == "":
		return nil, nil
	case s[0] == '@':
		d := s[1:]
		if n, err := address.NormalizeDomain(d); err == nil {
			d = n
		}
		h := x.hash(d)
		return nil, &h
	}
	a, err := address.ParsePath(s)
	if err != nil {
		i := strings.LastIndexByte(s, '@')
		a = address.Address{Local: s[:max(0, i)], Domain: s[i+1:]}
	}
	h := x.hashAddr(a)
	return &h, nil
}

func (mt *matcher) match(m uint32) bool {
	x := &mt.q.index
	r := x.at(m)
	if r.state == free || mt.none || mt.m != 0 && mt.m != m || mt.from != nil && r.from != *mt.from || mt.fromDom != nil && r.fromDom != *mt.fromDom ||
		mt.state != free && r.state != mt.state || r.arrived < mt.first || r.arrived > mt.last {
		return false
	}
	if mt.rcpt == nil && mt.dom == nil && mt.dest == 0 && mt.reason == mail.ReasonNone {
		return true
	}
	found := false
	x.each(m, func(_ int, r *ref) {
		found = found || r.status != Sent && (mt.rcpt == nil || r.hash == *mt.rcpt) && (mt.dom == nil || r.dom == *mt.dom) &&
			(mt.dest == 0 || r.unit != 0 && mt.q.sched.DestOf(r.unit) == mt.dest) && (mt.reason == mail.ReasonNone || r.reason == mt.reason)
	})
	return found
}

// scan calls visit, with q.mu held, for every message that the filter selects. It lets others have the lock between slices of the records.
func (q *Queue) scan(ctx context.Context, f *Filter, visit func(m uint32)) error {
	now := time.Now()
	for m, more := uint32(1), true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		q.mu.Lock()
		mt, err := q.matcher(f, now)
		if err != nil {
			q.mu.Unlock()
			return err
		}
		end := min(m+slice, q.index.next)
		if mt.m != 0 {
			m, end = mt.m, mt.m+1
		}
		for ; m < end; m++ {
			if mt.match(m) {
				visit(m)
			}
		}
		more = m < q.index.next && f.ID == ""
		q.mu.Unlock()
	}
	return nil
}

// Count tells how many messages the filter selects.
func (q *Queue) Count(ctx context.Context, f Filter) (n int, err error) {
	err = q.scan(ctx, &f, func(uint32) { n++ })
	return n, err
}

// place orders messages in a list.
type place struct {
	key uint64
	id  idKey
	m   uint32
}

func comparePlaces(a, b place) int {
	if c := cmp.Compare(a.key, b.key); c != 0 {
		return c
	}
	return bytes.Compare(a.id[:], b.id[:])
}

// sortKey returns what the message is sorted by; smaller comes first. q.mu is held.
func (q *Queue) sortKey(m uint32, sort string) uint64 {
	r := q.index.at(m)
	switch sort {
	case "-age":
		return math.MaxUint32 - uint64(r.arrived)
	case "size":
		return math.MaxUint32 - uint64(r.size)
	case "next":
		next := uint64(math.MaxUint32)
		q.index.each(m, func(_ int, r *ref) {
			if r.unit != 0 && r.status == Pending && !r.held {
				next = min(next, uint64(max(0, q.sched.Info(r.unit).Due.Unix())))
			}
		})
		return next
	case "attempts":
		most := 0
		q.index.each(m, func(_ int, r *ref) {
			if r.unit != 0 {
				most = max(most, q.sched.Info(r.unit).Attempts)
			}
		})
		return uint64(math.MaxUint32 - most)
	}
	return uint64(r.arrived)
}

func parseAfter(s string) (place, error) {
	key, id, ok := strings.Cut(s, "-")
	var p place
	n, err := strconv.ParseUint(key, 16, 64)
	b, err2 := hex.DecodeString(id)
	if !ok || err != nil || err2 != nil || len(b) != len(p.id) {
		return p, fmt.Errorf("%w: bad page %q", errFilter, s)
	}
	p.key = n
	copy(p.id[:], b)
	return p, nil
}

// List returns a page of the messages that the filter selects. All records are looked at, in slices; envelopes are read for the page only.
func (q *Queue) List(ctx context.Context, f Filter, p Page) (List, error) {
	if p.Limit <= 0 {
		p.Limit = 100
	}
	limit := min(p.Limit, MaxList)
	if !slices.Contains([]string{"", "age", "-age", "next", "size", "attempts"}, p.Sort) {
		return List{}, fmt.Errorf("%w: cannot sort by %q", errFilter, p.Sort)
	}
	var after place
	if p.After != "" {
		var err error
		if after, err = parseAfter(p.After); err != nil {
			return List{}, err
		}
	}
	best, total, err := q.first(ctx, &f, p.Sort, after, limit+1)
	if err != nil {
		return List{}, err
	}
	l := List{Total: total}
	if len(best) > limit {
		best = best[:limit]
		last := best[limit-1]
		l.Next = strconv.FormatUint(last.key, 16) + "-" + hex.EncodeToString(last.id[:])
	}
	for _, pl := range best {
		if it, ok := q.item(pl.m, pl.id); ok {
			l.Items = append(l.Items, it)
		}
	}
	return l, nil
}

// first returns the first n places after the given one, in order, of the messages that the filter selects, and how many it selects.
func (q *Queue) first(ctx context.Context, f *Filter, sort string, after place, n int) (best []place, total int, err error) {
	var worst *place // of n that are known: what comes after it is not wanted
	err = q.scan(ctx, f, func(m uint32) {
		total++
		pl := place{q.sortKey(m, sort), q.index.at(m).id, m}
		if after != (place{}) && comparePlaces(pl, after) <= 0 || worst != nil && comparePlaces(pl, *worst) >= 0 {
			return
		}
		if best = append(best, pl); len(best) >= 2*n { // cut when twice as long as needed
			slices.SortFunc(best, comparePlaces)
			best = best[:n]
			w := best[n-1]
			worst = &w
		}
	})
	slices.SortFunc(best, comparePlaces)
	return best[:min(n, len(best))], total, err
}

// Item tells about one message.
func (q *Queue) Item(id mail.ID) (Item, error) {
	q.mu.Lock()
	m := q.index.find(id)
	var key idKey
	if m != 0 {
		key = q.index.at(m).id
	}
	q.mu.Unlock()
	if m != 0 {
		if it, ok := q.item(m, key); ok {
			return it, nil
		}
	}
	return Item{}, ErrNotFound
}

// item puts together what memory and the store know of a message; ok is false if it has gone.
func (q *Queue) item(m uint32, key idKey) (it Item, ok bool) {
	q.mu.Lock()
	if q.index.at(m).id != key {
		q.mu.Unlock()
		return it, false
	}
	id := q.index.id(m)
	q.mu.Unlock()
	e, err := q.conf().Store.Load(id)
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.index.at(m)
	if r.id != key {
		return it, false
	}
	it = Item{ID: id, State: r.state.String(), Arrived: time.Unix(int64(r.arrived), 0), Size: int64(r.size)}
	if err != nil {
		it.Error = err.Error()
		return it, true
	}
	it.From, it.Arrived, it.Source = e.Env.From.LogString(), e.Env.Arrived, e.Env.Source.String()
	it.Client, it.User, it.MessageID, it.Trace = e.Env.Client, e.Env.Auth, e.Env.MessageID, e.Env.Trace.String()
	q.index.each(m, func(i int, r *ref) {
		if i < len(e.Status) {
			it.Rcpts = append(it.Rcpts, q.itemRcpt(&e, i, r))
			if n := it.Rcpts[i].Next; !n.IsZero() && (it.Next.IsZero() || n.Before(it.Next)) {
				it.Next = n
			}
		}
	})
	return it, true
}

func (q *Queue) itemRcpt(e *Entry, i int, r *ref) ItemRcpt {
	rcpt, st := &e.Env.Rcpts[i], &e.Status[i]
	ir := ItemRcpt{To: rcpt.Target(), Orig: rcpt.Orig.String(), Kind: rcpt.Kind.String(), Status: r.status.String(), Held: r.held,
		Attempts: st.Attempts, LastFailure: st.Text, MTA: st.MTA}
	if r.reason != mail.ReasonNone {
		ir.Reason = r.reason.String()
	}
	if r.status == Pending && r.unit != 0 {
		info := q.sched.Info(r.unit)
		ir.Doing, ir.Destination, ir.GiveUp = info.State, q.sched.Name(info.Dest), q.expiry(&e.Env, rcpt)
		if !r.held {
			ir.Next = info.Due
		}
	}
	return ir
}
