// Package sandbox is a small machine for tests of commands as people type them: a root directory, network and processes of its own.
//
// The programs are those of this machine; everything else is fresh: /etc, /var, /usr/local, users, addresses. Beside it is a small
// internet: a DNS for all, a mail server for example.net, a web server, and optionally a certificate authority. It needs root.
package sandbox

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// Addresses: of the machine, and of what is outside.
const (
	IP      = "192.0.2.10"
	dnsIP   = "192.0.2.53"
	gateway = "192.0.2.1"
	sinkIP  = "198.51.100.25"
	webIP   = "198.51.100.80"
)

// Zone is what the DNS has from the start.
const Zone = `
example.net MX 10 mx.example.net
example.net TXT "v=spf1 ip4:198.51.100.25 -all"
mx.example.net A 198.51.100.25
25.100.51.198.in-addr.arpa PTR mx.example.net
acme-v02.api.letsencrypt.org A 198.51.100.80
`

// Options of a box.
type Options struct {
	Hostname string
	Zone     string   // added to Zone
	Install  bool     // the server and its skeleton, as make install does
	Source   bool     // the source tree in /src, with what builds it
	Files    []string // host files, put into /root
	Pebble   bool     // an authority under Let's Encrypt's name
}

// Box is the running machine.
type Box struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	done chan struct{}
}

// plan is what the first process of the box is told.
type plan struct {
	Root, Hostname, Zone, Binary, Top, Pebble string
	Source                                    []string // files below Top
	Files                                     []string
	Binds                                     []string // directories that are the same inside
	Env                                       []string
}

// request is one thing the first process is asked to do; answer is what came of it.
type request struct {
	Script  string
	Outside bool   // in the network of the internet
	Zone    string // records to add
	Seconds float64
}

type answer struct {
	Output string
	Exit   int
	Err    string
}

// New makes and starts a box. It ends with the test.
func New(t testing.TB, o Options) *Box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a box needs root")
	}
	p := plan{Root: t.TempDir(), Hostname: o.Hostname, Zone: Zone + o.Zone, Files: o.Files}
	if p.Hostname == "" {
		p.Hostname = "mail.example.org"
	}
	if o.Install || o.Source || o.Pebble {
		p.Top = strings.TrimSpace(output(t, "git", "rev-parse", "--show-toplevel"))
	}
	if o.Install {
		p.Binary = harness.Binary(t)
	}
	if o.Source {
		p.Source = strings.Split(strings.Trim(output(t, "git", "-C", p.Top, "ls-files", "-z"), "\x00"), "\x00")
		p.Binds = strings.Fields(output(t, "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE"))
		p.Env = append(p.Env, "PATH="+p.Binds[0]+"/bin:"+path, "GOCACHE="+p.Binds[2], "GOMODCACHE="+p.Binds[1], "GOFLAGS=-buildvcs=false", "GOTOOLCHAIN=local")
	}
	if o.Pebble {
		p.Pebble = pebble(t, p.Top)
	}
	b := &Box{t: t, done: make(chan struct{})}
	b.start(p)
	return b
}

func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out)
}

// pebble builds the certificate authority for tests, in the version that its module in the tree names.
func pebble(t testing.TB, top string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "pebble")
	cmd := exec.Command("go", "build", "-o", bin, "github.com/letsencrypt/pebble/v2/cmd/pebble")
	cmd.Dir, cmd.Env = filepath.Join(top, "test/acme/pebble"), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building pebble: %v\n%s", err, out)
	}
	return bin
}

func (b *Box) start(p plan) {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		b.t.Fatal(err)
	}
	b.cmd = exec.Command(self)
	b.cmd.Env = []string{roleVar + "=init", "PATH=" + path, "HOME=/root", "LC_ALL=C.UTF-8"}
	b.cmd.Stderr = os.Stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		b.t.Fatal(err)
	}
	stdout, err := b.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.out = bufio.NewReader(stdout)
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		b.cmd.Process.Kill() // the first process of a namespace takes all others with it
		b.cmd.Wait()
	})
	if _, err := fmt.Fprintf(b.in, "%s\n", text); err != nil {
		b.t.Fatal(err)
	}
	if a := b.answer(); a.Err != "" {
		b.t.Fatal("the box does not start: ", a.Err)
	}
}

func (b *Box) answer() answer {
	b.t.Helper()
	line, err := b.out.ReadString('\n')
	if err != nil {
		b.t.Fatal("the box has ended: ", err)
	}
	var a answer
	if err := json.Unmarshal([]byte(line), &a); err != nil {
		b.t.Fatalf("%v: %s", err, line)
	}
	return a
}

func (b *Box) ask(r request) answer {
	b.t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(b.in, "%s\n", text); err != nil {
		b.t.Fatal(err)
	}
	a := b.answer()
	if a.Err != "" {
		b.t.Fatal(a.Err)
	}
	return a
}

// limit is how long one script may take: building the server is among them.
const limit = 5 * time.Minute

// Patience is how long a test waits for something in the box that takes a moment on an idle machine.
const Patience = time.Minute

// Try runs a script for bash, in /root as root, and returns what it printed and its exit status.
func (b *Box) Try(script string) (out string, exit int) {
	b.t.Helper()
	a := b.ask(request{Script: script, Seconds: limit.Seconds()})
	return a.Output, a.Exit
}

// Run is Try for scripts in which every command has to succeed.
func (b *Box) Run(script string) string {
	b.t.Helper()
	out, exit := b.Try("set -e -o pipefail\n" + script)
	if exit != 0 {
		b.t.Fatalf("exit status %d of\n%s\nwhich printed\n%s\n%s", exit, script, out, b.Log())
	}
	return out
}

// Outside runs a script like Run, on the network of the internet.
func (b *Box) Outside(script string) string {
	b.t.Helper()
	a := b.ask(request{Script: "set -e -o pipefail\n" + script, Outside: true, Seconds: limit.Seconds()})
	if a.Exit != 0 {
		b.t.Fatalf("outside: exit status %d of\n%s\nwhich printed\n%s\n%s", a.Exit, script, a.Output, b.Log())
	}
	return a.Output
}

// Publish adds records to the DNS.
func (b *Box) Publish(zone string) {
	b.t.Helper()
	b.ask(request{Zone: zone})
}

// Path is where a file of the box is for the test.
func (b *Box) Path(name string) string {
	return filepath.Join("/proc", fmt.Sprint(b.cmd.Process.Pid), "root", name)
}

// Read returns a file of the box, or nothing.
func (b *Box) Read(name string) string {
	text, _ := os.ReadFile(b.Path(name))
	return string(text)
}

// Write makes a file in the box, and its directory.
func (b *Box) Write(name, text string) {
	b.t.Helper()
	if err := os.MkdirAll(b.Path(filepath.Dir(name)), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.Path(name), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// Log is what the service wrote, which systemd would have in its journal.
func (b *Box) Log() string { return b.Read("/var/log/chasquid.service") }

// Mail is one message that arrived at the mail server outside.
type Mail struct {
	From string
	To   []string
	Data string
}

// Sent returns what arrived at the mail server outside so far.
func (b *Box) Sent() (all []Mail) {
	b.t.Helper()
	for n := 1; ; n++ {
		text := b.Read(fmt.Sprintf("%s/%d", sinkDir, n))
		if text == "" {
			return all
		}
		var m Mail
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			b.t.Fatal(err)
		}
		all = append(all, m)
	}
}

// SinkDown makes the mail server outside refuse everything for now, or take mail again.
func (b *Box) SinkDown(down bool) {
	b.t.Helper()
	if down {
		b.Write(sinkDown, "")
	} else if err := os.Remove(b.Path(sinkDown)); err != nil {
		b.t.Fatal(err)
	}
}

// Lines is what a page says in a code block, without its indentation.
func Lines(block string) string {
	var b strings.Builder
	for line := range strings.Lines(block) {
		b.WriteString(strings.TrimPrefix(line, "    "))
	}
	return b.String()
}
