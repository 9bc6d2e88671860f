package upgrade

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/fault"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// manager is systemd's end of the notify socket.
type manager struct {
	t testing.TB
	c *net.UnixConn
}

func newManager(t testing.TB) (*manager, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &manager{t, c}, path
}

// next returns the next message, "" if none comes within the time.
func (m *manager) next(limit time.Duration) string {
	m.t.Helper()
	b := make([]byte, 4096)
	m.c.SetReadDeadline(time.Now().Add(limit))
	n, err := m.c.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// want waits for a message that begins with the text; pings and status lines may come before it, nothing else.
func (m *manager) want(text string) string {
	m.t.Helper()
	for {
		got := m.next(patient)
		switch {
		case strings.HasPrefix(got, text):
			return got
		case strings.HasPrefix(got, "WATCHDOG=1"), strings.HasPrefix(got, "STATUS="):
		default:
			m.t.Fatalf("systemd is told %q, want %q", got, text)
		}
	}
}

// TestNotify follows a server through its life as systemd sees it: ready, reloading, another main process, pings of that, stopping.
func TestNotify(t *testing.T) {
	m, path := newManager(t)
	s := newSite(t, harness.Options{Env: []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=1000000"}})
	s.Start()
	m.want("READY=1\nSTATUS=serving")
	m.want("WATCHDOG=1")
	s.Signal(syscall.SIGHUP)
	if got := m.want("RELOADING=1"); !regexp.MustCompile(`MONOTONIC_USEC=\d+`).MatchString(got) {
		t.Errorf("systemd needs the time of the reload: %q", got)
	}
	m.want("READY=1")
	s.install(v2)
	r, out, exit := s.upgrade()
	if exit != 0 {
		t.Fatal(out)
	}
	if got, want := m.want("MAINPID="), fmt.Sprintf("MAINPID=%d\nREADY=1", r.PID); got != want {
		t.Errorf("systemd is told %q, want %q", got, want)
	}
	m.want("READY=1\nSTATUS=serving")
	m.want("WATCHDOG=1") // the new process is asked for pings, too
	if err := s.WaitExit(patient); err != nil {
		t.Errorf("the old process ended with %v", err)
	}
	m.want("WATCHDOG=1")
	syscall.Kill(r.PID, syscall.SIGTERM)
	m.want("STOPPING=1")
	harness.WaitFor(t, patient, "the end", func() bool { return !alive(r.PID) })
}

// TestSystemdSockets: sockets that systemd passed are handed on, and stay those of their role.
func TestSystemdSockets(t *testing.T) {
	l := listenOn(t, "127.0.0.1:0")
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := newSite(t, harness.Options{Conf: "submission_address: \"systemd\"\n", Files: []*os.File{f},
		Wrap: []string{"/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=submission exec "$@"`, "sh"}})
	s.Start()
	for _, version := range []string{v2, v1} {
		s.install(version)
		if r, out, exit := s.upgrade(); exit != 0 || r.To != version {
			t.Fatalf("exit %d: %s", exit, out)
		}
		c := dial(t, l.Addr().String())
		c.say("MAIL FROM:<user@example.test>", "530") // as on every submission port: log in first
		c.say("QUIT", "221")
	}
	if n := strings.Count(s.Log(), l.Addr().String()+" (submission, via systemd)"); n != 3 {
		t.Errorf("%d of 3 processes know that the socket is systemd's", n)
	}
}

// TestHungFlush: when the disk hangs, the watchdog starves, and the log says why; when it goes on, so do the pings.
func TestHungFlush(t *testing.T) {
	m, path := newManager(t)
	hang := filepath.Join(t.TempDir(), "hang")
	const every = 500 * time.Millisecond
	s := newSite(t, harness.Options{Env: []string{"NOTIFY_SOCKET=" + path, fmt.Sprintf("WATCHDOG_USEC=%d", every.Microseconds())},
		Args: []string{"-testing__flush_hang=" + hang}})
	s.Start()
	m.want("READY=1")
	m.want("WATCHDOG=1")
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.flow(fault.Client{Addr: s.SMTP, PerSession: 1, Pause: pause})
	harness.WaitFor(t, patient, "the log to say what hangs", func() bool {
		return strings.Contains(s.Log(), "Watchdog: disk makes no progress: a flush of the queue has been under way for")
	})
	for m.next(time.Millisecond) != "" { // what was sent before
	}
	for end := time.Now().Add(2 * every); time.Now().Before(end); {
		if got := m.next(time.Until(end)); strings.Contains(got, "WATCHDOG=1") {
			t.Fatalf("the watchdog is fed though the disk hangs: %q", got)
		}
	}
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	m.want("WATCHDOG=1\nSTATUS=serving")
	s.settle("a hung flush")
}

// TestDrain: what SIGTERM does under load is what docs/architecture.md says. Listeners close, idle sessions are told 421, a message being
// received may be finished and is delivered after the next start; nothing that was acknowledged is lost, and the exit status is 0.
func TestDrain(t *testing.T) {
	s := newSite(t, harness.Options{})
	s.Start()
	for range 3 {
		s.flow(fault.Client{Addr: s.SMTP, PerSession: 100, Pause: pause})
	}
	idle, receiving := dial(t, s.SMTP), dial(t, s.SMTP)
	receiving.say("MAIL FROM:<a@[127.0.0.1]>", "250")
	receiving.say("RCPT TO:<other@example.test>", "250")
	receiving.say("DATA", "354")
	s.more(20)
	s.Signal(syscall.SIGTERM)
	idle.want("421")
	harness.WaitFor(t, patient, "no new connections", func() bool {
		c, err := net.Dial("tcp", s.SMTP)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if !alive(s.PID()) {
		t.Fatal("the server did not wait for a message that is being received")
	}
	receiving.say("Subject: late\r\nFrom: a@[127.0.0.1]\r\n\r\nlate\r\n.", "250")
	receiving.want("421")
	if err := s.WaitExit(patient); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	for line := range s.ledger.Replies() {
		if !strings.HasPrefix(line, "421") {
			t.Errorf("a client was refused with %q", line)
		}
	}
	s.Start()
	s.more(5)
	s.settle("a stop under load")
}
