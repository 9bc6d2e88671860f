package dovecot

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

const realConfig = `
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
protocols =
ssl = no
auth_mechanisms = plain
auth_failure_delay = 0
passdb {
  driver = passwd-file
  args = scheme=plain username_format=%%u %[1]s/users
}
userdb {
  driver = passwd-file
  args = username_format=%%u %[1]s/users
}
service auth {
  unix_listener auth-chasquid-userdb {
    mode = 0600
  }
  unix_listener auth-chasquid-client {
    mode = 0600
  }
}
`

// startDovecot runs the real thing on a directory of its own and returns it with a function that starts it again.
func startDovecot(t *testing.T) (dir string, restart func()) {
	bin, err := exec.LookPath("dovecot")
	if err != nil {
		t.Skip("dovecot is not installed")
	}
	if os.Getuid() != 0 {
		t.Skip("dovecot's master process wants to be root")
	}
	dir, err = os.MkdirTemp("/tmp", "dovecot") // short: it is part of socket names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "conf")
	users := "user@d.test:secret:1000:1000::/tmp::\nnaked:päss:1000:1000::/tmp::\n"
	for name, text := range map[string]string{"conf": fmt.Sprintf(realConfig, dir), "users": users} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var cmd *exec.Cmd
	stop := func() {
		if cmd != nil {
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
		}
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() }) // an orderly stop takes seconds
	restart = func() {
		stop()
		cmd = exec.Command(bin, "-F", "-c", conf)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitForSocket(t, filepath.Join(dir, "run/auth-chasquid-client"), filepath.Join(dir, "log"))
	}
	restart()
	return dir, restart
}

func waitForSocket(t *testing.T, path, log string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return
		}
	}
	text, _ := os.ReadFile(log)
	t.Fatalf("dovecot does not listen on %s; its log:\n%s", path, text)
}

func TestRealDovecot(t *testing.T) {
	dir, restart := startDovecot(t)
	cl := New(Config{UserDB: filepath.Join(dir, "run/auth-chasquid-userdb"), Client: filepath.Join(dir, "run/auth-chasquid-client")})
	defer cl.Close()
	if err := cl.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	for u, want := range map[string]bool{"user@d.test": true, "naked": true, "nobody@d.test": false, "user": false} {
		if ok, err := cl.Exists(t.Context(), u); ok != want || err != nil {
			t.Errorf("Exists(%s) = %v, %v", u, ok, err)
		}
	}
	var wg sync.WaitGroup
	for _, c := range []struct {
		user, password string
		want           bool
	}{
		{"user@d.test", "secret", true}, {"user@d.test", "Secret", false}, {"user@d.test", "", false}, {"user@d.test", "secret\x00", false},
		{"naked", "päss", true}, {"nobody@d.test", "secret", false}, {"user@d.test", string(make([]byte, 5000)), false},
	} {
		wg.Go(func() {
			if ok, err := cl.Authenticate(t.Context(), c.user, c.password); ok != c.want || err != nil {
				t.Errorf("Authenticate(%s, %.10q) = %v, %v", c.user, c.password, ok, err)
			}
		})
	}
	wg.Wait()
	restart()
	if ok, err := cl.Authenticate(t.Context(), "user@d.test", "secret"); !ok || err != nil {
		t.Errorf("after a restart: %v, %v", ok, err)
	}
	if ok, err := cl.Exists(t.Context(), "user@d.test"); !ok || err != nil {
		t.Errorf("after a restart: %v, %v", ok, err)
	}
}
