package expvarom

import (
	"encoding/json"
	"expvar"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func scrape(t *testing.T, r *Registry, accept string) string {
	t.Helper()
	w := httptest.NewRecorder()
	req := httptest.NewRequest("GET", "/metrics", nil)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	r.MetricsHandler().ServeHTTP(w, req)
	if w.Code != 200 {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func vars(t *testing.T, r *Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	r.VarsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/debug/vars", nil))
	return w.Body.String()
}

// TestMON5LegacyFaces checks names, labels and spacing of the legacy variables on both pages.
func TestMON5LegacyFaces(t *testing.T) {
	r := NewPedantic()
	r.Int("chasquid/queue/itemsWritten", "Items written.").Add(7)
	r.Int("chasquid/smtpIn/loopsDetected", "Loops.").Inc()
	m := r.Map("chasquid/queue/deliverAttempts", "recipient_type", "Attempts.", "email:local", "email:remote", "pipe", "forward")
	m.Add("email:local", 3)
	m.Inc("pipe")
	r.String("chasquid/version", "Version.", `1.2 "x"`)

	body := scrape(t, r, "")
	for _, line := range []string{
		"# TYPE chasquid_queue_itemsWritten untyped",
		"chasquid_queue_itemsWritten 7",
		"chasquid_smtpIn_loopsDetected 1",
		`chasquid_queue_deliverAttempts{recipient_type="email:local"} 3`,
		`chasquid_queue_deliverAttempts{recipient_type="email:remote"} 0`,
		`chasquid_queue_deliverAttempts{recipient_type="forward"} 0`,
		`chasquid_queue_deliverAttempts{recipient_type="pipe"} 1`,
		`chasquid_version{value="1.2 \"x\""} 1`,
	} {
		if !slices.Contains(strings.Split(body, "\n"), line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
	js := vars(t, r)
	for _, line := range []string{
		`"chasquid/smtpIn/loopsDetected": 1,`,
		`"chasquid/queue/deliverAttempts": {"email:local": 3, "email:remote": 0, "forward": 0, "pipe": 1},`,
		`"chasquid/version": "1.2 \"x\"",`,
	} {
		if !strings.Contains(js, "\n"+line+"\n") {
			t.Errorf("/debug/vars lacks %s", line)
		}
	}
	if t.Failed() {
		t.Log(body, js)
	}
}

func TestNilRegistry(t *testing.T) {
	var r *Registry
	r.Int("a/b", "h").Inc()
	r.Map("a/c", "key", "h").Inc("x\xff")
	r.String("a/d", "h", "v")
	r.CounterVec("a_total", "h", []string{"x"}, []string{"1"}).With("zz").Inc()
	r.Gauge("g", "h").Set(1)
	r.GaugeFunc("gf", "h", func() float64 { return 1 })
	r.Histogram("h_seconds", "h", Fast).ObserveTrace(1, [16]byte{1})
	r.SetKept(nil)
	r.PublishExpvar()
	r.RegisterRuntime("v", "r", "d")
	if c := r.Counter("x_total", "h"); c.Value() != 0 {
		t.Error(c.Value())
	} else if c.Inc(); c.Value() != 1 {
		t.Error("a counter of a nil registry does not count")
	}
	if body := scrape(t, nil, ""); strings.Contains(body, "a_total") {
		t.Error(body)
	}
	if js := vars(t, nil); !strings.Contains(js, `"memstats": {`) {
		t.Error(js)
	}
}

// TestHostileKeys checks that 10,000 strange keys leave the number of series as it is.
func TestHostileKeys(t *testing.T) {
	r := NewPedantic()
	m := r.MapFold("chasquid/smtpIn/commandCount", "command", "Commands.", FoldCommand, "HELO", "EHLO")
	v := r.CounterVec("chasquid_x_total", "X.", []string{"mode", "kind"}, []string{"smtp"}, []string{"a", "b"})
	for i := range 10000 {
		m.Inc(fmt.Sprintf("V%d\xff", i)[:min(6, len(fmt.Sprint(i))+1+i%2)])
		v.With("smtp", fmt.Sprintf("\xfe%d", i)).Inc()
		m.Inc("ETRN")
	}
	n, err := testutil.GatherAndCount(r.prom, "chasquid_smtpIn_commandCount")
	if err != nil || n != 2+16+1+1 {
		t.Errorf("%d command series, %v", n, err)
	}
	if n, _ := testutil.GatherAndCount(r.prom, "chasquid_x_total"); n != 3 {
		t.Errorf("%d series of x", n)
	}
	if m.Value(`unknown<"ETRN">`) != 10000 {
		t.Errorf("ETRN counted %d times", m.Value(`unknown<"ETRN">`))
	}
	if got := m.Value("unknown<other>"); got < 9000 {
		t.Errorf("unknown<other> = %d", got)
	}
	if got := testutil.ToFloat64(r.overflow.WithLabelValues("chasquid_smtpIn_commandCount")); got < 4000 {
		t.Errorf("overflow of commands = %v", got)
	}
	if got := testutil.ToFloat64(r.overflow.WithLabelValues("chasquid_x_total")); got != 10000 {
		t.Errorf("overflow of x = %v", got)
	}
}

func TestPublishExpvar(t *testing.T) {
	for range 2 { // the second finds the name taken, and shows its own value all the same
		r := NewPedantic()
		i := r.Int("chasquid/test/published", "Published.")
		r.PublishExpvar()
		i.Add(3)
		if js := vars(t, r); strings.Count(js, `"chasquid/test/published": 3,`) != 1 || strings.Count(js, "chasquid/test/published") != 1 {
			t.Error(js)
		}
	}
	if v := expvar.Get("chasquid/test/published"); v == nil || v.String() != "3" {
		t.Errorf("not published: %v", v)
	}
}

// FuzzMap checks that no key panics, breaks the JSON or makes a series too many.
func FuzzMap(f *testing.F) {
	f.Add("MAIL", "\xff\xfe")
	f.Add("", "unknown<\"\n\">")
	f.Fuzz(func(t *testing.T, a, b string) {
		r := NewPedantic()
		for _, m := range []*Map{r.Map("chasquid/x", "key", "X.", "MAIL"), r.MapFold("chasquid/y", "key", "Y.", FoldCommand, "MAIL")} {
			m.Inc(a)
			m.Inc(b)
			m.Inc(a)
			var values map[string]int64
			if err := json.Unmarshal([]byte(m.String()), &values); err != nil {
				t.Fatalf("%s: %v", m, err)
			}
			sum := int64(0)
			for _, v := range values {
				sum += v
			}
			if sum != 3 || len(values) > 3 {
				t.Errorf("%s", m)
			}
		}
		if _, err := r.Gather(); err != nil {
			t.Error(err)
		}
	})
}
