package dmarc

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/message"
)

// What may be wrong with the author of a message. AuthorError wraps one of them.
var (
	ErrNoFrom       = errors.New("no From field")
	ErrManyFrom     = errors.New("more than one From field")
	ErrMalformed    = errors.New("the From field is malformed")
	ErrManyDomains  = errors.New("the From field names several domains")
	errTooManyNames = errors.New("the From field names too many domains")
)

// AuthorError says why the author's domain is not certain, and where.
type AuthorError struct {
	Line int // of the From field, 0 if there is none
	Err  error
}

func (e *AuthorError) Error() string {
	if e.Line == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("line %d: %v", e.Line, e.Err)
}

func (e *AuthorError) Unwrap() error { return e.Err }

// maxAuthors is how many domains of one message are evaluated.
const maxAuthors = 5

// Authors returns the domains (A-labels) that a reader of the message may take for its author's. An error says that there is doubt:
// then the list has every domain that could be meant, perhaps none (RFC 9989 section 5.3.1).
func Authors(h *message.Header) ([]string, error) {
	var domains []string
	var problem error
	n, line, second := 0, 0, 0 // From fields, and the lines of the first two
	for _, f := range h.Fields() {
		if !f.Is("From") && (f.Name() != "" || !looksLikeFrom(f.Raw())) {
			continue
		}
		switch n++; n {
		case 1:
			line = f.Line()
		case 2:
			second = f.Line()
		}
		var err error
		if domains, err = addDomains(domains, f); err != nil && problem == nil {
			problem = &AuthorError{f.Line(), err}
		}
	}
	switch {
	case n == 0:
		return nil, &AuthorError{0, ErrNoFrom}
	case n > 1:
		problem = &AuthorError{second, ErrManyFrom}
	case len(domains) > maxAuthors:
		problem = &AuthorError{line, errTooManyNames}
	case problem == nil && len(domains) > 1:
		problem = &AuthorError{line, ErrManyDomains}
	}
	return domains[:min(len(domains), maxAuthors)], problem
}

// looksLikeFrom reports a line that is no header field to us, but may be the From field to a lenient reader.
func looksLikeFrom(raw []byte) bool {
	name := make([]byte, 0, 8)
	for _, c := range raw {
		if c == ':' {
			return strings.EqualFold(string(name), "from")
		}
		if c > ' ' && c < 0x7f {
			name = append(name, c)
			if len(name) > len("from") {
				return false
			}
		}
	}
	return false
}

// addDomains adds the domains of one From field to those that are there.
func addDomains(l []string, f message.Field) ([]string, error) {
	if d, ok := message.SimpleDomain(f.Body()); ok && f.Name() != "" {
		if d, ok := normalize(string(d)); ok {
			return addNew(l, d), nil
		}
	}
	more, err := fieldDomains(f)
	for _, d := range more {
		l = addNew(l, d)
	}
	return l, err
}

func addNew(l []string, d string) []string {
	if slices.Contains(l, d) {
		return l
	}
	return append(l, d)
}

// fieldDomains returns the domains of one From field, in whatever form it is.
func fieldDomains(f message.Field) ([]string, error) {
	if f.Name() == "" {
		return looseDomains(f.Value()), ErrMalformed
	}
	boxes, err := message.ParseMailboxes(f.Value())
	if err != nil {
		return looseDomains(f.Value()), ErrMalformed
	}
	var l []string
	for _, b := range boxes {
		d, ok := normalize(b.Domain)
		if !ok {
			return looseDomains(f.Value()), ErrMalformed
		}
		if !slices.Contains(l, d) {
			l = append(l, d)
		}
		if len(l) > maxAuthors {
			break
		}
	}
	return l, nil
}

// looseDomains returns everything in a malformed From field that may be read as a domain: what follows each "@".
func looseDomains(v string) (l []string) {
	for len(l) <= maxAuthors {
		_, rest, ok := strings.Cut(v, "@")
		if !ok {
			return l
		}
		v = rest
		end := strings.IndexFunc(rest, func(r rune) bool { return r <= ' ' || strings.ContainsRune(`<>@,;:()"\[]`, r) })
		if end < 0 {
			end = len(rest)
		}
		if d, ok := normalize(rest[:end]); ok && !slices.Contains(l, d) {
			l = append(l, d)
		}
	}
	return l
}

// normalize returns the A-label form of a domain.
func normalize(d string) (string, bool) {
	a, err := address.ASCIIDomain(strings.TrimSuffix(d, "."))
	return a, err == nil
}
