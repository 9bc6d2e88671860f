package remedy

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestOf(t *testing.T) {
	base := errors.New("base")
	inner := With(base, "do this")
	for _, c := range []struct {
		err  error
		want string
	}{
		{base, ""},
		{inner, " (do this)"},
		{fmt.Errorf("x: %w", inner), " (do this)"},
		{With(fmt.Errorf("x: %w", inner), "do that"), " (do this)"},
		{fs.ErrPermission, " (let the server's user use it: check its owner and mode, and those of the directories above it)"},
		{With(fs.ErrPermission, "do that"), " (do that)"},
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOTDIR}, " (a file stands where a directory has to be: move it away)"},
	} {
		if got := Text(c.err); got != c.want {
			t.Errorf("%v:%s, want%s", c.err, got, c.want)
		}
	}
	if With(nil, "x") != nil || !errors.Is(With(base, "x"), base) || inner.Error() != "base" {
		t.Error("the error itself changed")
	}
}
