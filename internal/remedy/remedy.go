// Package remedy gives errors a sentence that says what to do about them.
package remedy

import (
	"errors"
	"io/fs"
	"syscall"
)

// with is an error with its remedy. The text of the error stays as it is.
type with struct {
	error
	fix string
}

func (w *with) Unwrap() error  { return w.error }
func (w *with) Remedy() string { return w.fix }

// With adds what to do to an error; nil stays nil, and nothing is added by an empty fix. A remedy that is nearer to the cause stays.
func With(err error, fix string) error {
	if err == nil || fix == "" || Known(err) != "" {
		return err
	}
	return &with{err, fix}
}

// Known is the remedy that came with an error, empty if there is none.
func Known(err error) string {
	var r interface{ Remedy() string }
	if errors.As(err, &r) {
		return r.Remedy()
	}
	return ""
}

// Of is what to do about an error: what came with it, or what its kind tells. Empty if neither is known.
func Of(err error) string {
	if fix := Known(err); fix != "" {
		return fix
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "let the server's user use it: check its owner and mode, and those of the directories above it"
	case errors.Is(err, syscall.ENOSPC):
		return "make space on the file system"
	case errors.Is(err, syscall.EROFS):
		return "the file system is read-only: mount it for writing, or let the systemd unit write there (ReadWritePaths)"
	case errors.Is(err, syscall.ENOTDIR):
		return "a file stands where a directory has to be: move it away"
	case errors.Is(err, syscall.ENAMETOOLONG):
		return "use a shorter path"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "let the server open more files (LimitNOFILE)"
	}
	return ""
}

// Text is the remedy as it stands behind an error: in brackets, or nothing.
func Text(err error) string {
	if fix := Of(err); fix != "" {
		return " (" + fix + ")"
	}
	return ""
}
