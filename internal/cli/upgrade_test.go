package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/opctl"
)

// TestUpgrade: what the command says, and its exit status.
func TestUpgrade(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "chasquid.conf"), []byte("data_dir: \"data\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		answer error
		exit   int
		out    string
		errout string
	}{
		{"", nil, 0, "Version v2, process 7, serves now, in place of version v1. It took 1.5s; mail waited for 12ms.\n", ""},
		{"-json", nil, 0, "\"paused_ns\": 12000000", ""},
		{"", control.RemoteError("the new process failed: why; the running server goes on as before"), 1, "", "the new process failed: why; the running server goes on"},
		{"", control.RemoteError("unknown method"), 1, "", "restart it instead"},
		{"", os.ErrNotExist, 1, "", "the server does not answer"},
		{"now", nil, 2, "", "unexpected argument"},
	} {
		call := func(_ context.Context, path, method string, _ map[string][]string) (map[string][]string, error) {
			if method != opctl.Upgrade || path != filepath.Join(dir, "data", control.SocketName) {
				t.Errorf("%s at %s", method, path)
			}
			return opctl.Answer(map[string]any{"from": "v1", "to": "v2", "pid": 7, "took_ns": 1_500_000_000, "paused_ns": 12_000_000}, c.answer)
		}
		r := run(t, Env{Call: call}, append([]string{"chasquid", "upgrade", "-C=" + dir}, strings.Fields(c.args)...)...)
		if r.exit != c.exit || !strings.Contains(r.out, c.out) || !strings.Contains(r.errout, c.errout) {
			t.Errorf("%q, %v: exit %d\nstdout: %q\nstderr: %q", c.args, c.answer, r.exit, r.out, r.errout)
		}
	}
}
