package dashboard

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the dashboard")

// TestCurrent: the dashboard that is shipped is the one this package makes.
func TestCurrent(t *testing.T) {
	want, err := JSON()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("../..", Path)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(got), string(want)); d != "" {
		t.Errorf("%s is not what the code makes (go test ./test/dashboard -update rewrites it):\n%s", Path, d)
	}
}

// dashboard is what Grafana reads of the file.
type dashboard struct {
	UID        string
	Templating struct{ List []struct{ Name string } }
	Panels     []struct {
		ID                       int
		Type, Title, Description string
		GridPos                  struct{ X, Y, W, H int }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		Targets                  []struct {
			Expr     string
			Exemplar bool
		}
	}
}

var (
	rateRE  = regexp.MustCompile(`(?:rate|increase)\([^()]*\[([^]]*)\]`)
	unitRE  = regexp.MustCompile(`^(short|none|s|bytes|percentunit|cps|cpm|bool_yes_no)$`)
	titleRE = regexp.MustCompile(`^[A-Z]`)
)

// TestPanels: every panel has a unit and says what is normal, asks only for what was chosen, and takes rates over the interval that fits the
// picture; six rows; no two panels in one place; some panels have examples.
func TestPanels(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("../..", Path))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
	}
	if got := strings.Join(names, " "); got != "datasource job instance" {
		t.Errorf("variables %q", got)
	}
	rows, exemplars := 0, 0
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || !titleRE.MatchString(p.Title) {
			t.Errorf("%q: number or title", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q lies on %q, or off the page", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows++
			continue
		}
		if !unitRE.MatchString(p.FieldConfig.Defaults.Unit) || len(p.Description) < 5 || len(p.Targets) == 0 {
			t.Errorf("%q: unit %q, description %q, %d queries", p.Title, p.FieldConfig.Defaults.Unit, p.Description, len(p.Targets))
		}
		for _, q := range p.Targets {
			if strings.Count(q.Expr, selector) != strings.Count(q.Expr, "{") {
				t.Errorf("%q asks for more than what was chosen: %s", p.Title, q.Expr)
			}
			for _, m := range rateRE.FindAllStringSubmatch(q.Expr, -1) {
				if m[1] != "$__rate_interval" {
					t.Errorf("%q: %s", p.Title, q.Expr)
				}
			}
			if q.Exemplar {
				exemplars++
			}
		}
	}
	if rows != 6 || exemplars < 3 || len(d.Panels) < 40 {
		t.Errorf("%d rows, %d panels, %d with examples", rows, len(d.Panels), exemplars)
	}
}
