package cli

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/message"
)

// keyArgs are the arguments domain, selector and key file, with the defaults of an existing key.
func (u *util) keyArgs(domain string) (selector, file string, err error) {
	if err := checkDirName(domain); err != nil {
		return "", "", err
	}
	selector, file = u.arg(1), u.arg(2)
	if selector == "" {
		l, err := dkim.Selectors(u.configDir, domain)
		if err != nil {
			return "", "", errors.New(upperFirst(err.Error()))
		}
		selector = l[0]
	}
	if file == "" {
		file = dkim.KeyFile(u.configDir, domain, selector)
	}
	return selector, file, nil
}

// upperFirst makes an error a sentence, as this tool writes them.
func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func readKey(file string) (crypto.Signer, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("Error reading private key from %q: %w", file, err)
	}
	key, err := dkim.ParseKey(data)
	if err != nil {
		return nil, errors.New(upperFirst(err.Error()))
	}
	return key, nil
}

func (u *util) dkimKeygen() error {
	domain, selector, file := u.arg(0), u.arg(1), u.arg(2)
	if domain == "" {
		return errors.New("Error: missing domain parameter")
	}
	if err := checkDirName(domain); err != nil {
		return err
	}
	if selector == "" {
		selector = dkim.DefaultSelector(time.Now())
	}
	if file == "" {
		file = dkim.KeyFile(u.configDir, domain, selector)
	}
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("Error: key already exists at %q", file)
	}
	key, err := dkim.Generate(u.options["--algo"])
	if err != nil {
		return fmt.Errorf("Error: %w", err)
	}
	if err := dkim.WriteKey(file, key); err != nil {
		return fmt.Errorf("Error writing key: %w", err)
	}
	fmt.Fprintf(u.Stdout, "Key written to %q\n\n", file)
	return u.zoneLine(domain, selector, key)
}

func (u *util) zoneLine(domain, selector string, key crypto.Signer) error {
	line, err := dkim.ZoneLine(domain, selector, key.Public())
	if err != nil {
		return fmt.Errorf("Error: %w", err)
	}
	fmt.Fprintln(u.Stdout, line)
	return nil
}

func (u *util) dkimDNS() error {
	if u.arg(0) == "" {
		return errors.New("Error: missing domain parameter")
	}
	selector, file, err := u.keyArgs(u.arg(0))
	if err != nil {
		return err
	}
	key, err := readKey(file)
	if err != nil {
		return err
	}
	return u.zoneLine(u.arg(0), selector, key)
}

// readMessage reads the message on standard input, in wire form.
func (u *util) readMessage() ([]byte, *message.Header, error) {
	msg, err := io.ReadAll(message.ToCRLF(u.Stdin))
	if err != nil {
		return nil, nil, err
	}
	h, err := message.Parse(msg)
	if err == nil && h.BadLine() > 0 {
		err = fmt.Errorf("malformed header line %d", h.BadLine())
	}
	if err == nil && len(h.Fields()) == 0 {
		err = io.EOF
	}
	return msg, h, err
}

// fromDomain is the domain of the first address of the From field.
func fromDomain(h *message.Header) (string, error) {
	f, ok := h.First("From")
	if !ok {
		return "", errors.New("header not in message")
	}
	l, err := message.ParseMailboxes(f.Value())
	if err != nil {
		return "", err
	}
	if len(l) == 0 || l[0].Domain == "" {
		return "", errors.New("no address with a domain")
	}
	return l[0].Domain, nil
}

func (u *util) dkimSign() error {
	msg, h, err := u.readMessage()
	if err != nil {
		return fmt.Errorf("Error parsing message: %w", err)
	}
	domain := u.arg(0)
	if domain == "" {
		if domain, err = fromDomain(h); err != nil {
			return fmt.Errorf("Error parsing From: header: %w", err)
		}
	}
	selector, file, err := u.keyArgs(domain)
	if err != nil {
		return err
	}
	key, err := readKey(file)
	if err != nil {
		return err
	}
	if u.verbose {
		algo, err := dkim.Algorithm(key)
		if err != nil {
			return fmt.Errorf("Error signing message: %w", err)
		}
		fmt.Fprintf(u.Stderr, "Signing for %s / %s with %s\n", domain, selector, algo)
	}
	signer := dkim.NewSigner(func(string) []dkim.Key { return []dkim.Key{{Domain: domain, Selector: selector, Signer: key}} }, nil)
	field, err := signer.Sign(u.ctx, domain, h, func() (io.Reader, error) { return bytes.NewReader(msg[h.Len():]), nil })
	if err != nil {
		return fmt.Errorf("Error signing message: %w", err)
	}
	_, err = u.Stdout.Write(field)
	return err
}

func (u *util) dkimVerify() error {
	msg, h, err := u.readMessage()
	if err != nil {
		return fmt.Errorf("Error verifying message: %w", err)
	}
	resolver := u.resolver()
	if txt, ok := u.options["--txt"]; ok {
		resolver = fixedTXT(txt)
	}
	v, err := dkim.NewVerifier(resolver, nil).Verify(u.ctx, h, func() (io.Reader, error) { return bytes.NewReader(msg[h.Len():]), nil })
	if err != nil {
		return fmt.Errorf("Error verifying message: %w", err)
	}
	if u.verbose {
		fmt.Fprintf(u.Stderr, "Found %d signatures, %d valid\n", v.Found, v.Valid())
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("Error verifying message: %w", err)
	}
	fmt.Fprintf(u.Stdout, "Authentication-Results: %s\r\n", host)
	for _, l := range v.AuthRes() {
		fmt.Fprintf(u.Stdout, "\t;%s\r\n", strings.ReplaceAll(l, "\r\n", "\r\n\t"))
	}
	return nil
}

// resolver is the one of the environment, or the system's.
func (e *Env) resolver() dns.Resolver {
	if e.Resolver != nil {
		return e.Resolver
	}
	return dns.New(dns.Config{})
}

// fixedTXT answers every question for a TXT record with itself.
type fixedTXT string

func (f fixedTXT) TXT(context.Context, dns.Purpose, string) ([]string, dns.Meta, error) {
	return []string{string(f)}, dns.Meta{}, nil
}
func (fixedTXT) MX(context.Context, dns.Purpose, string) ([]dns.MX, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}
func (fixedTXT) IP(context.Context, dns.Purpose, string) ([]netip.Addr, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}
func (fixedTXT) PTR(context.Context, dns.Purpose, netip.Addr) ([]string, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}
func (fixedTXT) TLSA(context.Context, dns.Purpose, string) ([]dns.TLSA, dns.Meta, error) {
	return nil, dns.Meta{}, dns.ErrNotFound
}

// asciiDomain is the domain as the DNS knows it, for look-ups and display of failures.
func asciiDomain(domain string) (string, error) {
	d, err := address.NormalizeDomain(domain)
	if err != nil {
		return "", err
	}
	return address.DomainToASCII(d)
}
