package docs

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	inName    = regexp.MustCompile(`^(?:Test|Fuzz|Benchmark)((?:[A-Z]{1,4}\d+)+)`)
	oneNumber = regexp.MustCompile(`(?:^|[^A-Z])([CD])0*(\d{1,3})`)
	inComment = regexp.MustCompile(`(?:^|[^\w%])([CD])(\d{1,3})\b`)
	inLiteral = regexp.MustCompile("(?:^[\"`]|\\()([CD])(\\d{1,3})(?:[ :]|\\)[\"`]$)")
	inDialog  = regexp.MustCompile(`^([CD])0*(\d{1,3})[_-]`)
)

// anyTest is the key of all tests and dialogs.
const anyTest = ""

// holders finds which tests hold which statement: by their names, by the names of their dialogs, and by what comments in them say.
func holders(t *testing.T) map[string]map[string]bool {
	t.Helper()
	held := map[string]map[string]bool{}
	hold := func(letter, number, test string) {
		n, _ := strconv.Atoi(number)
		key := letter + strconv.Itoa(n)
		if letter == "" {
			key = anyTest
		}
		if held[key] == nil {
			held[key] = map[string]bool{}
		}
		held[key][test] = true
	}
	for _, dir := range []string{"internal", "test"} {
		err := filepath.WalkDir(filepath.Join(top, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			name := filepath.Base(path)
			if m := inDialog.FindStringSubmatch(name); m != nil && strings.HasSuffix(name, ".txt") {
				hold(m[1], m[2], dialogOf(path)+": "+name)
			}
			if strings.Contains(path, "/testdata/") && strings.HasSuffix(name, ".txt") {
				return scanDialog(path, hold)
			}
			if strings.HasSuffix(name, "_test.go") && !strings.HasSuffix(filepath.Dir(path), "test/docs") {
				return scanFile(path, hold)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return held
}

// dialogOf is the package whose tests run the dialog.
func dialogOf(path string) string {
	return strings.TrimPrefix(strings.Split(filepath.ToSlash(path), "/testdata/")[0], top+"/")
}

// scanDialog tells hold what the comments of a dialog say.
func scanDialog(path string, hold func(letter, number, test string)) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	hold("", "", dialogOf(path)+": "+filepath.Base(path))
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "# ") {
			continue
		}
		for _, m := range inComment.FindAllStringSubmatch(line, -1) {
			hold(m[1], m[2], dialogOf(path)+": "+filepath.Base(path))
		}
	}
	return nil
}

// scanFile tells hold what the tests of one file hold.
func scanFile(path string, hold func(letter, number, test string)) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		return err
	}
	pkg := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), top+"/")
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Recv != nil {
			continue
		}
		test := pkg + ": " + fn.Name.Name
		hold("", "", test)
		if m := inName.FindStringSubmatch(fn.Name.Name); m != nil {
			for _, n := range oneNumber.FindAllStringSubmatch(m[1], -1) {
				hold(n[1], n[2], test)
			}
		}
		if !strings.HasPrefix(fn.Name.Name, "Test") && !strings.HasPrefix(fn.Name.Name, "Fuzz") {
			test = pkg + ": " + filepath.Base(path)
		}
		for _, group := range f.Comments {
			if group != fn.Doc && (group.Pos() < fn.Pos() || group.End() > fn.End()) {
				continue
			}
			for _, m := range inComment.FindAllStringSubmatch(group.Text(), -1) {
				hold(m[1], m[2], test)
			}
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if m := inLiteral.FindStringSubmatch(lit.Value); m != nil {
					hold(m[1], m[2], test)
				}
			}
			return true
		})
	}
	return nil
}

// statement is a line of testdata/statements.txt: number, what holds, tests that hold it under another name, and why none does or what
// none does.
type statement struct {
	key, text, why string
	by             []string
}

func statements(t *testing.T) []statement {
	t.Helper()
	b, err := os.ReadFile("testdata/statements.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []statement
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), " | ")
		if line[0] == '#' || len(f) < 2 {
			continue
		}
		s := statement{key: f[0], text: f[1]}
		for _, more := range f[2:] {
			if by, ok := strings.CutPrefix(more, "by "); ok {
				s.by = strings.Split(by, "; ")
			} else {
				s.why = more
			}
		}
		list = append(list, s)
	}
	return list
}

// TestStandards: docs/standards.md names for each statement the tests that hold it, or why there is none.
func TestStandards(t *testing.T) {
	held := holders(t)
	var b strings.Builder
	known := map[string]bool{}
	for _, letter := range []string{"C", "D"} {
		fmt.Fprintf(&b, "\n### %s\n\n| # | what holds | held by |\n|---|---|---|\n", cmp.Or(map[string]string{"C": "Conformance"}[letter], "Attacks"))
		for _, s := range statements(t) {
			if s.key[:1] != letter {
				continue
			}
			known[s.key] = true
			tests := slices.Collect(maps.Keys(held[s.key]))
			for _, test := range s.by {
				if !held[anyTest][test] {
					t.Errorf("%s: there is no test %q", s.key, test)
				}
				tests = append(tests, test)
			}
			slices.Sort(tests)
			tests = slices.Compact(tests)
			switch {
			case len(tests) == 0 && s.why == "":
				t.Errorf("no test holds %s (%s), and statements.txt does not say why", s.key, s.text)
			case len(tests) > 0 && s.why != "" && !strings.HasPrefix(s.why, "in part: "):
				t.Errorf("statements.txt says why no test holds %s, but these do: %v", s.key, tests)
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", s.key, s.text, holdersText(tests, s.why))
		}
	}
	for key := range held {
		if key != anyTest && !known[key] {
			t.Errorf("%v name %s, which statements.txt does not know", slices.Sorted(maps.Keys(held[key])), key)
		}
	}
	for letter, last := range map[string]int{"C": 120, "D": 60} {
		for n := 1; n <= last; n++ {
			if key := letter + strconv.Itoa(n); !known[key] {
				t.Errorf("statements.txt lacks %s", key)
			}
		}
	}
	compare(t, "standards.md", b.String())
}

// holdersText groups tests by package.
func holdersText(tests []string, why string) string {
	var b strings.Builder
	last := ""
	for _, test := range tests {
		pkg, name, _ := strings.Cut(test, ": ")
		pkg = strings.TrimPrefix(pkg, "internal/")
		switch {
		case last == "":
			b.WriteString(pkg + ": " + name)
		case pkg != last:
			b.WriteString("; " + pkg + ": " + name)
		default:
			b.WriteString(", " + name)
		}
		last = pkg
	}
	if why != "" && b.Len() == 0 {
		return "no test: " + why
	} else if why != "" {
		b.WriteString(" (" + why + ")")
	}
	return b.String()
}
