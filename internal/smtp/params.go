package smtp

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// Param is one ESMTP parameter of MAIL or RCPT: KEYWORD or KEYWORD=value (RFC 5321 section 4.1.1.11). Keyword is upper case.
type Param struct {
	Keyword, Value string
	HasValue       bool
}

// Params are the parameters of one command, in the order given.
type Params []Param

// Get returns the value of the keyword (upper case) and whether it is present.
func (ps Params) Get(keyword string) (string, bool) {
	for _, p := range ps {
		if p.Keyword == keyword {
			return p.Value, true
		}
	}
	return "", false
}

// Has reports whether the keyword (upper case) is present.
func (ps Params) Has(keyword string) bool {
	_, ok := ps.Get(keyword)
	return ok
}

// String renders the parameters as they stand on a command line, separated by single spaces.
func (ps Params) String() string {
	if len(ps) == 0 {
		return ""
	}
	var b strings.Builder
	for i, p := range ps {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p.Keyword)
		if p.HasValue {
			b.WriteByte('=')
			b.WriteString(p.Value)
		}
	}
	return b.String()
}

// ErrParam is the reason ParseParams refuses a parameter list.
var ErrParam = errors.New("malformed parameter")

// ParseParams parses a space-separated parameter list (RFC 5321 section 4.1.2, esmtp-param). Keywords become upper case.
// A value may hold any printable character but "=" and space; UTF-8 is allowed (RFC 6531 section 3.3). A repeated keyword is an error.
func ParseParams(s string) (Params, error) {
	var ps Params
	for {
		s = strings.TrimLeft(s, " ")
		if s == "" {
			return ps, nil
		}
		var word string
		word, s, _ = strings.Cut(s, " ")
		k, v, has := strings.Cut(word, "=")
		if !ValidKeyword(k) || (has && !validValue(v)) || len(ps) == MaxParams {
			return nil, ErrParam
		}
		k = strings.ToUpper(k)
		if ps.Has(k) {
			return nil, ErrParam
		}
		if ps == nil {
			ps = make(Params, 0, 2)
		}
		ps = append(ps, Param{Keyword: k, Value: v, HasValue: has})
	}
}

// MaxParams is how many parameters one command may have; all that are defined together are fewer.
const MaxParams = 20

// ValidKeyword reports an esmtp-keyword (RFC 5321 section 4.1.2): a letter or digit, then letters, digits and hyphens.
func ValidKeyword(k string) bool {
	for i := 0; i < len(k); i++ {
		c := k[i]
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && (c != '-' || i == 0) {
			return false
		}
	}
	return k != ""
}

func validValue(v string) bool {
	for i := 0; i < len(v); i++ {
		if c := v[i]; c <= ' ' || c == '=' || c == 0x7f {
			return false
		}
	}
	return v != "" && utf8.ValidString(v)
}

const hexDigits = "0123456789ABCDEF"

// EncodeXtext encodes s as xtext (RFC 3461 section 4): bytes outside "!".."~", and "+" and "=", become "+XX".
func EncodeXtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < '!' || c > '~' || c == '+' || c == '=' {
			b.WriteByte('+')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// DecodeXtext decodes xtext (RFC 3461 section 4); ok is false if s is not valid xtext.
func DecodeXtext(s string) (decoded string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c < '!' || c > '~' || c == '=':
			return "", false
		case c != '+':
			b.WriteByte(c)
		case i+2 >= len(s):
			return "", false
		default:
			hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
			if hi < 0 || lo < 0 {
				return "", false
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 2
		}
	}
	return b.String(), true
}
