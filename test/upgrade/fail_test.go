package upgrade

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/fault"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// pause keeps clients from being more than company.
const pause = 20 * time.Millisecond

// TestCannotStart upgrades to programs that cannot serve. Each time the running server goes on, with every session, and the reply and the
// log say what is wrong and what to do.
func TestCannotStart(t *testing.T) {
	s := newSite(t, harness.Options{Args: []string{"-testing__upgrade_time=2s"}})
	s.Start()
	s.flow(fault.Client{Addr: s.SMTP, PerSession: 1, Pause: pause})
	s.flow(fault.Client{Addr: s.SMTP, PerSession: 1000, Pause: pause})
	file := func(mode os.FileMode, content string) func() {
		return func() {
			path := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(path, []byte(content), mode); err != nil {
				t.Fatal(err)
			}
			os.Chmod(path, mode)
			s.put(path)
		}
	}
	conf, err := os.ReadFile(filepath.Join(s.Dir, "chasquid.conf"))
	if err != nil {
		t.Fatal(err)
	}
	taken := harness.FreePort(t, "127.0.0.1")
	blocker := listenOn(t, "127.0.0.1:"+taken)
	defer blocker.Close()
	changed := func(old, new string) func() {
		return func() {
			s.install(v2)
			s.WriteFile("chasquid.conf", strings.Replace(string(conf), old, new, 1))
		}
	}
	for _, c := range []struct {
		name  string
		spoil func()
		want  []string
	}{
		{"not executable", file(0o644, "#!/bin/sh\n"), []string{s.program + " cannot be started: permission denied", "chmod 755"}},
		{"no program", file(0o755, "\x7fnothing\n"), []string{"exec format error", "no program for this machine"}},
		{"missing", func() { os.Remove(s.program) }, []string{"no such file", "put the new binary there"}},
		{"exits", file(0o755, "#!/bin/sh\nexit 3\n"), []string{"ended before it was ready: exit status 3"}},
		{"hangs", file(0o755, "#!/bin/sh\nexec sleep 100\n"), []string{"did not get ready in time"}},
		{"bad configuration", changed("hostname", "hostnam"), []string{"chasquid.conf", "line 1", "hostnam"}},
		{"address in use", changed("127.0.0.1:"+port(s.Submission), "127.0.0.1:"+taken), []string{"address already in use", "another program listens there"}},
		{"unreadable certificates", func() {
			s.install(v2)
			if err := os.Rename(filepath.Join(s.Dir, "certs"), filepath.Join(s.Dir, "gone")); err != nil {
				t.Fatal(err)
			}
		}, []string{"the new process failed: ", "cert"}},
	} {
		c.spoil()
		_, out, exit := s.upgrade()
		want := append(c.want, "the running server goes on as before")
		if c.name == "bad configuration" { // the command finds that, too, and does not ask the server
			want = c.want
			before := strings.Count(s.Log(), "Upgrade failed: the new process failed: Error loading config")
			s.Signal(syscall.SIGUSR2)
			harness.WaitFor(t, patient, "the failure in the log", func() bool {
				return strings.Count(s.Log(), "Upgrade failed: the new process failed: Error loading config") > before
			})
		}
		s.WriteFile("chasquid.conf", string(conf))
		os.Rename(filepath.Join(s.Dir, "gone"), filepath.Join(s.Dir, "certs"))
		if exit != 1 {
			t.Errorf("%s: exit %d: %s", c.name, exit, out)
		}
		for _, want := range want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: the reply does not say %q: %s", c.name, want, out)
			}
			if !strings.Contains(s.Log(), want) {
				t.Errorf("%s: the log does not say %q", c.name, want)
			}
		}
		s.more(3)
	}
	if n := s.Metrics()[`chasquid_upgrades_total{result="failed"}`]; n != 8 {
		t.Errorf("%v failed upgrades counted", n)
	}
	// Now it works, by signal this time; and what failed before is still counted.
	s.install(v2)
	s.Signal(syscall.SIGUSR2)
	harness.WaitFor(t, patient, "version 2", func() bool { return strings.Contains(s.Get("/?format=text"), "chasquid "+v2+" on") })
	m := s.Metrics()
	if m[`chasquid_upgrades_total{result="failed"}`] != 8 || m[`chasquid_upgrades_total{result="ok"}`] != 1 {
		t.Errorf("counted: %v failed, %v ok", m[`chasquid_upgrades_total{result="failed"}`], m[`chasquid_upgrades_total{result="ok"}`])
	}
	s.more(3)
	s.settle("failed upgrades")
	if s.ledger.Failures() > 0 {
		t.Errorf("clients noticed: %v, %v", s.ledger.Replies(), s.ledger.Broken())
	}
}

// TestUpgradeWhileStopping: a server that stops takes no upgrade, and one that is being upgraded passes the wish to stop on.
func TestUpgradeWhileStopping(t *testing.T) {
	s := newSite(t, harness.Options{})
	s.Start()
	s.install(v2)
	r, out, exit := s.upgrade()
	if exit != 0 {
		t.Fatal(out)
	}
	if err := s.WaitExit(patient); err != nil {
		t.Errorf("the old process ended with %v", err)
	}
	syscall.Kill(r.PID, syscall.SIGTERM)
	syscall.Kill(r.PID, syscall.SIGUSR2) // whichever comes first
	harness.WaitFor(t, patient, "the end", func() bool { return !alive(r.PID) })
	time.Sleep(50 * time.Millisecond)
	if left := s.whoServes(); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// TestStopDuringUpgrade stops the server while an upgrade waits for a delivery that hangs: both processes end, and the message stays.
func TestStopDuringUpgrade(t *testing.T) {
	hung := listenOn(t, "127.0.0.1:0") // accepts, in the kernel, and says nothing
	defer hung.Close()
	s := newSite(t, harness.Options{Conf: fmt.Sprintf("timeouts: { drain: \"1s\" }\nroute: { domain: \"slow.test\" via: %q }\n", hung.Addr())})
	s.Start()
	c := dial(t, s.SMTP)
	c.say("MAIL FROM:<a@[127.0.0.1]>", "250")
	c.say("RCPT TO:<slow@example.test>", "250")
	c.say("DATA", "354")
	c.say("Subject: slow\r\n\r\nslow\r\n.", "250")
	harness.WaitFor(t, patient, "the delivery", func() bool { return s.Metrics()[`chasquid_delivery_in_flight{type="forward"}`] == 1 })
	s.install(v2)
	s.Signal(syscall.SIGUSR2)
	harness.WaitFor(t, patient, "the upgrade", func() bool { return strings.Contains(s.Log(), "waiting up to 1s for 1 running deliveries") })
	s.Signal(syscall.SIGTERM)
	if err := s.WaitExit(patient); err != nil {
		t.Errorf("the old process ended with %v", err)
	}
	harness.WaitFor(t, patient, "the end of all", func() bool { return len(s.whoServes()) == 0 })
	s.Start()
	if n := s.Metrics()[`chasquid_queue_items{state="waiting"}`] + s.Metrics()[`chasquid_queue_items{state="sending"}`]; n != 1 {
		t.Errorf("%v messages are in the queue", n)
	}
}
