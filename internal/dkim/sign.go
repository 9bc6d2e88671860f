package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// signedNames are the fields that are signed, each as often as it stands in the message (RFC 6376 section 5.4.1).
var signedNames = []string{
	"From", "Reply-To", "Subject", "Date", "To", "Cc", "Resent-Date", "Resent-From", "Resent-To", "Resent-Cc", "In-Reply-To",
	"References", "List-Id", "List-Help", "List-Unsubscribe", "List-Subscribe", "List-Post", "List-Owner", "List-Archive", "Message-ID",
}

// oversignedNames are signed once more, so that nobody can add another one (RFC 6376 section 8.15).
var oversignedNames = []string{"From", "Subject", "Date", "To", "Cc", "Message-ID"}

// Signer signs messages. It is safe for concurrent use.
type Signer struct {
	keys func(domain string) []Key
	m    *signMetrics
}

// NewSigner makes a Signer. keys returns the keys of a domain in Unicode form, in order; none means that its mail is not signed.
func NewSigner(keys func(domain string) []Key, reg *expvarom.Registry) *Signer {
	return &Signer{keys, newSignMetrics(reg)}
}

// Has reports whether mail of the domain (Unicode form) is signed.
func (s *Signer) Has(domain string) bool { return len(s.keys(domain)) > 0 }

// Sign returns a DKIM-Signature field for every key of the domain, the one of the last key on top, in wire form; nothing if the
// domain has no keys. body yields what follows the header, in wire form, and is called once.
func (s *Signer) Sign(ctx context.Context, domain string, h *message.Header, body func() (io.Reader, error)) ([]byte, error) {
	keys := s.keys(domain)
	if len(keys) == 0 {
		return nil, nil
	}
	_, span := trace.Start(ctx, trace.DKIMSign, domain)
	defer span.Finish()
	r, err := body()
	if err != nil {
		s.m.errors.Inc()
		return nil, span.Errorf("reading the body: %w", err)
	}
	sum := newBodyHash(true, -1)
	if err := copyBody(r, []*bodyHash{sum}); err != nil {
		s.m.errors.Inc()
		return nil, span.Errorf("reading the body: %w", err)
	}
	fields, err := s.signAll(keys, h, sum.sum(), time.Now())
	if err != nil {
		s.m.errors.Inc()
		return nil, span.Error(err)
	}
	span.Printf("%d signatures", len(keys))
	s.m.signed.Inc()
	return fields, nil
}

// SignMessage is Sign for a whole message in wire form.
func (s *Signer) SignMessage(ctx context.Context, domain string, msg io.ReadSeeker) ([]byte, error) {
	if !s.Has(domain) {
		return nil, nil
	}
	if _, err := msg.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the message: %w", err)
	}
	h, err := message.Read(msg)
	if err != nil {
		return nil, err
	}
	return s.Sign(ctx, domain, h, func() (io.Reader, error) {
		_, err := msg.Seek(int64(h.Len()), io.SeekStart)
		return msg, err
	})
}

func (s *Signer) signAll(keys []Key, h *message.Header, bodySum []byte, now time.Time) ([]byte, error) {
	names, signed := chooseFields(h)
	var out []byte
	for _, k := range slices.Backward(keys) {
		field, algorithm, err := signature1(k, names, signed, bodySum, now)
		if c, ok := s.m.signatures[algorithm]; ok {
			c[btoi(err != nil)].Inc()
		}
		if err != nil {
			return nil, fmt.Errorf("signing with %s/%s: %w", k.Domain, k.Selector, err)
		}
		out = append(out, field...)
	}
	return out, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// chooseFields returns the names for h= and the fields they stand for in canonical form.
func chooseFields(h *message.Header) (names []string, signed []byte) {
	for _, name := range signedNames {
		lower := strings.ToLower(name)
		for _, f := range slices.Backward(h.Fields()) {
			if f.Is(name) {
				names = append(names, lower)
				signed = appendHeader(signed, f.Raw(), true)
			}
		}
	}
	for _, name := range oversignedNames {
		names = append(names, strings.ToLower(name))
	}
	return names, signed
}

// Algorithm returns the name of the algorithm of a key.
func Algorithm(key crypto.Signer) (string, error) {
	switch key.Public().(type) {
	case *rsa.PublicKey:
		return RSASHA256, nil
	case ed25519.PublicKey:
		return Ed25519SHA256, nil
	}
	return "", fmt.Errorf("%w: %T", ErrKeyType, key)
}

// signature1 makes one field.
func signature1(k Key, names []string, signed, bodySum []byte, now time.Time) (field []byte, algorithm string, err error) {
	if algorithm, err = Algorithm(k.Signer); err != nil {
		return nil, "", err
	}
	// RFC 8616 section 5 would allow U-labels; A-labels are understood by everybody.
	domain, err := address.DomainToASCII(k.Domain)
	if err != nil {
		return nil, algorithm, err
	}
	selector, err := address.DomainToASCII(k.Selector)
	if err != nil {
		return nil, algorithm, err
	}
	b := make([]byte, 0, 1024)
	b = append(b, fieldName+": v=1; a="...)
	b = append(b, algorithm...)
	b = append(b, "; c=relaxed/relaxed;\r\n\td="...)
	b = append(b, domain...)
	b = append(b, "; s="...)
	b = append(b, selector...)
	b = append(b, "; t="...)
	b = strconv.AppendInt(b, now.Unix(), 10)
	b = append(b, ";\r\n\th="...)
	b = appendNames(b, names)
	b = append(b, ";\r\n\tbh="...)
	b = base64.StdEncoding.AppendEncode(b, bodySum)
	b = append(b, ";\r\n\tb="...)
	own := appendHeader(nil, append(slices.Clip(b), ';'), true)
	sum := digest(signed, own[:len(own)-len(crlf)])
	opts := crypto.SignerOpts(crypto.SHA256)
	if algorithm == Ed25519SHA256 {
		opts = crypto.Hash(0) // RFC 8463 section 3: the hash is signed like a message
	}
	sig, err := k.Signer.Sign(rand.Reader, sum, opts)
	if err != nil {
		return nil, algorithm, err
	}
	text := base64.StdEncoding.EncodeToString(sig)
	for len(text) > lineWidth {
		b = append(b, text[:lineWidth]...)
		b = append(b, "\r\n\t  "...)
		text = text[lineWidth:]
	}
	b = append(b, text...)
	return append(b, ";\r\n"...), algorithm, nil
}

// lineWidth is how wide the lists of a signature are.
const lineWidth = 70

// appendNames appends the h= list; a line that does not fit begins with its colon.
func appendNames(b []byte, names []string) []byte {
	width := 0
	for i, n := range names {
		need := len(n)
		if i > 0 {
			need++
			if width+need > lineWidth {
				b = append(b, "\r\n\t  "...)
				width = 0
			}
			b = append(b, ':')
		}
		b = append(b, n...)
		width += need
	}
	return b
}
