package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// instruction is one of a Dockerfile, on one line.
type instruction struct{ verb, args string }

// dockerfile takes the file apart into its stages.
func dockerfile(t *testing.T) (stages [][]instruction) {
	t.Helper()
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(read(t, "docker/Dockerfile"), "")
	text = strings.ReplaceAll(text, "\\\n", " ")
	known := strings.Fields("FROM WORKDIR COPY RUN ARG VOLUME EXPOSE HEALTHCHECK ENTRYPOINT")
	for line := range strings.Lines(text) {
		verb, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		if verb == "" {
			continue
		}
		if !slices.Contains(known, verb) || args == "" {
			t.Fatalf("unknown instruction %q", line)
		}
		if verb == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) == 0 {
			t.Fatalf("%q before FROM", line)
		}
		last := len(stages) - 1
		stages[last] = append(stages[last], instruction{verb, strings.Join(strings.Fields(args), " ")})
	}
	return stages
}

// args returns the arguments of all instructions of a kind.
func args(stage []instruction, verb string) (list []string) {
	for _, i := range stage {
		if i.verb == verb {
			list = append(list, i.args)
		}
	}
	return list
}

// TestDockerfile: the file can be built from what is in the tree, and makes what existing containers rely on (OPS-4).
func TestDockerfile(t *testing.T) {
	stages := dockerfile(t)
	if len(stages) != 2 {
		t.Fatalf("%d stages", len(stages))
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))[1]
	if from := stages[0][0].args; from != "golang:"+goVersion+"-trixie AS build" {
		t.Errorf("built with %s; go.mod wants %s", from, goVersion)
	}
	for _, s := range stages {
		for _, c := range args(s, "COPY") {
			words := strings.Fields(c)
			for _, src := range words[:len(words)-1] {
				if words[0] == "--from=build" {
					continue
				}
				if _, err := os.Stat(filepath.Join(top, src)); err != nil {
					t.Errorf("COPY %s: %v", c, err)
				}
			}
		}
	}
	final := stages[1]
	for verb, want := range map[string]string{"FROM": "debian:trixie-slim", "VOLUME": `["/data"]`, "EXPOSE": "25 465 587 993 995 4190 80 443", "ENTRYPOINT": `["/entrypoint.sh"]`} {
		if got := args(final, verb); len(got) != 1 || got[0] != want {
			t.Errorf("%s %q, want %q", verb, got, want)
		}
	}
	for _, want := range []string{"--uid 100 --gid 101 ", "--uid 101 --gid 103 ", "certbot", "dovecot-lmtpd", "dovecot-imapd", "dovecot-pop3d", "dovecot-managesieved", "ca-certificates"} {
		if !strings.Contains(strings.Join(args(final, "RUN"), "\n"), want) {
			t.Errorf("no %q in the steps", want)
		}
	}
	ignored := strings.Fields(read(t, ".dockerignore"))
	for _, f := range []string{".git", "/chasquid", "/dist", "/run"} {
		if !slices.Contains(ignored, f) {
			t.Errorf(".dockerignore lacks %s", f)
		}
	}
}

// TestImage does the steps of the final stage on a copy of this machine's file system, which takes the place of the base image and of the
// packages of its one apt-get, and runs the entrypoint there: with a stand-in for Dovecot and the real server.
func TestImage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a copy of the file system to change needs root")
	}
	unshare := harness.Need(t, "unshare", "util-linux")
	harness.Need(t, "doveadm", "dovecot-core")
	var steps strings.Builder
	for _, i := range dockerfile(t)[1] {
		words := strings.Fields(i.args)
		switch i.verb {
		case "RUN":
			fmt.Fprintf(&steps, "inside sh -euc '%s'\n", strings.ReplaceAll(i.args, "'", `'\''`))
		case "COPY":
			dst := `"$r"` + words[len(words)-1]
			src := words[:len(words)-1]
			if words[0] == "--from=build" {
				src = []string{harness.Binary(t)}
			}
			fmt.Fprintf(&steps, "mkdir -p \"$(dirname %s)\"; cp %s %s\n", dst+"x", strings.Join(src, " "), dst)
		}
	}
	file := filepath.Join(t.TempDir(), "steps.sh")
	if err := os.WriteFile(file, []byte(steps.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, nil, unshare, "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "test/tree/testdata/image.sh", file)
	if err != nil || strings.Contains(out, "WRONG") || !strings.HasSuffix(out, "== done\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSite: every page of the documentation has its place in the site, and the site has no other.
func TestSite(t *testing.T) {
	nav := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^ +- (?:[^:\n]+: )?(\S+\.md)$`).FindAllStringSubmatch(read(t, "mkdocs.yml"), -1) {
		nav[m[1]]++
	}
	pages, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil || len(pages) < 20 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, p := range pages {
		if name := filepath.Base(p); nav[name] != 1 {
			t.Errorf("%s is %d times in mkdocs.yml", name, nav[name])
		} else {
			delete(nav, name)
		}
	}
	for name := range nav {
		t.Errorf("mkdocs.yml has %s, which is not there", name)
	}
}
