package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Addresses inside the benchmark's own network namespace.
const (
	sinkIP     = "192.0.2.25"
	deadIP     = "192.0.2.26" // refuses connections
	deadDomain = "dead.test"  // has its mail servers there
	isolated   = "CHASQUID_BENCH_ISOLATED"
)

// isolate runs this program again in a network and mount namespace of its own, where port 25 and the resolver belong to the
// benchmark: every server then uses its ordinary configuration. It returns the exit code.
func isolate() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		if e, ok := err.(*exec.ExitError); ok {
			return e.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "bench: cannot make a network namespace:", err)
		return 1
	}
	return 0
}

// furnish sets up the namespace: loopback, the sink's address, and a resolv.conf that names the stub.
func furnish(dir string) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", sinkIP + "/32", "dev", "lo"},
		{"addr", "add", deadIP + "/32", "dev", "lo"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	path := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 127.0.0.1\n"), 0644); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	if err := syscall.Mount(path, target, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("replacing resolv.conf: %w", err)
	}
	return stubDNS("127.0.0.1:53", sinkIP)
}
