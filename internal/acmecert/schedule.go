package acmecert

import (
	"crypto/x509"
	"errors"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/crypto/acme"
)

// attempts is what is remembered of the attempts for one name, also across restarts: a server that is restarted all the time must
// not ask all the time.
type attempts struct {
	Last     time.Time `json:"last,omitzero"`  // end of the last one, or the start of one that did not end
	Since    time.Time `json:"since,omitzero"` // of the first failure in a row
	Failures int       `json:"failures,omitempty"`
	// NotBefore is what the authority asked for.
	NotBefore time.Time `json:"not_before,omitzero"`
	Error     string    `json:"error,omitempty"` // for people

	now bool // an operator asked, or we were restarted: only the shortest pause is kept
}

// Authorities count failures: Let's Encrypt allows five an hour for an account and name.
var pauses = []time.Duration{time.Minute, 10 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour}

// shortest is between two attempts in any case, longestTold is as long as an authority is obeyed.
const (
	shortest    = time.Minute
	longestTold = 7 * 24 * time.Hour
)

// due is when to ask next, for a name with this certificate or none.
func (a attempts) due(leaf *x509.Certificate) time.Time {
	var at time.Time // at once
	if leaf != nil {
		at = renewAt(leaf)
	}
	if a.Failures > 0 || a.now {
		at = later(at, a.Last.Add(a.pause(leaf)))
	}
	return later(at, a.NotBefore)
}

// pause is how long to wait after the last failure: longer each time, but never so long that a certificate would end meanwhile.
func (a attempts) pause(leaf *x509.Certificate) time.Duration {
	if a.now {
		return shortest
	}
	p := pauses[min(a.Failures, len(pauses))-1]
	if leaf == nil {
		return p
	}
	if left := leaf.NotAfter.Sub(a.Last); left > 0 {
		p = min(p, max(left/8, shortest))
	}
	return p
}

// renewAt is when two thirds of a certificate's time are over.
func renewAt(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3 * 2)
}

// failed is after one more failure.
func (a attempts) failed(now time.Time, err error) attempts {
	a.Last, a.Failures, a.now = now, a.Failures+1, false
	if a.Since.IsZero() {
		a.Since = now
	}
	a.NotBefore = time.Time{}
	if d := told(now, err); d > 0 {
		a.NotBefore = now.Add(min(d, longestTold))
	}
	a.Error = err.Error()
	return a
}

// restarted is after a restart, which is often an attempt to repair something.
func (a attempts) restarted() attempts {
	a.now = true
	return a
}

// asked is when an operator wants it tried: at once, unless the authority asked for patience.
func (a attempts) asked() attempts {
	a.Last, a.now = a.Last.Add(-shortest), true
	return a
}

// told is how long the authority asks us to wait (RFC 8555 section 6.6).
func told(now time.Time, err error) time.Duration {
	var e *acme.Error
	if !errors.As(err, &e) || e.Header == nil {
		return 0
	}
	v := e.Header.Get("Retry-After")
	if sec, err := strconv.Atoi(v); err == nil {
		return min(time.Duration(sec), longestTold/time.Second) * time.Second
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return t.Sub(now)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
