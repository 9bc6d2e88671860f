package real

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// TestPrometheus lets a real Prometheus scrape the server.
func TestPrometheus(t *testing.T) {
	prometheus := harness.Need(t, "prometheus", "prometheus")
	s := harness.New(t, harness.Options{})
	s.Start()
	submit(t, s, "user@example.test", testMessage)
	dir := t.TempDir()
	conf := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: chasquid\n  static_configs: [{targets: [%q]}]\n", s.Monitor)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(conf), 0600); err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + harness.FreePort(t, "127.0.0.1")
	background(t, prometheus, "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data", "--web.listen-address="+addr, "--enable-feature=exemplar-storage")
	harness.WaitFor(t, 30*time.Second, "Prometheus ready", func() bool {
		resp, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	var targets struct {
		Data struct {
			ActiveTargets []struct{ Health, LastError string }
		}
	}
	harness.WaitFor(t, 30*time.Second, "the target up", func() bool {
		getJSON(t, "http://"+addr+"/api/v1/targets", &targets)
		a := targets.Data.ActiveTargets
		return len(a) == 1 && a[0].Health == "up" && a[0].LastError == ""
	})
	for query, want := range map[string]string{
		"chasquid_queue_putCount":                                 "1",
		`chasquid_smtpIn_commandCount{command="MAIL"}`:            "1",
		`sum(chasquid_smtp_in_messages_total{result="accepted"})`: "1",
		"count(chasquid_build_info)":                              "1",
	} {
		var r struct {
			Data struct {
				Result []struct{ Value [2]any }
			}
		}
		harness.WaitFor(t, 15*time.Second, query+" = "+want, func() bool {
			getJSON(t, "http://"+addr+"/api/v1/query?query="+strings.NewReplacer(" ", "%20", "{", "%7B", "}", "%7D", `"`, "%22", "=", "%3D").Replace(query), &r)
			return len(r.Data.Result) == 1 && r.Data.Result[0].Value[1] == want
		})
	}
}

func getJSON(t *testing.T, url string, v any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v in %s", url, err, b)
	}
}

// TestPromtool checks that the linter complains of nothing but the old camelCase names.
func TestPromtool(t *testing.T) {
	promtool := harness.Need(t, "promtool", "prometheus")
	s := harness.New(t, harness.Options{})
	s.Start()
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(s.Get("/metrics"))
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("promtool does not complain of the legacy names: is it looking at all?")
	}
	legacy := regexp.MustCompile(`^chasquid_(aliases|queue|smtpIn|smtpOut|sts|sourceDate)\w* metric names should be written in 'snake_case' not 'camelCase'$`)
	for line := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		if !legacy.MatchString(line) {
			t.Errorf("promtool: %s", line)
		}
	}
}

// TestPprof reads profiles with go tool pprof.
func TestPprof(t *testing.T) {
	s := harness.New(t, harness.Options{})
	s.Start()
	for _, profile := range []string{"profile?seconds=1", "heap", "goroutine", "allocs"} {
		out := harness.Run(t, "", "go", "tool", "pprof", "-top", "http://"+s.Monitor+"/debug/pprof/"+profile)
		if !strings.Contains(out, "Type: ") {
			t.Errorf("%s: no profile:\n%s", profile, out)
		}
	}
}

// TestChromium renders the index in light and dark and on a phone's width; CHASQUID_SCREENSHOTS names a directory to keep the pictures.
func TestChromium(t *testing.T) {
	chromium := harness.Need(t, "chromium", "chromium")
	s := harness.New(t, harness.Options{})
	s.Start()
	submit(t, s, "user@example.test", testMessage)
	delivered(t, s, "user@example.test", 1)
	dir := os.Getenv("CHASQUID_SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	base := []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--hide-scrollbars"}
	for name, args := range map[string][]string{
		"index-light": {"--window-size=1200,1400"},
		"index-dark":  {"--window-size=1200,1400", "--blink-settings=preferredColorScheme=0"},
		"index-phone": {"--window-size=400,1600"},
	} {
		path := filepath.Join(dir, name+".png")
		all := append(append(append([]string{}, base...), args...), "--user-data-dir="+t.TempDir(), "--screenshot="+path, "http://"+s.Monitor+"/")
		harness.Run(t, "", chromium, all...)
		if st, err := os.Stat(path); err != nil || st.Size() < 10_000 {
			t.Errorf("%s: no picture (%v)", name, err)
		}
	}
	dom := harness.Run(t, "", chromium, append(base, "--user-data-dir="+t.TempDir(), "--dump-dom", "http://"+s.Monitor+"/")...)
	for _, want := range []string{"READY", s.SMTP, "mail.example.test", "/debug/queue"} {
		if !strings.Contains(dom, want) {
			t.Errorf("the rendered index does not show %q", want)
		}
	}
}

// TestSeedVariables checks that every variable existing dashboards use is on both pages from the start, with the same value.
func TestSeedVariables(t *testing.T) {
	s := harness.New(t, harness.Options{})
	s.Start()
	var vars map[string]json.RawMessage
	if err := json.Unmarshal([]byte(s.Get("/debug/vars")), &vars); err != nil {
		t.Fatal(err)
	}
	metrics := s.Get("/metrics")
	b, err := os.ReadFile("testdata/variables.txt")
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(b)) {
		value, ok := vars[name]
		if !ok {
			t.Errorf("/debug/vars lacks %s", name)
			continue
		}
		mangled := strings.NewReplacer("/", "_").Replace(name)
		pattern := `(?m)^` + mangled + `(\{[^}]*\})? `
		if value[0] != '{' && value[0] != '"' {
			pattern = `(?m)^` + mangled + ` ` + regexp.QuoteMeta(string(value)) + `$`
		}
		if name == "chasquid/sourceDateTimestamp" { // a float on one page, exact on the other
			pattern = `(?m)^` + mangled + ` `
		}
		if !regexp.MustCompile(pattern).MatchString(metrics) {
			t.Errorf("/metrics lacks %s (value %s)", mangled, value)
		}
	}
	if !regexp.MustCompile(`"chasquid/smtpIn/loopsDetected": 0,`).MatchString(s.Get("/debug/vars")) {
		t.Error("/debug/vars has not the layout existing checks match")
	}
}
