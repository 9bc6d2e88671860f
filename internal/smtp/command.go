package smtp

import (
	"bytes"
	"errors"
)

// Command is one command line taken apart. Both parts alias the line that was parsed.
type Command struct {
	Verb []byte // in upper case
	Arg  []byte // what follows the verb's space, without trailing blanks; nil if there is none
}

// Errors of ParseCommand.
var (
	ErrNUL    = errors.New("NUL in a command line")
	ErrBareCR = errors.New("CR without LF")
	ErrBareLF = errors.New("LF without CR")
)

// ParseCommand takes apart a command line without its CRLF: the verb up to the first space, which is changed to upper case in place, and
// the argument (RFC 5321 sections 2.4 and 4.1.1). Blanks at the end are dropped, as section 4.1.1 advises; blanks at the start are
// part of the verb, which is then unknown. An error is ErrNUL, ErrBareCR or ErrBareLF; the line can still be skipped safely.
func ParseCommand(line []byte) (Command, error) {
	for _, bad := range [...]struct {
		c   byte
		err error
	}{{0, ErrNUL}, {'\r', ErrBareCR}, {'\n', ErrBareLF}} {
		if bytes.IndexByte(line, bad.c) >= 0 {
			return Command{}, bad.err
		}
	}
	for len(line) > 0 && (line[len(line)-1] == ' ' || line[len(line)-1] == '\t') {
		line = line[:len(line)-1]
	}
	c := Command{Verb: line}
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		c.Verb = line[:i]
		if arg := bytes.TrimLeft(line[i+1:], " "); len(arg) > 0 {
			c.Arg = arg
		}
	}
	for i, b := range c.Verb {
		if b >= 'a' && b <= 'z' {
			c.Verb[i] = b - 'a' + 'A'
		}
	}
	return c, nil
}

// CutKeyword removes "FROM:" or "TO:" (keyword, with its colon, in upper case) from the start of the argument of MAIL or RCPT, in any
// case (RFC 5321 section 4.1.1.2), and blanks after it, which some clients send.
func CutKeyword(arg []byte, keyword string) (rest []byte, ok bool) {
	if len(arg) < len(keyword) {
		return arg, false
	}
	for i := 0; i < len(keyword); i++ {
		c := arg[i]
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != keyword[i] {
			return arg, false
		}
	}
	return bytes.TrimLeft(arg[len(keyword):], " "), true
}

// ValidHelo reports an EHLO or HELO argument that may be kept: a host name as hosts give them (letters, digits, hyphens, dots and, as
// many do, underscores), or an address literal (RFC 5321 sections 4.1.1.1 and 4.1.3). That the name exists is not asked for.
func ValidHelo(name []byte) bool {
	if len(name) == 0 || len(name) > 255 {
		return false
	}
	literal := false
	if name[0] == '[' {
		if len(name) < 3 || name[len(name)-1] != ']' {
			return false
		}
		literal, name = true, name[1:len(name)-1]
	}
	for _, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.':
		case c == '_' && !literal:
		case c == ':' && literal:
		default:
			return false
		}
	}
	return true
}
