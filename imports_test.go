package main

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/imports.txt")

// TestImports keeps docs/imports.txt the drawing of the house: who imports whom, our own packages on the first line, others on the
// second. It forbids nothing; a new arrow has to be written down in the same commit.
func TestImports(t *testing.T) {
	const module, file = "blitiri.com.ar/go/chasquid", "docs/imports.txt"
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var got strings.Builder
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		ours, others := []string{}, []string{}
		for _, i := range p.Imports {
			if own, ok := strings.CutPrefix(i, module+"/"); ok {
				ours = append(ours, strings.TrimPrefix(own, "internal/"))
			} else if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") {
				others = append(others, i)
			}
		}
		name, below := strings.CutPrefix(p.ImportPath, module+"/")
		if !below {
			name = "chasquid.go"
		}
		got.WriteString(name + "\n")
		for _, list := range [][]string{ours, others} {
			if slices.Sort(list); len(list) > 0 {
				got.WriteString("\t" + strings.Join(list, " ") + "\n")
			}
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, _ := os.ReadFile(file)
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("%s is not what the code is (go test -run TestImports -update . rewrites it):\n%s", file, d)
	}
}
