package courier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// lmtpPort is used when an LMTP address names none. RFC 2033 section 5 only says that it is not 25.
const lmtpPort = 24

// lmtpConnect is the time for connecting: the server is near.
const lmtpConnect = 10 * time.Second

// deliverLMTP delivers to all recipients in one LMTP session (RFC 2033), with a verdict for each. Whatever goes wrong with the
// server itself is a local fault.
func (l *Local) deliverLMTP(ctx context.Context, job *mail.Job, target string) []mail.Outcome {
	stripped, err := withoutReturnPath(job)
	if err != nil {
		return same(*job, internalError(err))
	}
	d := newDelivery(ctx, l.lmtp, &stripped)
	d.rewrite = l.cfg.withDetail
	defer d.msg.release()
	d.session1(ctx, target)
	d.prune()
	d.exhausted()
	for i := range d.out {
		switch o := &d.out[i]; o.Reason {
		case mail.ReasonConnectTimeout, mail.ReasonConnectRefused, mail.ReasonNetwork, mail.ReasonTLS, mail.ReasonRemoteOther, mail.ReasonNoMX, mail.ReasonDNS:
			o.Reason = mail.ReasonMDA
		}
	}
	return d.out
}

// withoutReturnPath returns the job with its message as content makes it: the server writes the only Return-Path.
func withoutReturnPath(job *mail.Job) (mail.Job, error) {
	m := payload{job: job}
	defer m.release()
	if err := m.load(); err != nil {
		return *job, err
	}
	has := false
	for line := range bytes.Lines(m.header()) {
		has = has || len(line) > 12 && strings.EqualFold(string(line[:12]), "Return-Path:")
	}
	if !has {
		return *job, nil
	}
	in, err := content(job, false)
	if err != nil {
		return *job, err
	}
	defer in.Close()
	stripped := *job
	if stripped.Size, err = io.Copy(io.Discard, in); err != nil {
		return *job, fmt.Errorf("reading the message: %w", err)
	}
	stripped.Open = func() (io.ReadCloser, error) { return content(job, false) }
	return stripped, nil
}

// session1 has the one session of an LMTP delivery.
func (d *delivery) session1(ctx context.Context, target string) {
	network, addr, err := lmtpAddress(target)
	if err != nil {
		d.failed(internalError(fmt.Errorf("LMTP server %q: %w", target, err)))
		return
	}
	begin := time.Now()
	dctx, cancel := context.WithTimeout(ctx, lmtpConnect)
	conn, err := d.s.cfg.Dial(dctx, network, addr)
	cancel()
	d.s.metrics.took(stageConnect, begin)
	if err != nil {
		d.failed(mail.Outcome{Reason: Classify(smtp.Reply{}, err, StageConnect), MTA: addr, Err: &StageError{StageConnect, err}})
		return
	}
	for range len(d.job.Rcpts) {
		c := newClient(d.s.env, conn, addr, netip.AddrPort{})
		c.lmtp = true
		c.bind(ctx)
		f := c.start(ctx, hello{}, func() *fail { return nil })
		c.release()
		if f != nil {
			c.log.dump(d.span)
			c.quit()
			d.failed(f.Outcome)
			return
		}
		trace.From(ctx).Printf("connected to %s: LMTP", addr)
		_, more := d.session(ctx, c)
		if !more {
			return
		}
		if conn, err = d.s.cfg.Dial(ctx, network, addr); err != nil {
			d.failed(mail.Outcome{Reason: mail.ReasonMDA, MTA: addr, Err: &StageError{StageConnect, err}})
			return
		}
	}
}

// lmtpAddress is the network address of an LMTP server: a path, or "host", "host:port", "[IPv6]:port".
func lmtpAddress(target string) (network, addr string, err error) {
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		return "unix", path, nil
	}
	if strings.Contains(target, "/") {
		return "unix", target, nil
	}
	t, err := parseHost(target, lmtpPort)
	if err != nil {
		return "", "", err
	}
	if t.port == 25 {
		return "", "", errors.New("LMTP must not be spoken to port 25") // RFC 2033 section 5
	}
	return "tcp", net.JoinHostPort(t.name, fmt.Sprint(t.port)), nil
}
