package smtp

import (
	"errors"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// Errors of ParsePath, besides those of package address.
var (
	ErrNoPath    = errors.New("no path")                               // nothing where the path should be
	ErrNotPath   = errors.New("the address must be in angle brackets") // RFC 5321 section 4.1.2
	ErrPathEnd   = errors.New("unexpected text after the address")     // not separated by a space
	ErrPathRoute = errors.New("malformed source route")                // section 4.1.2, A-d-l
	ErrPathSize  = errors.New("address too long")                      // section 4.5.3.1.3
)

// ParsePath parses the path at the start of s: a Reverse-path or Forward-path of RFC 5321 section 4.1.2 in its angle brackets. It returns
// the address, null for "<>", and what follows the path: parameters, without the space before them. A source route is accepted and
// ignored (section 3.6.1 and appendix C). An address without a domain is returned as such: who allows it decides, as for "<postmaster>".
func ParsePath(s string) (a address.Address, rest string, err error) {
	if s == "" {
		return a, "", ErrNoPath
	}
	if s[0] != '<' {
		return a, "", ErrNotPath
	}
	end := pathEnd(s)
	if end < 0 {
		return a, "", ErrNotPath
	}
	path, rest := s[1:end], s[end+1:]
	if rest != "" {
		if rest[0] != ' ' {
			return a, "", ErrPathEnd
		}
		rest = rest[1:]
	}
	if path == "" {
		return a, rest, nil
	}
	if path[0] == '@' {
		if path, err = cutRoute(path); err != nil {
			return a, "", err
		}
	}
	if len(path)+2 > address.MaxPath {
		return a, "", ErrPathSize
	}
	if a, err = address.Parse(path); err != nil {
		if errors.Is(err, address.ErrTooBig) {
			err = ErrPathSize
		}
		return address.Address{}, "", err
	}
	if len(a.Local)+1+len(a.Domain)+2 > address.MaxPath {
		return address.Address{}, "", ErrPathSize
	}
	return a, rest, nil
}

// pathEnd returns the index of the ">" that closes the path at the start of s, -1 if there is none. One in a quoted string is not it.
func pathEnd(s string) int {
	quoted := false
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if quoted {
				i++
			}
		case '"':
			quoted = !quoted
		case '>':
			if !quoted {
				return i
			}
		}
	}
	return -1
}

// cutRoute removes "@a,@b:" from the start of a path.
func cutRoute(path string) (string, error) {
	end, literal := -1, false
	for i := 0; i < len(path) && end < 0; i++ {
		switch path[i] {
		case '[', ']':
			literal = path[i] == '['
		case ':':
			if !literal {
				end = i
			}
		}
	}
	if end < 0 || end == len(path)-1 || end > address.MaxPath {
		return "", ErrPathRoute
	}
	route, mailbox := path[:end], path[end+1:]
	for _, hop := range strings.Split(route, ",") {
		if !strings.HasPrefix(hop, "@") {
			return "", ErrPathRoute
		}
		if _, err := address.NormalizeDomain(hop[1:]); err != nil {
			return "", ErrPathRoute
		}
	}
	return mailbox, nil
}
