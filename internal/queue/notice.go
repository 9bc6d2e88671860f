package queue

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dsn"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// note is one notice to be written: what about, and about which recipients.
type note struct {
	kind  dsn.Kind
	rcpts []int
	to    address.Address
}

func notifiedBit(k dsn.Kind) Notified {
	return [...]Notified{dsn.Failure: NotifiedFailure, dsn.Delay: NotifiedDelay, dsn.Success: NotifiedSuccess}[k%3]
}

// notes returns the notices that are due about recipients that are final. q.mu is held.
func (q *Queue) notes(m uint32, l *live) (ns []note) {
	e := &l.entry
	if q.index.at(m).flags&dropped != 0 {
		return nil
	}
	failed := note{kind: dsn.Failure, to: e.Env.From}
	success := note{kind: dsn.Success, to: e.Env.From}
	q.index.each(m, func(i int, r *ref) {
		switch {
		case r.quiet || r.status == Pending:
		case r.status == Failed:
			failed.rcpts = append(failed.rcpts, i)
		default:
			success.rcpts = append(success.rcpts, i)
		}
	})
	if len(failed.rcpts) > 0 {
		if failed.to.IsNull() {
			failed.to = q.conf().DoubleBounceTo
		}
		ns = append(ns, failed)
	}
	if len(success.rcpts) > 0 {
		ns = append(ns, success)
	}
	return ns
}

// tellable reports whether the sender wants to be told what became of a recipient, and was not yet. q.mu is held.
func (q *Queue) tellable(e *Entry, i int, r *ref) bool {
	st, rcpt := &e.Status[i], &e.Env.Rcpts[i]
	switch st.Status {
	case Failed:
		return st.Notified&NotifiedFailure == 0 && (dsn.Wanted(dsn.Failure, &e.Env, rcpt) || q.doubleBounce(e, rcpt))
	case Sent:
		// A remote host that takes part in DSN reports by itself (RFC 3461 section 5.2.2).
		return st.Notified&NotifiedSuccess == 0 && dsn.Wanted(dsn.Success, &e.Env, rcpt) &&
			(st.Relayed || r.transport == mail.Local || r.transport == mail.Command)
	}
	return true
}

// doubleBounce reports whether the failure of a message from nobody is to be told to somebody: not if it is that one who cannot be reached.
func (q *Queue) doubleBounce(e *Entry, r *mail.Recipient) bool {
	to := q.conf().DoubleBounceTo
	if !e.Env.From.IsNull() {
		return false
	}
	if to.IsNull() || r.Orig == to || r.To == to {
		log.Infof("queue: %s, from nobody, failed for %s: nobody is told", e.ID, r.Target())
		return false
	}
	return true
}

// notified marks the recipients of a note as told.
func (q *Queue) notified(m uint32, l *live, n note) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range n.rcpts {
		l.entry.Status[i].Notified |= notifiedBit(n.kind)
		l.dirty = append(l.dirty, i)
		q.index.rcpt(m, i).quiet = n.kind != dsn.Delay
	}
}

// noticeID derives the id of a notice from what it tells, so that telling it again after a crash makes no second one. It looks like any
// other id: the time part is that of the original's arrival.
func noticeID(e *Entry, n note) mail.ID {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d", e.ID, n.kind)
	for _, i := range n.rcpts {
		binary.Write(h, binary.BigEndian, uint32(i))
	}
	return mail.DeriveID(e.Env.Arrived, h.Sum(nil))
}

// notice makes a notice durable and returns it, to be scheduled once its message knows of it; nil if it existed already.
func (q *Queue) notice(ctx context.Context, l *live, n note) (*live, error) {
	id := noticeID(&l.entry, n)
	notice, err := q.writeNotice(ctx, l, n, id)
	if errors.Is(err, ErrExists) {
		return nil, nil
	}
	if err != nil {
		q.m.notice(n.kind, noticeError)
		q.complain("queue: cannot write the %v notice about %s, trying again: %v", n.kind, l.entry.ID, err)
		return nil, trace.From(ctx).Error(err)
	}
	q.items.Add(1) // never refused: a notice follows from responsibility already taken
	q.m.notice(n.kind, noticeQueued)
	q.m.offered()
	q.m.put(mail.FromDSN, putOK, 0, notice.entry.Env.Trace)
	e := &l.entry
	q.observe(&timeline.Event{Kind: timeline.Notice, ID: e.ID, Trace: e.Env.Trace, From: e.Env.From, Rcpts: []address.Address{n.to},
		Other: id, Text: n.kind.String()})
	q.queued(notice, &notice.entry.Env, 0)
	return notice, nil
}

func (q *Queue) writeNotice(ctx context.Context, l *live, n note, id mail.ID) (*live, error) {
	e, now := &l.entry, time.Now()
	ctx, span := trace.StartMessage(ctx, trace.QueuePut, string(id), trace.NewID())
	defer span.Finish()
	span.Link(e.Env.Trace)
	doc := &dsn.Notice{Kind: n.kind, ID: id, Orig: e.ID, Env: &e.Env, Rcpts: q.told(l, n), To: n.to,
		Domain: q.noticeDomain(e, n), Host: q.conf().Hostname, Now: now}
	in, err := q.conf().Store.Create()
	if err != nil {
		return nil, err
	}
	form, err := q.fill(in, doc, e.ID)
	if err != nil {
		in.Discard()
		return nil, err
	}
	env := mail.Envelope{Rcpts: []mail.Recipient{{To: n.to, Orig: n.to}}, Arrived: now, Trace: span.ID(), Source: mail.FromDSN,
		MessageID: "chasquid-dsn-" + string(id) + "@" + doc.Domain, UTF8: form.UTF8}
	if form.EightBit {
		env.Body = mail.Body8Bit
	}
	if e.Env.Params.Has("REQUIRETLS") { // RFC 8689 section 5
		env.Params = smtp.Params{{Keyword: "REQUIRETLS"}}
	}
	return q.commit(ctx, id, in, &env, q.sign(ctx, doc.Domain, in))
}

// fill writes the notice with the original message. One that is damaged or gone is left out.
func (q *Queue) fill(in Incoming, doc *dsn.Notice, orig mail.ID) (dsn.Form, error) {
	body, err := q.conf().Store.Open(orig)
	switch {
	case err == nil:
		defer body.Close()
		return doc.Write(in, body)
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrCorrupt):
		return doc.Write(in, nil)
	}
	return dsn.Form{}, err
}

// sign returns the header lines that sign the notice. A notice without signature is better than none.
func (q *Queue) sign(ctx context.Context, domain string, in Incoming) []byte {
	sign := q.conf().Sign
	if sign == nil {
		return nil
	}
	header, err := sign(ctx, domain, io.Reader(in.Content()))
	if err != nil {
		trace.From(ctx).Errorf("queue: the notice goes without signature: %w", err)
		return nil
	}
	return header
}

// told returns what the notice tells of its recipients.
func (q *Queue) told(l *live, n note) []dsn.Rcpt {
	e := &l.entry
	q.mu.Lock()
	defer q.mu.Unlock()
	rs := make([]dsn.Rcpt, len(n.rcpts))
	for j, i := range n.rcpts {
		st := &e.Status[i]
		rs[j] = dsn.Rcpt{Recipient: e.Env.Rcpts[i], Expired: st.Reason == mail.ReasonExpired, Relayed: st.Relayed, Reason: st.Reason,
			Reply: st.Reply, MTA: st.MTA, Text: st.Text, GiveUp: q.expiry(&e.Env, &e.Env.Rcpts[i])}
		if rs[j].Text == "" && n.kind != dsn.Success {
			rs[j].Text = "no attempt could be made"
		}
	}
	return rs
}

// noticeDomain is the domain a notice comes from (compat Q-14).
func (q *Queue) noticeDomain(e *Entry, n note) string {
	c := q.conf()
	if d := e.Env.From.Domain; d != "" && c.LocalDomain(d) {
		return d
	}
	for _, i := range n.rcpts {
		if d := e.Env.Rcpts[i].Orig.Domain; d != "" && c.LocalDomain(d) {
			return d
		}
	}
	for i := range e.Env.Rcpts {
		if d := e.Env.Rcpts[i].Orig.Domain; d != "" && c.LocalDomain(d) {
			return d
		}
	}
	if c.LocalDomain(c.Hostname) {
		return c.Hostname
	}
	return "unknown"
}
