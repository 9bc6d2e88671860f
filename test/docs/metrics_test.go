package docs

import (
	"bufio"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// metric is one family of a scrape.
type metric struct {
	help, kind string
	labels     map[string]bool
}

var labelRE = regexp.MustCompile(`[{,]([a-z_]+)="`)

// families reads a scrape in the text format.
func families(scrape string) map[string]*metric {
	all := map[string]*metric{}
	of := func(name string) *metric {
		if all[name] == nil {
			all[name] = &metric{labels: map[string]bool{}}
		}
		return all[name]
	}
	var current *metric
	sc := bufio.NewScanner(strings.NewReader(scrape))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			current = of(name)
			current.help = help
		} else if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			current = of(name)
			current.kind = kind
		} else if current != nil && !strings.HasPrefix(line, "#") {
			for _, m := range labelRE.FindAllStringSubmatch(line, -1) {
				current.labels[m[1]] = true
			}
		}
	}
	for _, m := range all {
		delete(m.labels, "le")
	}
	return all
}

// table renders our own families; those of the Go runtime and of the process are described elsewhere.
func table(all map[string]*metric) string {
	clean := strings.NewReplacer("|", `\|`, "<", "&lt;", ">", "&gt;")
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		m := all[name]
		if !strings.HasPrefix(name, "chasquid_") {
			continue
		}
		labels := slices.Sorted(maps.Keys(m.labels))
		for i, l := range labels {
			labels[i] = "`" + l + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, m.kind, strings.Join(labels, ", "), clean.Replace(m.help))
	}
	return b.String()
}

// TestMetrics: docs/metrics.md lists what a server with its default settings shows, and nothing else.
func TestMetrics(t *testing.T) {
	s := harness.New(t, harness.Options{})
	s.Start()
	all := families(s.Get("/metrics"))
	if len(all) < 50 {
		t.Fatalf("only %d metrics", len(all))
	}
	for name, m := range all {
		if strings.HasPrefix(name, "chasquid_") && (m.help == "" || m.kind == "") {
			t.Errorf("%s has no help or no type", name)
		}
	}
	compare(t, "metrics.md", table(all))
}
