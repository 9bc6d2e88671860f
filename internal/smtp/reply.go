// Package smtp is the wire vocabulary of SMTP for both ends: replies, command lines, paths, parameters and the dot stream.
package smtp

import (
	"strconv"
	"strings"
)

// EnhancedCode is a status code of RFC 3463: class, subject, detail. The zero value means "none".
type EnhancedCode [3]uint16

// String renders the code as "5.1.1", or "" for the zero value.
func (e EnhancedCode) String() string {
	if e == (EnhancedCode{}) {
		return ""
	}
	b := make([]byte, 0, 12)
	return string(e.append(b))
}

func (e EnhancedCode) append(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(e[0]), 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(e[1]), 10)
	b = append(b, '.')
	return strconv.AppendUint(b, uint64(e[2]), 10)
}

// ParseEnhancedCode parses "5.1.1" (RFC 3463 section 2): class 2, 4 or 5, subject and detail of one to three digits.
func ParseEnhancedCode(s string) (EnhancedCode, bool) {
	var e EnhancedCode
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return e, false
	}
	for i, p := range parts {
		if len(p) == 0 || len(p) > 3 {
			return EnhancedCode{}, false
		}
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return EnhancedCode{}, false
		}
		e[i] = uint16(n)
	}
	if e[0] != 2 && e[0] != 4 && e[0] != 5 {
		return EnhancedCode{}, false
	}
	return e, true
}

// Reply is one SMTP reply (RFC 5321 section 4.2). Text holds one or more lines separated by "\n", without codes.
// The zero value means "no reply". Whether a reply is temporary is computed from Code, so it cannot contradict it.
type Reply struct {
	Code int
	Enh  EnhancedCode
	Text string
}

// NewReply makes a reply from its three parts; enh like "5.1.1", or "" for none. A malformed enh is a programming error and panics.
func NewReply(code int, enh, text string) Reply {
	r := Reply{Code: code, Text: text}
	if enh != "" {
		e, ok := ParseEnhancedCode(enh)
		if !ok {
			panic("smtp: bad enhanced code " + enh)
		}
		r.Enh = e
	}
	return r
}

// IsZero reports whether there is no reply.
func (r Reply) IsZero() bool { return r.Code == 0 }

// Positive reports a 2xx or 3xx code.
func (r Reply) Positive() bool { return r.Code >= 200 && r.Code < 400 }

// Temporary reports a 4xx code (RFC 5321 section 4.2.1).
func (r Reply) Temporary() bool { return r.Code >= 400 && r.Code < 500 }

// Permanent reports a 5xx code (RFC 5321 section 4.2.1).
func (r Reply) Permanent() bool { return r.Code >= 500 && r.Code < 600 }

// Class returns the first digit of the code.
func (r Reply) Class() int { return r.Code / 100 }

// String renders the reply on one line, for logs and notices: "550 5.1.1 text".
func (r Reply) String() string {
	b := strconv.AppendInt(make([]byte, 0, 16+len(r.Text)), int64(r.Code), 10)
	if r.Enh != (EnhancedCode{}) {
		b = append(b, ' ')
		b = r.Enh.append(b)
	}
	if r.Text != "" {
		b = append(b, ' ')
		b = append(b, strings.ReplaceAll(r.Text, "\n", " ")...)
	}
	return string(b)
}

// Error makes a Reply usable as an error.
func (r Reply) Error() string { return r.String() }

// AppendTo appends the wire form: every line "code[-| ][enh ]text CRLF" (RFC 5321 section 4.2.1, RFC 2034 section 4).
func (r Reply) AppendTo(b []byte) []byte {
	text := r.Text
	for {
		line, rest, more := strings.Cut(text, "\n")
		b = strconv.AppendInt(b, int64(r.Code), 10)
		if more {
			b = append(b, '-')
		} else {
			b = append(b, ' ')
		}
		if r.Enh != (EnhancedCode{}) {
			b = r.Enh.append(b)
			b = append(b, ' ')
		}
		b = append(b, line...)
		b = append(b, '\r', '\n')
		if !more {
			return b
		}
		text = rest
	}
}
