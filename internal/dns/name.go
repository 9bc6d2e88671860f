package dns

import (
	"net/netip"
	"strconv"
	"strings"
)

// canonical returns the name in lower case without trailing dot, and whether it can be a domain name at all
// (RFC 1035 section 2.3.4): such a name is never sent to a server. It allocates only if it has to change something.
func canonical(name string) (string, bool) {
	if n := len(name); n > 1 && name[n-1] == '.' {
		name = name[:n-1]
	}
	if name == "" || len(name) > 253 {
		return "", false
	}
	label, upper := 0, false
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.':
			if label == 0 || label > 63 {
				return "", false
			}
			label = 0
			continue
		case c >= 'A' && c <= 'Z':
			upper = true
		}
		label++
	}
	if label == 0 || label > 63 {
		return "", false
	}
	if upper {
		name = lowerASCII(name)
	}
	return name, true
}

// lowerASCII lowers ASCII letters only, as DNS compares names (RFC 4343).
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// special are the bytes that stand in a name of presentation format only after a backslash.
const special = ` '@;()"\\`

// escape makes a fully qualified name in presentation format of a canonical one, the same form in which the library gives
// the names of an answer.
func escape(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(special, r) }) < 0 {
		return name + "."
	}
	b := make([]byte, 0, len(name)+16)
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case strings.IndexByte(special, c) >= 0:
			b = append(b, '\\', c)
		case c < ' ' || c >= 0x7f:
			b = append(b, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '.'))
}

// hostName returns a name of an answer as a host name: lower case, no trailing dot; "" for the root. It reports false for
// names with bytes that no host name has, which must not get into logs, headers and further look-ups.
func hostName(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return "", false
		}
	}
	if len(s) > 253 {
		return "", false
	}
	return strings.ToLower(s), true
}

// reverseName is the name under which the PTR of an address stands (RFC 1035 section 3.5, RFC 3596 section 2.5).
func reverseName(ip netip.Addr) string {
	ip = ip.Unmap()
	if !ip.IsValid() {
		return ""
	}
	b := make([]byte, 0, 73)
	if ip.Is4() {
		a := ip.As4()
		for i := 3; i >= 0; i-- {
			b = strconv.AppendUint(b, uint64(a[i]), 10)
			b = append(b, '.')
		}
		return string(append(b, "in-addr.arpa"...))
	}
	const hex = "0123456789abcdef"
	a := ip.As16()
	for i := 15; i >= 0; i-- {
		b = append(b, hex[a[i]&15], '.', hex[a[i]>>4], '.')
	}
	return string(append(b, "ip6.arpa"...))
}

// unescapeText undoes the presentation format of a character-string: \DDD and \X (RFC 1035 section 5.1).
func unescapeText(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		if i+3 < len(s) && isDigit(s[i+1]) && isDigit(s[i+2]) && isDigit(s[i+3]) {
			b = append(b, (s[i+1]-'0')*100+(s[i+2]-'0')*10+s[i+3]-'0')
			i += 3
			continue
		}
		i++
		b = append(b, s[i])
	}
	return string(b)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
