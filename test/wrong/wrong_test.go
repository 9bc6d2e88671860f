// Package wrong starts the server with wrong configurations, and compares what it and "chasquid check" say with docs/errors.md.
package wrong

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/errors.md")

const (
	doc      = "../../docs/errors.md"
	settings = "../../internal/config/testdata/wrong.txt" // those cases are of the settings alone, and run here too
	begin    = "<!-- generated: go test ./test/wrong -update -->"
)

// nobody is whom the server runs as, so that permissions mean something.
const nobody = 65534

// limit is how long a start that fails, or a check, may take.
var limit = patience.Limit(5 * time.Second)

// wrong is one case of testdata: a directory that is right but for one thing.
type wrong struct {
	name, title, about string
	starts             bool     // the server starts nevertheless, and warns
	steps              []string // what to do before, one a line
	files              map[string]string
}

// readCases reads the files of testdata. The first line is the title, then follow lines of explanation, steps after a line "--",
// and files after lines "-- NAME --".
func readCases(t *testing.T) (list []wrong) {
	t.Helper()
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	fileRE := regexp.MustCompile(`^-- (\S+) --$`)
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		w := wrong{name: strings.TrimSuffix(filepath.Base(n), ".txt"), files: map[string]string{}}
		file, inSteps := "", false
		for i, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
			m := fileRE.FindStringSubmatch(line)
			switch {
			case i == 0:
				w.title = line
			case m != nil:
				file = m[1]
				w.files[file] = ""
			case file != "":
				w.files[file] += line + "\n"
			case line == "--":
				inSteps = true
			case inSteps && line == "starts":
				w.starts = true
			case inSteps:
				w.steps = append(w.steps, line)
			default:
				w.about = strings.TrimSpace(w.about + " " + line)
			}
		}
		list = append(list, w)
	}
	return list
}

// settingCases makes cases of those of the configuration's own test.
func settingCases(t *testing.T) (list []wrong) {
	t.Helper()
	b, err := os.ReadFile(settings)
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(strings.TrimSpace(string(b)), "\n----\n") {
		input, _, _ := strings.Cut(part, "\n->")
		text, overrides, _ := strings.Cut(input, "\n-config_overrides: ")
		title, rest, _ := strings.Cut(text, "\n")
		w := wrong{name: fmt.Sprintf("setting-%02d", i), title: strings.TrimPrefix(title, "# "), files: map[string]string{"chasquid.conf": "#\n" + rest, "empty": ""}}
		if overrides != "" {
			w.steps = append(w.steps, "overrides "+overrides)
		}
		w.files["chasquid.conf"] = strings.ReplaceAll(w.files["chasquid.conf"], "<NUL>", "\x00")
		list = append(list, w)
	}
	return list
}

// place is a case set up on disk.
type place struct {
	t         *testing.T
	root      string
	overrides string
	flags     []string
	ports     map[string]string // by the word in the files
	ip        string            // takes the place of 127.0.0.1
}

// addresses gives each case an address of its own, so that a port that is free stays free.
var addresses = func() func() string {
	var n atomic.Int64
	pid := os.Getpid()
	return func() string { return fmt.Sprintf("127.%d.%d.%d", 64+pid%128, pid/128%250, n.Add(1)%250+1) }
}()

func (p *place) path(name string) string { return filepath.Join(p.root, "etc", name) }

// setUp makes a good directory, then what is wrong with it.
func setUp(t *testing.T, w wrong) *place {
	t.Helper()
	root, err := os.MkdirTemp("", "wrong")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	p := &place{t: t, root: root, ports: map[string]string{}, ip: addresses()}
	for _, n := range []string{"PORT1", "PORT2", "PORT3", "PORT4"} {
		p.ports[n] = harness.FreePort(t, p.ip)
	}
	p.write("chasquid.conf", goodConf)
	p.write("domains/example.org/users", "users: { key: \"ana\" value: { plain: { password: \"secret\" } } }\n")
	for name, data := range goodCert(t) {
		p.write("certs/mail.example.org/"+name, data)
	}
	for name, data := range w.files {
		p.write(name, data)
	}
	for _, s := range w.steps {
		p.step(s)
	}
	if os.Getuid() == 0 {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, nobody, nobody)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range w.steps { // what is not theirs
			if name, ok := strings.CutPrefix(s, "root "); ok {
				if err := os.Chown(p.path(name), 0, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return p
}

const goodConf = `hostname: "mail.example.org"
smtp_address: "127.0.0.1:PORT1"
submission_address: "127.0.0.1:PORT2"
submission_over_tls_address: "127.0.0.1:PORT3"
monitoring_address: "127.0.0.1:PORT4"
data_dir: "../data"
mail_log_path: "../mail.log"
local_delivery: "maildir:../mail/%to_user%"
`

func (p *place) write(name, data string) {
	p.t.Helper()
	path := p.path(name)
	data = strings.ReplaceAll(data, "GOOD\n", goodConf)
	for k, v := range p.ports {
		data = strings.ReplaceAll(data, "127.0.0.1:"+k, p.ip+":"+v)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o640); err != nil {
		p.t.Fatal(err)
	}
}

// step does one of the steps of a case.
func (p *place) step(line string) {
	p.t.Helper()
	verb, arg, _ := strings.Cut(line, " ")
	var err error
	switch verb {
	case "remove":
		err = os.RemoveAll(p.path(arg))
	case "mkdir":
		err = os.MkdirAll(p.path(arg), 0o755)
	case "chmod":
		mode, name, _ := strings.Cut(arg, " ")
		var m uint32
		fmt.Sscanf(mode, "%o", &m)
		err = os.Chmod(p.path(name), fs.FileMode(m))
	case "root":
		if os.Getuid() != 0 {
			p.t.Skip("this case needs root, to own a directory that the server may not write to")
		}
	case "half": // as it is when the disk was full
		var b []byte
		if b, err = os.ReadFile(p.path(arg)); err == nil {
			err = os.WriteFile(p.path(arg), b[:len(b)/2], 0o640)
		}
	case "cert":
		dir, what, _ := strings.Cut(arg, " ")
		for name, data := range badCert(p.t, what) {
			p.write(filepath.Join(dir, name), data)
		}
	case "listen":
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(p.ip, p.ports[arg])); err == nil {
			p.t.Cleanup(func() { l.Close() })
		}
	case "lock":
		if err = os.MkdirAll(filepath.Dir(p.path(arg)), 0o700); err == nil {
			l, lockErr := vfs.OS.Lock(p.path(arg))
			if err = lockErr; err == nil {
				p.t.Cleanup(func() { l.Close() })
			}
		}
	case "overrides":
		p.overrides = arg
	case "flag":
		p.flags = append(p.flags, arg)
	default:
		p.t.Fatalf("unknown step %q", line)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// run runs the binary as the user of the directory, until it ends or says "stopped here"; it returns its output and exit status.
func (p *place) run(until string, args ...string) (string, int) {
	p.t.Helper()
	binary := harness.Binary(p.t) // which may take longer than the limit
	ctx, cancel := context.WithTimeout(p.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, p.flags...)...)
	cmd.Dir, cmd.Env = p.root, []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	out := &output{until: until, reached: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		select {
		case <-out.reached:
			cmd.Process.Signal(syscall.SIGTERM)
		case <-ctx.Done():
		}
	}()
	err := cmd.Wait()
	if ctx.Err() != nil {
		p.t.Errorf("%v did not end:\n%s", args, out.text())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return out.text(), cmd.ProcessState.ExitCode()
}

// output collects what a program says, and tells when it says something.
type output struct {
	mu      sync.Mutex
	b       bytes.Buffer
	until   string
	reached chan struct{}
	once    sync.Once
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Write(p)
	if o.until != "" && strings.Contains(o.b.String(), o.until) {
		o.once.Do(func() { close(o.reached) })
	}
	return len(p), nil
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// plain makes the paths, ports and times of a text those of the documentation.
func (p *place) plain(text string) string {
	etc := p.root + "/etc/" // in which the server runs, so that it says less
	pairs := []string{etc + "certs", "certs", etc + "domains", "domains", etc + "hooks", "hooks", etc + "web.yml", "web.yml", etc, "/etc/chasquid/", p.root + "/etc", "/etc/chasquid", p.root + "/data", "/var/lib/chasquid",
		"../data", "/var/lib/chasquid", p.root + "/srv", "/srv", "../srv", "/srv", "../mail.log", "/var/log/mail.log", p.root + "/mail.log", "/var/log/mail.log", "\u00a0", " ",
		p.ip, "127.0.0.1", ":" + p.ports["PORT1"], ":25", ":" + p.ports["PORT2"], ":587", ":" + p.ports["PORT3"], ":465", ":" + p.ports["PORT4"], ":1099",
		"= :" + p.ports["PORT1"], "= :25"}
	text = strings.NewReplacer(pairs...).Replace(text)
	return regexp.MustCompile(`\d{4}-\d\d-\d\d`).ReplaceAllString(text, "2026-01-31")
}

var (
	logRE   = regexp.MustCompile(`^[☠E_.] \S+ +(?:Warning: )?(.*)$`)
	checkRE = regexp.MustCompile(`^(?:fail|warn)  ([^:]+): (.*)$`)
)

// said are the errors that end a start, or all lines if it starts.
func said(text string, warnings bool) (list []string) {
	for _, line := range strings.Split(text, "\n") {
		m := logRE.FindStringSubmatch(line)
		bad := (strings.HasPrefix(line, "☠") || strings.HasPrefix(line, "E ")) && strings.Contains(line, "chasquid.go:") // what ends it
		if m != nil && (bad || warnings) {
			list = append(list, strings.TrimPrefix(m[1], "Error loading config: "))
		}
	}
	return list
}

// result is what is documented of a case.
type result struct {
	wrong
	messages []string // with remedies
}

// try runs a case both ways. What both say is what counts: each error of the start has to be in the check, word for word.
func try(t *testing.T, w wrong) result {
	p := setUp(t, w)
	until := ""
	if w.starts {
		until = "Monitoring HTTP server listening"
	}
	args := []string{"-config_dir=" + filepath.Join(p.root, "etc")}
	if p.overrides != "" {
		args = append(args, "-config_overrides="+p.overrides)
	}
	checked, checkExit := p.run("", slices.Concat([]string{"check", "-no_dns"}, args)...)
	started, startExit := p.run(until, args...)
	var found []string
	for _, line := range strings.Split(p.plain(checked), "\n") {
		if m := checkRE.FindStringSubmatch(line); m != nil {
			found = append(found, m[2])
		}
	}
	r := result{wrong: w}
	for _, line := range said(p.plain(started), w.starts) {
		if slices.Contains(found, line) {
			r.messages = append(r.messages, line)
		} else if !w.starts {
			t.Errorf("the start says\n%s\nand the check does not:\n%s", line, checked)
		}
	}
	if len(r.messages) == 0 {
		t.Errorf("nothing is said by both; the check:\n%s\nthe start:\n%s", checked, started)
	}
	for _, m := range r.messages {
		if !w.starts && (!strings.HasSuffix(m, ")") || !strings.Contains(m, " (")) {
			t.Errorf("no remedy: %s", m)
		}
	}
	wantStart := 1
	if w.starts {
		wantStart = 0
	}
	if startExit != wantStart || checkExit == 2 || !w.starts && checkExit != 1 {
		t.Errorf("exit status %d of the start, %d of the check", startExit, checkExit)
	}
	if strings.Contains(started, "goroutine ") {
		t.Errorf("a panic:\n%s", started)
	}
	return r
}

// TestWrong runs all cases, and holds docs/errors.md to what was said.
func TestWrong(t *testing.T) {
	cases := append(readCases(t), settingCases(t)...)
	if len(cases) < 60 {
		t.Errorf("only %d cases", len(cases))
	}
	results := make([]result, len(cases))
	t.Run("cases", func(t *testing.T) {
		for i, w := range cases {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				results[i] = try(t, w)
			})
		}
	})
	if t.Failed() {
		return
	}
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	head, was, ok := strings.Cut(string(b), begin+"\n")
	if !ok {
		t.Fatalf("%s has no line %s", doc, begin)
	}
	now := render(results)
	if *update {
		if err := os.WriteFile(doc, []byte(head+begin+"\n"+now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(was, now); d != "" {
		t.Errorf("%s is not what is said (run with -update if this is meant):\n%s", doc, d)
	}
}

// render writes the documentation of the results.
func render(results []result) string {
	var b strings.Builder
	section := func(title, text string, want func(result) bool) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", title, text)
		for _, r := range results {
			if !want(r) {
				continue
			}
			fmt.Fprintf(&b, "\n### %s\n\n", strings.ToUpper(r.title[:1])+r.title[1:])
			if r.about != "" {
				fmt.Fprintf(&b, "%s\n\n", r.about)
			}
			for _, m := range r.messages {
				fmt.Fprintf(&b, "    %s\n", m)
			}
		}
	}
	setting := func(r result) bool { return strings.HasPrefix(r.name, "setting-") }
	section("What keeps it from starting", "Files, directories, ports and other processes. The exit status is 1.", func(r result) bool { return !setting(r) && !r.starts })
	section("What it starts with", "It serves, and warns. What is said stands in the log and in the report of `chasquid check`.", func(r result) bool { return r.starts })
	section("Settings", "What can be wrong in `chasquid.conf` and `-config_overrides`. The exit status is 1.", setting)
	return b.String()
}

// TestUsage: a wrong command line is told apart by its exit status.
func TestUsage(t *testing.T) {
	p := setUp(t, wrong{})
	for _, args := range [][]string{{"-no_such_flag"}, {"check", "-no_such_flag"}, {"check", "surplus"}, {"-testing__reload_every=x"}} {
		if out, exit := p.run("", args...); exit != 2 {
			t.Errorf("%v: exit status %d\n%s", args, exit, out)
		}
	}
	args := []string{"-config_dir=" + filepath.Join(p.root, "etc")}
	if out, exit := p.run("Monitoring HTTP server listening", args...); exit != 0 || len(said(out, false)) > 0 {
		t.Errorf("the good directory: exit status %d\n%s", exit, out)
	}
	if out, exit := p.run("", append([]string{"check", "-no_dns"}, args...)...); exit != 0 {
		t.Errorf("the good directory: exit status %d\n%s", exit, out)
	}
}
