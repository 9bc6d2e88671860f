package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// isolated is set in the environment of the process that has the tests' mounts to itself.
const isolated = "CHASQUID_FAULT_ISOLATED"

// TestMain runs the tests in a mount namespace of their own. A namespace that others make meanwhile would have copies of what is mounted
// here, and a file system that still is mounted somewhere keeps the state in which its power failed.
func TestMain(m *testing.M) {
	if os.Getenv(isolated) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	exit, failed := errors.AsType[*exec.ExitError](err)
	switch {
	case failed:
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
