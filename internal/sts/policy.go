package sts

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// Mode is what a policy asks for (RFC 8461 section 3.2).
type Mode string

// The modes.
const (
	Enforce Mode = "enforce"
	Testing Mode = "testing"
	None    Mode = "none"
)

// Policy is an MTA-STS policy. The JSON form is that of cache files: max_age is in nanoseconds there.
type Policy struct {
	Version string        `json:"version"`
	Mode    Mode          `json:"mode"`
	MXs     []string      `json:"mx"`
	MaxAge  time.Duration `json:"max_age"`
}

// Limits of a policy.
const (
	maxAge = 31557600 * time.Second // RFC 8461 section 3.2
	maxMX  = 256
)

// Errors of Parse and Check. They may be shown to people; they hold nothing of the policy but numbers.
var (
	errVersion = errors.New("the version is not STSv1")
	errMode    = errors.New("unknown mode")
	errMaxAge  = errors.New("max_age is missing or out of range")
	errNoMX    = errors.New("no valid mx")
)

// Parse reads a policy: "key: value" lines. Unknown keys are passed over, the last of several counts, but for mx.
func Parse(text string) (*Policy, error) {
	p := &Policy{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok {
			continue
		}
		value = strings.Trim(value, " \t")
		switch strings.Trim(key, " \t") {
		case "version":
			p.Version = value
		case "mode":
			p.Mode = Mode(value)
		case "max_age":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return nil, errMaxAge
			}
			p.MaxAge = time.Duration(n) * time.Second
		case "mx":
			if len(p.MXs) == maxMX {
				return nil, fmt.Errorf("more than %d mx", maxMX)
			}
			p.MXs = append(p.MXs, value)
		}
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	return p, nil
}

// Check reports why the policy must not be used. Patterns that are no names never match, so one good one is enough.
func (p *Policy) Check() error {
	switch {
	case p.Version != "STSv1":
		return errVersion
	case p.Mode != Enforce && p.Mode != Testing && p.Mode != None:
		return errMode
	case p.MaxAge <= 0 || p.MaxAge > maxAge:
		return errMaxAge
	}
	for _, mx := range p.MXs {
		if _, _, ok := pattern(mx); ok {
			return nil
		}
	}
	if p.Mode == None {
		return nil // RFC 8461 section 3.2: mx is not needed then
	}
	return errNoMX
}

// pattern takes an mx pattern apart; the name is in A-labels.
func pattern(s string) (name string, wildcard, ok bool) {
	s, wildcard = strings.CutPrefix(s, "*.")
	name, ok = hostname(s)
	return name, wildcard, ok
}

// hostname returns a host name as it is compared: A-labels, lower case, no trailing dot.
func hostname(s string) (string, bool) {
	a, err := address.ASCIIDomain(strings.TrimSuffix(s, "."))
	return a, err == nil
}

// Allows reports whether the policy names the mail server. A wildcard stands for exactly one label (RFC 8461 section 4.1).
func (p *Policy) Allows(mx string) bool {
	host, ok := hostname(mx)
	if !ok {
		return false
	}
	_, parent, _ := strings.Cut(host, ".")
	for _, s := range p.MXs {
		if name, wildcard, ok := pattern(s); ok && (wildcard && parent == name || !wildcard && host == name) {
			return true
		}
	}
	return false
}

// Lines returns the policy as its lines, for reports.
func (p *Policy) Lines() []string {
	l := []string{"version: " + p.Version, "mode: " + string(p.Mode)}
	for _, mx := range p.MXs {
		l = append(l, "mx: "+mx)
	}
	return append(l, "max_age: "+strconv.FormatInt(int64(p.MaxAge/time.Second), 10))
}
