package config

import (
	"crypto/x509"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Setting is one effective setting, for people: passwords are hidden.
type Setting struct {
	Name   string
	Text   string // as it would be written, "name: value", several lines for lists and blocks
	Origin string // "default", "system", "override", or file and line
}

// List returns the effective settings that are not empty, in field-number order, and where each comes from.
func (c *Config) List() []Setting {
	var list []Setting
	m := c.Settings.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		name := string(fd.Name())
		list = append(list, Setting{Name: name, Text: fieldText(m, fd), Origin: c.originOf(name)})
	}
	return list
}

func (c *Config) originOf(name string) string {
	if o := c.origin[name]; o != "" {
		return o
	}
	if name == "hostname" {
		return "system"
	}
	return "default"
}

// noteOrigins remembers which settings a layer sets.
func (c *Config) noteOrigins(layer *Settings, src source) {
	m := layer.ProtoReflect()
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Kind() == protoreflect.Int64Kind && v.Int() < 0 {
			return true // not set, see merge
		}
		name := string(fd.Name())
		if src.file == "" {
			c.origin[name] = src.what
		} else if n := lineOf(src.text, name); n > 0 {
			c.origin[name] = fmt.Sprintf("%s:%d", src.file, n)
		} else {
			c.origin[name] = src.file
		}
		return true
	})
}

// Change is a setting that differs between two configurations, with passwords hidden.
type Change struct {
	Name     string
	Old, New string // as Setting.Text; empty if it is not set
}

// String renders the change on one line.
func (c Change) String() string {
	value := func(s string) string {
		var vs []string
		for _, l := range strings.Split(strings.TrimSpace(s), "\n") {
			vs = append(vs, strings.TrimPrefix(strings.TrimSpace(l), c.Name+": "))
		}
		if s == "" {
			return "unset"
		}
		return strings.Join(vs, " ")
	}
	return c.Name + ": " + value(c.Old) + " -> " + value(c.New)
}

// Diff returns the settings that differ, in field-number order, and after them the files whose contents do.
func Diff(before, after *Config) []Change {
	var list []Change
	a, b := before.Settings.ProtoReflect(), after.Settings.ProtoReflect()
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !sameField(a, b, fd) {
			list = append(list, Change{Name: string(fd.Name()), Old: fieldText(a, fd), New: fieldText(b, fd)})
		}
	}
	return append(list, contentChanges(before, after)...)
}

// contentChanges finds files that have the same name and other contents.
func contentChanges(before, after *Config) (list []Change) {
	type content struct {
		text  string
		roots *x509.CertPool
	}
	old := map[string]content{}
	files := func(c *Config, found func(name string, is content)) {
		if c.Relay != nil && c.RelayPasswordFile != "" {
			found("relay_password_file "+c.RelayPasswordFile, content{text: c.Relay.Password})
		}
		for i, r := range c.Routes {
			if r.Relay != nil && c.Route[i].PasswordFile != "" {
				found("password_file "+c.Route[i].PasswordFile, content{text: r.Relay.Password})
			}
		}
		if c.ACME != nil && c.Acme.CaFile != "" {
			found("ca_file "+c.Acme.CaFile, content{roots: c.ACME.Roots})
		}
		if c.ACME != nil && c.Acme.EabKeyFile != "" {
			found("eab_key_file "+c.Acme.EabKeyFile, content{text: string(c.ACME.MACKey)})
		}
	}
	files(before, func(name string, is content) { old[name] = is })
	files(after, func(name string, is content) {
		was, ok := old[name]
		if delete(old, name); ok && (was.text != is.text || !was.roots.Equal(is.roots)) {
			list = append(list, Change{Name: name, Old: "its content as it was", New: "its content as it is now"})
		}
	})
	return list
}

// sameField compares one field by comparing messages that have nothing else.
func sameField(a, b protoreflect.Message, fd protoreflect.FieldDescriptor) bool {
	only := func(m protoreflect.Message) proto.Message {
		n := m.New()
		if m.Has(fd) {
			n.Set(fd, m.Get(fd))
		}
		return n.Interface()
	}
	return proto.Equal(only(a), only(b))
}

func fieldText(m protoreflect.Message, fd protoreflect.FieldDescriptor) string {
	n := m.New()
	if m.Has(fd) {
		n.Set(fd, m.Get(fd))
	}
	return text(n, "", redact)
}
