// Package srs rewrites the sender of forwarded mail reversibly, so that SPF passes at the next hop and bounces find the true sender.
//
// A rewritten local part is "SRS0=hash=day=domain=user". Mail that was rewritten elsewhere already becomes "SRS1=hash=host==rest", which
// names the first forwarder, so that chains of any length stay short and a bounce takes two steps at most. The hash is keyed: nobody else
// can make an address that Reverse accepts. The day limits how long it works.
package srs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"hash"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
)

const (
	// hashLen is the length of the hash in base32: 30 bits. A guess costs a message; what it wins is one recipient for a bounce.
	hashLen = 6
	// maxAge is how many days a bounce may take: five in our queue, five in the next, some for delays.
	maxAge = 21
	// days is the period of the two-character day number.
	days = 1024
)

var (
	// ErrNotSRS is returned by Reverse for addresses that were not made by Forward: ordinary ones.
	ErrNotSRS = errors.New("not a rewritten address")
	// ErrForged is returned by Reverse for addresses that look rewritten but whose hash is wrong.
	ErrForged = errors.New("rewritten address with a wrong hash")
	// ErrExpired is returned by Reverse for addresses that were rewritten too long ago.
	ErrExpired = errors.New("rewritten address has expired")
	// ErrTooLong is returned by Forward when the rewritten local part would break the limit of RFC 5321 section 4.5.3.1.1.
	ErrTooLong = errors.New("sender too long to rewrite")
)

// code is base32 in lower-case digits and letters: rewritten addresses survive hosts that change the case of local parts.
var code = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// Rewriter rewrites with the first of its secrets and accepts what was rewritten with any of them, so that a secret can be replaced.
// It is safe for concurrent use.
type Rewriter struct{ secrets []*secret }

// secret makes hashes.
type secret struct{ hashers sync.Pool }

// hasher makes a hash at a time. What HMAC computes of the key alone is kept from one to the next, and so is the room for its input.
type hasher struct {
	mac  hash.Hash
	room []byte
}

func newSecret(key []byte) *secret {
	return &secret{sync.Pool{New: func() any { return &hasher{hmac.New(sha256.New, key), make([]byte, 0, 256)} }}}
}

// New returns a rewriter. It needs at least one secret, of 16 random bytes or more; empty ones are ignored. Without any it returns nil,
// which rewrites nothing.
func New(secrets ...[]byte) *Rewriter {
	r := &Rewriter{}
	for _, s := range secrets {
		if len(s) > 0 {
			r.secrets = append(r.secrets, newSecret(s))
		}
	}
	if len(r.secrets) == 0 {
		return nil
	}
	return r
}

// Forward returns the sender to use for mail from the sender that an alias of the domain sends on. The null sender stays as it is; so does
// a sender in the domain itself. A nil rewriter returns the sender unchanged.
func (r *Rewriter) Forward(sender address.Address, domain string, now time.Time) (address.Address, error) {
	if r == nil || sender.IsNull() || sender.Domain == "" || sender.Domain == domain {
		return sender, nil
	}
	s, err := sender.WithASCIIDomain()
	if err != nil {
		return sender, err
	}
	var local string
	switch kind, rest := split(s.Local); kind {
	case "srs0": // ours is the second rewriting: remember the first forwarder, who can undo the rest
		body := s.Domain + "=" + rest
		local = r.srs1(body)
	case "srs1": // the third or a later one: the first forwarder is named already
		_, body, ok := strings.Cut(rest[1:], "=")
		host, tail, ok2 := strings.Cut(body, "=")
		if !ok || !ok2 || !chained(host, tail) {
			local = r.srs0(s, now)
			break
		}
		local = r.srs1(body)
	default:
		local = r.srs0(s, now)
	}
	if len(local) > address.MaxLocal {
		return sender, ErrTooLong
	}
	return address.Address{Local: local, Domain: domain}, nil
}

func (r *Rewriter) srs0(s address.Address, now time.Time) string {
	const head = "SRS0=......=" // the hash comes last
	var room [128]byte
	b := appendDay(append(room[:0], head...), day(now))
	b = append(append(b, '='), s.Domain...)
	b = append(append(b, '='), s.Local...)
	sum := r.secrets[0].sum("srs0", b[len(head):])
	copy(b[len("SRS0="):], sum[:])
	return string(b)
}

func (r *Rewriter) srs1(body string) string {
	return "SRS1=" + r.secrets[0].hash("srs1", body) + "=" + body
}

// Reverse returns the address that a rewritten one stands for. Its domain is of no interest: the caller has checked that it is local.
func (r *Rewriter) Reverse(a address.Address, now time.Time) (address.Address, error) {
	kind, rest := split(a.Local)
	if kind == "" {
		return address.Address{}, ErrNotSRS
	}
	hash, body, ok := strings.Cut(rest[1:], "=")
	if !ok || r == nil || !r.verify(hash, kind, body) {
		return address.Address{}, ErrForged
	}
	if kind == "srs1" {
		host, tail, ok := strings.Cut(body, "=")
		if !ok || !chained(host, tail) {
			return address.Address{}, ErrForged
		}
		return parse("SRS0"+tail, host)
	}
	stamp, body, ok := strings.Cut(body, "=")
	domain, local, ok2 := strings.Cut(body, "=")
	made, ok3 := decodeDay(stamp)
	if !ok || !ok2 || !ok3 || local == "" {
		return address.Address{}, ErrForged
	}
	if age := (day(now) - made + days) % days; age > maxAge && age != days-1 { // a clock may be a day behind
		return address.Address{}, ErrExpired
	}
	return parse(local, domain)
}

// chained reports what can stand for the first forwarder in a SRS1 address, and for what it gave the sender.
func chained(host, tail string) bool {
	_, err := address.NormalizeDomain(host)
	return err == nil && len(tail) >= 2 && strings.IndexByte("=+-", tail[0]) >= 0
}

// maxSteps is how often Original undoes a rewriting: a chain that passes here twice makes two.
const maxSteps = 4

// Original is Reverse until the address is none of ours, or none that was rewritten: in a chain of forwarders that passed here more than
// once, one rewritten address stands for another.
func (r *Rewriter) Original(a address.Address, local func(domain string) bool, now time.Time) (address.Address, error) {
	for range maxSteps {
		var err error
		if a, err = r.Reverse(a, now); err != nil || !Is(a) || !local(a.Domain) {
			return a, err
		}
	}
	return address.Address{}, ErrForged
}

func parse(local, domain string) (address.Address, error) {
	d, err := address.NormalizeDomain(domain)
	if err != nil {
		return address.Address{}, ErrForged
	}
	return address.Address{Local: local, Domain: d}, nil
}

// Is reports whether the local part looks rewritten, by us or by somebody else.
func Is(a address.Address) bool {
	kind, _ := split(a.Local)
	return kind != ""
}

// split cuts "SRS0" or "SRS1" off the local part, in any case, and keeps the separator: other forwarders also use "+" and "-".
func split(local string) (kind, rest string) {
	if len(local) > 5 && strings.IndexByte("=+-", local[4]) >= 0 {
		if k := strings.ToLower(local[:4]); k == "srs0" || k == "srs1" {
			return k, local[4:]
		}
	}
	return "", ""
}

func (s *secret) hash(kind, body string) string {
	sum := s.sum(kind, []byte(body))
	return string(sum[:])
}

// sum makes a hash. It is over the lower-case form: the case of a local part may change on the way.
func (s *secret) sum(kind string, body []byte) (text [hashLen]byte) {
	h := s.hashers.Get().(*hasher)
	defer s.hashers.Put(h)
	h.mac.Reset()
	h.room = appendLower(append(h.room[:0], kind...), body)
	h.mac.Write(h.room)
	sum := h.mac.Sum(h.room[:0])
	var long [8]byte
	code.Encode(long[:], sum[:5])
	copy(text[:], long[:])
	return text
}

// appendLower appends the lower-case form.
func appendLower(b, text []byte) []byte {
	start := len(b)
	for _, c := range text {
		if c >= 0x80 {
			return append(b[:start], strings.ToLower(string(text))...)
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

func (r *Rewriter) verify(hash, kind, body string) bool {
	for _, s := range r.secrets {
		if hmac.Equal([]byte(strings.ToLower(hash)), []byte(s.hash(kind, body))) {
			return true
		}
	}
	return false
}

func day(t time.Time) int { return int(t.Unix()/86400) % days }

const digits = "0123456789abcdefghijklmnopqrstuv"

func appendDay(b []byte, d int) []byte { return append(b, digits[d>>5&31], digits[d&31]) }

func decodeDay(s string) (int, bool) {
	if len(s) != 2 {
		return 0, false
	}
	s = strings.ToLower(s)
	hi, lo := strings.IndexByte(digits, s[0]), strings.IndexByte(digits, s[1])
	return hi<<5 | lo, hi >= 0 && lo >= 0
}
