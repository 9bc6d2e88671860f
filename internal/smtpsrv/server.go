// Package smtpsrv is the server side of SMTP: the listener loop, sessions, transactions and the verb table.
//
// A session is one connection; a transaction is one message on it, made by MAIL and dropped by setting one pointer to nil. What the
// server needs of the world it declares: an Intake that takes messages, an Authenticator, and the checks of package policy.
package smtpsrv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/auth"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/log"
)

// Mode is the role of a listener.
type Mode uint8

// The modes.
const (
	SMTP          Mode = iota // mail from other servers, port 25
	Submission                // mail from users, port 587
	SubmissionTLS             // the same with TLS from the first byte, port 465
	numModes
)

// String returns the name that logs and Received headers show.
func (m Mode) String() string { return [...]string{"SMTP", "submission", "submission+TLS", ""}[m&3] }

// Intake takes messages. The draft may also have a method ID() mail.ID: the queue id it will get, for the Received header.
type Intake interface {
	Begin(context.Context) (mail.Draft, error)
}

// Authenticator checks passwords. An error means that it could not tell; backend names who answered, for the metrics.
type Authenticator interface {
	Authenticate(ctx context.Context, user address.Address, password string) (ok bool, backend string, err error)
}

// Config is what a server is made with. The zero value of a limit or time is its default.
type Config struct {
	Hostname string // greeted with, and the authserv-id

	MaxSize       int64 // bytes of a message, 50 MiB
	MaxRecipients int   // of a message, 1000
	MaxMails      int   // messages of a session, 100,000
	MaxReceived   int   // Received headers before a message is taken to loop, 100
	MaxConns      int   // connections at a time, 5000
	MaxConnsPerIP int   // from one IPv4 address or IPv6 /64, 100; loopback is not limited

	CommandTimeout time.Duration // to the end of a command line, 5 min
	DataTimeout    time.Duration // for each 16 KiB of a message, 3 min
	SessionTimeout time.Duration // in total once mail flows, 60 min; a third of it before that
	ScarceTimeout  time.Duration // to the first command when three quarters of the connections are in use, 30 s
	GreetingDelay  time.Duration // how long a client must be able to wait for the greeting, 0

	// TLS returns the configuration for a client; nil: no TLS. NextProtos is set to "smtp" if it is empty.
	TLS func(*tls.ClientHelloInfo) (*tls.Config, error)
	// TLSReady reports whether there is a certificate now: STARTTLS is not offered without; nil: always.
	TLSReady func() bool
	// OwnName reports a name, lower-case, that the server may call itself by when a client asks for it with SNI; nil: only Hostname.
	OwnName func(string) bool

	// Transaction prepares the context of each transaction; nil: nothing is to be done.
	Transaction func(context.Context) context.Context

	Auth     Authenticator  // nil: AUTH is not offered
	Throttle *auth.Throttle // slows down guessing; nil: one of the server's own
	Intake   Intake

	MailChecks []policy.MailCheck
	RcptChecks []policy.RcptCheck
	BodyChecks []policy.BodyCheck

	Observer timeline.Observer
	Metrics  *expvarom.Registry // of the first configuration; a later one's is not looked at

	learners []policy.Learner // the checks that are one
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c *Config) setDefaults() {
	or(&c.Hostname, "localhost")
	or(&c.MaxSize, 50<<20)
	or(&c.MaxRecipients, 1000)
	or(&c.MaxMails, 100_000)
	or(&c.MaxReceived, 100)
	or(&c.MaxConns, 5000)
	or(&c.MaxConnsPerIP, 100)
	or(&c.CommandTimeout, 5*time.Minute)
	or(&c.DataTimeout, 3*time.Minute)
	or(&c.SessionTimeout, 60*time.Minute)
	or(&c.ScarceTimeout, 30*time.Second)
	c.learners = nil
	learn(c, c.MailChecks)
	learn(c, c.RcptChecks)
	learn(c, c.BodyChecks)
}

// learn adds the checks that learn from accepted messages, each once.
func learn[T any](c *Config, checks []T) {
	for _, check := range checks {
		l, ok := any(check).(policy.Learner)
		if !ok || reflect.TypeOf(l).Comparable() && slices.Contains(c.learners, l) {
			continue
		}
		c.learners = append(c.learners, l)
	}
}

// Server serves SMTP on any number of listeners. Its methods are safe for concurrent use.
type Server struct {
	cfg  atomic.Pointer[Config]
	m    *metrics
	tls  *tls.Config
	alpn atomic.Pointer[alpnConfig]
	nets *netTable

	throttle *auth.Throttle
	open     atomic.Int64
	rejects  rejections
	stamp    atomic.Pointer[stamp]

	mu        sync.Mutex
	listeners map[*listener]struct{}
	sessions  map[*session]struct{}
	draining  bool
	running   sync.WaitGroup // sessions
}

type listener struct {
	net.Listener
	mode  Mode
	ctx   context.Context // of its sessions
	open  atomic.Int64
	total atomic.Int64
	work  *workers

	ended atomic.Bool  // no more connections are accepted
	since atomic.Int64 // when it got the connection it is busy with, Unix nanoseconds; 0 while it waits for one
}

// New returns a server.
func New(cfg Config) *Server {
	srv := &Server{
		m:         newMetrics(cfg.Metrics),
		nets:      newNetTable(),
		throttle:  auth.NewThrottle(0, cfg.Metrics),
		listeners: map[*listener]struct{}{},
		sessions:  map[*session]struct{}{},
	}
	srv.tls = srv.baseTLS()
	srv.Configure(cfg)
	return srv
}

// Configure replaces the configuration for connections accepted from now on.
func (srv *Server) Configure(cfg Config) {
	cfg.setDefaults()
	if cfg.Throttle == nil {
		cfg.Throttle = srv.throttle
	}
	srv.cfg.Store(&cfg)
}

// Config returns the configuration for connections that come now.
func (srv *Server) Config() Config { return *srv.cfg.Load() }

// Serve accepts connections until the listener is closed, by Drain, by its owner or because ctx ended, and returns when all of them have
// ended. When ctx ends they are cut; otherwise they end by themselves. Accept errors, such as running out of file descriptors, are
// waited out.
func (srv *Server) Serve(ctx context.Context, l net.Listener, mode Mode) error {
	ln := &listener{Listener: l, mode: mode, work: newWorkers()}
	srv.mu.Lock()
	if srv.draining {
		srv.mu.Unlock()
		l.Close()
		return nil
	}
	srv.listeners[ln] = struct{}{}
	srv.mu.Unlock()
	srv.observe(&timeline.Event{Kind: timeline.Listen, Mode: mode.String(), Text: l.Addr().String()})

	ln.ctx = context.WithoutCancel(ctx) // sessions are cut: that is cheaper than each of them waiting for the end of ctx
	stop := context.AfterFunc(ctx, func() { l.Close(); srv.cut(ln) })
	srv.accept(ctx, ln)
	ln.ended.Store(true)
	ln.work.wait()
	stop()
	srv.mu.Lock()
	delete(srv.listeners, ln)
	srv.mu.Unlock()
	return nil
}

// The pause after a failed accept doubles from the first to the second.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

func (srv *Server) accept(ctx context.Context, ln *listener) {
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			ln.since.Store(time.Now().UnixNano())
			srv.admit(ctx, ln, nc)
			ln.since.Store(0)
			continue
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if pause == 0 {
			log.Errorf("Accepting on %s: %v; trying again", ln.Addr(), err)
		}
		pause = min(max(2*pause, minAcceptPause), maxAcceptPause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// admit starts a session, or turns the connection away if there are too many.
func (srv *Server) admit(ctx context.Context, ln *listener, nc net.Conn) {
	cfg := srv.cfg.Load()
	mm := &srv.m.modes[ln.mode]
	mm.connections.Inc()
	ln.total.Add(1)
	if srv.open.Load() >= int64(cfg.MaxConns) {
		mm.refuse(refusedTotal)
		turnAway(nc, ln.mode)
		return
	}
	s := newSession(srv, cfg, ln, nc)
	srv.mu.Lock()
	if srv.draining {
		srv.mu.Unlock()
		mm.refuse(refusedShutdown)
		turnAway(nc, ln.mode)
		return
	}
	srv.sessions[s] = struct{}{}
	srv.running.Add(1)
	srv.mu.Unlock()
	if ctx.Err() != nil {
		s.cut() // it came after all others were
	}
	ln.work.serve(ln.ctx, s)
}

const turnedAway = "421 4.7.0 Too many connections, please try again later\r\n"

// turnAway closes a connection, with a reason where the client can read one. It does not wait for the client.
func turnAway(nc net.Conn, mode Mode) {
	if mode != SubmissionTLS {
		nc.SetDeadline(time.Now().Add(100 * time.Millisecond))
		nc.Write([]byte(turnedAway))
	}
	nc.Close()
}

// forget is the end of a session's registration.
func (srv *Server) forget(s *session) {
	srv.mu.Lock()
	delete(srv.sessions, s)
	srv.mu.Unlock()
	srv.running.Done()
}

// cut ends the sessions of a listener, or of all of them if it is nil, wherever they are.
func (srv *Server) cut(ln *listener) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for s := range srv.sessions {
		if ln == nil || s.ln == ln {
			s.cut()
		}
	}
}

// Drain stops the server: listeners close, clients between commands are told 421 and go, messages being received may be finished
// (RFC 5321 section 3.8). It returns when all sessions have ended; those that are left when ctx ends are cut.
func (srv *Server) Drain(ctx context.Context) error {
	srv.mu.Lock()
	srv.draining = true
	for ln := range srv.listeners {
		ln.Close()
	}
	for s := range srv.sessions {
		s.c.drain()
	}
	srv.mu.Unlock()

	done := make(chan struct{})
	go func() { srv.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		srv.cut(nil)
		<-done
		return context.Cause(ctx)
	}
}

func (srv *Server) observe(e *timeline.Event) {
	if o := srv.cfg.Load().Observer; o != nil {
		if e.At.IsZero() {
			e.At = time.Now()
		}
		o.Observe(e)
	}
}

// ListenerInfo is one listener as the monitoring pages show it.
type ListenerInfo struct {
	Addr  string
	Mode  Mode
	Open  int64 // connections now
	Total int64 // connections so far, refused ones included
}

// Listeners returns the listeners being served, in no order.
func (srv *Server) Listeners() []ListenerInfo {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	var infos []ListenerInfo
	for ln := range srv.listeners {
		infos = append(infos, ListenerInfo{Addr: ln.Addr().String(), Mode: ln.mode, Open: ln.open.Load(), Total: ln.total.Load()})
	}
	return infos
}

// Stuck returns an error if no listener accepts connections, or one has not got around to the next for longer than limit.
func (srv *Server) Stuck(limit time.Duration) error {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	accepting := 0
	for ln := range srv.listeners {
		if at := ln.since.Load(); at != 0 && time.Since(time.Unix(0, at)) > limit {
			return fmt.Errorf("%s has been busy with one connection for more than %v", ln.Addr(), limit)
		}
		if !ln.ended.Load() {
			accepting++
		}
	}
	if accepting == 0 && !srv.draining {
		return errors.New("no connections are accepted")
	}
	return nil
}

// Open returns the number of connections being served.
func (srv *Server) Open() int { return int(srv.open.Load()) }

// addrPort returns the address of a peer, with IPv4 addresses as such; the zero value if it has none.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case nil:
		return ap
	case *net.TCPAddr:
		ap = a.AddrPort()
	default:
		ap, _ = netip.ParseAddrPort(a.String())
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
