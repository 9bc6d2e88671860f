package real

import (
	"encoding/json"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/opctl"
	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
)

// rig is a server whose configuration changes.
type rig struct {
	*harness.Server
	t    *testing.T
	conf string // as at the start
}

func startRig(t *testing.T, o harness.Options) *rig {
	t.Helper()
	o.Args = append(o.Args, "-testing__reload_every=1h")
	s := harness.New(t, o)
	s.WriteFile("pw", "word\n")
	b, err := os.ReadFile(filepath.Join(s.Dir, "chasquid.conf"))
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	return &rig{s, t, string(b)}
}

// reload runs the sub-command and returns what it says and its exit status.
func (r *rig) reload() (out string, exit int) {
	r.t.Helper()
	cmd := exec.Command(harness.Binary(r.t), "reload", "-C", r.Dir)
	b, err := cmd.CombinedOutput()
	if ee, ok := err.(*exec.ExitError); ok {
		return string(b), ee.ExitCode()
	} else if err != nil {
		r.t.Fatal(err)
	}
	return string(b), 0
}

// ask is reload without the sub-command, which costs the start of a program.
func (r *rig) ask() (out string, exit int) {
	r.t.Helper()
	values, err := control.Call(r.t.Context(), filepath.Join(r.DataDir, control.SocketName), opctl.Reload, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	var reloaded opctl.Reloaded
	if err := opctl.Decode(values, &reloaded); err != nil {
		r.t.Fatal(err)
	}
	for _, e := range reloaded.Errors {
		out += fmt.Sprintf("%s: %s\n  To fix: %s\n", e.What, e.Error, e.Remedy)
		exit = 1
	}
	return out + strings.Join(reloaded.Changes, "\n"), exit
}

// mustReload writes the configuration, with further lines, and takes it.
func (r *rig) mustReload(conf string) string {
	r.t.Helper()
	r.WriteFile("chasquid.conf", conf)
	out, exit := r.ask()
	if exit != 0 {
		r.t.Fatalf("reload: exit %d\n%s", exit, out)
	}
	return out
}

// replaced is the configuration with another value of a setting that is one line.
func (r *rig) replaced(setting, line string) string {
	lines := strings.Split(r.conf, "\n")
	for i := range lines {
		if strings.HasPrefix(lines[i], setting+":") {
			lines[i] = line
		}
	}
	return strings.Join(lines, "\n")
}

// TestN2BadFiles: whatever is wrong with the new settings, all of the old ones stay, and the sub-command says where and what to do.
func TestN2BadFiles(t *testing.T) {
	r := startRig(t, harness.Options{Conf: "relay_via: \"smtps://joe@relay.test\"\nrelay_password_file: \"pw\"\nmax_recipients: 500\n",
		Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret"}, Aliases: "list: user\n"}}})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	before := r.Get("/debug/config?format=text")
	n := strings.Count(r.conf, "\n") + 1 // the line of what is added
	path := filepath.Join(r.Dir, "chasquid.conf")
	added := func(line string) func() {
		return func() {
			r.WriteFile("chasquid.conf", strings.Replace(r.conf, "max_recipients: 500", "max_recipients: 400", 1)+line)
		}
	}
	for i, c := range []struct {
		name  string
		spoil func()
		where string // file and line
		wants []string
	}{
		{"unknown setting", added("max_recipient: 1\n"), at(path, n), []string{`unknown setting "max_recipient"`, `did you mean "max_recipients"`}},
		{"half written", added(`double_bounce_to: "post`), at(path, n), []string{"not closed"}},
		{"half a block", added("acme {\n  email: \"a@b.test\"\n"), at(path, n), []string{"never closed"}},
		{"wrong type", added("dmarc_enforce: maybe\n"), at(path, n), []string{"true or false"}},
		{"bad duration", added("give_up_send_after: \"5 days\"\n"), at(path, n), []string{`"120h"`}},
		{"given twice", added("max_recipients: 1\n"), at(path, n), []string{"given twice"}},
		{"not UTF-8", added("double_bounce_to: \"p\xff@example.test\"\n"), at(path, n), []string{"UTF-8"}},
		{"two mistakes", added("srs: \"maybe\"\ntls_reports: \"often\"\n"), at(path, n), []string{at(path, n+1), `"on", "off"`}},
		{"port in use", func() {
			r.WriteFile("chasquid.conf", r.replaced("smtp_address", fmt.Sprintf("smtp_address: [%q, %q]", "127.0.0.1:0", taken.Addr())))
		}, at(path, 2), []string{"address already in use", "ss -ltnp"}},
		{"page address in use", func() {
			r.WriteFile("chasquid.conf", r.replaced("monitoring_address", fmt.Sprintf("monitoring_address: %q", taken.Addr())))
		}, at(path, 5), []string{"address already in use"}},
		{"bad page rules", added("monitoring_web_config: \"pw\"\n"), at(path, n), []string{"exporter toolkit"}},
		{"no place for the log", func() { r.WriteFile("chasquid.conf", r.replaced("mail_log_path", `mail_log_path: "/dev/null/x"`)) }, at(path, 7), []string{"mail_log_path"}},
		{"no password", func() { r.WriteFile("pw", ""); r.WriteFile("chasquid.conf", r.conf+"max_connections: 9\n") }, at(path, n-2), []string{"no password on its first line"}},
		{"bad aliases and other separators", func() {
			r.WriteFile("domains/example.test/aliases", "list: user\nbad\n")
			r.WriteFile("chasquid.conf", r.conf+"suffix_separators: \"-\"\n")
		}, `domains/example.test/aliases" line 2`, []string{"cannot be read anew", at(path, n), "correct the alias files first"}},
		{"empty", func() { r.WriteFile("chasquid.conf", "") }, "chasquid.conf", []string{"sets nothing"}},
		{"missing", func() { os.Remove(path) }, path, []string{"no such file"}},
		{"a directory", func() { os.Remove(path); os.Mkdir(path, 0o755) }, path, []string{"is a directory"}},
	} {
		c.spoil()
		out, exit := r.ask()
		if i < 2 {
			out, exit = r.reload()
		}
		if exit != 1 {
			t.Errorf("%s: exit %d", c.name, exit)
		}
		for _, want := range append(c.wants, c.where, "To fix:") {
			if !strings.Contains(out, want) {
				t.Errorf("%s: the sub-command does not say %q:\n%s", c.name, want, out)
			}
		}
		if after := r.Get("/debug/config?format=text"); after != before {
			t.Errorf("%s: the settings are now\n%s", c.name, after)
		}
		if !strings.Contains(r.Log(), c.where) {
			t.Errorf("%s: the log does not say where: %s", c.name, c.where)
		}
		os.Remove(path)
		r.WriteFile("pw", "word\n")
		r.WriteFile("domains/example.test/aliases", "list: user\n")
	}
	bad := r.Metrics()
	if page := r.Get("/?format=text"); !strings.Contains(page, "settings: ") || bad["chasquid_config_last_reload_successful"] != 0 {
		t.Errorf("the index does not show that the last one failed, or the metric does not:\n%s", page)
	}
	if out := r.mustReload(r.conf + "max_connections: 9\n"); !strings.Contains(out, "max_connections: 5000 -> 9") {
		t.Errorf("the change is not shown:\n%s", out)
	}
	if page := r.Get("/debug/config?format=html"); !strings.Contains(page, "max_connections: 5000 -&gt; 9") {
		t.Errorf("/debug/config does not show the change:\n%s", page)
	}
	if m := r.Metrics(); m[`chasquid_config_reloads_total{result="error",trigger="operator"}`] < 17 || m["chasquid_config_last_reload_successful"] != 1 || m[`chasquid_config_objects{kind="alias"}`] != 1 ||
		time.Since(time.Unix(int64(m["chasquid_config_last_reload_success_timestamp_seconds"]), 0)) > time.Minute {
		t.Errorf("metrics: %v %v %v", m[`chasquid_config_reloads_total{result="error",trigger="operator"}`], m[`chasquid_config_objects{kind="alias"}`],
			m["chasquid_config_last_reload_success_timestamp_seconds"])
	}
}

func at(path string, line int) string { return fmt.Sprintf("%q line %d", path, line) }

// TestO7NotifyReload: systemd hears of a reload that the sub-command asks for, as Type=notify-reload wants it.
func TestO7NotifyReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := startRig(t, harness.Options{Env: []string{"NOTIFY_SOCKET=" + path}})
	next := func() string {
		b := make([]byte, 4096)
		c.SetReadDeadline(time.Now().Add(patience.Limit(10 * time.Second)))
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := next(); !strings.HasPrefix(got, "READY=1") {
		t.Errorf("at the start %q", got)
	}
	for _, ask := range []func(){func() { r.reload() }, func() { r.Signal(syscall.SIGHUP) }} {
		ask()
		if got := next(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("then %q", got)
		}
		if got := next(); !strings.HasPrefix(got, "READY=1") {
			t.Errorf("at the end %q", got)
		}
	}
}

// TestR16Poll: the file is picked up without being asked for, but not while it is being written.
func TestR16Poll(t *testing.T) {
	s := harness.New(t, harness.Options{Args: []string{"-testing__reload_every=100ms"}})
	s.Start()
	b, err := os.ReadFile(filepath.Join(s.Dir, "chasquid.conf"))
	if err != nil {
		t.Fatal(err)
	}
	half, rest := string(b)[:len(b)/2], string(b)[len(b)/2:]
	reloads := func(result string) float64 {
		return s.Metrics()[`chasquid_config_reloads_total{result="`+result+`",trigger="periodic"}`]
	}
	s.WriteFile("chasquid.conf", half)
	began := reloads("ok")
	harness.WaitFor(t, patience.Limit(5*time.Second), "two more polls", func() bool { return reloads("ok")+reloads("error") >= began+2 })
	s.WriteFile("chasquid.conf", half+rest+"max_recipients: 123\n")
	harness.WaitFor(t, patience.Limit(10*time.Second), "the new limit", func() bool {
		return strings.Contains(s.Get("/debug/config?format=text"), "max_recipients: 123")
	})
	if !strings.Contains(s.Log(), "Reload: max_recipients: 1000 -> 123") {
		t.Error("the log does not show the change")
	}
}

// TestR16MoveListenersUnderLoad: the server moves from address to address while clients send. Whoever was greeted gets his message through.
func TestR16MoveListenersUnderLoad(t *testing.T) {
	r := startRig(t, harness.Options{Conf: "max_connections: 200\n"})
	addrs := []string{"127.0.0.1:" + harness.StablePort(t, "127.0.0.1"), "127.0.0.1:" + harness.StablePort(t, "127.0.0.1")}
	r.mustReload(r.replaced("smtp_address", fmt.Sprintf("smtp_address: %q", addrs[0])))
	var at atomic.Int64
	var sent, failed atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				greeted, err := deliver(addrs[at.Load()%2], "user@example.test")
				switch {
				case err == nil:
					sent.Add(1)
				case greeted:
					failed.Add(1)
					t.Errorf("a session failed: %v", err)
				}
			}
		})
	}
	const moves = 12
	for i := 1; i <= moves; i++ {
		target := sent.Load() + 20
		harness.WaitFor(t, patience.Limit(20*time.Second), "20 messages more", func() bool { return sent.Load() >= target })
		out := r.mustReload(r.replaced("smtp_address", fmt.Sprintf("smtp_address: %q", addrs[i%2])))
		if !strings.Contains(out, "smtp_address: ") {
			t.Errorf("move %d: %s", i, out)
		}
		at.Store(int64(i))
	}
	stop.Store(true)
	wg.Wait()
	want := int(sent.Load())
	harness.WaitFor(t, patience.Limit(20*time.Second), "all messages in the mailbox", func() bool { return len(r.Maildir("user@example.test")) >= want })
	if n := len(r.Maildir("user@example.test")); n != want || failed.Load() != 0 {
		t.Errorf("%d messages in the mailbox, %d accepted, %d sessions failed", n, want, failed.Load())
	}
	t.Logf("%d messages over %d moves", want, moves)
	m := r.Metrics()
	if got := m[`chasquid_smtp_in_messages_total{mode="smtp",result="accepted"}`]; int(got) != want {
		t.Errorf("the counter says %v: it does not live on", got)
	}
}

// deliver sends one message; greeted says whether it came as far as the greeting.
func deliver(addr, to string) (greeted bool, err error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return false, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience.Limit(10 * time.Second)))
	tc := textproto.NewConn(c)
	if _, _, err := tc.ReadResponse(220); err != nil {
		return false, err
	}
	for _, step := range []struct {
		cmd  string
		want int
	}{{"EHLO client.test", 250}, {"MAIL FROM:<>", 250}, {"RCPT TO:<" + to + ">", 250}, {"DATA", 354},
		{"From: <x@out.test>\r\nSubject: x\r\n\r\ntext\r\n.", 250}, {"QUIT", 221}} {
		if err := tc.PrintfLine("%s", step.cmd); err != nil {
			return true, err
		}
		if _, _, err := tc.ReadResponse(step.want); err != nil {
			return true, err
		}
	}
	return true, nil
}

// TestR16RouteOfWaitingMail: mail that waits for one server goes to another one when the settings say so.
func TestR16RouteOfWaitingMail(t *testing.T) {
	closed := "127.0.0.1:" + harness.FreePort(t, "127.0.0.1")
	other := harness.New(t, harness.Options{Domains: map[string]harness.Domain{"far.test": {Users: map[string]string{"you": "secret"}}}})
	other.Start()
	r := startRig(t, harness.Options{Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret"}, Aliases: "out: you@far.test\n"}},
		Conf: fmt.Sprintf("route { domain: \"far.test\" via: %q }\nsrs: \"off\"\n", closed)})
	if _, err := deliver(r.SMTP, "out@example.test"); err != nil {
		t.Fatal(err)
	}
	var list struct {
		Items []struct {
			Recipients []struct{ Attempts int }
		}
	}
	harness.WaitFor(t, patience.Limit(10*time.Second), "a failed attempt", func() bool {
		out := harness.Run(t, "", harness.Binary(t), "queue", "ls", "-json", "-C", r.Dir)
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return len(list.Items) == 1 && list.Items[0].Recipients[0].Attempts > 0
	})
	out := r.mustReload(strings.Replace(r.conf, closed, other.SMTP, 1))
	if !strings.Contains(out, "route: ") {
		t.Errorf("the change is not shown: %s", out)
	}
	harness.Run(t, "", harness.Binary(t), "queue", "retry", "-all", "-yes", "-C", r.Dir)
	harness.WaitFor(t, patience.Limit(10*time.Second), "the message at the other server", func() bool { return len(other.Maildir("you@far.test")) == 1 })
}

// TestR16UpgradeAfterMove: a new process takes over the addresses that a reload brought, the pages' too.
func TestR16UpgradeAfterMove(t *testing.T) {
	r := startRig(t, harness.Options{})
	smtp, pages := "127.0.0.1:"+harness.StablePort(t, "127.0.0.1"), "127.0.0.1:"+harness.StablePort(t, "127.0.0.1")
	conf := strings.NewReplacer(r.SMTP, smtp, r.Monitor, pages).Replace(r.conf)
	r.mustReload(conf)
	r.Monitor = pages
	harness.Run(t, "", harness.Binary(t), "upgrade", "-C", r.Dir)
	if _, err := deliver(smtp, "user@example.test"); err != nil {
		t.Error(err)
	}
	harness.WaitFor(t, patience.Limit(10*time.Second), "the message and the pages", func() bool {
		return len(r.Maildir("user@example.test")) == 1 && strings.Contains(r.Get("/?format=text"), smtp)
	})
	harness.WaitFor(t, patience.Limit(30*time.Second), "a reload of the new process", func() bool { // it waits for the old one to end
		r.WriteFile("chasquid.conf", conf+"max_recipients: 321\n")
		_, exit := r.ask()
		return exit == 0 && strings.Contains(r.Get("/debug/config?format=text"), "max_recipients: 321")
	})
}
