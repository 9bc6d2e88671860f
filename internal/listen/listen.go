// Package listen makes the listeners of the server, from addresses and from sockets that systemd passes, with PROXY headers where asked for.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// SystemdAddress is the address that stands for the sockets passed by systemd.
const SystemdAddress = "systemd"

// DefaultHeaderTimeout is how long a connection may take to send its PROXY header.
const DefaultHeaderTimeout = 10 * time.Second

// Errors of Apply. Their texts are compared by existing tooling; ErrEmptyAddress is wrapped with the role.
var (
	ErrNoAddress    = &Error{Msg: "No address to listen on", Fix: "set smtp_address, submission_address or submission_over_tls_address, or enable the socket units"}
	ErrEmptyAddress = &Error{Msg: "Invalid empty listening address"}
)

// Error is a listener that cannot be had.
type Error struct {
	Role string // Role.Name, empty if it is none's
	Msg  string
	Fix  string
	Err  error // the cause, may be nil
}

// Error says what failed.
func (e *Error) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Remedy says what to do.
func (e *Error) Remedy() string { return e.Fix }

// Role is one kind of listener, with all its addresses.
type Role struct {
	Name      string   // of its systemd sockets: "smtp", "submission", "submission_tls"
	Label     string   // as people see it: "SMTP", "submission", "submission+TLS"
	Addresses []string // host:port, or SystemdAddress
}

// Proxy says whether connections start with a PROXY header, and whose is believed.
type Proxy struct {
	On      bool
	Trusted []netip.Prefix // nil is nobody; peers on UNIX sockets are always trusted
	Timeout time.Duration  // 0 is DefaultHeaderTimeout
	// Refused, if set, is told of each connection closed for want of a good header. It must not block.
	Refused func(role string, peer net.Addr, err error)
}

// Config is what listeners are made with.
type Config struct {
	Sockets *Sockets // from systemd; nil is none
	// Inherited hands out, once, the sockets that another process, or this one earlier, had for a Listener.Key. Nil is none.
	Inherited func(key string) ([]net.Listener, error)
	Metrics   *expvarom.Registry
}

// Set is the listeners of a running server. Apply changes them.
type Set struct {
	sockets *Sockets
	proxy   atomic.Pointer[Proxy]
	metrics *metrics

	mu        sync.Mutex
	list      []*Listener
	inherited func(key string) ([]net.Listener, error)
}

// Listener accepts connections for one role on one address. It is a net.Listener; connections it returns are *Conn if PROXY
// headers are expected and plain network connections otherwise.
type Listener struct {
	net.Listener
	Role    string // Role.Name
	Label   string // Role.Label
	Address string // as configured
	Systemd bool   // passed by systemd

	set *Set
}

// New returns a set without listeners.
func New(cfg Config) *Set {
	s := &Set{sockets: cfg.Sockets, inherited: cfg.Inherited, metrics: newMetrics(cfg.Metrics)}
	s.proxy.Store(&Proxy{})
	return s
}

// SetProxy changes how connections accepted from now on are treated.
func (s *Set) SetProxy(p Proxy) { s.proxy.Store(&p) }

// Listeners returns the present listeners, in the order of their roles and addresses.
func (s *Set) Listeners() []*Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// Apply makes the set listen on exactly the roles' addresses. New listeners are opened first; if one cannot be, those opened so
// far are closed, nothing else changes and the error says why (an *Error, or several joined). Then listeners that are no longer
// wanted are closed. Added ones wait for the caller to accept; warnings are sentences for the log.
func (s *Set) Apply(ctx context.Context, roles []Role) (added, removed []*Listener, warnings []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next []*Listener
	var errs []error
	for _, r := range roles {
		n := len(next)
		for _, a := range r.Addresses {
			ls, fresh, err := s.open(ctx, r, a, next)
			if err != nil {
				errs = append(errs, err)
			}
			next = append(next, ls...)
			if fresh {
				added = append(added, ls...)
			}
		}
		if len(next) == n && len(r.Addresses) > 0 && slices.Contains(r.Addresses, SystemdAddress) {
			warnings = append(warnings, fmt.Sprintf("No sockets for %s: systemd passed none named %q.\n"+
				"Set an address for it in chasquid.conf, or enable its socket unit, if it should be served.", r.Label, r.Name))
		}
	}
	if len(next) == 0 && len(errs) == 0 {
		errs = append(errs, ErrNoAddress)
	}
	if err := errors.Join(errs...); err != nil {
		s.closeAll(added)
		return nil, nil, warnings, err
	}
	removed = missing(s.list, next)
	s.closeAll(removed)
	s.list = next
	for _, l := range added {
		trace.From(ctx).Printf("listening on %s (%s)", l.Addr(), l.Label)
	}
	return added, removed, append(warnings, s.sockets.unused(roles)...), nil
}

// open returns the listeners of one address: those the set has already, or new ones.
func (s *Set) open(ctx context.Context, r Role, addr string, next []*Listener) (ls []*Listener, fresh bool, err error) {
	if addr == "" {
		return nil, false, &Error{Role: r.Name, Msg: ErrEmptyAddress.Msg + " for " + r.Label, Err: ErrEmptyAddress,
			Fix: `write an address such as ":25", or remove the setting to use systemd's sockets`}
	}
	for _, l := range s.list {
		if l.Role == r.Name && l.Address == addr && !slices.Contains(next, l) {
			ls = append(ls, l)
		}
	}
	if len(ls) > 0 {
		return ls, false, nil
	}
	if ls, err := s.inherit(r, addr); len(ls) > 0 || err != nil {
		return ls, true, err
	}
	if addr == SystemdAddress {
		for _, l := range s.sockets.take(r.Name) {
			ls = append(ls, s.wrap(l, r, addr, true))
		}
		return ls, true, nil
	}
	// Sessions have time-outs of their own; keep-alive probes would only cost four system calls for each connection.
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, false, bindError(r, addr, err)
	}
	return []*Listener{s.wrap(l, r, addr, false)}, true, nil
}

// inherit returns the listeners of an address that another process had.
func (s *Set) inherit(r Role, addr string) (ls []*Listener, err error) {
	if s.inherited == nil {
		return nil, nil
	}
	got, err := s.inherited(key(r.Name, addr))
	for _, l := range got {
		ls = append(ls, s.wrap(l, r, addr, addr == SystemdAddress))
	}
	if err != nil {
		err = &Error{Role: r.Name, Msg: r.Label + ": " + err.Error(), Err: err}
	}
	return ls, err
}

// SetInherited replaces where sockets are inherited from.
func (s *Set) SetInherited(f func(key string) ([]net.Listener, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inherited = f
}

func (s *Set) wrap(l net.Listener, r Role, addr string, systemd bool) *Listener {
	return &Listener{Listener: l, Role: r.Name, Label: r.Label, Address: addr, Systemd: systemd, set: s}
}

// bindError explains the usual reasons for which an address cannot be listened on.
func bindError(r Role, addr string, err error) error {
	e := &Error{Role: r.Name, Msg: fmt.Sprintf("%s: %v", r.Label, err), Err: err, Fix: "correct the address, or make it available"}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(addr)
		e.Fix = fmt.Sprintf(`another program listens there: "ss -ltnp 'sport = :%s'" names it; stop it or choose another address. `+
			`If it is systemd, write "systemd" as the address`, port)
	case errors.Is(err, syscall.EACCES):
		e.Fix = "ports below 1024 need CAP_NET_BIND_SERVICE: start by systemd (the unit grants it), or use socket units"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		e.Fix = `this machine does not have that address: "ip address" lists those it has`
	}
	return e
}

// Close closes all listeners.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.list {
		l.Close()
	}
	s.list = nil
}

// closeAll closes listeners. A socket of systemd's stays open on its side, and with us for the day when it is wanted again: systemd passes
// it only once.
func (s *Set) closeAll(list []*Listener) {
	for _, l := range list {
		if l.Systemd {
			if s.sockets == nil { // it came from another process
				s.sockets = &Sockets{byName: map[string][]net.Listener{}}
			}
			s.sockets.put(l.Role, l.Listener)
		}
		l.Close()
	}
}

// missing returns the listeners of old that are not in next.
func missing(old, next []*Listener) (gone []*Listener) {
	for _, l := range old {
		if !slices.Contains(next, l) {
			gone = append(gone, l)
		}
	}
	return gone
}

// Accept returns the next connection. It never waits for a client to say something: a PROXY header is read later, by the
// goroutine that serves the connection. Errors are those of the network; a closed listener gives net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if p := l.set.proxy.Load(); p.On {
		return newConn(c, l, p), nil
	}
	return c, nil
}

// Key names the listener for another process with the same settings.
func (l *Listener) Key() string { return key(l.Role, l.Address) }

func key(role, addr string) string { return role + " " + addr }

// SyscallConn gives access to the socket, to hand it to another process.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	c, ok := l.Listener.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%s: not a socket", l)
	}
	return c.SyscallConn()
}

// String describes the listener as the log shows it.
func (l *Listener) String() string {
	s := fmt.Sprintf("%s (%s", l.Addr(), l.Label)
	if l.Systemd {
		s += ", via systemd"
	}
	return s + ")"
}
