package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

var (
	codeRE    = regexp.MustCompile("`[^`\n]+`|(?m)^    .*$")
	commandRE = regexp.MustCompile("(?:^`?|`|    )chasquid ([a-z][a-z-]*)(?: ([a-z]+))?")
	metricRE  = regexp.MustCompile(`\bchasquid_[a-zA-Z0-9_]*[a-zA-Z0-9]\b`)
	pathRE    = regexp.MustCompile("(/(?:debug/[a-z]+/?|metrics|healthz|readyz(?:\\?verbose)?|debug/messages\\?[a-z=]+))(?:`| )")
)

// code calls f with each piece of code in the pages that people wrote.
func code(t *testing.T, f func(page, text string)) {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatal("no pages: ", err)
	}
	for _, page := range append(pages, filepath.Join(top, "README.md")) {
		name := filepath.Base(page)
		if name == "metrics.md" || name == "configuration.md" {
			continue
		}
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range codeRE.FindAllString(string(b), -1) {
			f(name, text)
		}
	}
}

// TestMentions: the sub-commands, metrics and monitoring pages that the documents name are there.
func TestMentions(t *testing.T) {
	s := harness.New(t, harness.Options{})
	s.Start()
	help, err := exec.CommandContext(t.Context(), harness.Binary(t), "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	metrics := families(s.Get("/metrics"))
	found := map[string]int{}
	code(t, func(page, text string) {
		for _, m := range commandRE.FindAllStringSubmatch(text, -1) {
			found["command"]++
			if !strings.Contains(string(help), "\n  "+m[1]+" ") && !strings.Contains(string(help), "\n  "+m[1]+" "+m[2]+" ") {
				t.Errorf("%s: %s: there is no such sub-command", page, text)
			}
		}
		for _, name := range metricRE.FindAllString(text, -1) {
			found["metric"]++
			base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
			if metrics[name] == nil && metrics[base] == nil {
				t.Errorf("%s: %s: there is no such metric", page, name)
			}
		}
		for _, m := range pathRE.FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(m[1], "/debug/tail") || strings.HasPrefix(m[1], "/debug/support") {
				continue // the one needs to be told what to watch, the other takes a while
			}
			found["page"]++
			if got := s.Get(m[1]); strings.Contains(got, "404 page not found") {
				t.Errorf("%s: %s: there is no such page", page, m[1])
			}
		}
	})
	for _, kind := range []string{"command", "metric", "page"} {
		if found[kind] < 5 {
			t.Errorf("only %d mentions of a %s found: is the pattern right?", found[kind], kind)
		}
	}
}
