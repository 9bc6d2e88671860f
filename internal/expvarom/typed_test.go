package expvarom

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// sample fills a registry with one variable of each kind.
func sample(r *Registry) {
	r.Int("chasquid/queue/putCount", "Messages offered to the queue.").Add(2)
	r.Map("chasquid/smtpIn/responseCodeCount", "code", "Replies.", "250").Inc("250")
	r.String("chasquid/sourceDateStr", "Time of the source.", "2026-01-02")
	r.Counter("chasquid_log_write_errors_total", "Errors writing the log.").Inc()
	r.CounterVec("chasquid_smtp_in_received_bytes_total", "Bytes received.", []string{"mode"}, []string{"smtp", "submission"}).With("smtp").Add(100)
	r.Gauge("chasquid_queue_size_bytes", "Bytes in the queue.").Set(5)
	r.GaugeVec("chasquid_hooks_running", "Hooks running.", []string{"hook"}, []string{"post_data"}).With("post_data").Inc()
	r.GaugeFunc("chasquid_queue_oldest_item_age_seconds", "Age of the oldest item.", func() float64 { return 3 })
	r.CounterFunc("chasquid_trace_events_dropped_total", "Events dropped.", func() float64 { return 9 })
	r.GaugeVecFunc("chasquid_filesystem_free_bytes", "Free space.", []string{"path"}, func(emit func(float64, ...string)) {
		emit(1, "data")
		emit(2, "queue")
		emit(3, "queue") // twice: dropped
		emit(4)          // wrong number of labels: dropped
		emit(5, "\xff")
	})
	h := r.HistogramVec("chasquid_hook_duration_seconds", "Time hooks took.", Net, []string{"hook"}, []string{"post_data"}).With("post_data")
	h.Observe(0.3)
	h.Observe(-1)
	h.Observe(math.NaN())
}

func TestTyped(t *testing.T) {
	r := NewPedantic()
	sample(r)
	want := `
# HELP chasquid_filesystem_free_bytes Free space.
# TYPE chasquid_filesystem_free_bytes gauge
chasquid_filesystem_free_bytes{path="data"} 1
chasquid_filesystem_free_bytes{path="queue"} 2
chasquid_filesystem_free_bytes{path="�"} 5
# HELP chasquid_hooks_running Hooks running.
# TYPE chasquid_hooks_running gauge
chasquid_hooks_running{hook="post_data"} 1
# HELP chasquid_log_write_errors_total Errors writing the log.
# TYPE chasquid_log_write_errors_total counter
chasquid_log_write_errors_total 1
# HELP chasquid_queue_oldest_item_age_seconds Age of the oldest item.
# TYPE chasquid_queue_oldest_item_age_seconds gauge
chasquid_queue_oldest_item_age_seconds 3
# HELP chasquid_smtp_in_received_bytes_total Bytes received.
# TYPE chasquid_smtp_in_received_bytes_total counter
chasquid_smtp_in_received_bytes_total{mode="smtp"} 100
chasquid_smtp_in_received_bytes_total{mode="submission"} 0
# HELP chasquid_trace_events_dropped_total Events dropped.
# TYPE chasquid_trace_events_dropped_total counter
chasquid_trace_events_dropped_total 9
`
	err := testutil.GatherAndCompare(r, strings.NewReader(want), "chasquid_filesystem_free_bytes", "chasquid_hooks_running",
		"chasquid_log_write_errors_total", "chasquid_queue_oldest_item_age_seconds", "chasquid_smtp_in_received_bytes_total",
		"chasquid_trace_events_dropped_total")
	if err != nil {
		t.Error(err)
	}
	body := scrape(t, r, "")
	for _, line := range []string{`chasquid_hook_duration_seconds_bucket{hook="post_data",le="0.5"} 2`, `chasquid_hook_duration_seconds_count{hook="post_data"} 2`,
		`chasquid_hook_duration_seconds_sum{hook="post_data"} 0.3`} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("no %s in\n%s", line, body)
		}
	}
}

// TestLint checks that linters find nothing but the camelCase of legacy names.
func TestLint(t *testing.T) {
	r := NewPedantic()
	sample(r)
	r.RegisterRuntime("1", "abc", "2026-01-02 03:04:05 +0000")
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.Contains(p.Text, "camelCase") || !strings.HasPrefix(p.Metric, "chasquid_queue_putCount") &&
			!strings.HasPrefix(p.Metric, "chasquid_smtpIn_") && !strings.HasPrefix(p.Metric, "chasquid_sourceDate") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed: its opinion is not asked")
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(scrape(t, r, ""))
	out, _ := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "camelCase") {
			t.Errorf("promtool: %s", line)
		}
	}
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("promtool exits with %d: %s", code, out)
	}
}

// TestFacesAgree checks that both pages show the same values, while others count and after.
func TestFacesAgree(t *testing.T) {
	r := NewPedantic()
	i := r.Int("chasquid/queue/putCount", "Puts.")
	m := r.Map("chasquid/smtpIn/tlsCount", "status", "TLS.", "tls", "plain")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 1000 {
				i.Inc()
				m.Inc([]string{"tls", "plain", fmt.Sprintf("k%d", n%40)}[n%3])
				if g == 0 && n%100 == 0 {
					scrape(t, r, "")
					vars(t, r)
				}
			}
		})
	}
	wg.Wait()
	body, js := scrape(t, r, ""), vars(t, r)
	if !strings.Contains(body, "\nchasquid_queue_putCount 4000\n") || !strings.Contains(js, `"chasquid/queue/putCount": 4000,`) {
		t.Errorf("%s\n%s", body, js)
	}
	sum := int64(0)
	for k := range *m.keys.Load() {
		sum += m.Value(k)
		if line := fmt.Sprintf("chasquid_smtpIn_tlsCount{status=%q} %d\n", k, m.Value(k)); !strings.Contains(body, line) {
			t.Errorf("/metrics lacks %s", line)
		}
		if kv := fmt.Sprintf("%q: %d", k, m.Value(k)); !strings.Contains(js, kv) {
			t.Errorf("/debug/vars lacks %s", kv)
		}
	}
	if sum != 4000 {
		t.Errorf("sum %d", sum)
	}
}

func TestExemplars(t *testing.T) {
	const om = "application/openmetrics-text;version=1.0.0"
	r := NewPedantic()
	h := r.Histogram("chasquid_smtp_in_accept_duration_seconds", "Accept.", Net)
	id := [16]byte{0xab, 15: 1}
	h.ObserveTrace(0.01, id)
	if strings.Contains(scrape(t, r, om), "trace_id") {
		t.Error("exemplar without anybody who keeps traces")
	}
	kept := true
	r.SetKept(func([16]byte, bool, float64) bool { return kept })
	h.ObserveTrace(0.01, [16]byte{})
	if strings.Contains(scrape(t, r, om), "trace_id") {
		t.Error("exemplar of no trace")
	}
	h.ObserveTrace(0.01, id)
	if body := scrape(t, r, om); !strings.Contains(body, `# {trace_id="ab000000000000000000000000000001"} 0.01`) ||
		!strings.Contains(body, "# UNIT chasquid_smtp_in_accept_duration_seconds seconds\n") || !strings.HasSuffix(body, "# EOF\n") {
		t.Errorf("no exemplar, unit or end in %s", body)
	}
	kept = false
	if body := scrape(t, r, om); strings.Contains(body, "trace_id") {
		t.Errorf("exemplar leads nowhere: %s", body)
	}
}

func TestSharedMetric(t *testing.T) {
	r := NewPedantic()
	a := r.CounterVec("chasquid_panics_total", "Panics.", []string{"component"}, []string{"queue"})
	b := r.CounterVec("chasquid_panics_total", "Panics.", []string{"component"}, []string{"courier"})
	a.With("courier").Inc()
	if b.With("courier").Value() != 1 {
		t.Error("two variables of one name")
	}
	if got := r.Describe(); len(got) != 2 || strings.Join(got[1].Known[0], " ") != "queue courier" {
		t.Errorf("%+v", got)
	}
	defer func() {
		if recover() == nil {
			t.Error("the same name as another kind of variable is taken")
		}
	}()
	r.Gauge("chasquid_panics_total", "Panics.")
}

func TestOpenLabel(t *testing.T) {
	r := NewPedantic()
	v := r.GaugeVec("chasquid_tls_certificate_not_after_timestamp_seconds", "Expiry.", []string{"name"})
	for i := range 100 {
		v.With(fmt.Sprint(i)).Set(1)
	}
	if n, _ := testutil.GatherAndCount(r, "chasquid_tls_certificate_not_after_timestamp_seconds"); n != 21 {
		t.Errorf("%d series", n)
	}
	v.With() // too few values do not panic
	v.With("a", "b")
}

// TestHandlerSurvives checks that a collector that panics and invalid queries leave the page standing.
func TestHandlerSurvives(t *testing.T) {
	r := New()
	sample(r)
	r.GaugeFunc("chasquid_bad", "Bad.", func() float64 { panic("bad gauge") })
	srv := httptest.NewServer(r.MetricsHandler())
	defer srv.Close()
	for _, q := range []string{"", "?name[]=chasquid_hooks_running", "?name[]=%ff", "?%zz"} {
		resp, err := http.Get(srv.URL + q)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if q == "" && !strings.Contains(string(body), "chasquid_hooks_running") {
			t.Errorf("%q: %s %s", q, resp.Status, body)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := NewPedantic()
	sample(r)
	var b strings.Builder
	if err := r.WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"| `chasquid_queue_putCount`<br>`chasquid/queue/putCount` | untyped |  | Messages offered to the queue. |\n",
		"| `chasquid_smtp_in_received_bytes_total` | counter | `mode`: smtp, submission | Bytes received. |\n",
	} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no %s in\n%s", line, b.String())
		}
	}
}

func TestMON4Mangle(t *testing.T) {
	for in, want := range map[string]string{"chasquid/sts/cache/ioErrors": "chasquid_sts_cache_ioErrors", "9x": "i9x", "é-1": "__1", "a_B": "a_B"} {
		if got := mangle(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestFoldCommand(t *testing.T) {
	for in, want := range map[string]string{"": "unknown<other>", "foobarbaz": `unknown<"FOOBAR">`, `unknown<"BDAT">`: `unknown<"BDAT">`,
		"a\xff": "unknown<other>", "<script>": "unknown<other>", "XFORWARD": `unknown<"XFORWA">`} {
		if got, _ := FoldCommand(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestAllocs holds the hot path to no allocation.
func TestAllocs(t *testing.T) {
	r := New()
	i := r.Int("a/i", "I.")
	m := r.MapFold("a/m", "k", "M.", FoldCommand, "MAIL", "RCPT")
	v := r.CounterVec("a_total", "A.", []string{"x", "y", "z"}, []string{"1", "2"}, []string{"p", "q"}, []string{"ok", "no"})
	h := r.Histogram("a_seconds", "H.", Net)
	id := [16]byte{1}
	for name, f := range map[string]func(){
		"Int.Inc": i.Inc, "Map.Inc": func() { m.Inc("RCPT") }, "Vec.With": func() { v.With("2", "q", "no").Inc() },
		"Observe": func() { h.Observe(0.1) }, "ObserveTrace unkept": func() { h.ObserveTrace(0.1, id) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkMap(b *testing.B) {
	m := New().MapFold("a/m", "k", "M.", FoldCommand, "HELO", "EHLO", "MAIL", "RCPT", "DATA", "QUIT")
	b.ReportAllocs()
	for b.Loop() {
		m.Inc("RCPT")
	}
}

func BenchmarkVecWith(b *testing.B) {
	v := New().CounterVec("a_total", "A.", []string{"x", "y", "z"}, []string{"smtp", "submission"}, []string{"p", "q"}, []string{"ok", "no"})
	b.ReportAllocs()
	for b.Loop() {
		v.With("submission", "q", "no").Inc()
	}
}

func BenchmarkObserve(b *testing.B) {
	h := New().Histogram("a_seconds", "H.", Net)
	b.ReportAllocs()
	for b.Loop() {
		h.Observe(0.3)
	}
}

func BenchmarkScrape(b *testing.B) {
	r := New()
	for i := range 60 {
		r.HistogramVec(fmt.Sprintf("h%d_seconds", i), "H.", Net, []string{"a"}, []string{"x", "y", "z"})
	}
	h := r.MetricsHandler()
	req := httptest.NewRequest("GET", "/metrics", nil)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
}

// TestNegotiation checks that legacy names are the same whatever the scraper understands, and that curl gets plain numbers.
func TestNegotiation(t *testing.T) {
	r := NewPedantic()
	r.Int("chasquid/queue/itemsWritten", "Items.").Add(7)
	for accept, want := range map[string]string{
		"":    "\nchasquid_queue_itemsWritten 7\n",
		"*/*": "\nchasquid_queue_itemsWritten 7\n",
		"text/html,application/xhtml+xml,*/*;q=0.8":                                              "\nchasquid_queue_itemsWritten 7\n",
		"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;q=0.1": "\nchasquid_queue_itemsWritten 7.0\n",
		"text/plain;version=1.0.0;escaping=allow-utf-8":                                          "\nchasquid_queue_itemsWritten 7\n",
	} {
		if body := scrape(t, r, accept); !strings.Contains(body, want) {
			t.Errorf("%q: no %q in %s", accept, want, body)
		}
	}
}
