package config

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// merge lays one layer over the settings below it. A layer replaces a field only where it sets it: a non-empty string, a
// positive number, true, a non-empty list (as a whole), or presence for the fields that track it. A message is merged field
// by field. Values that are written but do not count as set are told to ignored.
func merge(dst, layer protoreflect.Message, ignored func(field, value string)) {
	layer.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			dst.Set(fd, v)
		case fd.Kind() == protoreflect.MessageKind:
			merge(dst.Mutable(fd).Message(), v.Message(), ignored)
		case fd.Kind() == protoreflect.Int64Kind && v.Int() < 0:
			ignored(string(fd.Name()), fmt.Sprint(v.Int()))
		default:
			// Range shows only populated fields: those of proto3 without presence are non-zero here.
			dst.Set(fd, v)
		}
		return true
	})
}

func (c *Config) warnIgnored(field, value string) {
	c.Warnings = append(c.Warnings, fmt.Sprintf("%s: %s is not positive and is ignored; the default stays", field, value))
}
