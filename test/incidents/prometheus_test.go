package incidents

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// rulesDir has the rules that are shipped.
const rulesDir = "../../monitoring"

// prometheus is a real one.
type prometheus struct{ addr string }

// startPrometheus scrapes each target, by name of its job, every second, and judges it by the shipped rules, made quick.
func startPrometheus(t *testing.T, targets map[string]string) *prometheus {
	t.Helper()
	program := harness.Need(t, "prometheus", "prometheus")
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(rulesDir, "*.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var conf strings.Builder
	conf.WriteString("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [rules/*.yml]\nscrape_configs:\n")
	for name, addr := range targets {
		fmt.Fprintf(&conf, "- job_name: chasquid-%s\n  static_configs: [{targets: [%q]}]\n", name, addr)
	}
	if err := os.Mkdir(filepath.Join(dir, "rules"), 0700); err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "\ngroups:") {
			continue // an example of something else
		}
		alerts += strings.Count(string(b), "- alert:")
		write(t, filepath.Join(dir, "rules", filepath.Base(f)), quicken(t, string(b)))
	}
	if alerts < 30 {
		t.Fatalf("there are only %d alerts in %s", alerts, rulesDir)
	}
	write(t, filepath.Join(dir, "prometheus.yml"), conf.String())
	p := &prometheus{"127.0.0.1:" + harness.FreePort(t, "127.0.0.1")}
	cmd := exec.Command(program, "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data", "--web.listen-address="+p.addr, "--log.level=warn")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
		if b, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("Prometheus:\n%s", b)
		}
	})
	harness.WaitFor(t, 30*time.Second, "Prometheus to be ready", func() bool {
		resp, err := http.Get("http://" + p.addr + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0600); err != nil {
		t.Fatal(err)
	}
}

var (
	windowRE   = regexp.MustCompile(`\[(\d+)([smhd])\]`)
	forRE      = regexp.MustCompile(`(?m)^(\s+)for: .*$`)
	intervalRE = regexp.MustCompile(`(?m)^(\s+)interval: .*$`)
)

// quicken makes rules notice within seconds what they would within minutes: windows are a sixtieth, but at least long enough for some scrapes,
// and nothing has to last. Their conditions stay as they are.
func quicken(t *testing.T, rules string) string {
	t.Helper()
	units := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}
	rules = windowRE.ReplaceAllStringFunc(rules, func(w string) string {
		m := windowRE.FindStringSubmatch(w)
		var n int
		if _, err := fmt.Sscan(m[1], &n); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("[%ds]", max(10, int((time.Duration(n)*units[m[2]]/60).Seconds())))
	})
	rules = forRE.ReplaceAllString(rules, "${1}for: 1s")
	return intervalRE.ReplaceAllString(rules, "${1}interval: 1s")
}

// fired reports whether an alert has fired for a job; labels tell it from others, as in `alertname="X"`.
func (p *prometheus) fired(job, labels string) (bool, error) {
	q := fmt.Sprintf(`max_over_time(ALERTS{job="chasquid-%s",alertstate="firing",%s}[2m])`, job, labels)
	resp, err := http.Get("http://" + p.addr + "/api/v1/query?query=" + url.QueryEscape(q))
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	var r struct {
		Status, Error string
		Data          struct{ Result []any }
	}
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return false, err
	}
	if r.Status != "success" {
		return false, fmt.Errorf("%s: %s", q, r.Error)
	}
	return len(r.Data.Result) > 0, nil
}

// samples is how many scrapes of a job there are.
func (p *prometheus) samples(job string) int {
	resp, err := http.Get("http://" + p.addr + "/api/v1/query?query=" + url.QueryEscape(fmt.Sprintf(`count_over_time(up{job="chasquid-%s"}[1h])`, job)))
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	var r struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	n := 0
	if err := json.NewDecoder(resp.Body).Decode(&r); err == nil && len(r.Data.Result) == 1 {
		fmt.Sscan(fmt.Sprint(r.Data.Result[0].Value[1]), &n)
	}
	return n
}
