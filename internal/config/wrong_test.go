package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrongConfigs loads every file of testdata/wrong.txt and compares message and remedy with those in the file.
// Cases are separated by lines of dashes: "# name", the text, and after "->" the expected lines. -update rewrites them.
func TestWrongConfigs(t *testing.T) {
	const file = "testdata/wrong.txt"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	n := 0
	for _, part := range strings.Split(strings.TrimSpace(string(b)), "\n----\n") {
		input, _, _ := strings.Cut(part, "\n->")
		n++
		fmt.Fprintf(&out, "%s\n->\n%s----\n", input, wrong(t, input))
	}
	if n < 30 {
		t.Errorf("only %d cases", n)
	}
	golden(t, file, strings.TrimSuffix(out.String(), "----\n"))
}

// wrong loads one case and renders its errors with the directory replaced, so that they are the same on every machine.
func wrong(t *testing.T, input string) string {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	text, overrides, _ := strings.Cut(input, "\n-config_overrides: ")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "<NUL>", "\x00")), 0o600); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600)
	_, err := Load(path, overrides)
	if err == nil {
		t.Errorf("no error for:\n%s", input)
		return ""
	}
	var b strings.Builder
	for _, e := range Errors(err) {
		var remedy interface{ Remedy() string }
		if !errors.As(e, &remedy) || remedy.Remedy() == "" {
			t.Errorf("no remedy: %v", e)
		}
		fmt.Fprintf(&b, "%v\n  field: %s\n  fix: %s\n", e, e.Field, e.Remedy())
	}
	return strings.ReplaceAll(strings.ReplaceAll(b.String(), dir, "DIR"), "\u00a0", " ")
}
