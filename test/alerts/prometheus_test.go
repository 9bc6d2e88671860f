package alerts

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/smtp"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/test/dashboard"
	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
)

// waitTime is how long anything here may take to happen.
var waitTime = patience.Limit(10 * time.Second)

const testZone = `
example.test MX 10 mail.example.test
mail.example.test A 127.0.0.1
sender.test MX 10 mail.example.test
sender.test TXT "v=spf1 ip4:127.0.0.1 -all"
remote.test MX 10 mx.remote.test
mx.remote.test A 127.0.0.9
broken.test SERVFAIL
`

// startServers starts a server that has everything, and one elsewhere to send mail to.
func startServers(t *testing.T) *harness.Server {
	t.Helper()
	far := harness.New(t, harness.Options{IP: "127.0.0.9", Domains: map[string]harness.Domain{"remote.test": {Users: map[string]string{"bob": "secret"}}}})
	far.Start()
	addr, stop, err := zone.MustNew(testZone).Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	_, port, _ := net.SplitHostPort(far.SMTP)
	s := harness.New(t, harness.Options{Conf: fmt.Sprintf("dns_server: %q\n", addr), Args: []string{"-testing__outgoing_smtp_port=" + port},
		Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret"}, Aliases: "prog: | true\n", DKIM: true}}})
	s.WriteFile("hooks/post-data", "#!/bin/sh\ncat >/dev/null\nexit 0\n")
	if err := os.Chmod(filepath.Join(s.Dir, "hooks", "post-data"), 0755); err != nil {
		t.Fatal(err)
	}
	s.Start()
	return s
}

const testMessage = "From: user@example.test\r\nSubject: t\r\nDate: Sat, 1 Aug 2026 10:00:00 +0000\r\nMessage-ID: <t@example.test>\r\n\r\nhello\r\n"

// session logs in if there is a password, and offers the message; it returns the first error.
func session(s *harness.Server, password, from, to string) error {
	var conn net.Conn
	var err error
	if password == "" {
		conn, err = net.Dial("tcp", s.SMTP)
	} else {
		conn, err = tls.Dial("tcp", s.SubmissionTLS, &tls.Config{RootCAs: s.CA, ServerName: "mail.example.test"})
	}
	if err != nil {
		return err
	}
	c, err := smtp.NewClient(conn, "mail.example.test")
	if err != nil {
		return err
	}
	defer c.Close()
	if password != "" {
		if err := c.Auth(smtp.PlainAuth("", "user@example.test", password, "mail.example.test")); err != nil {
			return err
		}
	}
	if err := c.Mail(from); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(testMessage)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// exchange sends mail of several kinds, in and out, good and bad.
func exchange(t *testing.T, s *harness.Server) {
	t.Helper()
	for _, m := range []struct{ password, from, to, fails string }{
		{"", "a@sender.test", "user@example.test", ""},
		{"", "a@sender.test", "nobody@example.test", "550"},
		{"", "a@sender.test", "x@elsewhere.test", "503"},
		{"secret", "user@example.test", "user@example.test", ""},
		{"secret", "user@example.test", "bob@remote.test", ""},
		{"secret", "user@example.test", "nobody@remote.test", ""},
		{"secret", "user@example.test", "x@broken.test", ""},
		{"secret", "user@example.test", "prog@example.test", ""},
		{"wrong", "user@example.test", "user@example.test", "535"},
	} {
		err := session(s, m.password, m.from, m.to)
		if (err == nil) != (m.fails == "") || err != nil && !strings.HasPrefix(err.Error(), m.fails) {
			t.Errorf("%s to %s: %v, want %q", m.from, m.to, err, m.fails)
		}
	}
	harness.WaitFor(t, waitTime, "two messages and a notice for the user", func() bool { return len(s.Maildir("user@example.test")) == 3 })
}

// startPrometheus runs a Prometheus with the shipped rules, which it evaluates every second, and returns its address.
func startPrometheus(t *testing.T, target string) string {
	t.Helper()
	prometheus := harness.Need(t, "prometheus", "prometheus")
	tmp := t.TempDir()
	conf := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [recording.yml, alerts.yml]\n"+
		"scrape_configs:\n- job_name: chasquid\n  static_configs: [{targets: [%q]}]\n", target)
	interval := regexp.MustCompile(`(?m)^  interval: \w+$`)
	for name, text := range map[string]string{"prometheus.yml": conf, "alerts.yml": read(t, dir+"/alerts.yml"),
		"recording.yml": interval.ReplaceAllString(read(t, dir+"/recording.yml"), "  interval: 1s")} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(text), 0600); err != nil {
			t.Fatal(err)
		}
	}
	addr := "127.0.0.1:" + harness.FreePort(t, "127.0.0.1")
	background(t, prometheus, "--config.file="+tmp+"/prometheus.yml", "--storage.tsdb.path="+tmp+"/data", "--web.listen-address="+addr, "--enable-feature=exemplar-storage")
	harness.WaitFor(t, waitTime, "Prometheus to be ready", func() bool {
		resp, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return addr
}

// background runs a program for the time of the test.
func background(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(out.Name())
			t.Logf("%s:\n%s", name, b)
		}
		out.Close()
	})
}

// api asks Prometheus; it fails the test if that does not understand.
func api(t *testing.T, addr, path string, args url.Values, data any) {
	t.Helper()
	code, body := get(t, "http://"+addr+"/api/v1/"+path+"?"+args.Encode())
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || code != http.StatusOK || answer.Status != "success" {
		t.Fatalf("%s %v: %d %s %v", path, args, code, body, err)
	}
}

// series is how many series an expression has now.
func series(t *testing.T, addr, expr string) int {
	t.Helper()
	var r struct{ Result []any }
	api(t, addr, "query", url.Values{"query": {expr}}, &r)
	return len(r.Result)
}

// noSeries are what has no series on a healthy server, and why.
var noSeries = map[string]string{
	"probe_success":             "there is no blackbox exporter here; TestBlackbox has one",
	"chasquid_selfcheck_status": "the first look is a minute after the start, if selfcheck is on",
	"ALERTS{":                   "no alert fires",
}

func whyNone(expr string) string {
	for what, why := range noSeries {
		if strings.Contains(expr, what) {
			return why
		}
	}
	return ""
}

// TestPrometheus lets a real Prometheus scrape a server that has some mail, with the shipped rules: it takes all of them, everything that
// rules and dashboard ask for is there, no alert fires, and examples on histograms lead to traces.
func TestPrometheus(t *testing.T) {
	s := startServers(t)
	addr := startPrometheus(t, s.Monitor)
	exchange(t, s)
	harness.WaitFor(t, waitTime, "the server to be up for Prometheus", func() bool {
		var r struct {
			ActiveTargets []struct{ Health, LastError string }
		}
		api(t, addr, "targets", nil, &r)
		return len(r.ActiveTargets) == 1 && r.ActiveTargets[0].Health == "up" && r.ActiveTargets[0].LastError == ""
	})
	t.Run("rules", func(t *testing.T) { rulesAreHealthy(t, addr) })
	t.Run("expressions", func(t *testing.T) { expressionsHaveSeries(t, addr) })
	t.Run("exemplars", func(t *testing.T) { exemplarsLead(t, addr, s) })
}

// rulesAreHealthy waits until every rule was evaluated well, and looks that nothing fires.
func rulesAreHealthy(t *testing.T, addr string) {
	want := len(rules(t))
	var r struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError, State string }
		}
	}
	harness.WaitFor(t, waitTime, fmt.Sprintf("%d healthy rules", want), func() bool {
		api(t, addr, "rules", nil, &r)
		healthy := 0
		for _, g := range r.Groups {
			for _, x := range g.Rules {
				if x.LastError != "" {
					t.Fatalf("%s: %s", x.Name, x.LastError)
				}
				if x.Health == "ok" {
					healthy++
				}
			}
		}
		return healthy == want
	})
	for _, g := range r.Groups {
		for _, x := range g.Rules {
			if x.State == "firing" || x.State == "pending" && x.Name == "ChasquidNotReady" {
				t.Errorf("%s is %s on a healthy server", x.Name, x.State)
			}
		}
	}
}

var selectorRE = regexp.MustCompile(`\b(?:(?:chasquid|instance:chasquid|go|process|probe)_[a-zA-Z0-9_:]+|up|ALERTS)\b(?:\{[^}]*\})?`)

// expressionsHaveSeries: an alert that is silent has no series, so what it looks at must have some; everything else has some itself.
func expressionsHaveSeries(t *testing.T, addr string) {
	var exprs []string
	add := func(expr string) {
		if !slices.Contains(exprs, expr) {
			exprs = append(exprs, expr)
		}
	}
	for _, r := range rules(t) {
		if r.Record != "" {
			add(r.Expr)
			continue
		}
		series(t, addr, r.Expr) // it is understood
		for _, sel := range selectorRE.FindAllString(r.Expr, -1) {
			add(sel)
		}
	}
	chosen := strings.NewReplacer("$job", ".+", "$instance", ".+", "$__rate_interval", "5s")
	for _, row := range dashboard.Rows {
		for _, p := range row.Panels {
			for _, q := range p.Query {
				add(chosen.Replace(q.Expression()))
			}
		}
	}
	for _, expr := range dashboard.Annotations {
		add(chosen.Replace(expr))
	}
	for _, expr := range exprs {
		if why := whyNone(expr); why != "" {
			if n := series(t, addr, expr); n > 0 && !strings.Contains(expr, "or vector(0)") {
				t.Errorf("%s has %d series, although %s", expr, n, why)
			}
			continue
		}
		harness.WaitFor(t, waitTime, "a series of "+expr, func() bool { return series(t, addr, expr) > 0 })
	}
	if len(exprs) < 150 {
		t.Errorf("only %d expressions found: is the pattern right?", len(exprs))
	}
	t.Logf("%d expressions", len(exprs))
}

// exemplarsLead: there are examples, and every one opens the page of its trace.
func exemplarsLead(t *testing.T, addr string, s *harness.Server) {
	var found []struct {
		Exemplars []struct{ Labels map[string]string }
	}
	args := url.Values{"query": {`{__name__=~"chasquid_.*_bucket"}`}, "start": {fmt.Sprint(time.Now().Add(-10 * time.Minute).Unix())}}
	harness.WaitFor(t, waitTime, "an exemplar", func() bool {
		args.Set("end", fmt.Sprint(time.Now().Add(time.Minute).Unix()))
		api(t, addr, "query_exemplars", args, &found)
		return len(found) > 0
	})
	ids := map[string]bool{}
	for _, f := range found {
		for _, e := range f.Exemplars {
			ids[e.Labels["trace_id"]] = true
		}
	}
	for id := range ids {
		if code, body := get(t, "http://"+s.Monitor+"/debug/traces/"+id); code != http.StatusOK || !strings.Contains(body, id) {
			t.Errorf("the trace %q of an exemplar: %d", id, code)
		}
	}
	if len(ids) == 0 {
		t.Error("exemplars without trace ids")
	}
	t.Logf("%d traces named by exemplars of %d series", len(ids), len(found))
}
