// Package alerts tests what is shipped for Prometheus and Grafana: the rules by themselves, their names against the server's, and all of it
// with a real Prometheus.
package alerts

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
	"go.yaml.in/yaml/v2"
)

const (
	top   = "../.."
	dir   = top + "/monitoring"
	files = "recording.yml alerts.yml"
)

// rule is an alert or a recording rule.
type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

func (r *rule) name() string { return r.Alert + r.Record }

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rules reads all shipped rules.
func rules(t *testing.T) (all []rule) {
	t.Helper()
	for _, name := range strings.Fields(files) {
		var f struct{ Groups []struct{ Rules []rule } }
		if err := yaml.Unmarshal([]byte(read(t, filepath.Join(dir, name))), &f); err != nil {
			t.Fatal(name, ": ", err)
		}
		for _, g := range f.Groups {
			all = append(all, g.Rules...)
		}
	}
	if len(all) < 60 {
		t.Fatalf("only %d rules", len(all))
	}
	return all
}

// suite is one test of a file for promtool.
type suite struct {
	Series []struct{ Series string } `yaml:"input_series"`
	Silent []struct {
		At   string `yaml:"eval_time"`
		Name string `yaml:"alertname"`
		Exp  []any  `yaml:"exp_alerts"`
	} `yaml:"alert_rule_test"`
	Firing []struct {
		Expr string
		Exp  []struct {
			Labels string
			Value  float64
		} `yaml:"exp_samples"`
	} `yaml:"promql_expr_test"`
}

func suiteFiles(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*_test.yml"))
	if err != nil || len(paths) == 0 {
		t.Fatal("no tests: ", err)
	}
	return paths
}

// TestPromtool lets promtool check the rules and run their tests.
func TestPromtool(t *testing.T) {
	promtool := harness.Need(t, "promtool", "prometheus")
	paths := []string{dir + "/recording.yml", dir + "/alerts.yml"}
	harness.Run(t, "", promtool, append([]string{"check", "rules", "--lint=all", "--lint-fatal"}, paths...)...)
	harness.Run(t, "", promtool, "check", "config", dir+"/prometheus.yml")
	for _, path := range suiteFiles(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			harness.Run(t, "", promtool, "test", "rules", path)
		})
	}
}

var (
	alertLabelRE = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
	usedLabelRE  = regexp.MustCompile(`\$labels\.([a-z_]+)`)
	metricRE     = regexp.MustCompile(`\b(?:chasquid|instance:chasquid|go|process|promhttp|probe)_[a-zA-Z0-9_:]*[a-zA-Z0-9]\b`)
)

// labelsOf takes the labels of a series as promtool's files write it.
func labelsOf(series string) map[string]string {
	m := map[string]string{}
	for _, l := range alertLabelRE.FindAllStringSubmatch(series, -1) {
		m[l[1]] = l[2]
	}
	return m
}

// fits reports whether a firing alert can be one of the rule.
func (r *rule) fits(labels map[string]string) bool {
	for k, v := range r.Labels {
		if labels[k] != v {
			return false
		}
	}
	return labels["alertname"] == r.Alert
}

// metricsOf are the metrics that an expression needs, those of recorded ones included.
func metricsOf(expr string, all []rule) []string {
	var names []string
	for _, name := range metricRE.FindAllString(expr, -1) {
		i := slices.IndexFunc(all, func(r rule) bool { return r.Record == name })
		if i < 0 {
			names = append(names, name)
		} else {
			names = append(names, metricsOf(all[i].Expr, all)...)
		}
	}
	if strings.HasPrefix(expr, "up{") {
		names = append(names, "up")
	}
	return names
}

// TestCases: for every alert, and each of its windows, there is a case in which it fires, and one in which it is silent although everything
// it looks at is there. What its texts say with labels are labels that it has.
func TestCases(t *testing.T) {
	all := rules(t)
	var suites []suite
	for _, path := range suiteFiles(t) {
		var f struct{ Tests []suite }
		if err := yaml.Unmarshal([]byte(read(t, path)), &f); err != nil {
			t.Fatal(path, ": ", err)
		}
		suites = append(suites, f.Tests...)
	}
	for i := range all {
		r := &all[i]
		if r.Alert == "" {
			continue
		}
		firing, silent := 0, 0
		for _, s := range suites {
			for _, f := range s.Firing {
				for _, e := range f.Exp {
					labels := labelsOf(e.Labels)
					if e.Value != 1 || labels["alertstate"] != "firing" || !r.fits(labels) {
						continue
					}
					firing++
					for _, m := range usedLabelRE.FindAllStringSubmatch(strings.Join([]string{r.Annotations["summary"], r.Annotations["description"], r.Annotations["page"]}, " "), -1) {
						if _, ok := labels[m[1]]; !ok {
							t.Errorf("%s speaks of the label %s, but fires as %s", r.Alert, m[1], e.Labels)
						}
					}
				}
			}
			if !s.has(metricsOf(r.Expr, all)) {
				continue
			}
			for _, c := range s.Silent {
				if c.Name == r.Alert && len(c.Exp) == 0 {
					silent++
				}
			}
		}
		if firing == 0 || silent == 0 {
			t.Errorf("%s %v: %d cases in which it fires, %d in which it is silent", r.Alert, r.Labels, firing, silent)
		}
	}
}

// TestOrder: the tests say in which order groups are evaluated, all of them: promtool takes those it is not told of in any order, and tests
// near a limit would fail now and then.
func TestOrder(t *testing.T) {
	var groups []string
	for _, name := range strings.Fields(files) {
		var f struct{ Groups []struct{ Name string } }
		if err := yaml.Unmarshal([]byte(read(t, filepath.Join(dir, name))), &f); err != nil {
			t.Fatal(name, ": ", err)
		}
		for _, g := range f.Groups {
			groups = append(groups, g.Name)
		}
	}
	for _, path := range suiteFiles(t) {
		var f struct {
			Order []string `yaml:"group_eval_order"`
		}
		if err := yaml.Unmarshal([]byte(read(t, path)), &f); err != nil || !slices.Equal(f.Order, groups) {
			t.Errorf("%s: %v: the order is %q, want %q", filepath.Base(path), err, f.Order, groups)
		}
	}
}

// has reports whether the suite has series of all these metrics.
func (s *suite) has(metrics []string) bool {
	return !slices.ContainsFunc(metrics, func(name string) bool {
		return !slices.ContainsFunc(s.Series, func(in struct{ Series string }) bool { return strings.HasPrefix(in.Series, name+"{") })
	})
}

var (
	sectionRE = regexp.MustCompile(`(?m)^## (.*)$`)
	vitalRE   = regexp.MustCompile(`"(Chasquid[A-Za-z0-9]+)"`)
)

// sections are the parts of the runbook, by their heading.
func sections(t *testing.T) map[string]string {
	text := read(t, top+"/docs/runbook.md")
	m := map[string]string{}
	at := sectionRE.FindAllStringSubmatchIndex(text, -1)
	for i, a := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		m[text[a[2]:a[3]]] = text[a[1]:end]
	}
	return m
}

// TestTexts: every alert has its severity, its texts and a page, and a section in the runbook that says everything it should and opens the
// same page; there is no section without an alert. What the index page calls by the name of an alert is one.
func TestTexts(t *testing.T) {
	book := sections(t)
	known := map[string]bool{}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		known[r.Alert] = true
		a := r.Annotations
		if !slices.Contains([]string{"page", "ticket", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		if !strings.HasPrefix(a["summary"], "{{ $labels.instance }}: ") || len(a["description"]) < 40 || strings.Contains(a["description"], "{{") {
			t.Errorf("%s: summary %q, description %q", r.Alert, a["summary"], a["description"])
		}
		if a["runbook"] != "docs/runbook.md#"+strings.ToLower(r.Alert) {
			t.Errorf("%s: runbook %q", r.Alert, a["runbook"])
		}
		page, ok := strings.CutPrefix(a["page"], "http://{{ $labels.instance }}/")
		if !ok {
			t.Errorf("%s: page %q", r.Alert, a["page"])
		}
		for _, part := range []string{"- **Means:** ", "- **Users notice:** ", "- **First:** `/" + page + "`", "- **Steps:** ", "- **Safe lever:** "} {
			if !strings.Contains(book[r.Alert], part) {
				t.Errorf("%s: its section in the runbook lacks %q", r.Alert, part)
			}
		}
	}
	for name := range book {
		if !known[name] {
			t.Errorf("the runbook has a section %s, which is no alert", name)
		}
	}
	sources, err := filepath.Glob(top + "/internal/monitoring/vitals/*.go")
	if err != nil || len(sources) == 0 {
		t.Fatal("no sources: ", err)
	}
	for _, path := range sources {
		for _, m := range vitalRE.FindAllStringSubmatch(read(t, path), -1) {
			if !known[m[1]] {
				t.Errorf("%s: %s is no alert", filepath.Base(path), m[1])
			}
		}
	}
}
