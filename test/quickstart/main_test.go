package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// output is written by us and by the server.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func newSite(t *testing.T) *site {
	addr := func() string { return net.JoinHostPort("127.0.0.1", harness.FreePort(t, "127.0.0.1")) }
	return &site{dir: filepath.Join(t.TempDir(), "run"), smtp: addr(), submission: addr(), submissionTLS: addr(), monitoring: addr()}
}

// TestPrepare: what is made is what the server's own loaders take, and making it again keeps password and certificate.
func TestPrepare(t *testing.T) {
	s := newSite(t)
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(filepath.Join(s.dir, config.FileName), "")
	if err != nil || c.LocalMaildir != filepath.Join(s.dir, "mail/%to_domain%/%to_user%") {
		t.Errorf("%v %+v", err, c)
	}
	tab, _, err := domains.Load(t.Context(), domains.Config{Dir: s.dir})
	if err != nil || !tab.IsLocal(domain) || len(tab.Current().Certs) != 1 {
		t.Error(err)
	}
	for _, d := range []string{domain, "localhost"} {
		db, err := userdb.ReadFile(filepath.Join(s.dir, "domains", d, "users"))
		if err != nil || !db.Has(localUser) {
			t.Errorf("%s: %v", d, err)
		}
	}
	cert, _ := os.ReadFile(s.certFile())
	again := *s
	again.password = ""
	if err := again.prepare(); err != nil {
		t.Fatal(err)
	}
	cert2, _ := os.ReadFile(s.certFile())
	if again.password != s.password || len(s.password) < 12 || string(cert) != string(cert2) {
		t.Error("the second time changed the password or the certificate")
	}
}

// TestRun does what make run does, twice in the same directory, with the real server.
func TestRun(t *testing.T) {
	s := newSite(t)
	s.bin = harness.Binary(t)
	for round := 1; round <= 2; round++ {
		var out output
		if err := run(s, true, &out); err != nil {
			log, _ := os.ReadFile(s.logFile())
			t.Fatalf("round %d: %v\n%s\n%s", round, err, out.String(), log)
		}
		files, _ := filepath.Glob(filepath.Join(s.maildir(), "new", "*"))
		if len(files) != round {
			t.Errorf("round %d: %d messages", round, len(files))
		}
		for _, want := range []string{"landed in", filepath.Join("new", filepath.Base(files[0])), s.monitoring, s.password, "swaks --server", "curl smtp://"} {
			if !strings.Contains(out.String(), want) && round == 1 {
				t.Errorf("not told: %q in\n%s", want, out.String())
			}
		}
	}
}

// TestToldCommands runs the commands that are printed, as they are, while the server runs: what they send arrives.
func TestToldCommands(t *testing.T) {
	harness.Need(t, "swaks", "swaks libnet-ssleay-perl libio-socket-ssl-perl")
	harness.Need(t, "curl", "curl")
	s := newSite(t)
	s.bin = harness.Binary(t)
	var out output
	if err := errors.Join(s.prepare(), s.portsFree()); err != nil {
		t.Fatal(err)
	}
	srv, err := s.start(&out)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.stop()
	if err := s.firstMessage(t.Context(), srv, &out); err != nil {
		t.Fatal(err)
	}
	n := 1
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "swaks ") && !strings.HasPrefix(line, "printf ") {
			continue
		}
		n++
		if b, err := exec.CommandContext(t.Context(), "sh", "-c", line).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, b)
		}
	}
	harness.WaitFor(t, startTime, "3 messages in the Maildir", func() bool {
		files, _ := filepath.Glob(filepath.Join(s.maildir(), "new", "*"))
		return len(files) == n && n == 3
	})
}

// TestPortTaken: another program on a port is named before anything starts.
func TestPortTaken(t *testing.T) {
	s := newSite(t)
	l, err := net.Listen("tcp", s.submission)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.bin = "/nonexistent"
	if err := run(s, true, os.Stderr); err == nil || !strings.Contains(err.Error(), s.submission+" is in use by another program") {
		t.Error(err)
	}
}

// TestServerEndsAtOnce: a server that cannot start is an error that names its log, not a wait.
func TestServerEndsAtOnce(t *testing.T) {
	s := newSite(t)
	s.bin = "/bin/false"
	err := run(s, true, os.Stderr)
	if err == nil || !strings.Contains(err.Error(), "ended at its start") || !strings.Contains(err.Error(), s.logFile()) {
		t.Error(err)
	}
}
