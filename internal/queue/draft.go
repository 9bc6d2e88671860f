package queue

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/srs"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Replies to a client whose message cannot be taken (beyond S-10).
var (
	replyItems  = smtp.NewReply(452, "4.3.1", "Too many messages are waiting here, please try again later")
	replySpace  = smtp.NewReply(452, "4.3.1", "Not enough disk space here, please try again later")
	replyBroken = smtp.NewReply(451, "4.3.0", "The message cannot be stored now, please try again later")
	replyAlias  = smtp.NewReply(451, "4.3.0", "A recipient cannot be resolved now, please try again later")
	replyNobody = smtp.NewReply(554, "5.1.1", "The recipients lead nowhere")
)

var errCommitted = errors.New("queue: the draft was committed or discarded already")

// Begin starts a message. The draft also has a method ID() mail.ID, which tells the id that the message will have.
func (q *Queue) Begin(ctx context.Context) (mail.Draft, error) { return q.BeginAs(ctx, mail.NewID()) }

// BeginAs is Begin for a message that was promised its id already.
func (q *Queue) BeginAs(ctx context.Context, id mail.ID) (mail.Draft, error) {
	in, err := q.conf().Store.Create()
	if err != nil {
		trace.From(ctx).Errorf("queue: cannot start a message: %w", err)
		return nil, storeReply(err)
	}
	return &draft{q: q, id: id, in: in}, nil
}

// storeReply is what a client is told of an error of the store.
func storeReply(err error) smtp.Reply {
	if errors.Is(err, ErrFull) {
		return replySpace
	}
	return replyBroken
}

// draft is a message being received.
type draft struct {
	q    *Queue
	id   mail.ID
	in   Incoming
	done bool
}

// ID returns the id that the message will have.
func (d *draft) ID() mail.ID { return d.id }

func (d *draft) Write(b []byte) (int, error) {
	if d.done {
		return 0, errCommitted
	}
	n, err := d.in.Write(b)
	if err != nil {
		return n, &storeError{storeReply(err), err}
	}
	return n, nil
}

func (d *draft) Size() int64 { return d.in.Size() }

func (d *draft) Content() io.ReadSeeker { return d.in.Content() }

func (d *draft) Discard() {
	if !d.done {
		d.done = true
		d.in.Discard()
	}
}

// storeError is an error of the store: a reply for the client, and the cause for the log.
type storeError struct {
	reply smtp.Reply
	cause error
}

func (e *storeError) Error() string   { return e.cause.Error() }
func (e *storeError) Unwrap() []error { return []error{e.reply, e.cause} }

// Commit makes the message durable and hands it to the schedule; the first attempt may start before it returns. Errors unwrap to the reply
// for the client.
func (d *draft) Commit(ctx context.Context, env *mail.Envelope, prefix []byte) (mail.ID, error) {
	if d.done {
		return "", &storeError{replyBroken, errCommitted}
	}
	d.done = true
	q, start := d.q, time.Now()
	if env.Trace == (trace.ID{}) {
		if env.Trace = trace.From(ctx).ID(); env.Trace == (trace.ID{}) {
			env.Trace = trace.NewID()
		}
	}
	ctx, span := trace.Start(ctx, trace.QueuePut, string(d.id))
	defer span.Finish()
	if limit := q.conf().MaxItems; q.items.Add(1) > int64(limit) {
		q.items.Add(-1)
		d.in.Discard()
		q.m.put(env.Source, putFull, 0, env.Trace)
		return "", &storeError{replyItems, span.Errorf("queue: %d messages are waiting, the limit", limit)}
	}
	q.m.offered()
	l, err := q.commit(ctx, d.id, d.in, env, prefix)
	if err != nil {
		q.items.Add(-1)
		result := putError
		if errors.Is(err, ErrFull) {
			result = putFull
		}
		q.m.put(env.Source, result, time.Since(start), env.Trace)
		return "", span.Error(err)
	}
	q.m.put(env.Source, putOK, time.Since(start), env.Trace)
	q.queued(l, env, time.Since(start))
	q.accept(ctx, l)
	return d.id, nil
}

// commit expands the recipients and makes the message durable.
func (q *Queue) commit(ctx context.Context, id mail.ID, in Incoming, env *mail.Envelope, prefix []byte) (*live, error) {
	l := &live{entry: Entry{ID: id, Env: *env, Size: in.Size() + int64(len(prefix))}}
	e := &l.entry
	if e.Env.Arrived.IsZero() {
		e.Env.Arrived = time.Now()
	}
	var err error
	if e.Env.Rcpts, err = q.expand(ctx, env.Rcpts); err != nil {
		in.Discard()
		return nil, err
	}
	if len(e.Env.Rcpts) == 1 {
		e.Status = l.status[:]
	} else {
		e.Status = make([]RcptStatus, len(e.Env.Rcpts))
	}
	for i := range e.Status {
		e.Status[i].Next = e.Env.Arrived
	}
	if !q.ready.Load() {
		q.mu.Lock()
		if q.ours != nil {
			q.ours[id] = struct{}{}
		}
		q.mu.Unlock()
	}
	if err := in.Commit(e, prefix); err != nil {
		if errors.Is(err, ErrExists) {
			return l, err
		}
		return nil, &storeError{storeReply(err), err}
	}
	l.once.Do(func() {})
	return l, nil
}

// expand returns the final recipients, each once. Addresses that we rewrote when they forwarded mail become what they stand for (beyond S-7).
func (q *Queue) expand(ctx context.Context, rcpts []mail.Recipient) ([]mail.Recipient, error) {
	c := q.conf()
	out := make([]mail.Recipient, len(rcpts))
	copy(out, rcpts)
	for i := range out {
		r := &out[i]
		if r.Orig.IsNull() {
			r.Orig = r.To
		}
		if c.SRS != nil && srs.Is(r.To) && c.LocalDomain(r.To.Domain) {
			if a, err := c.SRS.Original(r.To, c.LocalDomain, time.Now()); err == nil {
				trace.From(ctx).Printf("bounce address %s stands for %s", r.To, a)
				r.To = a
			}
		}
	}
	if c.Expand != nil {
		var err error
		if out, err = c.Expand(ctx, out); err != nil {
			reply := replyAlias
			errors.As(err, &reply)
			return nil, &storeError{reply, err}
		}
	}
	if len(out) > 1 {
		out = dedupe(out)
	}
	if len(out) == 0 {
		return nil, &storeError{replyNobody, errors.New("the recipients expand to nobody")}
	}
	return out, nil
}

// dedupe drops recipients that would get the same mail twice and asked for the same notices.
func dedupe(rs []mail.Recipient) []mail.Recipient {
	type key struct {
		kind                 mail.Kind
		to                   address.Address
		detail, command, via string
		params               string
	}
	seen := make(map[key]struct{}, len(rs))
	out := rs[:0]
	for i := range rs {
		r := &rs[i]
		k := key{r.Kind, r.To, r.Detail, r.Command, strings.Join(r.Via, "/"), r.Params.String()}
		if _, dup := seen[k]; !dup {
			seen[k] = struct{}{}
			out = append(out, *r)
		}
	}
	clear(rs[len(out):])
	return out
}

// queued tells that responsibility was taken, and for whom.
func (q *Queue) queued(l *live, env *mail.Envelope, took time.Duration) {
	e := &l.entry
	given := make([]address.Address, len(env.Rcpts))
	for i := range env.Rcpts {
		if given[i] = env.Rcpts[i].Orig; given[i].IsNull() {
			given[i] = env.Rcpts[i].To
		}
	}
	ev := timeline.New(timeline.Queued)
	ev.ID, ev.Trace, ev.Client, ev.User, ev.MessageID, ev.From = e.ID, e.Env.Trace, e.Env.Client, e.Env.Auth, e.Env.MessageID, e.Env.From
	ev.Rcpts, ev.Size, ev.Took, ev.Text = given, e.Size, took, e.Env.Source.String()
	q.observe(ev)
	ev.Free()
	for i := range e.Env.Rcpts {
		if r := &e.Env.Rcpts[i]; r.Kind != mail.Email || r.To != r.Orig {
			ev := timeline.New(timeline.Expanded)
			ev.ID, ev.Trace, ev.From, ev.Rcpt = e.ID, e.Env.Trace, e.Env.From, r
			q.observe(ev)
			ev.Free()
		}
	}
}

// accept puts a durable message into the schedule and sees that somebody looks at it. It does not wait.
func (q *Queue) accept(ctx context.Context, l *live) {
	now := time.Now()
	p := q.plan(ctx, &l.entry, now)
	q.mu.Lock()
	m := q.schedule(&l.entry, &p, now)
	if len(q.live) < keepUnsent && len(l.entry.Status) <= keepUnsent {
		l.route, l.from, l.routed = p.route, p.only.from, p.routed
		q.live[m] = l
	}
	q.kick()
	q.mu.Unlock()
}
