package config

import (
	"net/url"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Text renders the effective settings in protobuf text format, one "name: value" a line in field-number order;
// what is unset, false, zero or empty is left out. Reading it back gives the same settings.
func (c *Config) Text() string { return text(c.Settings.ProtoReflect(), "", nil) }

// RedactedText is Text with the passwords in URLs replaced: what pages and support bundles show.
func (c *Config) RedactedText() string { return text(c.Settings.ProtoReflect(), "", redact) }

// Lines is RedactedText as lines, for the log.
func (c *Config) Lines() []string {
	return strings.Split(strings.TrimSuffix(c.RedactedText(), "\n"), "\n")
}

// DefaultText renders the built-in settings.
func DefaultText() string { return text(Default().ProtoReflect(), "", nil) }

func text(m protoreflect.Message, indent string, hide func(string) string) string {
	var b strings.Builder
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		name, v := string(fd.Name()), m.Get(fd)
		switch {
		case fd.IsList():
			for j := range v.List().Len() {
				writeField(&b, indent, name, fd, v.List().Get(j), hide)
			}
		default:
			writeField(&b, indent, name, fd, v, hide)
		}
	}
	return b.String()
}

func writeField(b *strings.Builder, indent, name string, fd protoreflect.FieldDescriptor, v protoreflect.Value, hide func(string) string) {
	if fd.Kind() == protoreflect.MessageKind {
		if inner := text(v.Message(), indent+"  ", hide); inner != "" {
			b.WriteString(indent + name + ": {\n" + inner + indent + "}\n")
		}
		return
	}
	b.WriteString(indent + name + ": ")
	if fd.Kind() == protoreflect.StringKind {
		s := v.String()
		if hide != nil {
			s = hide(s)
		}
		writeQuoted(b, s)
	} else {
		b.WriteString(v.String())
	}
	b.WriteByte('\n')
}

// writeQuoted writes a text-format string: valid UTF-8 as it is, quotes, backslashes and control characters escaped.
func writeQuoted(b *strings.Builder, s string) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r == 0x7f:
			b.WriteString(`\x` + string("0123456789abcdef"[r>>4]) + string("0123456789abcdef"[r&15]))
		default:
			b.WriteString(string(r))
		}
	}
	b.WriteByte('"')
}

// redact hides the password of a URL.
func redact(s string) string {
	if !strings.Contains(s, "://") || !utf8.ValidString(s) {
		return s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "(not shown: not a valid URL)"
	}
	if _, ok := u.User.Password(); ok {
		return u.Redacted()
	}
	return s
}
