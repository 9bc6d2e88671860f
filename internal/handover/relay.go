package handover

import (
	"bufio"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// request is what the old process sends over a connection of its own: notes, or a message, whose content follows.
type request struct {
	Notes  []note
	ID     mail.ID // of a message; empty: there is none
	Env    mail.Envelope
	Prefix []byte
	Size   int64 // bytes of content
}

// response is the answer to a request.
type response struct {
	OK    bool
	Reply smtp.Reply // for the client
	Text  string     // for the log
}

// note is something that the old process learned from its sessions: an event, or a TLS level.
type note struct {
	Event  *timeline.Event // without its error
	Err    string          // of the event
	Domain string
	Level  tlspolicy.Level
}

// earlyAnswer is how long to look for an answer that came before everything was sent.
const earlyAnswer = 100 * time.Millisecond

// notesTime is how long the other process may take for notes.
const notesTime = 10 * time.Second

// Relay sends to the process that has the queue what sessions of this one receive and learn. It is a Peer, and a timeline.Observer.
type Relay struct {
	dial func() (net.Conn, error)

	mu    sync.Mutex // guards notes
	notes []note
	turn  sync.Mutex // held while notes are sent, so that they arrive in order
}

// maxNotes bounds the notes that wait; what comes after is dropped.
const maxNotes = 10_000

// notesEvery is how often notes are sent that no message takes along.
const notesEvery = time.Second

// NewRelay returns a Relay over connections that dial makes.
func NewRelay(dial func() (net.Conn, error)) *Relay { return &Relay{dial: dial} }

// Run sends notes now and then until ctx ends, and then the rest.
func (r *Relay) Run(ctx context.Context) {
	t := time.NewTicker(notesEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			r.flush()
		case <-ctx.Done():
			r.flush()
			return
		}
	}
}

// Observe takes an event for the observers of the other process.
func (r *Relay) Observe(e *timeline.Event) {
	c := *e
	n := note{Event: &c}
	if e.Err != nil {
		c.Err, n.Err = nil, e.Err.Error()
	}
	if e.Outcome != nil {
		o := *e.Outcome
		o.Err, c.Outcome = nil, &o
	}
	r.add(n)
}

// RecordIncoming takes a TLS level that mail of a domain came with.
func (r *Relay) RecordIncoming(_ context.Context, domain string, level tlspolicy.Level) {
	r.add(note{Domain: domain, Level: level})
}

func (r *Relay) add(n note) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.notes) < maxNotes {
		r.notes = append(r.notes, n)
	}
}

// flush sends the notes there are. Notes of a process that is gone are lost with it.
func (r *Relay) flush() {
	r.turn.Lock()
	defer r.turn.Unlock()
	r.mu.Lock()
	notes := r.notes
	r.notes = nil
	r.mu.Unlock()
	if len(notes) == 0 {
		return
	}
	c, err := r.dial()
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(notesTime))
	if gob.NewEncoder(c).Encode(&request{Notes: notes}) == nil {
		var a response
		_ = gob.NewDecoder(c).Decode(&a)
	}
}

// Commit has the message put into the queue of the other process.
func (r *Relay) Commit(ctx context.Context, id mail.ID, env *mail.Envelope, prefix []byte, size int64, content io.Reader) error {
	r.flush() // what checks said of a message is known before the message
	c, err := r.dial()
	if err != nil {
		return &replyError{replyPaused, fmt.Sprintf("the process that has the queue now cannot be reached: %v", err)}
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var a response
	w := bufio.NewWriterSize(c, 64<<10)
	err = gob.NewEncoder(w).Encode(&request{ID: id, Env: *env, Prefix: prefix, Size: size})
	if err == nil {
		_, err = io.CopyN(w, content, size)
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		// It may have answered, and closed, before it got everything: its answer says more than the failed write. It may also wait for the rest.
		c.SetReadDeadline(time.Now().Add(earlyAnswer))
	}
	if derr := gob.NewDecoder(c).Decode(&a); derr != nil {
		return &replyError{replyPaused, fmt.Sprintf("the process that has the queue now gave no answer: %v", errors.Join(err, derr))}
	}
	if !a.OK {
		return &replyError{a.Reply, a.Text}
	}
	return nil
}

// Server is the other end of a Relay: what it does with what comes.
type Server struct {
	Begin  func(ctx context.Context, id mail.ID) (mail.Draft, error)
	Events timeline.Observer
	Level  func(ctx context.Context, domain string, level tlspolicy.Level)
}

// Serve answers one request.
func (s *Server) Serve(ctx context.Context, c net.Conn) {
	r := bufio.NewReaderSize(c, 64<<10)
	var q request
	if err := gob.NewDecoder(r).Decode(&q); err != nil {
		return
	}
	for _, n := range q.Notes {
		s.note(ctx, n)
	}
	a := response{OK: true}
	if q.ID != "" {
		if err := s.commit(ctx, &q, r); err != nil {
			a = response{Reply: replyPaused, Text: err.Error()}
			errors.As(err, &a.Reply)
		}
	}
	_ = gob.NewEncoder(c).Encode(&a)
}

func (s *Server) note(ctx context.Context, n note) {
	if e := n.Event; e != nil {
		if n.Err != "" {
			e.Err = errors.New(n.Err)
		}
		s.Events.Observe(e)
	}
	if n.Domain != "" {
		s.Level(ctx, n.Domain, n.Level)
	}
}

// commit puts the message into the queue. A message that does not arrive whole is not put there.
func (s *Server) commit(ctx context.Context, q *request, content io.Reader) error {
	ctx, span := trace.StartMessage(ctx, trace.SMTPTransaction, q.Env.Client, q.Env.Trace)
	defer span.Finish()
	span.Printf("received by the process before this one, as %s", q.ID)
	d, err := s.Begin(ctx, q.ID)
	if err != nil {
		return span.Error(err)
	}
	defer d.Discard()
	if _, err := io.CopyN(d, content, q.Size); err != nil {
		return span.Error(err)
	}
	_, err = d.Commit(ctx, &q.Env, q.Prefix)
	return span.Error(err)
}
