package handover

import (
	"bytes"
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// keeper remembers events, and the envelope of the last message.
type keeper struct {
	*fakeQueue
	mu     sync.Mutex
	events []timeline.Event
	levels []string
	env    mail.Envelope
}

func (k *keeper) Observe(e *timeline.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events = append(k.events, *e)
}

type envDraft struct {
	mail.Draft
	k *keeper
}

func (d envDraft) Commit(ctx context.Context, env *mail.Envelope, prefix []byte) (mail.ID, error) {
	d.k.env = *env
	return d.Draft.Commit(ctx, env, prefix)
}

// relayTo returns a relay to a server in this process.
func relayTo(t *testing.T, k *keeper) *Relay {
	srv := &Server{Events: k, Begin: func(ctx context.Context, id mail.ID) (mail.Draft, error) {
		d, err := k.BeginAs(ctx, id)
		return envDraft{d, k}, err
	}, Level: func(_ context.Context, domain string, level tlspolicy.Level) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.levels = append(k.levels, domain+" "+level.String())
	}}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return NewRelay(func() (net.Conn, error) {
		a, b := net.Pipe()
		wg.Go(func() {
			defer b.Close()
			srv.Serve(t.Context(), b)
		})
		return a, nil
	})
}

// full is an envelope with something in every field; bytes that are not UTF-8 included.
func full() *mail.Envelope {
	at := time.Date(2026, 3, 1, 12, 0, 0, 12345, time.UTC)
	return &mail.Envelope{From: address.Address{Local: "a\xff", Domain: "ä.example"}, Params: smtp.Params{{Keyword: "RET", Value: "HDRS", HasValue: true}},
		Rcpts: []mail.Recipient{{Kind: mail.Email, To: address.Address{Local: "b", Domain: "example.test"}, Orig: address.Address{Local: "b+x", Domain: "example.test"},
			Detail: "x", Command: "c", Via: []string{"v"}, Params: smtp.Params{{Keyword: "NOTIFY", Value: "NEVER", HasValue: true}}, NotBefore: at, GiveUp: at.Add(time.Hour)}},
		Arrived: at, Trace: trace.NewID(), Client: "192.0.2.1:25", Auth: "u@example.test", Source: mail.FromSubmission, MessageID: "m\xfe@x", UTF8: true, Body: mail.BodyBinary, LongLines: true}
}

// TestEnvelope: everything that an envelope says arrives, so that a message is the same whichever process received it.
func TestEnvelope(t *testing.T) {
	env := full()
	for v, i := reflect.ValueOf(*env), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Fatalf("the test does not know the field %s", v.Type().Field(i).Name)
		}
	}
	for v, i := reflect.ValueOf(env.Rcpts[0]), 0; i < v.NumField(); i++ {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "Kind" {
			t.Fatalf("the test does not know the field %s", name)
		}
	}
	k := &keeper{fakeQueue: newFakeQueue()}
	r := relayTo(t, k)
	body := bytes.Repeat([]byte("\x00body\r\n"), 50_000)
	if err := r.Commit(t.Context(), "id1", env, []byte("p"), int64(len(body)), bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(k.env, *env) {
		t.Errorf("got  %+v\nwant %+v", k.env, *env)
	}
	if !bytes.Equal(k.got["id1"], append([]byte("p"), body...)) {
		t.Errorf("%d bytes arrived", len(k.got["id1"]))
	}
}

// TestRefused: what the other process tells the client reaches it.
func TestRefused(t *testing.T) {
	k := &keeper{fakeQueue: newFakeQueue()}
	k.refuse = &replyError{smtp.NewReply(452, "4.3.1", "full"), "cause"}
	err := relayTo(t, k).Commit(t.Context(), "id1", full(), nil, 1, strings.NewReader("x"))
	var r smtp.Reply
	if !errors.As(err, &r) || r.Code != 452 || r.Text != "full" || err.Error() != "cause" {
		t.Errorf("%v %v", err, r)
	}
}

// TestOtherGone: a process that ends in the middle is a temporary failure, and so is one that cannot be reached.
func TestOtherGone(t *testing.T) {
	for _, dial := range []func() (net.Conn, error){
		func() (net.Conn, error) { return nil, errors.New("gone") },
		func() (net.Conn, error) {
			a, b := net.Pipe()
			go func() {
				b.Read(make([]byte, 10))
				b.Close()
			}()
			return a, nil
		},
	} {
		err := NewRelay(dial).Commit(t.Context(), "id1", full(), nil, 1, strings.NewReader("x"))
		var r smtp.Reply
		if !errors.As(err, &r) || r.Code != 451 {
			t.Errorf("%v", err)
		}
	}
}

// TestHalfMessage: of a message that does not arrive whole, nothing is put into the queue.
func TestHalfMessage(t *testing.T) {
	k := &keeper{fakeQueue: newFakeQueue()}
	if err := relayTo(t, k).Commit(t.Context(), "id1", full(), nil, 100, strings.NewReader("only this")); err == nil {
		t.Error("accepted")
	}
	if len(k.got) > 0 || k.open != 0 {
		t.Errorf("in the queue: %q, open: %d", k.got, k.open)
	}
}

// TestNotes: what was learned before a message is known to the other process before the message, in order.
func TestNotes(t *testing.T) {
	k := &keeper{fakeQueue: newFakeQueue()}
	r := relayTo(t, k)
	r.Observe(&timeline.Event{Kind: timeline.Check, Text: "spf=pass", Err: errors.New("odd")})
	r.RecordIncoming(t.Context(), "example.org", tlspolicy.TLSSecure)
	r.Observe(&timeline.Event{Kind: timeline.Refused, Reply: smtp.NewReply(550, "5.1.1", "no"), Rcpts: []address.Address{{Local: "x", Domain: "y"}},
		Outcome: &mail.Outcome{Err: errors.New("x"), MTA: "m"}})
	if err := r.Commit(t.Context(), "id1", full(), nil, 0, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	if len(k.events) != 2 || k.events[0].Text != "spf=pass" || k.events[0].Err == nil || k.events[0].Err.Error() != "odd" ||
		k.events[1].Reply.Code != 550 || len(k.events[1].Rcpts) != 1 || k.events[1].Outcome.MTA != "m" {
		t.Errorf("%+v", k.events)
	}
	if len(k.levels) != 1 || k.levels[0] != "example.org "+tlspolicy.TLSSecure.String() {
		t.Errorf("%q", k.levels)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Observe(&timeline.Event{Kind: timeline.Auth})
	r.Run(ctx)
	if len(k.events) != 3 {
		t.Errorf("the last note was not sent: %+v", k.events)
	}
}
