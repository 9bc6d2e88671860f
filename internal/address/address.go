// Package address is a mailbox address: parsed once at the edge, normalised, comparable.
package address

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"
)

// Size limits in octets (RFC 5321 section 4.5.3.1).
const (
	MaxLocal  = 64  // section 4.5.3.1.1
	MaxDomain = 255 // section 4.5.3.1.2; host names as used here are further limited to 253
	MaxPath   = 256 // section 4.5.3.1.3, with the angle brackets
)

// Address is a mailbox. The zero value is the null address, written "<>".
//
// Local is the local part with quotes and backslashes removed, otherwise as given. Domain is lower-case Unicode (U-labels),
// or an address literal with its brackets; it is empty for a bare local part such as "postmaster".
type Address struct {
	Local, Domain string
}

// Errors of Parse and the normalisers; they are wrapped with what was being parsed.
var (
	ErrSyntax = errors.New("not a mailbox address")
	ErrTooBig = errors.New("address too long")
	ErrDomain = errors.New("invalid domain name")
	ErrUser   = errors.New("invalid user name")
)

// IsNull reports the null address.
func (a Address) IsNull() bool { return a == Address{} }

// String renders the address without angle brackets, quoting the local part where the grammar needs it. The null address is "".
func (a Address) String() string {
	if a.IsNull() {
		return ""
	}
	l := quoteLocal(a.Local)
	if a.Domain == "" {
		return l
	}
	return l + "@" + a.Domain
}

// AppendTo appends what String returns to b.
func (a Address) AppendTo(b []byte) []byte {
	if a.IsNull() {
		return b
	}
	b = append(b, quoteLocal(a.Local)...)
	if a.Domain != "" {
		b = append(append(b, '@'), a.Domain...)
	}
	return b
}

// Path renders the address in angle brackets, "<>" for the null address.
func (a Address) Path() string { return "<" + a.String() + ">" }

// LogString renders the address as logs and files of existing installations show it: "<>" when null, else without brackets.
func (a Address) LogString() string {
	if a.IsNull() {
		return "<>"
	}
	return a.String()
}

// ASCII reports whether the address can be used without SMTPUTF8.
func (a Address) ASCII() bool { return isASCII(a.Local) && isASCII(a.Domain) }

// ASCIILocal reports whether the address can be used without SMTPUTF8 once its domain is in A-label form.
func (a Address) ASCIILocal() bool { return isASCII(a.Local) }

// IsLiteral reports whether the domain is an address literal such as "[192.0.2.1]".
func (a Address) IsLiteral() bool { return strings.HasPrefix(a.Domain, "[") }

// WithASCIIDomain returns the address with its domain in A-label form.
func (a Address) WithASCIIDomain() (Address, error) {
	if isASCII(a.Domain) {
		return a, nil
	}
	d, err := DomainToASCII(a.Domain)
	if err != nil {
		return Address{}, err
	}
	return Address{Local: a.Local, Domain: d}, nil
}

// Parse parses "local@domain" or "local" as RFC 5321 section 4.1.2 writes a Mailbox (with UTF-8 as RFC 6531 section 3.3):
// dot-string or quoted-string, domain or address literal. The domain is normalised; the local part is kept as given.
func Parse(s string) (Address, error) {
	if len(s) > MaxLocal+2+1+MaxDomain+8 {
		return Address{}, ErrTooBig
	}
	if !isASCII(s) {
		if err := checkUnicode(s); err != nil {
			return Address{}, err
		}
	}
	local, rest, err := parseLocal(s)
	if err != nil {
		return Address{}, err
	}
	if len(local) > MaxLocal {
		return Address{}, fmt.Errorf("%w: local part over %d bytes", ErrTooBig, MaxLocal)
	}
	if rest == "" {
		return Address{Local: local}, nil
	}
	if rest[0] != '@' {
		return Address{}, fmt.Errorf("%w: unexpected %q after the local part", ErrSyntax, rest[0])
	}
	d, err := NormalizeDomain(rest[1:])
	if err != nil {
		return Address{}, err
	}
	return Address{Local: local, Domain: d}, nil
}

// ParsePath is Parse for text that may stand in angle brackets; "<>" and "" give the null address.
func ParsePath(s string) (Address, error) {
	if len(s) >= 2 && s[0] == '<' && s[len(s)-1] == '>' {
		s = s[1 : len(s)-1]
	}
	if s == "" {
		return Address{}, nil
	}
	return Parse(s)
}

// MustParse is Parse for constants and tests; it panics on an error.
func MustParse(s string) Address {
	a, err := ParsePath(s)
	if err != nil {
		panic(fmt.Sprintf("address %q: %v", s, err))
	}
	return a
}

func parseLocal(s string) (local, rest string, err error) {
	if s == "" {
		return "", "", fmt.Errorf("%w: empty", ErrSyntax)
	}
	if s[0] == '"' {
		return parseQuoted(s)
	}
	n := dotString(s)
	if n == 0 {
		return "", "", fmt.Errorf("%w: bad local part", ErrSyntax)
	}
	return s[:n], s[n:], nil
}

// dotString returns the length of the atext and dots that s begins with, 0 if they make no Dot-string (RFC 5321 section 4.1.2).
func dotString(s string) int {
	dot := true // no dot may stand here
	i := 0
	for ; i < len(s); i++ {
		if s[i] == '.' {
			if dot {
				return 0
			}
			dot = true
			continue
		}
		if !isAtext(s[i]) {
			break
		}
		dot = false
	}
	if dot {
		return 0
	}
	return i
}

func parseQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"':
			if b.Len() == 0 {
				return "", "", fmt.Errorf("%w: empty local part", ErrSyntax)
			}
			return b.String(), s[i+1:], nil
		case c == '\\':
			i++
			if i == len(s) || s[i] < ' ' || s[i] >= 0x7f {
				return "", "", fmt.Errorf("%w: bad quoted pair", ErrSyntax)
			}
			b.WriteByte(s[i])
		case c < ' ' || c == 0x7f:
			return "", "", fmt.Errorf("%w: control character in the local part", ErrSyntax)
		default:
			b.WriteByte(c)
		}
	}
	return "", "", fmt.Errorf("%w: unterminated quoted local part", ErrSyntax)
}

// checkUnicode refuses text that is not UTF-8, or that holds characters no mailbox needs and that disturb logs and terminals:
// C1 controls and the Unicode line ends. (RFC 6531 section 3.3 would let them through.)
func checkUnicode(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: invalid UTF-8", ErrSyntax)
	}
	for _, r := range s {
		if r >= 0x80 && unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return fmt.Errorf("%w: control character %U", ErrSyntax, r)
		}
	}
	return nil
}

func quoteLocal(l string) string {
	if l != "" && dotString(l) == len(l) {
		return l
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(l); i++ {
		if l[i] == '"' || l[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(l[i])
	}
	b.WriteByte('"')
	return b.String()
}

// atext is the table of RFC 5322 section 3.2.3; bytes of UTF-8 sequences count as atext (RFC 6531 section 3.3).
var atext = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80 ||
			strings.IndexByte("!#$%&'*+-/=?^_`{|}~", byte(c)) >= 0
	}
	return t
}()

func isAtext(c byte) bool { return atext[c] }

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// NormalizeDomain returns the lower-case Unicode form of a domain name, or of an address literal (RFC 5321 section 4.1.3).
// It refuses everything that is not a host name: empty or over-long labels, control and path characters, a trailing dot.
// It is idempotent, and does not allocate for a name that is in that form already and ASCII.
func NormalizeDomain(d string) (string, error) {
	if strings.HasPrefix(d, "[") {
		return normalizeLiteral(d)
	}
	if simple, aLabel := simpleDomain(d); simple && !aLabel {
		return d, nil
	}
	lower := strings.ToLower(d)
	if lower != d {
		if simple, aLabel := simpleDomain(lower); simple && !aLabel {
			return lower, nil
		}
	}
	if len(d) > 4*MaxDomain { // a U-label never takes more than four bytes a character
		return "", fmt.Errorf("%w: too long", ErrDomain)
	}
	u, err := idna.ToUnicode(lower)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrDomain, err)
	}
	u = norm.NFC.String(strings.ToLower(norm.NFC.String(u)))
	if hasALabel(u) || strings.HasPrefix(u, "[") || !isASCII(u) && !graphic(u) {
		// An A-label or the look of an address literal within an A-label, spaces, controls, marks of direction.
		return "", fmt.Errorf("%w: not a host name", ErrDomain)
	}
	if _, err := DomainToASCII(u); err != nil {
		return "", err
	}
	return u, nil
}

// hasALabel reports a label that starts like an A-label (RFC 5890 section 2.3.2.1).
func hasALabel(d string) bool { return strings.HasPrefix(d, "xn--") || strings.Contains(d, ".xn--") }

// graphic reports a Unicode domain whose characters can all stand in a label: visible ones, not the dots and slashes that look like
// our separators. The joiners U+200C and U+200D are invisible but needed by some scripts (RFC 5892 appendix A).
func graphic(d string) bool {
	for _, r := range d {
		switch {
		case r == '\u200c' || r == '\u200d':
		case r == '\u3002' || r == '\uff0e' || r == '\uff61' || r == '\u2044' || r == '\u2215' || r == '\uff0f':
			return false
		case r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r):
			return false
		}
	}
	return true
}

// DomainToASCII returns the A-label form of a domain in Unicode form; literals are returned as they are.
func DomainToASCII(d string) (string, error) {
	if strings.HasPrefix(d, "[") {
		return d, nil
	}
	if simple, _ := simpleDomain(d); simple {
		return d, nil
	}
	a, err := idna.ToASCII(d)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrDomain, err)
	}
	if simple, _ := simpleDomain(strings.ToLower(a)); !simple {
		return "", ErrDomain
	}
	return a, nil
}

// ASCIIDomain is NormalizeDomain for a host name that is wanted in A-label form: it refuses address literals.
func ASCIIDomain(d string) (string, error) {
	if simple, aLabel := simpleDomain(d); simple && !aLabel {
		return d, nil
	}
	if strings.HasPrefix(d, "[") {
		return "", fmt.Errorf("%w: an address literal", ErrDomain)
	}
	u, err := NormalizeDomain(d)
	if err != nil {
		return "", err
	}
	return DomainToASCII(u)
}

// simpleDomain reports a lower-case LDH host name that no normalisation to A-labels changes, and whether it has an A-label. Underscores
// are tolerated, as DNS uses them.
func simpleDomain(d string) (simple, aLabel bool) {
	if len(d) > 253 {
		return false, false
	}
	start := 0
	for i := 0; i <= len(d); i++ {
		if i < len(d) && hostByte[d[i]] {
			continue
		}
		if i < len(d) && d[i] != '.' {
			return false, false
		}
		label := d[start:i]
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false, false
		}
		if label[0] == 'x' && strings.HasPrefix(label, "xn--") {
			if !validPunycode(label) {
				return false, false
			}
			aLabel = true
		}
		start = i + 1
	}
	return true, aLabel
}

// hostByte is what labels of host names are made of.
var hostByte = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
	}
	return t
}()

// validPunycode reports an A-label that decodes.
func validPunycode(label string) bool {
	_, err := idna.ToUnicode(label)
	return err == nil
}

func normalizeLiteral(d string) (string, error) {
	inner, ok := strings.CutSuffix(d[1:], "]")
	if !ok {
		return "", fmt.Errorf("%w: unterminated address literal", ErrDomain)
	}
	text, v6 := inner, false
	if len(inner) > 5 && strings.EqualFold(inner[:5], "IPv6:") {
		text, v6 = inner[5:], true
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || ip.Is6() != v6 {
		return "", fmt.Errorf("%w: bad address literal", ErrDomain)
	}
	if v6 {
		return "[IPv6:" + ip.String() + "]", nil
	}
	return "[" + ip.String() + "]", nil
}

// NormalizeUser applies the PRECIS profile UsernameCaseMapped (RFC 8265 section 3.3).
func NormalizeUser(u string) (string, error) {
	if simpleUser(u) {
		return u, nil
	}
	n, err := precis.UsernameCaseMapped.String(u)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrUser, err)
	}
	if n == "" { // RFC 8265 section 3.3.2 rule 5, which the library leaves to us
		return "", fmt.Errorf("%w: empty", ErrUser)
	}
	return n, nil
}

// simpleUser reports a user name made of characters that the profile keeps as they are.
func simpleUser(u string) bool {
	for i := 0; i < len(u); i++ {
		c := u[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' && c != '+' {
			return false
		}
	}
	return u != ""
}

// Normalize returns the address with the user and the domain normalised, as local addresses are compared.
func (a Address) Normalize() (Address, error) {
	u, err := NormalizeUser(a.Local)
	if err != nil {
		return Address{}, err
	}
	if a.Domain == "" {
		return Address{Local: u}, nil
	}
	d, err := NormalizeDomain(a.Domain)
	if err != nil {
		return Address{}, err
	}
	return Address{Local: u, Domain: d}, nil
}
