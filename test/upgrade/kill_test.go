package upgrade

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/fault"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// steps are where a process is killed in the course of an upgrade, and who serves afterwards.
var steps = []struct {
	at    string
	lives string // "old" or "new" go on; "": a supervisor has to start the server again
}{
	{"new-prepared", "old"},
	{"new-given", "old"},
	{"new-opened", "old"},
	{"new-serving", ""},
	{"new-rest", ""},
	{"old-prepared", ""},
	{"old-paused", ""},
	{"old-closed", ""},
	{"old-given", "new"},
	{"old-served", "new"},
	{"old-rest", "new"},
}

// TestKilledAtEachStep kills the old or the new process at each step of an upgrade: nothing that was acknowledged is lost, and where one
// of the two can go on serving it does.
func TestKilledAtEachStep(t *testing.T) {
	s := newSite(t, harness.Options{Conf: "timeouts: { drain: \"5s\" }\n"})
	s.install(v1)
	for range 2 {
		s.flow(fault.Client{Addr: s.SMTP, PerSession: 1, Pause: pause})
		s.flow(fault.Client{Addr: s.SMTP, PerSession: 100, Pause: pause})
	}
	for _, step := range steps {
		s.SetArgs("-testing__crash_at=" + step.at)
		s.Start()
		s.more(10)
		at, failures := time.Now(), s.ledger.Failures()
		s.upgradeAnyway()
		serves := s.whoServes()
		for limit := time.Now().Add(20 * time.Second); len(serves) != 1 && time.Now().Before(limit); {
			if len(serves) == 0 && step.lives == "" {
				break
			}
			time.Sleep(20 * time.Millisecond)
			serves = s.whoServes()
		}
		lives := ""
		if len(serves) == 1 {
			if lives = "new"; serves[0] == s.PID() {
				lives = "old"
			}
		}
		if lives != step.lives {
			t.Errorf("killed at %s: %q (%v) serves, want %q", step.at, lives, serves, step.lives)
		}
		if lives != "" {
			s.more(5)
		}
		if lives == "old" && s.ledger.Failures() > failures {
			t.Errorf("killed at %s: clients noticed: %v %v", step.at, s.ledger.Replies(), s.ledger.Broken())
		}
		s.Kill()
		s.out.Ended(at, time.Now())
		s.collect()
	}
	s.SetArgs()
	s.Start()
	s.settle(fmt.Sprintf("%d kills", len(steps)))
}

// upgradeAnyway asks for an upgrade and does not mind what comes of it.
func (s *site) upgradeAnyway() {
	cmd := exec.Command(build(s.t, v1), "upgrade", "-C", s.Dir)
	out, _ := cmd.CombinedOutput()
	s.t.Logf("%s", out)
}

// whoServes returns the processes of the group that are alive, once the server answers; none when none is left.
func (s *site) whoServes() (pids []int) {
	s.t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest) // state, parent, group
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && len(fields) > 2 && fields[2] == strconv.Itoa(s.PID()) && fields[0] != "Z" {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 1 {
		if resp, err := http.Get("http://" + s.Monitor + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && syscall.Kill(pids[0], 0) == nil {
				return pids
			}
		}
		return append(pids, 0) // it is still starting, or ending
	}
	return pids
}
