package message

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Mailbox is one address of a header field such as From. Local has its quotes removed; Domain is as written, without comments,
// and with brackets if it is a literal.
type Mailbox struct {
	Name, Local, Domain string
}

// Errors of ParseMailboxes, wrapped with the place.
var (
	errMailbox  = errors.New("not an address list")
	errTooDeep  = errors.New("comments nested too deep")
	errTooMany  = errors.New("too many addresses")
	errNoColumn = errors.New("empty address list")
)

// Limits of an address list. The parser is linear in the length of its input whatever that is (standards D37).
const (
	maxMailboxes = 10000
	maxWords     = 10000 // of one display name or local part
	maxComments  = 20    // nested
)

// ParseMailboxes parses an address-list (RFC 5322 section 3.4, RFC 6532) with groups, comments and the obsolete forms of section
// 4.4. It is strict: text that two readers may understand differently is an error.
func ParseMailboxes(s string) ([]Mailbox, error) {
	p := &mailboxParser{s: s}
	if err := p.list(); err != nil {
		return nil, fmt.Errorf("%w at byte %d", err, p.i)
	}
	if len(p.out) == 0 {
		return nil, errNoColumn
	}
	return p.out, nil
}

type mailboxParser struct {
	s   string
	i   int
	out []Mailbox
}

// list parses everything: addresses and groups separated by commas.
func (p *mailboxParser) list() error {
	inGroup := false
	for {
		if err := p.cfws(); err != nil {
			return err
		}
		switch p.peek() {
		case 0:
			if p.i < len(p.s) || inGroup {
				return errMailbox
			}
			return nil
		case ',': // RFC 5322 section 4.4 allows empty elements
			p.i++
			continue
		case ';':
			if !inGroup {
				return errMailbox
			}
			p.i++
			inGroup = false
		default:
			group, err := p.address()
			if err != nil {
				return err
			}
			if group {
				if inGroup {
					return errMailbox
				}
				inGroup = true
				continue
			}
		}
		if err := p.cfws(); err != nil {
			return err
		}
		if c := p.peek(); c != ',' && (c != ';' || !inGroup) && p.i < len(p.s) {
			return errMailbox
		}
	}
}

// word is an atom, a dot or a quoted string.
type word struct {
	text   string
	quoted bool
	spaced bool // white space or a comment stands before it
}

// address parses a mailbox, or the beginning of a group up to its colon.
func (p *mailboxParser) address() (group bool, err error) {
	words, err := p.words()
	if err != nil {
		return false, err
	}
	switch p.peek() {
	case ':':
		p.i++
		return true, phraseError(words)
	case '<':
		p.i++
		m := Mailbox{Name: phrase(words)}
		if err := phraseError(words); err != nil && len(words) > 0 {
			return false, err
		}
		if err := p.route(); err != nil {
			return false, err
		}
		local, err := p.words()
		if err != nil {
			return false, err
		}
		if err := p.addrSpec(&m, local); err != nil {
			return false, err
		}
		if p.peek() != '>' {
			return false, errMailbox
		}
		p.i++
		return false, p.add(m)
	case '@':
		var m Mailbox
		if err := p.addrSpec(&m, words); err != nil {
			return false, err
		}
		return false, p.add(m)
	}
	return false, errMailbox
}

func (p *mailboxParser) add(m Mailbox) error {
	if len(p.out) == maxMailboxes {
		return errTooMany
	}
	p.out = append(p.out, m)
	return nil
}

// words parses words, dots and comments up to something else.
func (p *mailboxParser) words() (l []word, err error) {
	for {
		before := p.i
		if err := p.cfws(); err != nil {
			return nil, err
		}
		w := word{spaced: p.i > before}
		c := p.peek()
		switch {
		case c == '"':
			if w.text, err = p.quoted(); err != nil {
				return nil, err
			}
			w.quoted = true
		case c == '.':
			w.text = "."
			p.i++
		case isAtext(c):
			start := p.i
			for isAtext(p.peek()) {
				p.i++
			}
			w.text = p.s[start:p.i]
		default:
			return l, nil
		}
		if len(l) == maxWords {
			return nil, errTooMany
		}
		l = append(l, w)
	}
}

// phrase joins the words of a display name.
func phrase(words []word) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 && w.spaced {
			b.WriteByte(' ')
		}
		b.WriteString(w.text)
	}
	return b.String()
}

// phraseError reports a display name that is none: it must have a word besides dots.
func phraseError(words []word) error {
	for _, w := range words {
		if w.quoted || w.text != "." {
			return nil
		}
	}
	return errMailbox
}

// addrSpec makes the local part of words and parses "@" and the domain.
func (p *mailboxParser) addrSpec(m *Mailbox, words []word) error {
	if len(words)%2 == 0 {
		return errMailbox
	}
	var b strings.Builder
	for i, w := range words {
		if dot := w.text == "." && !w.quoted; dot != (i%2 == 1) {
			return errMailbox
		}
		b.WriteString(w.text)
	}
	m.Local = b.String()
	if p.peek() != '@' {
		return errMailbox
	}
	p.i++
	var err error
	m.Domain, err = p.domain()
	return err
}

// route skips an obsolete route "@a,@b:".
func (p *mailboxParser) route() error {
	if err := p.cfws(); err != nil {
		return err
	}
	if p.peek() != '@' && p.peek() != ',' {
		return nil
	}
	for {
		if err := p.cfws(); err != nil {
			return err
		}
		switch p.peek() {
		case ',':
			p.i++
		case '@':
			p.i++
			if _, err := p.domain(); err != nil {
				return err
			}
		case ':':
			p.i++
			return nil
		default:
			return errMailbox
		}
	}
}

// domain parses a domain or a domain literal, with white space and comments around its parts.
func (p *mailboxParser) domain() (string, error) {
	if err := p.cfws(); err != nil {
		return "", err
	}
	if p.peek() == '[' {
		end := strings.IndexByte(p.s[p.i:], ']')
		if end < 0 || strings.IndexFunc(p.s[p.i+1:p.i+end], notLiteral) >= 0 {
			return "", errMailbox
		}
		d := p.s[p.i : p.i+end+1]
		p.i += end + 1
		return d, p.cfws()
	}
	words, err := p.words()
	if err != nil {
		return "", err
	}
	if len(words)%2 == 0 {
		return "", errMailbox
	}
	var b strings.Builder
	for i, w := range words {
		if dot := w.text == "."; w.quoted || dot != (i%2 == 1) {
			return "", errMailbox
		}
		b.WriteString(w.text)
	}
	return b.String(), nil
}

// notLiteral reports what no address literal of RFC 5321 section 4.1.3 has inside its brackets.
func notLiteral(r rune) bool {
	return (r < '0' || r > ':') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '.' && r != '-'
}

// quoted parses a quoted string and returns what it means.
func (p *mailboxParser) quoted() (string, error) {
	var b strings.Builder
	for p.i++; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; {
		case c == '"':
			p.i++
			return b.String(), nil
		case c == '\\' && p.i+1 < len(p.s):
			p.i++
			b.WriteByte(p.s[p.i])
		case c == '\r' || c == '\n':
			// a fold
		case c == 0:
			return "", errMailbox
		default:
			b.WriteByte(c)
		}
	}
	return "", errMailbox
}

// cfws skips white space, folds and comments.
func (p *mailboxParser) cfws() error {
	depth := 0
	for ; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; {
		case c == '(':
			if depth++; depth > maxComments {
				return errTooDeep
			}
		case c == ')' && depth > 0:
			depth--
		case depth > 0 && c == '\\':
			p.i++
		case depth > 0 && c != 0, c == ' ', c == '\t', c == '\r', c == '\n':
		default:
			if depth > 0 {
				return errMailbox
			}
			return nil
		}
	}
	if depth > 0 {
		return errMailbox
	}
	return nil
}

// peek returns the next byte, 0 at the end. A NUL in the text is no part of any construct and so an error for every caller.
func (p *mailboxParser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

// SimpleDomain returns the domain of a field body in one of the forms that nearly all have: a plain address, or one in angle
// brackets after words and quoted strings. It allocates nothing. Everything else is for ParseMailboxes, which agrees with it.
func SimpleDomain(b []byte) (domain []byte, ok bool) {
	i, quoted, words := 0, false, false
	for ; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted, words = !quoted, true
		case quoted && c != '\\' && c != 0:
		case c == ' ', c == '\t', c == '\r', c == '\n':
		case c == '<' && !quoted:
			return simpleAddress(b[i+1:], '>')
		case !quoted && (isAtext(c) || c == '.' && words): // a phrase does not begin with a dot (RFC 5322 section 4.1)
			words = true
		case c == '@' && words && !quoted:
			return simpleAddress(bytes.TrimLeft(b, " \t\r\n"), 0)
		default:
			return nil, false
		}
	}
	return nil, false
}

// simpleAddress parses "local@domain" followed by end, if that is not 0, and nothing but white space.
func simpleAddress(b []byte, end byte) (domain []byte, ok bool) {
	at := dotAtom(b)
	if at == 0 || at == len(b) || b[at] != '@' {
		return nil, false
	}
	domain = b[at+1:]
	n := dotAtom(domain)
	rest := domain[n:]
	if end != 0 {
		if len(rest) == 0 || rest[0] != end {
			return nil, false
		}
		rest = rest[1:]
	}
	return domain[:n], n > 0 && len(bytes.TrimLeft(rest, " \t\r\n")) == 0
}

// dotAtom returns the length of the dot-atom that b begins with, 0 if there is none.
func dotAtom(b []byte) int {
	dot := true // no dot may stand here
	i := 0
	for ; i < len(b); i++ {
		if b[i] == '.' {
			if dot {
				return 0
			}
			dot = true
			continue
		}
		if !isAtext(b[i]) {
			break
		}
		dot = false
	}
	if dot {
		return 0
	}
	return i
}

// isAtext reports atext of RFC 5322 section 3.2.3; bytes of UTF-8 sequences count (RFC 6532 section 3.2).
func isAtext(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80 ||
		atextSigns[c]
}

var atextSigns = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-/=?^_`{|}~") {
		t[c] = true
	}
	return t
}()
