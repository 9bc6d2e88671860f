package courier

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Smarthost is a server that mail is relayed through, as the settings write it.
type Smarthost struct {
	Implicit bool   // TLS from the first byte
	User     string // authenticate as; empty: do not
	Host     string // "host:port", as in mail.Route.Hosts
}

// ParseSmarthost parses "smtp://host:587", "smtp://user@host" or "smtps://user@host:465". The default ports are 25, 587 when
// there is a user, and 465 for smtps. With a user, or with smtps, TLS with a valid certificate is a must. A user with unusual
// characters is percent-encoded. There is no place for a password: routes are shown to people.
func ParseSmarthost(s string) (Smarthost, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Smarthost{}, fmt.Errorf("%q is not smtp://host:port or smtps://user@host:port", s)
	}
	var h Smarthost
	switch strings.ToLower(scheme) {
	case "smtp":
	case "smtps":
		h.Implicit = true
	default:
		return Smarthost{}, fmt.Errorf("unknown scheme %q: use smtp or smtps", scheme)
	}
	rest = strings.TrimSuffix(rest, "/")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		user, err := url.PathUnescape(rest[:i])
		switch {
		case strings.Contains(rest[:i], ":"):
			return Smarthost{}, errors.New("the password does not belong into the address: put it into a file")
		case err != nil || user == "" || strings.ContainsAny(user, "\x00\r\n"):
			return Smarthost{}, errors.New("bad user name")
		}
		h.User, rest = user, rest[i+1:]
	}
	port := uint16(25)
	switch {
	case h.Implicit:
		port = 465
	case h.User != "":
		port = 587
	}
	t, err := parseHost(rest, port)
	if err != nil {
		return Smarthost{}, fmt.Errorf("server %q: %w", rest, err)
	}
	h.Host = t.name + ":" + strconv.Itoa(int(t.port))
	if t.ip.Is6() {
		h.Host = "[" + t.name + "]:" + strconv.Itoa(int(t.port))
	}
	return h, nil
}
