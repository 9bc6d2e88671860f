package dkim

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/deadline"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Result is what became of one signature.
type Result struct {
	Value    string // Pass, Fail, PermError or TempError
	Reason   string // why it is not Pass: a constant phrase of ours
	Domain   string // d=, lower case, A-labels; may be empty if the signature is malformed
	Selector string
	B        string // the first 12 characters of the signature (RFC 6008 section 4)
	Testing  bool   // the key says that the domain is testing DKIM
}

// Verification is what became of the signatures of one message.
type Verification struct {
	Found   int      // signatures in the message; at most MaxSignatures of them are in Results
	Results []Result // in the order of the header
}

// Valid returns how many signatures passed.
func (v Verification) Valid() (n int) {
	for i := range v.Results {
		if v.Results[i].Value == Pass {
			n++
		}
	}
	return n
}

// Domains returns the domains whose signatures passed.
func (v Verification) Domains() (l []string) {
	for i := range v.Results {
		if r := &v.Results[i]; r.Value == Pass && !slices.Contains(l, r.Domain) {
			l = append(l, r.Domain)
		}
	}
	return l
}

// Verifier verifies signatures. It is safe for concurrent use.
type Verifier struct {
	resolver dns.Resolver
	m        *verifyMetrics
}

// NewVerifier makes a Verifier.
func NewVerifier(r dns.Resolver, reg *expvarom.Registry) *Verifier {
	return &Verifier{r, newVerifyMetrics(reg)}
}

// fieldName is the name of the header field.
const fieldName = "DKIM-Signature"

// Verify verifies the signatures in the header. body is called once, if there is a signature whose key is at hand, and yields what
// follows the header, in wire form. The only errors are those of reading the body.
func (v *Verifier) Verify(ctx context.Context, h *message.Header, body func() (io.Reader, error)) (Verification, error) {
	n := h.Count(fieldName)
	if n == 0 {
		v.m.none()
		return Verification{}, nil
	}
	ctx, span := trace.Start(ctx, trace.CheckDKIM, "verify")
	defer span.Finish()
	ctx, cancel := deadline.After(ctx, keyBudget)
	defer cancel()
	sigs := make([]*signature, 0, MaxSignatures)
	for f := range h.All(fieldName) {
		if len(sigs) == MaxSignatures {
			span.Printf("only the first %d of %d signatures are looked at", MaxSignatures, n)
			break
		}
		sigs = append(sigs, parseSignature(f, time.Now()))
	}
	v.findKeys(ctx, sigs)
	err := hashBodies(sigs, body)
	if err != nil {
		v.m.failed()
		return Verification{Found: n}, span.Errorf("reading the body: %w", err)
	}
	p := newPicker(h)
	out := Verification{Found: n, Results: make([]Result, len(sigs))}
	for i, s := range sigs {
		s.check(p)
		out.Results[i] = s.result()
		span.Printf("signature %d: d=%q s=%q %s (%v)", i+1, s.domain, s.selector, out.Results[i].Value, s.failed)
	}
	v.m.count(out)
	return out, nil
}

// signature is one DKIM-Signature field.
type signature struct {
	field                      message.Field
	tags                       tags
	domain, selector, identity string
	algorithm                  string
	relaxedHeader, relaxedBody bool
	length                     int64 // l=, or -1
	bodySum, sig               []byte
	names                      []string
	keys                       []publicKey
	body                       *bodyHash
	computed                   []byte
	failed                     *failure
	testing                    bool
}

// parseSignature checks everything that needs neither DNS nor the body (RFC 6376 section 6.1.1).
func parseSignature(f message.Field, now time.Time) *signature {
	s := &signature{field: f, length: -1}
	var err error
	if s.tags, err = parseTags(string(f.Body())); err != nil {
		s.failed = &failure{PermError, "malformed signature", err}
		return s
	}
	s.domain = normalDomain(s.tags.compact("d"))
	s.selector = normalDomain(s.tags.compact("s"))
	s.failed = s.parse(now)
	return s
}

func (s *signature) parse(now time.Time) *failure {
	for _, name := range [...]string{"v", "a", "b", "bh", "d", "h", "s"} {
		if _, ok := s.tags.get(name); !ok {
			return permError("required tag missing")
		}
	}
	if s.tags.compact("v") != "1" {
		return permError("unknown version of the signature")
	}
	s.algorithm = strings.ToLower(s.tags.compact("a"))
	switch s.algorithm {
	case RSASHA256, Ed25519SHA256:
	case "rsa-sha1":
		return permError("SHA-1 is not secure") // RFC 8301 section 3.1
	default:
		return permError("unknown algorithm")
	}
	if s.domain == "" || s.selector == "" {
		return permError("malformed domain or selector")
	}
	if q := s.tags.list("q"); q != nil && !slices.Contains(q, "dns/txt") {
		return permError("unknown query method")
	}
	s.names = s.tags.list("h")
	if !slices.ContainsFunc(s.names, func(n string) bool { return strings.EqualFold(n, "From") }) {
		return permError("From is not signed")
	}
	for _, step := range [...]func() *failure{s.parseCanon, s.parseIdentity, s.parseSums, s.parseLength} {
		if f := step(); f != nil {
			return f
		}
	}
	return s.parseTimes(now)
}

func (s *signature) parseCanon() *failure {
	header, body, _ := strings.Cut(s.tags.compact("c"), "/")
	for _, c := range [...]struct {
		name    string
		relaxed *bool
	}{{header, &s.relaxedHeader}, {body, &s.relaxedBody}} {
		switch strings.ToLower(c.name) {
		case "", "simple":
		case "relaxed":
			*c.relaxed = true
		default:
			return permError("unknown canonicalization")
		}
	}
	return nil
}

// parseIdentity checks that i= is in d= (RFC 6376 section 3.5).
func (s *signature) parseIdentity() *failure {
	i, ok := s.tags.get("i")
	if !ok {
		s.identity = s.domain
		return nil
	}
	at := strings.LastIndexByte(i, '@')
	if at < 0 {
		return permError("malformed identity")
	}
	s.identity = normalDomain(compact(i[at+1:]))
	if s.identity != s.domain && !strings.HasSuffix(s.identity, "."+s.domain) {
		return permError("the identity is not of the domain")
	}
	return nil
}

func (s *signature) parseSums() *failure {
	var err error
	if s.bodySum, err = base64.StdEncoding.DecodeString(s.tags.compact("bh")); err != nil || len(s.bodySum) != 32 {
		return permError("malformed body hash")
	}
	if s.sig, err = base64.StdEncoding.DecodeString(s.tags.compact("b")); err != nil || len(s.sig) == 0 {
		return permError("malformed signature data")
	}
	return nil
}

func (s *signature) parseLength() *failure {
	if _, ok := s.tags.get("l"); !ok {
		return nil
	}
	n, f := s.number("l")
	s.length = n
	return f
}

// number parses a tag of digits; RFC 6376 section 3.5 allows up to 76 of them, which nothing real needs.
func (s *signature) number(name string) (int64, *failure) {
	v := s.tags.compact(name)
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || v[0] < '0' || v[0] > '9' {
		return 0, permError("malformed number")
	}
	return n, nil
}

// parseTimes enforces x= (RFC 6376 section 3.5).
func (s *signature) parseTimes(now time.Time) *failure {
	var made int64 = -1
	if _, ok := s.tags.get("t"); ok {
		t, f := s.number("t")
		if f != nil {
			return f
		}
		made = t
	}
	if _, ok := s.tags.get("x"); !ok {
		return nil
	}
	expires, f := s.number("x")
	switch {
	case f != nil:
		return f
	case expires <= made:
		return permError("the signature expires before it was made")
	case now.Unix() > expires:
		return &failure{Fail, "the signature has expired", nil}
	}
	return nil
}

// normalDomain returns a domain or selector as it is looked up, "" if it is none (RFC 8616 section 5: U-labels are allowed).
func normalDomain(d string) string {
	a, err := address.ASCIIDomain(lowerDomain(d))
	if err != nil {
		return ""
	}
	return a
}

// findKeys looks up the keys, of several signatures at once.
func (v *Verifier) findKeys(ctx context.Context, sigs []*signature) {
	find := func(s *signature) {
		defer func() {
			if r := recover(); r != nil {
				log.Errorf("dkim: panic looking up a key: %v\n%s", r, debug.Stack())
				s.failed = &failure{TempError, "internal error", nil}
			}
		}()
		s.keys, s.failed = lookupKeys(ctx, v.resolver, s.domain, s.selector, s.algorithm)
	}
	var wg sync.WaitGroup
	for i, s := range sigs {
		switch {
		case s.failed != nil:
		case i == len(sigs)-1:
			find(s)
		default:
			wg.Go(func() { find(s) })
		}
	}
	wg.Wait()
}

// hashBodies reads the body once for all signatures that need it; those that agree on the form share a hash.
func hashBodies(sigs []*signature, body func() (io.Reader, error)) error {
	var hashes []*bodyHash
	for _, s := range sigs {
		if s.failed != nil {
			continue
		}
		i := slices.IndexFunc(hashes, func(h *bodyHash) bool { return h.relaxed == s.relaxedBody && h.limit == s.length })
		if i < 0 {
			i = len(hashes)
			hashes = append(hashes, newBodyHash(s.relaxedBody, s.length))
		}
		s.body = hashes[i]
	}
	if len(hashes) == 0 {
		return nil
	}
	r, err := body()
	if err != nil {
		return err
	}
	if err := copyBody(r, hashes); err != nil {
		return err
	}
	sums := make(map[*bodyHash][]byte, len(hashes))
	for _, h := range hashes {
		sums[h] = h.sum()
	}
	for _, s := range sigs {
		s.computed = sums[s.body]
	}
	return nil
}

// check is the verification proper (RFC 6376 section 6.1.3).
func (s *signature) check(p *picker) {
	if s.failed != nil {
		return
	}
	switch {
	case s.length > s.body.size:
		s.failed = permError("the signed length is more than the body has")
		return
	case !bytes.Equal(s.computed, s.bodySum):
		s.failed = &failure{Fail, "body hash mismatch", nil}
		return
	case s.length >= 0 && s.length < s.body.size:
		// RFC 6376 section 8.2: whoever relays the message may have put anything there.
		s.failed = &failure{Fail, "the body goes on behind what is signed", nil}
		return
	}
	sum := digest(s.signedHeader(p))
	for _, k := range s.keys {
		if k.strict && s.identity != s.domain {
			s.failed = permError("the key is not for subdomains")
			continue
		}
		if k.verify(sum, s.sig) {
			s.failed, s.testing = nil, k.testing
			return
		}
		s.failed = &failure{Fail, "signature verification failed", nil}
	}
}

// signedHeader is the header as it was signed: the fields that h= names and the signature itself without its b= value
// (RFC 6376 section 3.7).
func (s *signature) signedHeader(p *picker) []byte {
	var b []byte
	fields := p.start()
	for _, name := range s.names {
		if f, ok := fields.next(name); ok {
			b = appendHeader(b, f.Raw(), s.relaxedHeader)
		}
	}
	raw, body := s.field.Raw(), s.field.Body()
	i := slices.IndexFunc(s.tags, func(t tag) bool { return t.name == "b" })
	own := slices.Concat(raw[:len(raw)-len(body)], body[:s.tags[i].start], body[s.tags[i].end:])
	b = appendHeader(b, own, s.relaxedHeader)
	return bytes.TrimSuffix(b, crlf)
}

func (s *signature) result() Result {
	r := Result{Value: Pass, Domain: s.domain, Selector: s.selector, Testing: s.testing}
	if b := s.tags.compact("b"); isBase64(b) {
		r.B = b[:min(len(b), 12)]
	}
	if s.failed != nil {
		r.Value, r.Reason = s.failed.value, s.failed.reason
	}
	return r
}

// isBase64 reports text that may stand in a header as it is.
func isBase64(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '+' && r != '/' && r != '='
	}) < 0
}

var noSignature = []string{"dkim=none"}

// AuthRes returns the results as lines for Authentication-Results, without indentation, in the form existing installations know.
func (v Verification) AuthRes() []string {
	if v.Found == 0 {
		return noSignature
	}
	lines := make([]string, 0, len(v.Results))
	for _, r := range v.Results {
		props := ""
		if r.B != "" {
			props = "  header.b=" + r.B
		}
		if r.Domain != "" {
			props += "  header.d=" + r.Domain
		}
		if r.Value == Pass {
			lines = append(lines, "dkim=pass"+props)
			continue
		}
		l := fmt.Sprintf("dkim=%s  reason=%q", r.Value, r.Reason)
		if props != "" {
			l += "\r\n" + props
		}
		lines = append(lines, l)
	}
	return lines
}
