package real

import (
	"io"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// the alias hook runs once for each address of a transaction: what it says at RCPT is where the message goes.
func TestR11AliasHookOnce(t *testing.T) {
	s := harness.New(t, harness.Options{})
	calls := filepath.Join(s.Dir, "calls")
	s.WriteFile("hooks/alias-resolve", "#!/bin/sh\necho \"$1\" >>"+calls+"\n[ \"$1\" = team@example.test ] && echo user@example.test\nexit 0\n")
	if err := os.Chmod(filepath.Join(s.Dir, "hooks", "alias-resolve"), 0755); err != nil {
		t.Fatal(err)
	}
	s.Start()
	send(t, s.SMTP, "team@example.test")
	delivered(t, s, "user@example.test", 1)
	b, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, a := range strings.Fields(string(b)) {
		count[a]++
	}
	if count["team@example.test"] != 1 || count["user@example.test"] > 1 {
		t.Errorf("the hook was asked %v", count)
	}
}

// send sends the test message without TLS.
func send(t *testing.T, addr, to string) {
	t.Helper()
	c, err := smtp.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := func() error {
		w, err := c.Data()
		if err != nil {
			return err
		}
		io.WriteString(w, strings.ReplaceAll(testMessage, "\n", "\r\n"))
		return w.Close()
	}
	for _, step := range []func() error{func() error { return c.Mail("a@b.test") }, func() error { return c.Rcpt(to) }, data, c.Quit} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}
