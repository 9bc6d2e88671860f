package handover

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// fakeQueue keeps what was committed, by id.
type fakeQueue struct {
	mu     sync.Mutex
	got    map[mail.ID][]byte
	closed bool
	open   int
	slow   chan struct{} // commits wait for it to be closed; nil: they do not
	refuse error
}

func newFakeQueue() *fakeQueue { return &fakeQueue{got: map[mail.ID][]byte{}} }

func (q *fakeQueue) BeginAs(_ context.Context, id mail.ID) (mail.Draft, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, errors.New("closed")
	}
	q.open++
	return &fakeDraft{q: q, id: id}, nil
}

// close reports how many drafts were open in the queue when it was closed.
func (q *fakeQueue) close() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	return q.open
}

type fakeDraft struct {
	q    *fakeQueue
	id   mail.ID
	b    []byte
	over bool
}

func (d *fakeDraft) Write(b []byte) (int, error) {
	d.b = append(d.b, b...)
	return len(b), nil
}
func (d *fakeDraft) Size() int64            { return int64(len(d.b)) }
func (d *fakeDraft) Content() io.ReadSeeker { return bytes.NewReader(d.b) }
func (d *fakeDraft) end() {
	if !d.over {
		d.over = true
		d.q.open--
	}
}

func (d *fakeDraft) Discard() {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	d.end()
}

func (d *fakeDraft) Commit(_ context.Context, _ *mail.Envelope, prefix []byte) (mail.ID, error) {
	if d.q.slow != nil {
		<-d.q.slow
	}
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	d.end()
	if d.q.closed {
		return "", errors.New("committed to a queue that was given away")
	}
	if d.q.refuse != nil {
		return "", d.q.refuse
	}
	if _, twice := d.q.got[d.id]; twice {
		return "", errors.New("twice")
	}
	d.q.got[d.id] = append(bytes.Clone(prefix), d.b...)
	return d.id, nil
}

// peerOf is another process with the queue.
type peerOf struct{ q *fakeQueue }

func (p peerOf) Commit(ctx context.Context, id mail.ID, env *mail.Envelope, prefix []byte, size int64, content io.Reader) error {
	d, err := p.q.BeginAs(ctx, id)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(d, content, size); err != nil {
		return err
	}
	_, err = d.Commit(ctx, env, prefix)
	return err
}

// TestIntakeMoves: a message that is begun, written, read and committed at any moments of a handover arrives as it was sent, under its
// id, in the queue that has its turn; the handover may fail and be tried again.
func TestIntakeMoves(t *testing.T) {
	here, there := newFakeQueue(), newFakeQueue()
	in := NewIntake(here, t.TempDir())
	in.Resume()
	var want sync.Map
	stop := make(chan struct{})
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := sendOne(in, &want); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 { // upgrades that fail
		time.Sleep(time.Millisecond)
		if err := in.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		here.mu.Lock()
		open := here.open
		here.mu.Unlock()
		if open != 0 {
			t.Fatalf("%d messages are open in a queue that is to be given away", open)
		}
		in.Resume()
	}
	time.Sleep(time.Millisecond)
	if err := in.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := here.close(); n != 0 {
		t.Fatalf("%d messages are open in the queue that was given away", n)
	}
	in.Forward(peerOf{there})
	time.Sleep(20 * time.Millisecond)
	close(stop)
	senders.Wait()
	n := 0
	want.Range(func(id, text any) bool {
		n++
		a, inHere := here.got[id.(mail.ID)]
		b, inThere := there.got[id.(mail.ID)]
		if inHere == inThere || !bytes.Equal(append(a, b...), text.([]byte)) {
			t.Errorf("%s: in the old queue %v, in the new one %v, %d and %d bytes, want %d", id, inHere, inThere, len(a), len(b), len(text.([]byte)))
		}
		return true
	})
	if n != len(here.got)+len(there.got) || len(there.got) == 0 {
		t.Errorf("%d messages acknowledged, %d in the old queue, %d in the new one", n, len(here.got), len(there.got))
	}
	if len(in.open) != 0 {
		t.Errorf("%d drafts are not forgotten", len(in.open))
	}
}

// sendOne sends a message in pieces, some larger than what is kept in memory, and reads it in between.
func sendOne(in *Intake, want *sync.Map) error {
	d, err := in.Begin(context.Background())
	if err != nil {
		return err
	}
	text := make([]byte, mathrand.IntN(2000))
	if mathrand.IntN(20) == 0 {
		text = make([]byte, maxMemory+mathrand.IntN(maxMemory))
	}
	rand.Read(text)
	for at := 0; at < len(text); {
		n := min(1+mathrand.IntN(len(text)), len(text)-at)
		if _, err := d.Write(text[at : at+n]); err != nil {
			return err
		}
		at += n
	}
	if mathrand.IntN(10) == 0 {
		d.Discard()
		return nil
	}
	r := d.Content()
	var got []byte
	for b := make([]byte, 1+mathrand.IntN(100_000)); ; {
		n, err := r.Read(b)
		if got = append(got, b[:n]...); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	if !bytes.Equal(got, text) || d.Size() != int64(len(text)) {
		return fmt.Errorf("read %d bytes of %d before the commit", len(got), len(text))
	}
	if end, err := r.Seek(0, io.SeekEnd); err != nil || end != int64(len(text)) {
		return fmt.Errorf("the end is at %d: %v", end, err)
	}
	id, err := d.Commit(context.Background(), &mail.Envelope{}, []byte("prefix:"))
	if err != nil {
		return err
	}
	if id != d.(interface{ ID() mail.ID }).ID() {
		return fmt.Errorf("committed as %s", id)
	}
	d.Discard() // does nothing
	want.Store(id, append([]byte("prefix:"), text...))
	return nil
}

// TestPauseWaitsForCommit: a commit that is under way ends before the queue is given away, or the pause fails and the commit goes on.
func TestPauseWaitsForCommit(t *testing.T) {
	q := newFakeQueue()
	q.slow = make(chan struct{})
	in := NewIntake(q, t.TempDir())
	in.Resume()
	d, err := in.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := d.Commit(t.Context(), &mail.Envelope{}, nil)
		result <- err
	}()
	time.Sleep(5 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := in.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("paused with a commit under way: %v", err)
	}
	in.Resume()
	close(q.slow)
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := in.Pause(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPausedCommitEnds: the end of a message waits for a queue, but not longer than its client.
func TestPausedCommitEnds(t *testing.T) {
	in := NewIntake(newFakeQueue(), t.TempDir())
	d, err := in.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = d.Commit(ctx, &mail.Envelope{}, nil)
	var r smtp.Reply
	if !errors.As(err, &r) || r.Code != 451 {
		t.Errorf("%v", err)
	}
	if _, err := d.Write([]byte("x")); err == nil {
		t.Error("written after the commit")
	}
	if _, err := d.Commit(t.Context(), &mail.Envelope{}, nil); err == nil {
		t.Error("committed twice")
	}
}

// TestNoSpaceForBuffer: a large message that cannot be kept gets a reply, not a torn copy.
func TestNoSpaceForBuffer(t *testing.T) {
	dir := t.TempDir()
	in := NewIntake(newFakeQueue(), dir)
	d, err := in.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	_, err = d.Write(make([]byte, maxMemory+1))
	var r smtp.Reply
	if !errors.As(err, &r) || r.Code != 451 {
		t.Errorf("%v", err)
	}
	d.Discard()
}
