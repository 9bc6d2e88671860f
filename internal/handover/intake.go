package handover

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Queue is what messages are put into: that of this process. *queue.Queue is one.
type Queue interface {
	BeginAs(ctx context.Context, id mail.ID) (mail.Draft, error)
}

// Peer is a process that puts messages into its queue for us.
type Peer interface {
	// Commit has the message put into the queue there. An error that wraps an smtp.Reply is what the client is told.
	Commit(ctx context.Context, id mail.ID, env *mail.Envelope, prefix []byte, size int64, content io.Reader) error
}

// maxPaused is how long the end of a message waits for a queue before the client is told to come again. It waits ten minutes for the
// reply (RFC 5321 section 4.5.3.2.6).
const maxPaused = 5 * time.Minute

var (
	replyPaused = smtp.NewReply(451, "4.3.0", "The server is being replaced, please try again later")
	replySpace  = smtp.NewReply(452, "4.3.1", "Not enough disk space here, please try again later")
)

var errDone = errors.New("handover: the draft was committed or discarded already")

// Intake takes messages into the queue of this process, until it gives the queue away; then what sessions receive goes to the successor.
// In between, messages can be begun and received, and only their ends wait. It is an smtpsrv.Intake.
type Intake struct {
	queue Queue
	dir   string // of files for large messages

	mu     sync.Mutex
	local  bool
	peer   Peer
	change chan struct{} // closed, and made anew, when local or peer changes
	open   map[*draft]struct{}
}

// NewIntake returns an Intake that is paused. Large messages received while it is need a file in dir.
func NewIntake(q Queue, dir string) *Intake {
	return &Intake{queue: q, dir: dir, change: make(chan struct{}), open: map[*draft]struct{}{}}
}

func (in *Intake) set(local bool, peer Peer) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.local, in.peer = local, peer
	close(in.change)
	in.change = make(chan struct{})
}

// Resume makes messages go into the queue of this process.
func (in *Intake) Resume() { in.set(true, nil) }

// Forward makes messages go to the other process.
func (in *Intake) Forward(p Peer) { in.set(false, p) }

// Pause makes messages wait for Resume or Forward, and returns when none is being put into the queue any more: those being received are
// taken out of its store and kept here. When ctx ends before that, the error says so, and some may still be on their way.
func (in *Intake) Pause(ctx context.Context) error {
	in.set(false, nil)
	in.mu.Lock()
	open := make([]*draft, 0, len(in.open))
	for d := range in.open {
		open = append(open, d)
	}
	in.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, d := range open {
			d.moveHere()
		}
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Begin starts a message.
func (in *Intake) Begin(ctx context.Context) (mail.Draft, error) {
	return in.BeginAs(ctx, mail.NewID())
}

// BeginAs is Begin for a message that was promised its id already.
func (in *Intake) BeginAs(ctx context.Context, id mail.ID) (mail.Draft, error) {
	d := &draft{in: in, id: id}
	in.mu.Lock()
	if !in.local {
		in.mu.Unlock()
		d.here = &buffer{dir: in.dir}
		return d, nil
	}
	d.mu.Lock() // so that nobody moves it before it is there
	defer d.mu.Unlock()
	in.open[d] = struct{}{}
	in.mu.Unlock()
	var err error
	if d.there, err = in.queue.BeginAs(ctx, id); err != nil {
		d.over = true
		in.forget(d)
		return nil, err
	}
	return d, nil
}

func (in *Intake) forget(d *draft) {
	in.mu.Lock()
	delete(in.open, d)
	in.mu.Unlock()
}

// draft is a message being received: in the queue's store, or here.
type draft struct {
	in *Intake
	id mail.ID

	mu    sync.Mutex // against Pause; all else is done by one goroutine
	there mail.Draft
	here  *buffer
	moves int // from there to here
	err   error
	over  bool
}

// ID returns the id that the message will have.
func (d *draft) ID() mail.ID { return d.id }

func (d *draft) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.over:
		return 0, errDone
	case d.err != nil:
		return 0, d.err
	case d.there != nil:
		return d.there.Write(b)
	}
	n, err := d.here.Write(b)
	return n, bufferError(err)
}

// bufferError gives the failure of a buffer a reply for the client.
func bufferError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &replyError{replySpace, err.Error()}
	}
	return &replyError{replyPaused, err.Error()}
}

func (d *draft) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.there != nil:
		return d.there.Size()
	case d.here != nil:
		return d.here.size
	}
	return 0
}

// moveHere takes the message out of the queue's store. It waits for the end of a commit.
func (d *draft) moveHere() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over || d.there == nil {
		return
	}
	d.here = &buffer{dir: d.in.dir}
	_, err := io.Copy(d.here, d.there.Content())
	d.err = bufferError(err)
	d.there.Discard()
	d.there = nil
	d.moves++
	d.in.forget(d)
}

func (d *draft) Content() io.ReadSeeker { return &reader{d: d, moves: -1} }

// reader reads a draft, wherever it is.
type reader struct {
	d     *draft
	moves int // when src was opened; -1: never
	src   io.ReadSeeker
	at    int64
}

// open returns the content at the present position. d.mu is held.
func (r *reader) open() (io.ReadSeeker, error) {
	d := r.d
	switch {
	case d.err != nil:
		return nil, d.err
	case d.there == nil && d.here == nil:
		return nil, errDone
	case r.moves == d.moves && r.src != nil:
		return r.src, nil
	case d.there != nil:
		r.src = d.there.Content()
	default:
		r.src = d.here.content()
	}
	r.moves = d.moves
	_, err := r.src.Seek(r.at, io.SeekStart)
	return r.src, err
}

func (r *reader) Read(b []byte) (int, error) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	src, err := r.open()
	if err != nil {
		return 0, err
	}
	n, err := src.Read(b)
	r.at += int64(n)
	return n, err
}

func (r *reader) Seek(offset int64, whence int) (int64, error) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	src, err := r.open()
	if err != nil {
		return 0, err
	}
	at, err := src.Seek(offset, whence)
	if err == nil {
		r.at = at
	}
	return at, err
}

func (d *draft) Discard() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return
	}
	d.over = true
	if d.there != nil {
		d.there.Discard()
		d.in.forget(d)
	}
	if d.here != nil {
		d.here.close()
	}
	d.there, d.here = nil, nil
}

func (d *draft) Commit(ctx context.Context, env *mail.Envelope, prefix []byte) (mail.ID, error) {
	d.mu.Lock()
	if d.over || d.err != nil {
		defer d.mu.Unlock()
		if d.err != nil {
			return "", d.err
		}
		return "", &replyError{replyPaused, errDone.Error()}
	}
	if d.there != nil { // Pause waits for the end of this
		defer d.mu.Unlock()
		d.over = true
		id, err := d.there.Commit(ctx, env, prefix)
		d.there = nil
		d.in.forget(d)
		return id, err
	}
	d.over = true
	here := d.here
	d.here = nil
	d.mu.Unlock()
	defer here.close()
	return d.in.commit(ctx, d.id, here, env, prefix)
}

// commit puts a message that was kept here where it belongs, as soon as there is such a place.
func (in *Intake) commit(ctx context.Context, id mail.ID, b *buffer, env *mail.Envelope, prefix []byte) (mail.ID, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxPaused, errors.New("no process took the queue over in time"))
	defer cancel()
	for {
		in.mu.Lock()
		local, peer, change := in.local, in.peer, in.change
		in.mu.Unlock()
		switch {
		case local:
			return in.put(ctx, id, b, env, prefix)
		case peer != nil:
			trace.From(ctx).Printf("handed to the process that has the queue now")
			return id, peer.Commit(ctx, id, env, prefix, b.size, b.content())
		}
		trace.From(ctx).Printf("waiting for the end of a handover")
		select {
		case <-change:
		case <-ctx.Done():
			return "", &replyError{replyPaused, context.Cause(ctx).Error()}
		}
	}
}

// put copies the message into the queue of this process, or wherever it may go meanwhile.
func (in *Intake) put(ctx context.Context, id mail.ID, b *buffer, env *mail.Envelope, prefix []byte) (mail.ID, error) {
	d, err := in.BeginAs(ctx, id)
	if err != nil {
		return "", err
	}
	defer d.Discard()
	if _, err := io.Copy(d, b.content()); err != nil {
		return "", err
	}
	return d.Commit(ctx, env, prefix)
}

// replyError is an error with what the client is told of it.
type replyError struct {
	reply smtp.Reply
	text  string
}

func (e *replyError) Error() string { return e.text }
func (e *replyError) Unwrap() error { return e.reply }
