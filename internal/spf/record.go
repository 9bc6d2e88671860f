package spf

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/spf"
)

// resolver stands between the library and DNS. It refuses records that are not of the grammar of RFC 7208 section 12: a syntax
// error anywhere is a permerror (section 4.6), also behind the term that would have matched.
type resolver struct {
	dns.Std
}

// slash stands for a "/" inside a domain-spec while the library has it, which takes every "/" for a mask.
const slash = "\x01"

// LookupTXT returns the records of a name, the SPF record checked.
func (r resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	txt, err := r.Std.LookupTXT(ctx, fit(name))
	if err != nil {
		return nil, err
	}
	found := -1
	for i, t := range txt {
		if !isSPF(t) {
			continue
		}
		if found >= 0 {
			return txt, nil // two records: the library says so
		}
		found = i
	}
	if found < 0 {
		return nil, nil
	}
	rec, err := checkRecord(txt[found])
	if err != nil {
		return nil, err // the library makes a permerror of it
	}
	return []string{rec}, nil
}

// LookupMX is dns.Std's for a name that may be too long.
func (r resolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	return r.Std.LookupMX(ctx, fit(name))
}

// LookupIPAddr is dns.Std's for a name that may be too long.
func (r resolver) LookupIPAddr(ctx context.Context, name string) ([]net.IPAddr, error) {
	return r.Std.LookupIPAddr(ctx, fit(name))
}

// fit undoes what checkRecord did to slashes and cuts labels from the left of a name that macros made too long (RFC 7208
// section 7.3).
func fit(name string) string {
	if strings.Contains(name, slash) {
		name = strings.ReplaceAll(name, slash, "/")
	}
	for len(strings.TrimSuffix(name, ".")) > 253 {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			break
		}
		name = rest
	}
	return name
}

// isSPF reports a record of this version (RFC 7208 section 4.5).
func isSPF(txt string) bool {
	const version = "v=spf1"
	return len(txt) >= len(version) && strings.EqualFold(txt[:len(version)], version) && (len(txt) == len(version) || txt[len(version)] == ' ')
}

// checkRecord checks the grammar of a record and returns it in the form the library takes. The error is one of the library's.
func checkRecord(txt string) (string, error) {
	redirects, exps, rewritten := 0, 0, false
	out := txt
	for rest := txt[len("v=spf1"):]; rest != ""; {
		var term string
		term, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		if term == "" {
			continue
		}
		name, spec, isModifier := modifier(term)
		var err error
		switch {
		case !isModifier:
			var domain string
			domain, err = checkMechanism(term)
			if strings.IndexByte(domain, '/') >= 0 {
				rewritten = true
				out = strings.ReplaceAll(out, domain, strings.ReplaceAll(domain, "/", slash))
			}
		case strings.EqualFold(name, "redirect"):
			redirects++
			err = checkDomainSpec(spec)
		case strings.EqualFold(name, "exp"):
			exps++
			err = checkDomainSpec(spec)
		default:
			_, err = macroString(spec)
		}
		if err != nil {
			return "", err
		}
	}
	if redirects > 1 || exps > 1 {
		return "", spf.ErrInvalidDomain
	}
	if !rewritten && strings.Contains(txt, slash) {
		return "", spf.ErrUnknownField
	}
	return out, nil
}

// modifier splits a term "name=value" (RFC 7208 section 4.6.1).
func modifier(term string) (name, value string, ok bool) {
	for i := 0; i < len(term); i++ {
		c := term[i]
		switch {
		case c == '=' && i > 0:
			return term[:i], term[i+1:], true
		case isAlpha(c), i > 0 && (isDigit(c) || c == '-' || c == '_' || c == '.'):
		default:
			return "", "", false
		}
	}
	return "", "", false
}

// checkMechanism checks a directive and returns its domain-spec, if it has one.
func checkMechanism(term string) (domain string, err error) {
	if strings.IndexByte("+-?~", term[0]) >= 0 {
		term = term[1:]
	}
	end := strings.IndexAny(term, ":/")
	if end < 0 {
		end = len(term)
	}
	name, arg := term[:end], term[end:]
	optional := false
	switch strings.ToLower(name) {
	case "all":
		if arg != "" {
			return "", spf.ErrUnknownField
		}
		return "", nil
	case "ip4":
		return "", checkNetwork(arg, true)
	case "ip6":
		return "", checkNetwork(arg, false)
	case "include", "exists":
	case "ptr":
		optional = true
	case "a", "mx":
		optional = true
		if arg, err = cutDualCIDR(arg); err != nil {
			return "", err
		}
	default:
		return "", spf.ErrUnknownField
	}
	if optional && arg == "" {
		return "", nil
	}
	domain, ok := strings.CutPrefix(arg, ":")
	if !ok {
		return "", spf.ErrUnknownField
	}
	return domain, checkDomainSpec(domain)
}

// checkNetwork checks the argument of ip4 and ip6.
func checkNetwork(arg string, v4 bool) error {
	text, ok := strings.CutPrefix(arg, ":")
	addr, mask, hasMask := strings.Cut(text, "/")
	ip, err := netip.ParseAddr(addr)
	bits := 128
	if v4 {
		bits = 32
	}
	switch {
	case !ok || err != nil || ip.Is4() != v4 || ip.Zone() != "":
		return spf.ErrInvalidIP
	case hasMask && !checkBits(mask, bits):
		return spf.ErrInvalidMask
	}
	return nil
}

// checkBits checks a prefix length: digits without leading zero.
func checkBits(s string, limit int) bool {
	if s == "" || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if !isDigit(s[i]) {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= limit
}

// cutDualCIDR cuts a dual-cidr-length off the end: "/24", "//64" or "/24//64".
func cutDualCIDR(s string) (string, error) {
	if i := strings.LastIndex(s, "//"); i >= 0 && allDigits(s[i+2:]) {
		if !checkBits(s[i+2:], 128) {
			return "", spf.ErrInvalidMask
		}
		s = s[:i]
	}
	if i := strings.LastIndexByte(s, '/'); i >= 0 && allDigits(s[i+1:]) {
		if !checkBits(s[i+1:], 32) {
			return "", spf.ErrInvalidMask
		}
		s = s[:i]
	}
	return s, nil
}

func allDigits(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' }) < 0
}

// checkDomainSpec checks a domain-spec: a macro-string that ends in a macro or in a top label (RFC 7208 section 7.1).
func checkDomainSpec(s string) error {
	lastMacro, err := macroString(s)
	if err != nil {
		return err
	}
	if s != "" && lastMacro == len(s) {
		return nil
	}
	s = strings.TrimSuffix(s[lastMacro:], ".")
	if i := strings.LastIndexByte(s, '.'); i < 0 || !topLabel(s[i+1:]) {
		return spf.ErrInvalidDomain
	}
	return nil
}

// topLabel reports a label that is not all digits and neither begins nor ends with a hyphen.
func topLabel(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	word := false
	for i := 0; i < len(s); i++ {
		if !isAlpha(s[i]) && !isDigit(s[i]) && s[i] != '-' {
			return false
		}
		word = word || !isDigit(s[i])
	}
	return word
}

// macroString checks a macro-string and returns where its last macro ends.
func macroString(s string) (lastMacro int, err error) {
	for n := 0; n < len(s); {
		if s[n] != '%' {
			if s[n] <= ' ' || s[n] >= 0x7f {
				return 0, spf.ErrInvalidDomain
			}
			n++
			continue
		}
		if n++; n == len(s) {
			return 0, spf.ErrInvalidMacro
		}
		switch s[n] {
		case '%', '_', '-':
			n++
		case '{':
			end := strings.IndexByte(s[n:], '}')
			if end < 0 || !checkMacro(s[n+1:n+end]) {
				return 0, spf.ErrInvalidMacro
			}
			n += end + 1
		default:
			return 0, spf.ErrInvalidMacro
		}
		lastMacro = n
	}
	return lastMacro, nil
}

// checkMacro checks the inside of "%{…}". The letters c, r and t are only for explanation texts.
func checkMacro(s string) bool {
	if s == "" || !strings.Contains("slodiphv", strings.ToLower(s[:1])) {
		return false
	}
	i := 1
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	if i > 1 && (i > 4 || strings.Trim(s[1:i], "0") == "") {
		return false // "0" labels, or more than a name can have
	}
	if i < len(s) && (s[i] == 'r' || s[i] == 'R') {
		i++
	}
	return strings.Trim(s[i:], ".-+,/_=") == ""
}

func isAlpha(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
