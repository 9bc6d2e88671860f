package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/config"
)

var (
	settingRow  = regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| `([^`]*)` \\|")
	constantRow = regexp.MustCompile("(?m)^\\| `([a-z]+) ([A-Za-z]+)` \\|")
)

// TestLimits: the limits that docs/security.md names are settings with these defaults, and constants in these packages.
func TestLimits(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(top, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	defaults := map[string]string{}
	for _, f := range config.Fields() {
		defaults[f.Name] = f.Default
	}
	rows := settingRow.FindAllStringSubmatch(string(page), -1)
	for _, m := range rows {
		if d, ok := defaults[m[1]]; !ok || d != m[2] {
			t.Errorf("%s: the page says the default is %s, it is %q", m[1], m[2], d)
		}
	}
	named := map[string]bool{}
	for _, m := range rows {
		named[m[1]] = true
	}
	for name := range defaults {
		if (strings.HasPrefix(name, "max_") || strings.HasPrefix(name, "timeouts.")) && !named[name] {
			t.Errorf("the page does not name the limit %s", name)
		}
	}
	known := constants(t)
	consts := constantRow.FindAllStringSubmatch(string(page), -1)
	for _, m := range consts {
		if !known[m[1]+" "+m[2]] {
			t.Errorf("there is no constant %s in the package %s", m[2], m[1])
		}
	}
	if len(rows) < 15 || len(consts) < 10 {
		t.Errorf("only %d settings and %d constants found: are the patterns right?", len(rows), len(consts))
	}
}

// constants are the names of all constants below internal/, with their packages.
func constants(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(top, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, spec := range g.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					known[f.Name.Name+" "+name.Name] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}
