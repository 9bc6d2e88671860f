package config

import (
	"errors"
	"fmt"
	"strings"
)

// Error is one thing wrong with the configuration.
type Error struct {
	File  string // empty for overrides
	Line  int    // 0 if unknown
	Field string // empty if no field is to blame
	Value string // the offending value, if there is one
	Msg   string // what is wrong, in words
	Fix   string // what to do

	prefix string
	err    error
}

// Error says what is wrong and where. What to do about it is in Remedy.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.prefix)
	if e.Line > 0 && e.File != "" {
		fmt.Fprintf(&b, ": %q line %d", e.File, e.Line)
	} else if e.Line > 0 {
		fmt.Fprintf(&b, ": line %d", e.Line)
	}
	b.WriteString(": ")
	b.WriteString(e.Msg)
	return b.String()
}

// Unwrap returns the cause, if there is one.
func (e *Error) Unwrap() error { return e.err }

// Remedy says what to do.
func (e *Error) Remedy() string { return e.Fix }

// Errors returns the single errors that Load joined.
func Errors(err error) []*Error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var list []*Error
		for _, e := range j.Unwrap() {
			list = append(list, Errors(e)...)
		}
		return list
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return []*Error{e}
	}
	return nil
}

// Problem is an error of the setting field that shows only when it is put to use: an address that is taken, a file that cannot be opened.
func (c *Config) Problem(field string, err error, fix string) error {
	e := &Error{Field: field, Msg: err.Error(), Fix: fix, prefix: field, err: err}
	name := field[strings.LastIndexByte(field, '.')+1:]
	if lineOf(c.overrides, name) > 0 {
		e.prefix = "overrides: " + field
	} else if n := lineOf(c.text, name); n > 0 {
		e.File, e.Line = c.File, n
	}
	return e
}

func readError(path string, err error) error {
	return &Error{File: path, prefix: fmt.Sprintf("failed to read config at %q", path), Msg: err.Error(), err: err,
		Fix: `check the path and its permissions, name the right directory with -config_dir, or make one with "chasquid setup"`}
}

// invalid is the error of a value that parses but cannot be used.
func invalid(field, value, msg, fix string) *Error {
	return &Error{Field: field, Value: value, Msg: msg, Fix: fix, prefix: fmt.Sprintf("invalid %s value %q", field, value)}
}
