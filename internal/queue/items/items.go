// Package items reads and writes the queue files of existing installations: one text file per message.
package items

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/queue"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative items.proto

// Prefix begins the name of an item's file; the id follows.
const Prefix = "m:"

// Parse reads the text of an item. The name is that of its file: an item whose own id differs gets the file's, so that reading the
// file again gives the same message. The body has CRLF line ends.
func Parse(name string, text []byte) (queue.Entry, []byte, error) {
	var it Item
	// Fields that we do not know are from some other program; the message can be delivered without them.
	if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &it); err != nil {
		return queue.Entry{}, nil, fmt.Errorf("not an item: %w", err)
	}
	id := strings.TrimPrefix(name, Prefix)
	if id == "" || len(it.GetRcpt()) == 0 {
		return queue.Entry{}, nil, errors.New("item without id or without recipients")
	}
	e := queue.Entry{ID: mail.ID(id), Env: mail.Envelope{Source: mail.FromAdmin}}
	var err error
	if e.Env.From, err = address.ParsePath(it.GetFrom()); err != nil {
		return e, nil, fmt.Errorf("sender: %w", err)
	}
	if t := it.GetCreatedAtTs(); t != nil {
		e.Env.Arrived = time.Unix(t.GetSeconds(), int64(t.GetNanos())).UTC()
	}
	for i, r := range it.GetRcpt() {
		rcpt, err := parseRecipient(r, it.GetTo())
		if err != nil {
			return e, nil, fmt.Errorf("recipient %d: %w", i, err)
		}
		e.Env.Rcpts = append(e.Env.Rcpts, rcpt)
		st := queue.RcptStatus{Status: queue.Status(r.GetStatus()), Text: r.GetLastFailureMessage()}
		if st.Status != queue.Pending || st.Text != "" {
			st.Attempts = 1 // at least
		}
		e.Status = append(e.Status, st)
		e.Env.UTF8 = e.Env.UTF8 || !rcpt.To.ASCII()
	}
	e.Env.UTF8 = e.Env.UTF8 || !e.Env.From.ASCII()
	data, err := io.ReadAll(message.ToCRLF(bytes.NewReader(it.GetData())))
	if err != nil {
		return e, nil, err
	}
	if bytes.ContainsFunc(data, func(r rune) bool { return r >= 0x80 }) { // a byte that is not UTF-8 counts as U+FFFD
		e.Env.Body = mail.Body8Bit
	}
	if h, err := message.Parse(data); err == nil {
		id := h.MessageID()
		e.Env.MessageID = id[:min(len(id), maxMessageID)]
	}
	e.Size = int64(len(data))
	return e, data, nil
}

// maxMessageID is how much of a Message-ID an envelope holds.
const maxMessageID = 256

func parseRecipient(r *Recipient, to []string) (rcpt mail.Recipient, err error) {
	switch r.GetType() {
	case Recipient_EMAIL, Recipient_FORWARD:
		if rcpt.To, err = address.ParsePath(r.GetAddress()); err != nil {
			return rcpt, err
		}
		if rcpt.To.IsNull() {
			return rcpt, errors.New("no address")
		}
		rcpt.Orig = rcpt.To
		if r.GetType() == Recipient_FORWARD {
			rcpt.Kind, rcpt.Via = mail.Forward, r.GetVia()
		}
	case Recipient_PIPE:
		rcpt.Kind = mail.Pipe
		if rcpt.Command = strings.TrimSpace(strings.TrimPrefix(r.GetAddress(), "|")); rcpt.Command == "" {
			return rcpt, errors.New("no command")
		}
	default:
		return rcpt, fmt.Errorf("unknown type %d", r.GetType())
	}
	if r.GetStatus() < Recipient_PENDING || r.GetStatus() > Recipient_FAILED {
		return rcpt, fmt.Errorf("unknown status %d", r.GetStatus())
	}
	// Items that other programs wrote do not say for whom a recipient stands; with one address accepted it is clear.
	orig := r.GetOriginalAddress()
	if orig == "" && len(to) == 1 {
		orig = to[0]
	}
	if a, err := address.ParsePath(orig); err == nil && !a.IsNull() {
		rcpt.Orig = a
	}
	return rcpt, nil
}

// Format writes the text of an item; body yields the message.
func Format(e *queue.Entry, body io.Reader) ([]byte, error) {
	data, err := io.ReadAll(message.ToLF(body))
	if err != nil {
		return nil, err
	}
	it := &Item{ID: string(e.ID), From: e.Env.From.LogString(), Data: data}
	if !e.Env.Arrived.IsZero() {
		it.CreatedAtTs = &Time{Seconds: e.Env.Arrived.Unix(), Nanos: int32(e.Env.Arrived.Nanosecond())}
	}
	accepted := map[address.Address]bool{}
	for i, r := range e.Env.Rcpts {
		if orig := r.Orig; !orig.IsNull() && !accepted[orig] {
			accepted[orig] = true
			it.To = append(it.To, orig.String())
		}
		it.Rcpt = append(it.Rcpt, formatRecipient(&r, &e.Status[i]))
	}
	return prototext.MarshalOptions{Multiline: true}.Marshal(it)
}

func formatRecipient(r *mail.Recipient, st *queue.RcptStatus) *Recipient {
	out := &Recipient{
		Address:            r.To.String(),
		Type:               Recipient_Type(r.Kind),
		Status:             Recipient_Status(st.Status),
		LastFailureMessage: st.Text,
		OriginalAddress:    r.Orig.String(),
		Via:                r.Via,
	}
	if r.Kind == mail.Pipe {
		out.Address = r.Command
	}
	if out.LastFailureMessage == "" && !st.Reply.IsZero() && st.Status != queue.Sent {
		out.LastFailureMessage = st.Reply.String()
	}
	out.LastFailureMessage = strings.ToValidUTF8(out.LastFailureMessage, "\ufffd")
	return out
}
