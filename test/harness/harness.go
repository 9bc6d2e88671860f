// Package harness runs the real binary with a configuration directory of its own, for tests with real programs and real faults.
package harness

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// StartTime is how long a server may take to become ready.
const StartTime = 30 * time.Second

// BinaryVariable is the environment variable that names a binary built before.
const BinaryVariable = "CHASQUID_BINARY"

var (
	buildOnce sync.Once
	buildPath string
	buildErr  error
)

// Binary builds chasquid once for the test process and returns its path; BinaryVariable names one built before.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := Build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Build is Binary for what runs before the tests.
func Build() (string, error) {
	buildOnce.Do(func() {
		if buildPath = os.Getenv(BinaryVariable); buildPath != "" {
			return
		}
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("chasquid-test-%d", os.Getuid()))
		if buildErr = os.MkdirAll(dir, 0755); buildErr != nil {
			return
		}
		buildPath = filepath.Join(dir, fmt.Sprintf("chasquid-%d", os.Getpid()))
		out, err := exec.Command("go", "build", "-o", buildPath, "blitiri.com.ar/go/chasquid").CombinedOutput()
		if err != nil {
			buildErr = fmt.Errorf("building chasquid: %w\n%s", err, out)
		}
	})
	return buildPath, buildErr
}

// BuildVersion builds chasquid with a version of that name into the file.
func BuildVersion(t testing.TB, version, file string) {
	t.Helper()
	out, err := exec.Command("go", "build", "-ldflags", "-s -w -X main.version="+version, "-o", file, "blitiri.com.ar/go/chasquid").CombinedOutput()
	if err != nil {
		t.Fatalf("building chasquid: %v\n%s", err, out)
	}
}

// Need returns the path of a program, or skips the test and says what to install.
func Need(t testing.TB, program, debianPackage string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, program)
		if st, err := os.Stat(path); err == nil && !st.IsDir() && st.Mode()&0111 != 0 {
			return path
		}
	}
	t.Skipf("%s is not installed; install it with: apt-get install %s", program, debianPackage)
	return ""
}

// StablePort finds a port nobody listens on, among those that the system gives to no outgoing connection: one that a server may leave and
// come back to while clients connect.
func StablePort(t testing.TB, ip string) string {
	t.Helper()
	low := 32768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if n, err := strconv.Atoi(strings.Fields(string(b))[0]); err == nil {
			low = n
		}
	}
	for range 1000 {
		port := strconv.Itoa(10000 + mathrand.IntN(max(low-10000, 1000)))
		if l, err := net.Listen("tcp", net.JoinHostPort(ip, port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// Domain is one local domain.
type Domain struct {
	Users   map[string]string // name and password
	Aliases string            // the aliases file
	DKIM    bool              // make a signing key
}

// Options of a server.
type Options struct {
	IP      string            // listening address, 127.0.0.1 if empty
	Conf    string            // lines added to chasquid.conf
	Domains map[string]Domain // by default example.test with user "user", password "secret"
	Args    []string          // further command-line arguments
	Env     []string          // further environment
	DataDir string            // instead of one below the configuration directory
	Binary  string            // the program to run, instead of one built from the sources
	LogFile string            // where the server writes: a file, so that processes that succeed the first one write there too
	Files   []*os.File        // inherited by the server, from descriptor 3 on
	Wrap    []string          // a program and its arguments that runs the server, such as strace
	Local   string            // the lines about local delivery, instead of one for Maildirs below the configuration directory
	Certs   map[string]string // name of a directory below certs/ and the host name in it; default: mail.example.test
}

// Server is one server under test.
type Server struct {
	Dir, DataDir                             string
	SMTP, Submission, SubmissionTLS, Monitor string
	CA                                       *x509.CertPool // trusts the server's certificates
	opts                                     Options
	t                                        testing.TB
	cmd                                      *exec.Cmd
	exited                                   chan struct{}
	exit                                     error
	log                                      lockedBuffer
}

// lockedBuffer is the output of a program that runs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// FreePort finds a port nobody listens on.
func FreePort(t testing.TB, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// New makes the files of a server. Start runs it; it is stopped when the test ends.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	if o.IP == "" {
		o.IP = "127.0.0.1"
	}
	if o.Domains == nil {
		o.Domains = map[string]Domain{"example.test": {Users: map[string]string{"user": "secret"}}}
	}
	if o.Certs == nil {
		o.Certs = map[string]string{"mail.example.test": "mail.example.test"}
	}
	addr := func() string { return net.JoinHostPort(o.IP, FreePort(t, o.IP)) }
	s := &Server{Dir: t.TempDir(), SMTP: addr(), Submission: addr(), SubmissionTLS: addr(), Monitor: addr(), opts: o, t: t, CA: x509.NewCertPool()}
	s.DataDir = o.DataDir
	if s.DataDir == "" {
		s.DataDir = filepath.Join(s.Dir, "data")
	}
	conf := fmt.Sprintf(`hostname: "mail.example.test"
smtp_address: %q
submission_address: %q
submission_over_tls_address: %q
monitoring_address: %q
data_dir: %q
mail_log_path: %q
`, s.SMTP, s.Submission, s.SubmissionTLS, s.Monitor, s.DataDir, filepath.Join(s.Dir, "mail.log"))
	if o.Local == "" {
		o.Local = fmt.Sprintf("local_delivery: \"maildir:%s/mail/%%to_domain%%/%%to_user%%\"\n", s.Dir)
	}
	s.WriteFile("chasquid.conf", conf+o.Local+o.Conf)
	for dir, host := range o.Certs {
		s.WriteCert(dir, host, time.Now().Add(90*24*time.Hour))
	}
	if err := os.MkdirAll(filepath.Join(s.Dir, "domains"), 0755); err != nil {
		t.Fatal(err)
	}
	for name, d := range o.Domains {
		s.writeDomain(name, d)
	}
	if err := os.MkdirAll(s.DataDir, 0700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.Kill()
		}
		if t.Failed() {
			t.Logf("server log:\n%s", s.Log())
		}
	})
	return s
}

// WriteFile writes a file below the configuration directory, making its directory.
func (s *Server) WriteFile(name, content string) {
	s.t.Helper()
	path := filepath.Join(s.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0640); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) writeDomain(name string, d Domain) {
	var users strings.Builder
	for u, p := range d.Users {
		fmt.Fprintf(&users, "users: { key: %q value: { plain: { password: %q } } }\n", u, p)
	}
	s.WriteFile(filepath.Join("domains", name, "users"), users.String())
	if d.Aliases != "" {
		s.WriteFile(filepath.Join("domains", name, "aliases"), d.Aliases)
	}
	if d.DKIM {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			s.t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			s.t.Fatal(err)
		}
		s.WriteFile(filepath.Join("domains", name, "dkim:sel.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	}
}

// WriteCert writes a self-signed certificate that the pool CA trusts into a directory below certs/.
func (s *Server) WriteCert(dir, host string, notAfter time.Time) {
	s.t.Helper()
	dir = filepath.Join("certs", dir)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		s.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{host, "localhost"},
		IPAddresses: []net.IP{net.ParseIP(s.opts.IP)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.CA.AppendCertsFromPEM(certPEM)
	s.WriteFile(filepath.Join(dir, "fullchain.pem"), string(certPEM))
	s.WriteFile(filepath.Join(dir, "privkey.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

// SetArgs replaces the further command-line arguments, before Start.
func (s *Server) SetArgs(args ...string) { s.opts.Args = args }

// Start runs the server and waits until it is ready.
func (s *Server) Start() {
	s.t.Helper()
	if err := s.Launch(); err != nil {
		s.t.Fatal(err)
	}
	deadline := time.Now().Add(StartTime)
	for {
		select {
		case <-s.exited:
			s.t.Fatalf("the server ended at start: %v\n%s", s.exit, s.Log())
		default:
		}
		if resp, err := http.Get("http://" + s.Monitor + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the server is not ready after %v:\n%s\n%s", StartTime, s.Get("/readyz?verbose"), s.Log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Launch runs the server without waiting.
func (s *Server) Launch() error {
	binary := s.opts.Binary
	if binary == "" {
		binary = Binary(s.t)
	}
	args := append(append([]string{}, s.opts.Wrap...), binary, "-config_dir="+s.Dir)
	args = append(args, s.opts.Args...)
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Env = append(os.Environ(), s.opts.Env...)
	s.cmd.ExtraFiles = s.opts.Files
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if s.opts.LogFile != "" {
		f, err := os.OpenFile(s.opts.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		s.cmd.Stdout, s.cmd.Stderr = f, f
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	exited := make(chan struct{})
	s.exited = exited
	cmd := s.cmd
	go func() {
		s.exit = cmd.Wait()
		close(exited)
	}()
	return nil
}

// PID is the process id of the running server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Signal sends a signal to the server.
func (s *Server) Signal(sig syscall.Signal) { syscall.Kill(s.cmd.Process.Pid, sig) }

// Kill ends the server at once, as a crash does.
func (s *Server) Kill() {
	syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.exited
	s.cmd = nil
}

// Stop asks the server to stop and waits; it returns how it ended.
func (s *Server) Stop(limit time.Duration) error {
	s.Signal(syscall.SIGTERM)
	err := s.WaitExit(limit)
	if err == nil {
		s.cmd = nil
	}
	return err
}

// WaitExit waits for the server to end by itself.
func (s *Server) WaitExit(limit time.Duration) error {
	select {
	case <-s.exited:
		return s.exit
	case <-time.After(limit):
		return fmt.Errorf("the server still runs after %v", limit)
	}
}

// Log is what the server has written so far.
func (s *Server) Log() string {
	if s.opts.LogFile != "" {
		b, err := os.ReadFile(s.opts.LogFile)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	return s.log.String()
}

// Get fetches a page of the monitoring server; errors are part of the text.
func (s *Server) Get(path string) string {
	resp, err := http.Get("http://" + s.Monitor + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Metrics scrapes the server: name with labels, and value.
func (s *Server) Metrics() map[string]float64 {
	m := map[string]float64{}
	sc := bufio.NewScanner(strings.NewReader(s.Get("/metrics")))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			m[line[:i]] = v
		}
	}
	return m
}

// Maildir returns the messages delivered to an address such as user@example.test, by file name.
func (s *Server) Maildir(addr string) map[string]string {
	s.t.Helper()
	user, domain, _ := strings.Cut(addr, "@")
	dir := filepath.Join(s.Dir, "mail", domain, user, "new")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			s.t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// WaitFor waits until ok is true, and fails the test with what it waited for when it takes too long.
func WaitFor(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Run runs a program with input and returns its combined output; it fails the test if the program fails.
func Run(t testing.TB, input string, name string, args ...string) string {
	t.Helper()
	out, err := TryRun(t, input, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// TryRun is Run for programs that may fail.
func TryRun(t testing.TB, input string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
