package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/pages"
	"blitiri.com.ar/go/chasquid/test/sandbox"
)

func TestMain(m *testing.M) { sandbox.Main(m) }

// Kinds of blocks. The comment before a block says which it is, where that cannot be seen.
const (
	shell    = "shell"   // run in the box
	settings = "conf"    // of chasquid.conf: parsed
	apply    = "apply"   // likewise, and written into that of the box, for the commands that follow
	typed    = "typed"   // run on a terminal, on which the lines that follow, separated by commas, are typed
	zoneText = "zone"    // DNS records: parsed and published
	aliasing = "aliases" // an aliases file: parsed
	elseRun  = "run by"  // run by a test elsewhere, which is there
	notRun   = "not run" // for the reason given
	checkBy  = "check"   // a file that a program checks: its command follows, which gets the block on standard input
)

// kindOf returns the kind of a block and what its note says besides.
func kindOf(b pages.Block) (kind, rest string) {
	if b.Note != "" {
		kind, rest, _ = strings.Cut(b.Note, ":")
		return strings.TrimSpace(kind), strings.TrimSpace(rest)
	}
	if settingRE.MatchString(b.Text) {
		return settings, ""
	}
	return shell, ""
}

// aliasesRE finds what check says of aliases that were read.
var aliasesRE = regexp.MustCompile(`domain aliases\.example: 0 users, [1-9]`)

// settingRE finds what begins as settings do.
var settingRE = regexp.MustCompile(`\A(?:#.*\n)*[a-z_]+(?:: | *\{)`)

// runner runs the blocks of pages in a box.
type runner struct {
	*sandbox.Box
	t    *testing.T
	fill func(string) string // puts values in the place of words in capitals
	out  string              // of the last block
}

// run does what the kind of the block asks for. It fails the test if that fails.
func (r *runner) run(b pages.Block) {
	r.t.Helper()
	switch kind, rest := kindOf(b); kind {
	case shell:
		out, exit := r.Try("set -e -o pipefail; cd /src 2>/dev/null\n" + r.fill(b.Text))
		if r.out = out; exit != 0 {
			r.t.Fatalf("%v: exit status %d\n%s\n%s\n%s", b, exit, r.fill(b.Text), out, r.Log())
		}
	case typed:
		r.Write("/tmp/block", "set -e\n"+r.fill(b.Text))
		if out, exit := r.Try(fmt.Sprintf("printf '%%s\\n' %s | script -qec 'bash /tmp/block' /dev/null", strings.ReplaceAll(rest, ",", " "))); exit != 0 {
			r.t.Fatalf("%v: exit status %d\n%s\n%s", b, exit, b.Text, out)
		}
	case zoneText:
		r.Publish(b.Text)
	case settings:
		parseSettings(r.t, b)
	case apply:
		parseSettings(r.t, b)
		for line := range strings.Lines(b.Text) {
			name, _, _ := strings.Cut(line, ":")
			r.Run(fmt.Sprintf("sed -i '/^%s:/d' /etc/chasquid/chasquid.conf", name))
		}
		r.Write("/tmp/block", b.Text)
		r.Run("cat /tmp/block >>/etc/chasquid/chasquid.conf")
	case aliasing:
		r.Run("rm -rf /tmp/conf; cp -a /etc/chasquid /tmp/conf")
		r.Write("/tmp/conf/domains/aliases.example/aliases", b.Text)
		if out, _ := r.Try("chasquid check -no_dns -C /tmp/conf"); !aliasesRE.MatchString(out) {
			r.t.Errorf("%v: no aliases:\n%s", b, out)
		}
	case elseRun:
		findTest(r.t, b, rest)
	case notRun:
		if len(rest) < 10 {
			r.t.Errorf("%v: why is it not run?", b)
		}
	case checkBy:
		r.Write("/tmp/block", b.Text)
		if out, exit := r.Try("cd /tmp; " + rest); exit != 0 {
			r.t.Fatalf("%v: exit status %d of %s\n%s", b, exit, rest, out)
		}
	default:
		r.t.Errorf("%v: the comment %q is of no known kind", b, b.Note)
	}
}

// findTest checks that the test that runs a block is there: "test/migrate TestThereAndBack".
func findTest(t *testing.T, b pages.Block, name string) {
	t.Helper()
	dir, fn, _ := strings.Cut(name, " ")
	files, _ := filepath.Glob(filepath.Join(top, dir, "*_test.go"))
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "func "+fn+"(") {
			return
		}
	}
	t.Errorf("%v: there is no test %s", b, name)
}
