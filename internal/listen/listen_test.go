package listen

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

func role(name string, addrs ...string) Role {
	labels := map[string]string{"smtp": "SMTP", "submission": "submission", "submission_tls": "submission+TLS"}
	return Role{Name: name, Label: labels[name], Addresses: addrs}
}

// remedied fails unless every single error says what to do.
func remedied(t *testing.T, err error) {
	t.Helper()
	var r interface{ Remedy() string }
	if !errors.As(err, &r) || r.Remedy() == "" {
		t.Errorf("no remedy in %v", err)
	}
}

func TestApply(t *testing.T) {
	s := New(Config{})
	defer s.Close()
	added, removed, _, err := s.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0"), role("submission", "127.0.0.1:0", "[::1]:0")})
	if err != nil || len(added) != 3 || len(removed) != 0 {
		t.Fatalf("added %v removed %v err %v", added, removed, err)
	}
	go func() {
		c, err := net.Dial("tcp", added[0].Addr().String())
		if err == nil {
			c.Write([]byte("x"))
			c.Close()
		}
	}()
	c, err := added[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.(*Conn); ok {
		t.Error("a plain connection is wrapped")
	}
	c.Close()

	// The same again changes nothing.
	again, removed, _, err := s.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0"), role("submission", "127.0.0.1:0", "[::1]:0")})
	if err != nil || len(again) != 0 || len(removed) != 0 {
		t.Fatalf("second: added %v removed %v err %v", again, removed, err)
	}

	// One address that cannot be had: nothing changes, what was opened for it is closed.
	taken := added[1].Addr().String()
	free := net.JoinHostPort("127.0.0.2", harness.FreePort(t, "127.0.0.2"))
	a, r, _, err := s.Apply(t.Context(), []Role{role("smtp", free, taken)})
	if err == nil || a != nil || r != nil || len(s.Listeners()) != 3 {
		t.Fatalf("after a failure: added %v removed %v err %v, %d listeners", a, r, err, len(s.Listeners()))
	}
	if !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
	remedied(t, err)
	if l, err := net.Listen("tcp", free); err != nil {
		t.Errorf("what was opened for it is still open: %v", err)
	} else {
		l.Close()
	}

	// A changed address: the new one opens, the others close.
	a, r, _, err = s.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0", "127.0.0.3:0")})
	if err != nil || len(a) != 1 || len(r) != 2 || len(s.Listeners()) != 2 {
		t.Fatalf("changed: added %v removed %v err %v", a, r, err)
	}
	if _, err := r[0].Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a removed listener accepts: %v", err)
	}
}

// TestCFG13Addresses holds the conditions under which the server does not start, and their texts.
func TestCFG13Addresses(t *testing.T) {
	tests := []struct {
		roles []Role
		want  string
		is    error
	}{
		{nil, "No address to listen on", ErrNoAddress},
		{[]Role{role("smtp"), role("submission")}, "No address to listen on", ErrNoAddress},
		{[]Role{role("smtp", "systemd"), role("submission_tls", "systemd")}, "No address to listen on", ErrNoAddress},
		{[]Role{role("smtp", "")}, "Invalid empty listening address for SMTP", ErrEmptyAddress},
		{[]Role{role("smtp", "127.0.0.1:0"), role("submission_tls", "")}, "Invalid empty listening address for submission+TLS", ErrEmptyAddress},
		{[]Role{role("submission", "192.0.2.200:0")}, "cannot assign requested address", nil},
		{[]Role{role("smtp", "127.0.0.1")}, "missing port in address", nil},
	}
	for _, tc := range tests {
		s := New(Config{})
		_, _, _, err := s.Apply(t.Context(), tc.roles)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: got %v, want %q", tc.roles, err, tc.want)
			continue
		}
		if tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%v: not %v", err, tc.is)
		}
		remedied(t, err)
		if n := len(s.Listeners()); n != 0 {
			t.Errorf("%v: %d listeners are open", tc.roles, n)
		}
	}
}

// TestCFG18SystemdWarning: a role without sockets is a warning of two lines as long as another has one.
func TestCFG18SystemdWarning(t *testing.T) {
	s := New(Config{})
	defer s.Close()
	_, _, warnings, err := s.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0"), role("submission", "systemd")})
	if err != nil || len(warnings) != 1 || strings.Count(warnings[0], "\n") != 1 || !strings.Contains(warnings[0], `"submission"`) {
		t.Errorf("warnings %q err %v", warnings, err)
	}
}

func TestSystemdEnvironment(t *testing.T) {
	tests := []struct {
		env   string // pid fds names, "-" is unset
		names []string
		err   string
	}{
		{"- - -", nil, ""},
		{"77 2 smtp:submission", []string{"smtp", "submission"}, ""},
		{"77 3 smtp:smtp:submission_tls", []string{"smtp", "smtp", "submission_tls"}, ""},
		{"77 0 -", nil, ""},
		{"78 2 smtp:submission", nil, `LISTEN_PID is "78", this process is 77`},
		{"- 2 smtp:submission", nil, `LISTEN_PID is ""`},
		{"x 2 smtp:submission", nil, `LISTEN_PID is "x"`},
		{"77 - smtp", nil, `LISTEN_FDS is ""`},
		{"77 two smtp", nil, `LISTEN_FDS is "two"`},
		{"77 -1 smtp", nil, `LISTEN_FDS is "-1"`},
		{"77 99999999 smtp", nil, `LISTEN_FDS is "99999999"`},
		{"77 2 smtp", nil, "LISTEN_FDNAMES has 1 names"},
		{"77 1 smtp:submission", nil, "LISTEN_FDNAMES has 2 names"},
	}
	for _, tc := range tests {
		f := strings.Fields(tc.env)
		env := map[string]string{"LISTEN_PID": f[0], "LISTEN_FDS": f[1], "LISTEN_FDNAMES": f[2]}
		getenv := func(k string) string { return strings.TrimPrefix(env[k], "-") }
		if tc.env == "77 -1 smtp" {
			getenv = func(k string) string { return env[k] }
		}
		names, err := parseEnvironment(getenv, 77)
		if !slices.Equal(names, tc.names) || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q: got %v, %v; want %v, %q", tc.env, names, err, tc.names, tc.err)
		}
		if err != nil {
			remedied(t, err)
		}
	}
}

// TestSystemdSockets passes two real sockets to a process of its own, as systemd does, and talks to it.
func TestSystemdSockets(t *testing.T) {
	if os.Getenv("LISTEN_TEST_CHILD") != "" {
		systemdChild()
		return
	}
	var files []*os.File
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		files, addrs = append(files, f), append(addrs, l.Addr().String())
		l.Close()
	}
	// The shell knows the pid that the program will have.
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestSystemdSockets$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=smtp:submission", "LISTEN_TEST_CHILD=1")
	cmd.ExtraFiles = files
	out := make(chan string, 1)
	go func() {
		b, err := cmd.CombinedOutput()
		out <- string(b) + " " + errString(err)
	}()
	for i, want := range []string{"smtp SMTP", "submission submission"} {
		c, err := net.Dial("tcp", addrs[i])
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 100)
		n, err := c.Read(b)
		if string(b[:n]) != want {
			t.Errorf("%s: got %q %v, want %q", addrs[i], b[:n], err, want)
		}
		c.Close()
	}
	if o := <-out; !strings.Contains(o, "env cleared, close-on-exec") {
		t.Error(o)
	}
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// systemdChild answers one connection on each passed socket with its role, and checks what its own children would inherit.
func systemdChild() {
	sockets, err := FromEnvironment()
	if err != nil {
		os.Stdout.WriteString(err.Error())
		return
	}
	s := New(Config{Sockets: sockets})
	added, _, warnings, err := s.Apply(context.Background(), []Role{role("smtp", "systemd"), role("submission", "systemd")})
	if err != nil || len(warnings) > 0 {
		os.Stdout.WriteString(errString(err) + strings.Join(warnings, " "))
		return
	}
	for _, l := range added {
		c, err := l.Accept()
		if err != nil {
			os.Stdout.WriteString(err.Error())
			return
		}
		c.Write([]byte(l.Role + " " + l.Label))
		c.Close()
	}
	left, _ := exec.Command("/bin/sh", "-c", `echo "$LISTEN_PID$LISTEN_FDS$LISTEN_FDNAMES"; ls -l /proc/self/fd | grep -c socket`).Output()
	if string(left) == "\n0\n" {
		os.Stdout.WriteString("env cleared, close-on-exec\n")
	} else {
		os.Stdout.WriteString("left: " + string(left))
	}
}

// TestInherit: a set that is told of sockets it may inherit uses those that fit its roles, and opens the others.
func TestInherit(t *testing.T) {
	one := New(Config{})
	defer one.Close()
	added, _, _, err := one.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := added[0].SyscallConn(); err != nil {
		t.Error(err)
	}
	handed := map[string][]net.Listener{added[0].Key(): {added[0].Listener}}
	two := New(Config{Inherited: func(key string) ([]net.Listener, error) {
		l := handed[key]
		delete(handed, key)
		return l, nil
	}})
	defer two.Close()
	got, _, _, err := two.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0"), role("submission", "127.0.0.1:0")})
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if got[0].Addr().String() != added[0].Addr().String() || got[0].Role != "smtp" {
		t.Errorf("%v was opened instead of inherited", got[0])
	}
	if got[1].Addr().String() == added[0].Addr().String() {
		t.Errorf("%v was inherited for another role", got[1])
	}
	if again, _, _, err := two.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0")}); err != nil || len(again) != 0 {
		t.Errorf("opened again: %v %v", again, err)
	}
	if want := added[0].Addr().String() + " (SMTP)"; got[0].String() != want {
		t.Errorf("%q, want %q", got[0], want)
	}
}

// TestN2SystemdAgain: a socket of systemd's that is left, or was wanted by an Apply that failed, can be used again.
func TestN2SystemdAgain(t *testing.T) {
	passed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := passed.Addr().String()
	s := New(Config{Sockets: &Sockets{byName: map[string][]net.Listener{"smtp": {passed}}}})
	defer s.Close()
	for _, step := range []struct {
		addresses []string
		fails     bool
	}{
		{[]string{"systemd"}, false}, {[]string{"127.0.0.1:0"}, false}, {[]string{"systemd", "192.0.2.1:1"}, true}, {[]string{"systemd"}, false},
	} {
		_, _, _, err := s.Apply(t.Context(), []Role{role("smtp", step.addresses...)})
		if (err != nil) != step.fails {
			t.Fatalf("%v: %v", step.addresses, err)
		}
	}
	l := s.Listeners()
	if len(l) != 1 || l[0].Addr().String() != addr {
		t.Fatalf("listeners %v, want %s", l, addr)
	}
	go func() {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
		}
	}()
	c, err := l[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
