package aliases

import (
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// rules say which parts of a user name matter.
type rules struct {
	sep, drop string
}

// exact returns the user name with the drop characters before the suffix removed, normalised; the suffix stays.
func (r rules) exact(user string) (string, error) {
	name, suffix := r.cut(user)
	return address.NormalizeUser(r.strip(name) + suffix)
}

// clean returns the user name without suffix and drop characters, normalised, and the suffix without its separator.
func (r rules) clean(user string) (name, detail string, err error) {
	name, suffix := r.cut(user)
	name, err = address.NormalizeUser(r.strip(name))
	if suffix != "" {
		_, detail = splitRune(suffix)
	}
	return name, detail, err
}

// both is exact and clean in one; without a suffix they are the same.
func (r rules) both(user string) (exact, clean, detail string, err error) {
	if exact, err = r.exact(user); err != nil {
		return "", "", "", err
	}
	if _, suffix := r.cut(user); suffix == "" {
		return exact, exact, "", nil
	}
	clean, detail, err = r.clean(user)
	return exact, clean, detail, err
}

// cut splits the user name before its first separator. A name that starts with a separator, or has nothing before it but drop
// characters, has no suffix: there would be no user left.
func (r rules) cut(user string) (name, suffix string) {
	i := strings.IndexAny(user, r.sep)
	if i < 0 || strings.Trim(user[:i], r.drop) == "" {
		return user, ""
	}
	return user[:i], user[i:]
}

// strip removes the drop characters, unless nothing would be left.
func (r rules) strip(name string) string {
	if !strings.ContainsAny(name, r.drop) {
		return name
	}
	kept := strings.Map(func(c rune) rune {
		if strings.ContainsRune(r.drop, c) {
			return -1
		}
		return c
	}, name)
	if kept == "" {
		return name
	}
	return kept
}

func splitRune(s string) (first, rest string) {
	for i := range s {
		if i > 0 {
			return s[:i], s[i:]
		}
	}
	return s, ""
}
