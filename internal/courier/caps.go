package courier

import (
	"bytes"
	"strconv"
	"strings"
)

// caps is what a server said it can do in its answer to EHLO. Unknown words are ignored (RFC 5321 section 4.1.1.1).
type caps struct {
	starttls, pipelining, chunking, binaryMIME, eightBitMIME, smtpUTF8, dsn, requireTLS, hasSize bool
	authPlain, authLogin                                                                         bool

	size                            int64 // largest message it takes; 0: no limit stated
	rcptMax, rcptDomainMax, mailMax int   // LIMITS (RFC 9422 section 4); 0: none stated
}

// add takes in one line of the answer to EHLO, without its code.
func (c *caps) add(line []byte) {
	word, args, _ := bytes.Cut(line, []byte{' '})
	var buf [16]byte
	if len(word) > len(buf) {
		return
	}
	for i, b := range word {
		if b >= 'a' && b <= 'z' {
			b -= 'a' - 'A'
		}
		buf[i] = b
	}
	switch string(buf[:len(word)]) {
	case "STARTTLS":
		c.starttls = true
	case "PIPELINING":
		c.pipelining = true
	case "CHUNKING":
		c.chunking = true
	case "BINARYMIME":
		c.binaryMIME = true
	case "8BITMIME":
		c.eightBitMIME = true
	case "SMTPUTF8":
		c.smtpUTF8 = true
	case "DSN":
		c.dsn = true
	case "REQUIRETLS":
		c.requireTLS = true
	case "SIZE":
		c.hasSize = true
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(args)), 10, 64); err == nil && n > 0 {
			c.size = n
		}
	case "AUTH":
		c.auth(string(args))
	case "AUTH=PLAIN": // as some old servers write it
		c.authPlain = true
		c.auth(string(args))
	case "AUTH=LOGIN":
		c.authLogin = true
		c.auth(string(args))
	case "LIMITS":
		c.limits(string(args))
	}
}

func (c *caps) auth(mechanisms string) {
	for m := range strings.FieldsSeq(mechanisms) {
		switch {
		case strings.EqualFold(m, "PLAIN"):
			c.authPlain = true
		case strings.EqualFold(m, "LOGIN"):
			c.authLogin = true
		}
	}
}

// limits parses "RCPTMAX=20 MAILMAX=5" (RFC 9422 section 3). A limit of 0 or with a bad value is no limit.
func (c *caps) limits(args string) {
	for l := range strings.FieldsSeq(args) {
		name, value, _ := strings.Cut(l, "=")
		n, err := strconv.Atoi(value)
		if err != nil || n <= 0 {
			continue
		}
		switch strings.ToUpper(name) {
		case "RCPTMAX":
			c.rcptMax = n
		case "RCPTDOMAINMAX":
			c.rcptDomainMax = n
		case "MAILMAX":
			c.mailMax = n
		}
	}
}
