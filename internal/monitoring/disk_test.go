package monitoring

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/test/harness"
)

// gauges returns the lines of a scrape that begin with prefix.
func gauges(t *testing.T, reg *expvarom.Registry, prefix string) (lines []string) {
	t.Helper()
	w := httptest.NewRecorder()
	reg.MetricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestDisks: the space of the disks is there from the start; one that cannot be asked has no figures.
func TestDisks(t *testing.T) {
	reg := expvarom.New()
	dir := t.TempDir()
	s := New(Config{Metrics: reg, Disks: []Disk{{"queue", dir}, {"log", dir + "/missing"}}})
	for _, name := range []string{"free_bytes", "size_bytes"} {
		got := gauges(t, reg, "chasquid_filesystem_"+name+"{")
		if len(got) != 1 || !strings.HasPrefix(got[0], "chasquid_filesystem_"+name+`{path="queue"} `) || strings.HasSuffix(got[0], " 0") {
			t.Errorf("%s: %q", name, got)
		}
	}
	if err := os.Mkdir(dir+"/missing", 0700); err != nil {
		t.Fatal(err)
	}
	s.lookAtDisks()
	harness.WaitFor(t, 10*time.Second, "the disk that came back", func() bool { return len(gauges(t, reg, "chasquid_filesystem_free_bytes{")) == 2 })
	w := (*s.disks.Load())[0]
	w.at = w.at.Add(-2 * diskAnswer)
	if got := gauges(t, reg, "chasquid_filesystem_free_bytes{"); len(got) != 1 || !strings.Contains(got[0], `"log"`) {
		t.Errorf("a disk that has not answered for long: %q", got)
	}
}

// TestHealthMetric: the metric of a check tells what it found last, also when nobody asks for /readyz, and nothing before it ran.
func TestHealthMetric(t *testing.T) {
	var bad atomic.Bool
	checks := []Check{{Name: "mda", Run: func(context.Context) error {
		if bad.Load() {
			return errors.New("gone")
		}
		return nil
	}}}
	const name = "chasquid_health_check_status"
	reg := expvarom.New()
	New(Config{Metrics: reg, Checks: checks})
	if got := gauges(t, reg, name); len(got) != 0 {
		t.Errorf("before any check ran: %q", got)
	}
	reg = expvarom.New()
	s, _ := serve(t, Config{Metrics: reg, Checks: checks})
	harness.WaitFor(t, 10*time.Second, "the check to be well", func() bool {
		got := gauges(t, reg, name)
		return len(got) == 1 && got[0] == name+`{check="mda"} 1`
	})
	bad.Store(true)
	s.RunChecks(t.Context())
	if got := gauges(t, reg, name); len(got) != 1 || got[0] != name+`{check="mda"} 0` {
		t.Errorf("failing: %q", got)
	}
}
