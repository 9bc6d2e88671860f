package docs

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite what is generated in docs/")

const top = "../.."

// compare fails the test if the page's generated part is not text; with -update it becomes so.
func compare(t *testing.T, page, text string) {
	t.Helper()
	path := filepath.Join(top, "docs", page)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now, was, err := replace(string(b), text)
	if err != nil {
		t.Fatalf("%s: %v", page, err)
	}
	if *update {
		if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(was, text); d != "" {
		t.Errorf("docs/%s is not what the code is (go test ./test/docs -update rewrites it):\n%s", page, d)
	}
}
