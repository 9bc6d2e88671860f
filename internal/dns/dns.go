// Package dns is the resolver as a mail server needs it: typed answers with TTL and DNSSEC status, not-found apart from failure.
package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// ErrNotFound means the name exists without such records, or does not exist (NXDOMAIN).
// ErrNXDomain is the latter; errors.Is(err, ErrNotFound) holds for both.
var (
	ErrNotFound = errors.New("no such record")
	ErrNXDomain = &nxdomain{}
)

type nxdomain struct{}

func (*nxdomain) Error() string        { return "no such domain" }
func (*nxdomain) Is(target error) bool { return target == ErrNotFound }

// TemporaryError is a failure that may pass: time-out, SERVFAIL, no server reachable.
type TemporaryError struct {
	Name string
	Err  error
}

func (e *TemporaryError) Error() string   { return "looking up " + e.Name + ": " + e.Err.Error() }
func (e *TemporaryError) Unwrap() error   { return e.Err }
func (e *TemporaryError) Temporary() bool { return true }

// Timeout reports whether the answer did not come in time.
func (e *TemporaryError) Timeout() bool {
	var ne net.Error
	return errors.Is(e.Err, context.DeadlineExceeded) || errors.As(e.Err, &ne) && ne.Timeout()
}

// Purpose says what a look-up is for: a metric label.
type Purpose uint8

// The purposes.
const (
	Other Purpose = iota
	ForMX
	ForSPF
	ForDKIM
	ForSTS
	ForPTR
	ForDANE
	ForDMARC
)

// Meta is what is known of an answer besides its records.
type Meta struct {
	TTL    time.Duration
	Secure bool // the resolver validated it (AD bit from a trusted resolver)
}

// MX is one mail exchanger. Host is a lower-case A-label name without trailing dot; "" for the null MX (RFC 7505).
type MX struct {
	Pref uint16
	Host string
}

// TLSA is one record of RFC 6698.
type TLSA struct {
	Usage, Selector, Matching uint8
	Data                      []byte
}

// Resolver looks names up. Names are A-labels without trailing dot. Errors are ErrNotFound, ErrNXDomain or *TemporaryError,
// possibly wrapped. Implementations are safe for concurrent use.
type Resolver interface {
	MX(ctx context.Context, p Purpose, domain string) ([]MX, Meta, error)
	IP(ctx context.Context, p Purpose, host string) ([]netip.Addr, Meta, error)
	TXT(ctx context.Context, p Purpose, name string) ([]string, Meta, error)
	PTR(ctx context.Context, p Purpose, ip netip.Addr) ([]string, Meta, error)
	TLSA(ctx context.Context, p Purpose, name string) ([]TLSA, Meta, error)
}
