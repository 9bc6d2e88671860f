//go:build screenshots

package monitoring

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestScreenshots keeps pictures of the pages where CHASQUID_SCREENSHOTS says, light, dark and as wide as a phone.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("CHASQUID_SCREENSHOTS")
	if dir == "" {
		t.Fatal("set CHASQUID_SCREENSHOTS to a directory for pictures of the pages")
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "", true)
	s.settle(t)
	s.sample(t.Context())
	pages := map[string]string{"index": "/", "queue": "/debug/queue", "item": "/debug/queue/" + s.firstQueued(t), "messages": "/debug/messages", "message": "/debug/messages/" + string(s.ids[2]),
		"traces": "/debug/traces?family=Courier.SMTP&lat=1", "trace": "/debug/traces/" + s.traceOf(t, 2), "destinations": "/debug/destinations", "metrics": "/debug/metrics",
		"goroutines": "/debug/goroutines", "log": "/debug/log", "config": "/debug/config", "auth": "/debug/auth", "profiles": "/debug/profiles", "domains": "/debug/domains", "certs": "/debug/certs",
		"dns": "/debug/dns", "sts": "/debug/sts"}
	only := os.Getenv("CHASQUID_SCREENSHOTS_ONLY")
	for name, path := range pages {
		if only != "" && !strings.Contains(","+only+",", ","+name+",") {
			continue
		}
		for kind, args := range map[string][]string{"light": {"--window-size=1200,1500"}, "dark": {"--window-size=1200,1500", "--blink-settings=preferredColorScheme=0"}, "phone": {"--window-size=360,1700"}} {
			args = append([]string{"--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
				"--disable-sync", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(), "--screenshot=" + filepath.Join(dir, name+"-"+kind+".png")}, args...)
			if out, err := exec.CommandContext(t.Context(), chromium, append(args, s.url+path)...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", path, err, out)
			}
		}
	}
}

// traceOf is the trace id of the i-th message.
func (s *site) traceOf(t testing.TB, i int) string {
	t.Helper()
	m, ok, err := s.history.Get(context.Background(), string(s.ids[i]))
	if err != nil || !ok {
		t.Fatalf("message %d: %v", i, err)
	}
	return m.Trace
}
