package tree

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestExampleHook runs the example post-data hook with stand-ins for the filters. Each case says what the filters answer (a shell
// script by name), what the connection is like, and what must come of it.
func TestExampleHook(t *testing.T) {
	const (
		cleanSpam = `cat >/dev/null; echo "1.2/5.0"`
		spam      = `cat >/dev/null; echo "9.9/5.0"; exit 1`
		noSpamd   = `cat >/dev/null; echo "0/0"; exit 0`
	)
	tests := []struct {
		name    string
		filters map[string]string
		env     []string
		exit    int
		out     string
	}{
		{"no filters", nil, nil, 0, ""},
		{"clean", map[string]string{"spamc": cleanSpam, "clamdscan": "exit 0"}, nil, 0, "X-Spam-Score: 1.2/5.0\nX-Virus-Scanned: pass\n"},
		{"spam", map[string]string{"spamc": spam}, nil, 20, "5.7.1 The message looks like spam\n"},
		{"spam of our own user", map[string]string{"spamc": spam}, []string{"AUTH_AS=user@example.test"}, 0, ""},
		{"spamd is down", map[string]string{"spamc": noSpamd}, nil, 0, "X-Spam-Score: unknown (the filter did not answer)\n"},
		{"virus", map[string]string{"clamdscan": `grep -q hello "$3" && exit 1`}, []string{"AUTH_AS=user@example.test"}, 20, "5.7.1 The message contains a virus\n"},
		{"clamd is down", map[string]string{"clamdscan": "exit 2"}, nil, 0, "X-Virus-Scanned: unknown (the scanner did not answer)\n"},
		{"rspamd rejects", map[string]string{"rspamc": `echo "Results for file: stdin"; echo "Action: reject"`}, nil, 20, "5.7.1 The message looks like spam\n"},
		{"rspamd defers", map[string]string{"rspamc": `echo "Action: soft reject"`}, nil, 75, "4.7.1 Please try again in a few minutes\n"},
		{"rspamd would greylist, if it could", map[string]string{"rspamc": `echo "Action: greylist"`}, nil, 0, "X-Spam-Action: greylist\n"},
		{"rspamd adds a header", map[string]string{"rspamc": `echo "Action: add header"`}, nil, 0, "X-Spam-Action: add header\n"},
		{"rspamd is told of the client", map[string]string{"rspamc": `[ "$*" = "-i 2001:db8::7 -F a@b.test --helo client" ] && echo "Action: no action"`},
			[]string{"REMOTE_ADDR=[2001:db8::7]:4711"}, 0, "X-Spam-Action: no action\n"},
		{"grey", map[string]string{"greylist": `[ "$*" = "update 192.0.2.1 a@b.test user@example.test" ] && echo grey`}, nil, 75, "4.7.1 Greylisted, please try again in a few minutes\n"},
		{"white", map[string]string{"greylist": "echo white"}, nil, 0, "X-Greylist: passed\n"},
		{"black", map[string]string{"greylist": "echo black"}, nil, 20, "5.7.1 Your address is blocked here\n"},
		{"SPF passed: no greylisting", map[string]string{"greylist": "echo grey"}, []string{"SPF_PASS=1"}, 0, ""},
		{"greylistd is down", map[string]string{"greylist": "exit 1"}, nil, 0, ""},
	}
	hook, err := filepath.Abs(filepath.Join(top, "etc/chasquid/hooks/post-data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			bin, tmp := t.TempDir(), t.TempDir()
			for _, tool := range []string{"bash", "env", "mktemp", "cat", "rm", "sed", "head", "grep"} {
				path, err := exec.LookPath(tool)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
					t.Fatal(err)
				}
			}
			for name, script := range tc.filters {
				if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), hook)
			cmd.Env = append([]string{"PATH=" + bin, "TMPDIR=" + tmp, "REMOTE_ADDR=192.0.2.1:4711", "MAIL_FROM=a@b.test",
				"RCPT_TO=user@example.test", "EHLO_DOMAIN=client", "SPF_PASS=0", "AUTH_AS="}, tc.env...)
			cmd.Stdin = strings.NewReader("Subject: x\n\nhello\n")
			out, err := cmd.Output()
			var exit *exec.ExitError
			code := 0
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != tc.exit || string(out) != tc.out {
				t.Errorf("exit %d, output %q; want %d, %q", code, out, tc.exit, tc.out)
			}
			if left, _ := os.ReadDir(tmp); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
