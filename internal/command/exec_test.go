package command

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

func sh(script string, a ...string) Spec {
	return Spec{Path: "/bin/sh", Args: append([]string{"-c", script, "sh"}, a...)}
}

func TestExit(t *testing.T) {
	for script, want := range map[string]struct {
		exit      int
		err       string
		out, serr string
	}{
		"exit 0":                      {0, "", "", ""},
		"echo hello; echo oops >&2":   {0, "", "hello\n", "oops\n"},
		"exit 75":                     {75, "exit status 75", "", ""},
		"echo partial; kill -TERM $$": {-1, "signal: terminated", "partial\n", ""},
	} {
		r := Exec{}.Run(t.Context(), sh(script))
		if !r.Started || r.Exit != want.exit || string(r.Stdout) != want.out || string(r.Stderr) != want.serr || r.TimedOut || r.Cut {
			t.Errorf("%q: %+v", script, r)
		}
		if got := errText(r.Err); got != want.err {
			t.Errorf("%q: error %q, want %q", script, got, want.err)
		}
		if r.Duration <= 0 {
			t.Errorf("%q: no duration", script)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestNotStarted(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		spec Spec
		is   error
	}{
		"missing":         {t.Context(), Spec{Path: filepath.Join(dir, "none")}, os.ErrNotExist},
		"not in PATH":     {t.Context(), Spec{Path: "no-such-program-here"}, exec.ErrNotFound},
		"not executable":  {t.Context(), Spec{Path: plain}, os.ErrPermission},
		"empty":           {t.Context(), Spec{}, nil},
		"NUL in argument": {t.Context(), sh("true", "a\x00b"), syscall.EINVAL},
		"no directory":    {t.Context(), Spec{Path: "/bin/true", Dir: filepath.Join(dir, "none")}, os.ErrNotExist},
		"context ended":   {cancelled, sh("true"), context.Canceled},
		"too long":        {t.Context(), sh("true", strings.Repeat("a", 1<<20)), syscall.E2BIG},
	} {
		r := Exec{}.Run(c.ctx, c.spec)
		if r.Started || r.Exit != -1 || r.Err == nil || c.is != nil && !errors.Is(r.Err, c.is) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// D10, D11: arguments and environment are data, no shell sees them, and nothing of ours leaks.
func TestArgumentsAndEnvironment(t *testing.T) {
	t.Setenv("SECRET", "inherited")
	dir := t.TempDir()
	s := sh(`printf '%s|' "$@"; echo "$A|$SECRET|$(pwd)"`, "$(id -u)", "; exit 3", "-oQ/tmp", "")
	s.Env, s.Dir = []string{"A=`id`"}, dir
	r := Exec{}.Run(t.Context(), s)
	if want := "$(id -u)|; exit 3|-oQ/tmp||`id`||" + dir + "\n"; string(r.Stdout) != want || r.Err != nil {
		t.Errorf("got %q, %v; want %q", r.Stdout, r.Err, want)
	}
	r = Exec{}.Run(t.Context(), Spec{Path: "env"})
	if len(r.Stdout) != 0 || r.Err != nil {
		t.Errorf("a nil Env gives %q, %v", r.Stdout, r.Err)
	}
}

func TestStdin(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	s := sh("wc -c")
	s.Stdin = bytes.NewReader(big)
	if r := (Exec{}).Run(t.Context(), s); strings.TrimSpace(string(r.Stdout)) != strconv.Itoa(len(big)) || r.Err != nil {
		t.Errorf("wc: %q, %v", r.Stdout, r.Err)
	}
	s = sh("exit 0") // a program need not read its input
	s.Stdin = bytes.NewReader(big)
	if r := (Exec{}).Run(t.Context(), s); r.Err != nil || r.Exit != 0 {
		t.Errorf("input not read: %+v", r)
	}
	boom := errors.New("disk on fire")
	s = sh("cat >/dev/null") // must not look like success: the program saw half of it
	s.Stdin = io.MultiReader(strings.NewReader("half"), iotest.ErrReader(boom))
	if r := (Exec{}).Run(t.Context(), s); !errors.Is(r.Err, boom) {
		t.Errorf("failing input: %+v", r)
	}
	s = sh("cat >/dev/null")
	s.Stdin = readerFunc(func([]byte) (int, error) { panic("reader") })
	if r := (Exec{}).Run(t.Context(), s); r.Err == nil {
		t.Errorf("panicking input: %+v", r)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestOutputCapped(t *testing.T) {
	s := sh("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 3")
	s.MaxOut = 1000
	if r := (Exec{}).Run(t.Context(), s); len(r.Stdout) != 1000 || len(r.Stderr) != maxStderr || !r.Cut || r.Exit != 3 {
		t.Errorf("out %d, err %d, cut %v, exit %d", len(r.Stdout), len(r.Stderr), r.Cut, r.Exit)
	}
	s.MaxOut = 0
	if r := (Exec{}).Run(t.Context(), s); len(r.Stdout) != defaultMaxOut {
		t.Errorf("default cap: %d", len(r.Stdout))
	}
}

// The whole process group dies with the time-out, and the run ends even if a child keeps the pipes.
func TestTimeoutKillsGroup(t *testing.T) {
	s := sh(`sleep 1000 & echo $!; sleep 1000; echo never`)
	s.Timeout = 200 * time.Millisecond
	r := Exec{}.Run(t.Context(), s)
	if !r.TimedOut || !errors.Is(r.Err, ErrTimeout) || r.Exit != -1 || r.Duration > 5*time.Second {
		t.Fatalf("%+v", r)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(r.Stdout)))
	if err != nil {
		t.Fatalf("no pid in %q", r.Stdout)
	}
	waitGone(t, pid)
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	for range 500 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		time.Sleep(5 * time.Millisecond) // polls the kernel's process table
	}
	t.Errorf("process %d is still there", pid)
}

func TestContextKills(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := sh("echo ready; sleep 1000")
	s.Stdin = readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF })
	r := Exec{}.Run(ctx, s)
	if r.TimedOut || !errors.Is(r.Err, context.Canceled) || r.Exit != -1 {
		t.Errorf("%+v", r)
	}
}

// A daemon left behind by the program does not hold the run up, and does not make it fail.
func TestBackgroundChild(t *testing.T) {
	r := Exec{}.Run(t.Context(), sh("sleep 3 & echo started"))
	if r.Err != nil || r.Exit != 0 || string(r.Stdout) != "started\n" || r.Duration > 2500*time.Millisecond {
		t.Errorf("%+v", r)
	}
}

// A program file that somebody has open for writing is busy for a moment only.
func TestTextFileBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "prog")
	bin, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Skip("no /bin/true to copy: ", err)
	}
	if err := os.WriteFile(path, bin, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { f.Close() })
	if r := (Exec{}).Run(t.Context(), Spec{Path: path}); r.Err != nil {
		t.Errorf("busy for a moment: %v", r.Err)
	}
	held, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if r := (Exec{}).Run(t.Context(), Spec{Path: path}); !errors.Is(r.Err, syscall.ETXTBSY) || r.Started {
		t.Errorf("busy for ever: %+v", r)
	}
}
