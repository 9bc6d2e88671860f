package pages

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got := Parse("x.md", `# Top

Text
    that goes on.

    one
      two

    three

1. Item:

       four

## Second

<!-- not run: why -->

    five

Text.

`+"```sh\nsix\n```"+`
    seven
`)
	want := []Block{{"x.md", 6, "Top", "", "", "one\n  two\n\nthree\n"}, {"x.md", 13, "Top", "", "", "four\n"}, {"x.md", 19, "Second", "not run: why", "", "five\n"},
		{"x.md", 24, "Second", "", "sh", "six\n"}, {"x.md", 26, "Second", "", "", "seven\n"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
