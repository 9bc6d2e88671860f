package alerts

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/dashboard"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// scraped are the names of all series of a scrape, with those of the histograms' parts.
func scraped(s *harness.Server) map[string]bool {
	names := map[string]bool{}
	sc := bufio.NewScanner(strings.NewReader(s.Get("/metrics")))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ := strings.Cut(rest, " ")
			names[name] = true
		} else if !strings.HasPrefix(line, "#") {
			names[line[:strings.IndexAny(line, "{ ")]] = true
		}
	}
	return names
}

var pageRE = regexp.MustCompile(`(?:` + "`" + `|\$labels\.instance \}\})(/(?:debug|readyz|healthz|metrics)?[^\s'"` + "`" + `]*)`)

// placeholders are parts of links that people replace.
var placeholders = strings.NewReplacer("ADDRESS", "user@example.test", "USER", "user", "NAME", "mda", "&amp;", "&")

// pages are the links to our own pages in a text.
func pages(text string) (list []string) {
	for _, m := range pageRE.FindAllStringSubmatch(text, -1) {
		if m[1] == "/" || strings.HasPrefix(m[1], "/debug/") || strings.HasPrefix(m[1], "/readyz") || m[1] == "/metrics" {
			list = append(list, placeholders.Replace(m[1]))
		}
	}
	return list
}

// skippedPages take long, or have to be told what to watch.
var skippedPages = regexp.MustCompile(`^/debug/(tail|support|diagnose|traces/ID|pprof/(profile|trace))`)

// TestNames: every metric that the rules, the dashboard, the examples and the pages name is one of the server's or recorded by a rule, and
// every page of the server that they send people to is there. The server has all of the catalogue.
func TestNames(t *testing.T) {
	s := harness.New(t, harness.Options{Conf: `otlp_endpoint: "http://127.0.0.1:9/"` + "\n"})
	s.Start()
	known := scraped(s)
	// It has no series in the first minute: here it is enough that the code has it.
	if strings.Contains(read(t, top+"/internal/selfcheck/run.go"), `GaugeVecFunc("chasquid_selfcheck_status"`) {
		known["chasquid_selfcheck_status"] = true
	}
	// Recorded by the rules, or measured by the blackbox exporter.
	known["probe_success"], known["probe_ssl_earliest_cert_expiry"] = true, true
	texts := map[string]string{}
	for _, r := range rules(t) {
		if r.Record != "" {
			known[r.Record] = true
		}
		texts[r.name()+r.Labels["window"]] = r.Expr + "\n" + strings.Join([]string{r.Annotations["summary"], r.Annotations["description"], r.Annotations["page"]}, "\n")
	}
	for _, path := range []string{"monitoring/prometheus.yml", "monitoring/blackbox.yml", "monitoring/grafana-datasource.yml", "docs/runbook.md", "docs/monitoring.md"} {
		texts[path] = read(t, filepath.Join(top, path))
	}
	for _, row := range dashboard.Rows {
		for _, p := range row.Panels {
			for _, q := range p.Query {
				texts["panel "+p.Title] += q.Expr + "\n"
			}
			if p.Page != "" {
				texts["panel "+p.Title] += "`" + p.Page + "`"
			}
		}
	}
	texts["marks"] = strings.Join(dashboard.Annotations, "\n")
	metrics, links := 0, map[string]string{}
	for where, text := range texts {
		for _, name := range metricRE.FindAllString(text, -1) {
			metrics++
			if !known[name] {
				t.Errorf("%s: there is no metric %s", where, name)
			}
		}
		for _, page := range pages(text) {
			links[page] = where
		}
	}
	for page, where := range links {
		if skippedPages.MatchString(page) {
			continue
		}
		if code, body := get(t, "http://"+s.Monitor+page); code != http.StatusOK {
			t.Errorf("%s: %s: %d %.100s", where, page, code, body)
		}
	}
	if metrics < 200 || len(links) < 30 {
		t.Errorf("only %d metrics and %d pages found: are the patterns right?", metrics, len(links))
	}
	for line := range strings.Lines(read(t, "testdata/catalogue.txt")) {
		if name := strings.TrimSpace(line); !strings.HasPrefix(name, "#") && !known[name] {
			t.Errorf("the server lacks %s of the catalogue", name)
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", url, err))
	}
	return resp.StatusCode, string(b)
}

// TestVariables: docs/monitoring.md has every variable of earlier versions under both of its names.
func TestVariables(t *testing.T) {
	doc := read(t, top+"/docs/monitoring.md")
	names := strings.Fields(read(t, top+"/test/real/testdata/variables.txt"))
	if len(names) < 31 {
		t.Fatalf("only %d variables", len(names))
	}
	for _, name := range names {
		if !strings.Contains(doc, "`"+name+"` | `"+strings.ReplaceAll(name, "/", "_")+"`") {
			t.Errorf("docs/monitoring.md lacks %s", name)
		}
	}
}
