package courier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// dialed is the result of one connection attempt.
type dialed struct {
	conn net.Conn
	addr netip.AddrPort
	err  error
}

// dialAny connects to the first address that answers. Each gets a head start over the next, so that a dead address or family
// costs a fraction of a second (RFC 8305 section 5). It returns when all attempts it began have ended.
func (s *SMTP) dialAny(ctx context.Context, addrs []netip.AddrPort) (net.Conn, netip.AddrPort, error) {
	begin := time.Now()
	defer func() { s.metrics.took(stageConnect, begin) }()
	if len(addrs) == 1 {
		r := s.dialOne(ctx, addrs[0])
		return r.conn, r.addr, r.err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	results := make(chan dialed, len(addrs))
	defer func() {
		cancel()
		wg.Wait()
		close(results)
		for r := range results { // those that answered too late
			if r.conn != nil {
				r.conn.Close()
			}
		}
	}()
	begun, ended := 0, 0
	next := func() {
		addr := addrs[begun]
		begun++
		wg.Go(func() { results <- s.dialOne(ctx, addr) })
	}
	next()
	timer := time.NewTimer(dialStagger)
	defer timer.Stop()
	var failed error
	for {
		select {
		case r := <-results:
			if r.err == nil {
				return r.conn, r.addr, nil
			}
			if failed == nil {
				failed = r.err
			} else {
				failed = fmt.Errorf("%w; %w", failed, r.err)
			}
			if ended++; ended == len(addrs) {
				return nil, addrs[0], failed
			}
		case <-timer.C:
		}
		if begun < len(addrs) {
			next()
			timer.Reset(dialStagger)
		}
	}
}

// dialOne connects to one address and counts the result, unless the attempt was called off.
func (s *SMTP) dialOne(parent context.Context, addr netip.AddrPort) dialed {
	ctx, cancel := context.WithTimeout(parent, s.cfg.Timeouts.Connect)
	defer cancel()
	conn, err := s.cfg.Dial(ctx, "tcp", addr.String())
	if err != nil && parent.Err() == nil && ctx.Err() != nil {
		err = fmt.Errorf("connecting to %s: %w", addr, errTimeout)
	}
	if parent.Err() == nil || err == nil {
		network := "ip6"
		if addr.Addr().Is4() {
			network = "ip4"
		}
		s.metrics.conns.With(network, dialResult(err)).Inc()
	}
	return dialed{conn, addr, err}
}

// errTimeout is a time-out of ours: no answer came in time.
var errTimeout error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string   { return "no answer in time" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

func isTimeout(err error) bool {
	ne := net.Error(nil)
	return errors.As(err, &ne) && ne.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// dialResult is the metric label for the end of a connection attempt.
func dialResult(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return "unreachable"
	case isTimeout(err):
		return "timeout"
	}
	return "other"
}
