// Package exchange lets real mail servers exchange mail: each is a host of its own in a network that exists only for the test.
package exchange

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"blitiri.com.ar/go/chasquid/test/debs"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// Environment of the tests' process inside the namespaces.
const (
	isolated  = "CHASQUID_EXCHANGE_ISOLATED"
	debsDir   = "CHASQUID_EXCHANGE_DEBS"
	debsError = "CHASQUID_EXCHANGE_DEBS_ERROR" // why packages could not be had
)

// TestMain runs the tests in namespaces of their own: no packet leaves them, ports below 1024 are free, every process ends with the
// tests, and what is mounted is seen by nobody else.
func TestMain(m *testing.M) {
	if os.Getenv(isolated) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	os.Exit(isolate())
}

// isolate fetches and builds what needs the world, and runs this program again without it.
func isolate() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	bin, err := harness.Build()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir := filepath.Join(os.TempDir(), "chasquid-debs")
	_, err1 := debs.Unpack(dir, "chasquid")
	_, err2 := debs.Unpack(dir, "exim4-daemon-light")
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1", harness.BinaryVariable+"="+bin, debsDir+"="+dir)
	if err := errors.Join(err1, err2); err != nil {
		cmd.Env = append(cmd.Env, debsError+"="+err.Error())
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "exchange: cannot make namespaces:", err)
		return 1
	}
	return 0
}

// furnish prepares the namespaces, once.
func furnish() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return nil
}

// unpacked is the directory of a Debian package that is not installed.
func unpacked(t testing.TB, name string) string {
	t.Helper()
	if text := os.Getenv(debsError); text != "" {
		t.Fatal(text)
	}
	return filepath.Join(os.Getenv(debsDir), name)
}
