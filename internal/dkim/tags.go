package dkim

import (
	"errors"
	"strings"
)

// tags is a tag-list (RFC 6376 section 3.2).
type tags []tag

type tag struct {
	name, value string // the value without white space around it
	start, end  int    // of everything between "=" and ";" in the text
}

var errTags = errors.New("malformed tag list")

// parseTags parses a tag-list. Unknown tags are kept, a tag that stands twice is an error.
func parseTags(s string) (tags, error) {
	var l tags
	for start := 0; start <= len(s); {
		end := len(s)
		if i := strings.IndexByte(s[start:], ';'); i >= 0 {
			end = start + i
		}
		spec := s[start:end]
		name, value, ok := strings.Cut(spec, "=")
		name = strings.Trim(name, fws)
		if !ok && name == "" && end == len(s) && len(l) > 0 {
			break // nothing behind the last semicolon
		}
		if !ok || !validTagName(name) || len(l) == maxTags {
			return nil, errTags
		}
		if _, dup := l.get(name); dup {
			return nil, errTags
		}
		for i := 0; i < len(value); i++ {
			if c := value[i]; c < ' ' && c != '\t' && c != '\r' && c != '\n' || c == 0x7f {
				return nil, errTags
			}
		}
		l = append(l, tag{name, strings.Trim(value, fws), end - len(value), end})
		start = end + 1
	}
	return l, nil
}

const fws = " \t\r\n"

func validTagName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

// get returns the value of a tag.
func (l tags) get(name string) (string, bool) {
	for i := range l {
		if l[i].name == name {
			return l[i].value, true
		}
	}
	return "", false
}

// compact returns the value of a tag without the white space inside it, which folding may have put there.
func (l tags) compact(name string) string {
	v, _ := l.get(name)
	return compact(v)
}

func compact(s string) string {
	if !strings.ContainsAny(s, fws) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(fws, s[i]) < 0 {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// list returns the items of a colon-separated value.
func (l tags) list(name string) []string {
	v, ok := l.get(name)
	if !ok {
		return nil
	}
	items := strings.Split(v, ":")
	for i, s := range items {
		items[i] = strings.Trim(s, fws)
	}
	return items
}
