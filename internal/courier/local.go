package courier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"blitiri.com.ar/go/log"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// LocalConfig of Local and Pipe.
type LocalConfig struct {
	Hostname string // in LHLO and in the names of Maildir files

	MDA     string         // program that delivers when the route names nothing else; looked up in PATH
	Args    []string       // of the program, with %from% and so on: see mda.go
	Dir     string         // working directory of programs; empty: the process's own
	Env     []string       // environment of programs, "KEY=value"
	Timeout time.Duration  // of one program; 0: 30 s
	Runner  command.Runner // nil: command.Exec

	SuffixSeparators, DropCharacters string // of local addresses, to tell the detail in user+detail

	Dial     DialFunc // for LMTP; nil: the operating system's
	Timeouts Timeouts // for LMTP
	FS       vfs.FS   // for Maildirs; nil: vfs.OS

	OnPanic func() // counts a recovered panic; may be nil
	Metrics *expvarom.Registry
}

func (c LocalConfig) withDefaults() LocalConfig {
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Runner == nil {
		c.Runner = command.Exec{}
	}
	if c.FS == nil {
		c.FS = vfs.OS
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	return c
}

// localWorkers is how many recipients of one job are delivered to at the same time.
const localWorkers = 8

// Local delivers to the mailboxes of this machine: by a program (MDA), into Maildirs, or over LMTP, as the route's target says.
// It is safe for concurrent use.
type Local struct {
	cfg     LocalConfig
	metrics *metrics
	lmtp    *SMTP // the client side shared with SMTP
	names   *nameMaker
}

// NewLocal returns a courier for local mailboxes.
func NewLocal(cfg LocalConfig) *Local {
	cfg = cfg.withDefaults()
	return &Local{
		cfg: cfg, metrics: newMetrics(cfg.Metrics), names: &nameMaker{},
		lmtp: newSMTP(Config{Hostname: cfg.Hostname, Dial: cfg.Dial, MaxIdle: -1, Timeouts: cfg.Timeouts, Metrics: cfg.Metrics}),
	}
}

// With returns a courier with another configuration. Both may be used at the same time: they give no name twice.
func (l *Local) With(cfg LocalConfig) *Local {
	next := NewLocal(cfg)
	next.names = l.names
	return next
}

// Deliver implements Courier.
func (l *Local) Deliver(ctx context.Context, job mail.Job) []mail.Outcome {
	var out []mail.Outcome
	scheme, target, _ := strings.Cut(job.Route.Target, ":")
	switch scheme {
	case "":
		out = l.each(&job, func(r *mail.Recipient) mail.Outcome { return l.runMDA(ctx, &job, r) })
	case "maildir":
		out = l.each(&job, func(r *mail.Recipient) mail.Outcome { return l.maildir(ctx, &job, r, target) })
	case "lmtp":
		out = l.deliverLMTP(ctx, &job, target)
	default:
		out = same(job, internalError(fmt.Errorf("local delivery %q is neither maildir: nor lmtp:", job.Route.Target)))
	}
	for i := range out {
		if out[i].Disposition == mail.Delivered && scheme != "lmtp" {
			l.metrics.sent[mail.Local].Add(float64(job.Size))
		}
	}
	noteOutcome(ctx, &job, out)
	return out
}

// each delivers to every recipient of the job, some at the same time. A panic is that recipient's alone.
func (l *Local) each(job *mail.Job, deliver func(*mail.Recipient) mail.Outcome) []mail.Outcome {
	out := make([]mail.Outcome, len(job.Rcpts))
	one := func(i int) {
		defer func() {
			if p := recover(); p != nil {
				log.Errorf("courier: panic while delivering %s: %v\n%s", job.ID, p, debug.Stack())
				if l.cfg.OnPanic != nil {
					l.cfg.OnPanic()
				}
				out[i] = internalError(errors.New("internal error while delivering"))
			}
		}()
		out[i] = deliver(&job.Rcpts[i])
	}
	if len(job.Rcpts) == 1 {
		one(0)
		return out
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, localWorkers)
	for i := range job.Rcpts {
		places <- struct{}{}
		wg.Go(func() {
			one(i)
			<-places
		})
	}
	wg.Wait()
	return out
}

// localFault is a failure of local delivery that is no verdict on the message: it is tried again.
func localFault(err error) mail.Outcome {
	return mail.Outcome{Disposition: mail.Deferred, Reason: mail.ReasonMDA, Err: err}
}

// content reads the message as a local mailbox gets it: without a Return-Path from elsewhere (RFC 5321 section 4.4), and with
// LF line ends if asked for. The reader must be closed.
func content(job *mail.Job, lf bool) (io.ReadCloser, error) {
	if job.Open == nil {
		return nil, errors.New("the message has no content")
	}
	src, err := job.Open()
	if err != nil {
		return nil, fmt.Errorf("opening the message: %w", err)
	}
	f := &filtered{src: src}
	f.filter = message.NewFilter(&f.out, func(message.Field) bool { return true }, "Return-Path")
	if lf {
		return struct {
			io.Reader
			io.Closer
		}{message.ToLF(f), src}, nil
	}
	return f, nil
}

// filtered turns the writer message.Filter into a reader.
type filtered struct {
	src    io.ReadCloser
	filter *message.Filter
	out    pending
	rest   []byte // of out, not yet read
	buf    [4096]byte
	err    error
}

// pending holds what was written until it is read.
type pending struct{ b []byte }

func (p *pending) Write(b []byte) (int, error) {
	p.b = append(p.b, b...)
	return len(b), nil
}

// Read implements io.Reader.
func (f *filtered) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.err != nil {
			return 0, f.err
		}
		f.out.b = f.out.b[:0]
		n, err := f.src.Read(f.buf[:])
		f.filter.Write(f.buf[:n])
		if f.err = err; err == io.EOF {
			f.filter.Close()
		}
		f.rest = f.out.b
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// Close closes the message.
func (f *filtered) Close() error { return f.src.Close() }

// detail is the part after the suffix separator in the address that the recipient was given as: "lists" in joe+lists@example.org,
// and the separator. If that address led to another user, it is that of the address the alias names: "shop" for an alias to joe+shop.
func (c *LocalConfig) detail(r *mail.Recipient) (sep, detail string) {
	user, sep, detail := c.cutDetail(r.Orig.Local)
	user = strings.Map(func(ch rune) rune {
		if strings.ContainsRune(c.DropCharacters, ch) {
			return -1
		}
		return ch
	}, user)
	if n, err := address.NormalizeUser(user); err == nil {
		user = n
	}
	switch {
	case user == r.To.Local && strings.EqualFold(r.Orig.Domain, r.To.Domain):
		return sep, detail
	case r.Detail == "" || c.SuffixSeparators == "":
		return "", ""
	}
	_, size := utf8.DecodeRuneInString(c.SuffixSeparators)
	return c.SuffixSeparators[:size], r.Detail
}

// cutDetail cuts a local part at its first suffix separator; without one, all of it is the user.
func (c *LocalConfig) cutDetail(local string) (user, sep, detail string) {
	i := strings.IndexAny(local, c.SuffixSeparators)
	if i <= 0 {
		return local, "", ""
	}
	rest := local[i:]
	for j := range rest {
		if j > 0 {
			return local[:i], rest[:j], rest[j:]
		}
	}
	return local[:i], rest, ""
}

// withDetail is the recipient's address as user+detail, for mail stores that sort by it (RFC 5233).
func (c *LocalConfig) withDetail(r *mail.Recipient) address.Address {
	sep, detail := c.detail(r)
	if detail == "" {
		return r.To
	}
	return address.Address{Local: r.To.Local + sep + detail, Domain: r.To.Domain}
}
