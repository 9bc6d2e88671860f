package exchange

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"

	"golang.org/x/sys/unix"
)

var (
	furnishOnce sync.Once
	furnishErr  error
	networks    atomic.Int32
)

// network is a network of hosts. The test itself is at its address .1.
type network struct {
	t      testing.TB
	prefix string // "198.18.7."
	bridge string
	dir    string // readable by everybody
	ca     *authority
	dns    *host
	anchor string // of the signed zone, for resolvers
}

// newNetwork makes a network without hosts. It ends with the test.
func newNetwork(t testing.TB) *network {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	for program, pkg := range map[string]string{"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"} {
		harness.Need(t, program, pkg)
	}
	furnishOnce.Do(func() { furnishErr = furnish() })
	if furnishErr != nil {
		t.Fatal(furnishErr)
	}
	number := networks.Add(1)
	n := &network{t: t, prefix: fmt.Sprintf("198.18.%d.", number), bridge: fmt.Sprintf("net%d", number), ca: newAuthority(t)}
	var err error
	if n.dir, err = os.MkdirTemp("", "xchg"); err != nil { // short: it is part of socket names
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(n.dir) })
	os.Chmod(n.dir, 0755)
	if err := os.WriteFile(n.ca.file(n), n.ca.pem, 0644); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, "", "ip", "link", "add", n.bridge, "type", "bridge")
	t.Cleanup(func() { exec.Command("ip", "link", "del", n.bridge).Run() })
	harness.Run(t, "", "ip", "addr", "add", n.addr(1)+"/24", "dev", n.bridge)
	harness.Run(t, "", "ip", "link", "set", n.bridge, "up")
	return n
}

// addr is the i-th address of the network.
func (n *network) addr(i int) string { return fmt.Sprint(n.prefix, i) }

// host is a computer of its own: network, mounts and host name.
type host struct {
	n    *network
	t    testing.TB
	name string // such as mx.alfa.example
	ip   string
	dir  string
	pid  int // of the process that holds the namespaces
}

// newHost adds a host that asks the resolver on its own loopback.
func (n *network) newHost(number int, name string) *host {
	n.t.Helper()
	h := &host{n: n, t: n.t, name: name, ip: n.addr(number), dir: filepath.Join(n.dir, fmt.Sprint(number))}
	if err := os.Mkdir(h.dir, 0755); err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-n", "-m", "-u", "sh", "-c", "echo ready && exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		n.t.Fatalf("namespaces of %s: %q, %v", name, line, err)
	}
	go io.Copy(io.Discard, out)
	h.pid = cmd.Process.Pid
	veth := fmt.Sprintf("%sh%d", n.bridge, number)
	harness.Run(n.t, "", "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(h.pid))
	harness.Run(n.t, "", "ip", "link", "set", veth, "master", n.bridge, "up")
	h.mount("resolv.conf", "nameserver 127.0.0.1\noptions trust-ad\n", "/etc/resolv.conf")
	h.run("sh", "-c", "hostname "+name+" && ip link set lo up && ip addr add "+h.ip+"/24 dev eth0 && ip link set eth0 up")
	return h
}

// write writes a file of the host and returns its path.
func (h *host) write(name, content string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0644); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// mount puts a file in the place of one that exists, for this host only.
func (h *host) mount(name, content, over string) {
	h.t.Helper()
	target, err := filepath.EvalSymlinks(over)
	if err != nil {
		h.t.Fatal(err)
	}
	h.run("mount", "--bind", h.write(name, content), target)
}

// command is a command on the host.
func (h *host) command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(h.pid), "-n", "-m", "-u", "--", name}, args...)...)
}

// run runs a command on the host to its end.
func (h *host) run(name string, args ...string) string {
	h.t.Helper()
	out, err := h.command(name, args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %s %s: %v\n%s", h.name, name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// process is a program that runs on a host.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// start runs a program on the host until the test ends; what it prints is shown if the test fails.
func (h *host) start(env []string, name string, args ...string) *process {
	h.t.Helper()
	out, err := os.OpenFile(filepath.Join(h.dir, filepath.Base(name)+".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0644)
	if err != nil {
		h.t.Fatal(err)
	}
	defer out.Close()
	cmd := h.command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	p := &process{cmd, make(chan struct{})}
	go func() { cmd.Wait(); close(p.exited) }()
	h.t.Cleanup(func() {
		p.stop(syscall.SIGKILL)
		if h.t.Failed() {
			b, _ := os.ReadFile(out.Name())
			h.t.Logf("%s on %s:\n%s", filepath.Base(name), h.name, tail(b))
		}
	})
	return p
}

// tail is the last part of what a program printed.
func tail(b []byte) []byte {
	const most = 20000
	return b[max(0, len(b)-most):]
}

// stop ends the program and what it started.
func (p *process) stop(sig syscall.Signal) {
	syscall.Kill(-p.cmd.Process.Pid, sig)
	select {
	case <-p.exited:
	case <-time.After(patience.Limit(5 * time.Second)):
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.exited
	}
}

// dial connects from inside the host.
func (h *host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(back) // the thread would go on elsewhere
	}
	return conn, err
}

// waitFor waits until something listens at a port of the host.
func (h *host) waitFor(p *process, addr string) {
	h.t.Helper()
	waitFor(h.t, addr+" of "+h.name, func() bool {
		select {
		case <-p.exited:
			h.t.Fatalf("%v has ended", p.cmd.Args[len(p.cmd.Args)-1])
		default:
		}
		c, err := h.dial(h.t.Context(), "tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// waitFor waits until ok is true: for something that takes seconds where nothing else runs.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := min(patience.Limit(10*time.Second), 2*time.Minute)
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
