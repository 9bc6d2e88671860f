package cli

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/man")

// TestMan keeps docs/man what the commands say of themselves.
func TestMan(t *testing.T) {
	const dir = "../../docs/man"
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if r := run(t, Env{}, "chasquid", "man", dir); r.exit != 0 {
			t.Fatal(r.errout)
		}
	}
	made := t.TempDir()
	if r := run(t, Env{}, "chasquid", "man", made); r.exit != 0 {
		t.Fatal(r.errout)
	}
	for name := range manPages() {
		want, err := os.ReadFile(filepath.Join(made, name))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := os.ReadFile(filepath.Join(dir, name))
		if !bytes.Equal(got, want) {
			t.Errorf("%s/%s is not what the commands say (go test ./internal/cli -run TestMan -update rewrites it)", dir, name)
		}
	}
}

// TestManRenders: the formatter has nothing to say against the pages.
func TestManRenders(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not installed")
	}
	dir := t.TempDir()
	run(t, Env{}, "chasquid", "man", dir)
	for name := range manPages() {
		out, err := exec.CommandContext(t.Context(), groff, "-man", "-Tutf8", "-ww", "-z", filepath.Join(dir, name)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestBashCompletion completes words in a real shell.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	script := run(t, Env{}, "chasquid", "completion", "bash").out
	for _, c := range []struct {
		words string // the last one is completed
		want  []string
	}{
		{"chasquid ex", []string{"explain"}},
		{"chasquid queue h", []string{"hold"}},
		{"chasquid level f", []string{"forget"}},
		{"chasquid queue ls -de", []string{"-destination"}},
		{"chasquid queue ls -j", []string{"-json"}},
		{"chasquid check -no", []string{"-no_dns"}},
		{"chasquid check -C x -no", []string{"-no_dns"}},
	} {
		cmd := exec.CommandContext(t.Context(), bash, "-c", script+`
COMP_WORDS=($WORDS); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _chasquid; echo "${COMPREPLY[@]}"`)
		cmd.Env = []string{"WORDS=" + c.words}
		out, err := cmd.CombinedOutput()
		if err != nil || !slices.Equal(strings.Fields(string(out)), c.want) {
			t.Errorf("%s: %v, %s", c.words, err, out)
		}
	}
	for _, shell := range []string{"zsh", "fish"} {
		if r := run(t, Env{}, "chasquid", "completion", shell); r.exit != 0 || !strings.Contains(r.out, "explain") {
			t.Errorf("%s: exit %d", shell, r.exit)
		}
	}
	if r := run(t, Env{}, "chasquid", "completion", "cmd.exe"); r.exit != 2 {
		t.Errorf("an unknown shell: exit %d", r.exit)
	}
}

// TestCommands: all commands can be described, and are found by their names.
func TestCommands(t *testing.T) {
	for _, c := range commands() {
		if found, rest := find(append(strings.Fields(c.name), "x")); found == nil || found.name != c.name || len(rest) != 1 {
			t.Errorf("%q is not found", c.name)
		}
		if c.short == "" || strings.HasSuffix(c.short, ".") {
			t.Errorf("%q: %q", c.name, c.short)
		}
	}
}
