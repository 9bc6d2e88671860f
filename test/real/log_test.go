package real

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
)

// TestLogRotation moves the process log away while mail is delivered, and stops the server: each delivery is in one of the two files, and
// the last line of the server too.
func TestLogRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "chasquid.log")
	s := harness.New(t, harness.Options{Args: []string{"-logfile=" + file}})
	s.Start()
	const each = 20
	send := func() {
		for range each {
			if _, err := deliver(s.SMTP, "user@example.test"); err != nil {
				t.Fatal(err)
			}
		}
	}
	send()
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGHUP)
	send()
	delivered(t, s, "user@example.test", 2*each)
	harness.WaitFor(t, patience.Limit(10*time.Second), "the new file", func() bool { _, err := os.Stat(file); return err == nil })
	if err := s.Stop(patience.Limit(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(file + ".1")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := string(old) + string(log)
	if n := strings.Count(all, ": user@example.test sent\n"); n != 2*each {
		t.Errorf("%d of %d deliveries are in the log", n, 2*each)
	}
	if !strings.HasSuffix(all, " chasquid stopped\n") || strings.Count(all, "SIGHUP: reopening logs") != 1 {
		t.Errorf("the log ends with\n%.500s", all[max(0, len(all)-500):])
	}
	for line := range strings.Lines(all) {
		if !regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} [_E.] \S+:\d+ +\S.*\n$`).MatchString(line) {
			t.Errorf("line %q", line)
		}
	}
}
