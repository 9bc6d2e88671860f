package smtpsrv

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// countingIntake forgets messages but for their size.
type countingIntake struct {
	bytes, biggest int
}

func (in *countingIntake) Begin(context.Context) (mail.Draft, error) {
	return &countingDraft{in: in}, nil
}

type countingDraft struct {
	in   *countingIntake
	size int64
}

func (d *countingDraft) Write(p []byte) (int, error) {
	d.size += int64(len(p))
	d.in.bytes += len(p)
	d.in.biggest = max(d.in.biggest, len(p))
	return len(p), nil
}
func (d *countingDraft) ID() mail.ID            { return "0123456789ABCDEF" }
func (d *countingDraft) Size() int64            { return d.size }
func (d *countingDraft) Content() io.ReadSeeker { return bytes.NewReader(nil) }
func (d *countingDraft) Discard()               {}
func (d *countingDraft) Commit(context.Context, *mail.Envelope, []byte) (mail.ID, error) {
	return "0123456789ABCDEF", nil
}

// BenchmarkSession is one message of 2 KiB after the other on one connection over loopback, into an intake that does nothing: what the
// protocol costs. A round trip for each group is in it.
func BenchmarkSession(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchSession(b, b.Context()) })
	b.Run("traced", func(b *testing.B) { benchSession(b, trace.WithRecorder(b.Context(), trace.New(trace.Config{}))) })
}

func benchSession(b *testing.B, ctx context.Context) {
	srv := New(Config{Hostname: "mx.example.test", Intake: &countingIntake{}, Metrics: expvarom.New(), MaxMails: 1 << 30})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go srv.Serve(ctx, l, SMTP)
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	buf := make([]byte, 4096)
	// expect reads until the line that starts the last reply awaited
	expect := func(last string) {
		n := 0
		for !bytes.Contains(buf[:n], []byte(last)) || buf[n-1] != '\n' {
			k, err := nc.Read(buf[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += k
		}
	}
	expect("220 ")
	io.WriteString(nc, "EHLO c\r\n")
	expect("250 HELP")
	envelope := []byte("MAIL FROM:<sender@there.test> SIZE=2048 BODY=8BITMIME\r\nRCPT TO:<user@example.test>\r\nDATA\r\n")
	body := []byte("From: <sender@there.test>\r\nTo: <user@example.test>\r\nSubject: hello\r\nMessage-ID: <x@y>\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 27) + ".\r\n")
	b.ReportAllocs()
	for b.Loop() {
		nc.Write(envelope)
		expect("354 ")
		nc.Write(body)
		expect("queued as")
	}
}
