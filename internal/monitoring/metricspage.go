package monitoring

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
	dto "github.com/prometheus/client_model/go"
)

// shownSeries is how many series of one metric are listed when it is looked at alone.
const shownSeries = 200

// metricView is one metric.
type metricView struct {
	Name   string       `json:"name"`
	Type   string       `json:"type"`
	Help   string       `json:"help"`
	Series int          `json:"series"`
	Value  string       `json:"value"` // of all series together
	Values []seriesView `json:"values,omitempty"`
}

// seriesView is one series of a metric.
type seriesView struct {
	Labels string `json:"labels"`
	Value  string `json:"value"`
}

// metricsData is the page of metrics.
type metricsData struct {
	Metrics []metricView    `json:"metrics"`
	Series  int             `json:"series"`
	Vitals  []vitals.Series `json:"vitals"`

	q string
}

func (s *Server) addMetrics() {
	s.addView(&view{path: "/debug/metrics", title: "Metrics, explained", about: "every metric with its meaning and value", group: "Metrics",
		params: []string{"q", "name"}, load: s.loadMetrics, sheet: metricsSheet})
	for _, p := range []Page{
		{Path: "/metrics", Title: "Metrics", About: "for Prometheus", Group: "Metrics", Public: true, Handler: s.conf.Metrics.MetricsHandler()},
		{Path: "/debug/vars", Title: "Variables", About: "the same as JSON, exact", Group: "Metrics", Handler: s.conf.Metrics.VarsHandler()},
	} {
		if !s.replaced(p.Path) {
			s.add(p)
			s.more = append(s.more, p)
		}
	}
}

func (s *Server) loadMetrics(r *http.Request) (any, error) {
	fams, err := s.conf.Metrics.Gather()
	if err != nil && len(fams) == 0 {
		return nil, err
	}
	q := r.URL.Query()
	d := &metricsData{Vitals: s.vitals.Series(), q: q.Get("q")}
	words := strings.Fields(strings.ToLower(d.q))
	for _, f := range fams {
		m := metricView{Name: f.GetName(), Type: strings.ToLower(f.GetType().String()), Help: f.GetHelp(), Series: seriesOf(f), Value: sumOf(f)}
		d.Series += m.Series
		text := strings.ToLower(m.Name + " " + m.Help)
		if name := q.Get("name"); name != "" && name != m.Name || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
			continue
		}
		if q.Get("name") != "" {
			m.Values = valuesOf(f)
		}
		d.Metrics = append(d.Metrics, m)
	}
	if q.Get("name") != "" && len(d.Metrics) == 0 {
		return nil, notFound("there is no metric of that name")
	}
	return d, nil
}

// seriesOf counts series as a scrape does: a histogram has one for each bucket, and two more.
func seriesOf(f *dto.MetricFamily) (n int) {
	for _, m := range f.GetMetric() {
		n++
		if h := m.GetHistogram(); h != nil {
			n += len(h.GetBucket()) + 2
		}
	}
	return n
}

// valueOf renders the value of one series.
func valueOf(m *dto.Metric) (v float64, text string) {
	switch {
	case m.Counter != nil:
		v = m.Counter.GetValue()
	case m.Gauge != nil:
		v = m.Gauge.GetValue()
	case m.Untyped != nil:
		v = m.Untyped.GetValue()
	case m.Histogram != nil:
		n, sum := float64(m.Histogram.GetSampleCount()), m.Histogram.GetSampleSum()
		if n == 0 {
			return 0, "0"
		}
		return n, exact(n) + ", mean " + short(sum/n)
	case m.Summary != nil:
		v = float64(m.Summary.GetSampleCount())
	}
	return v, exact(v)
}

// exact renders a number in full.
func exact(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}

func sumOf(f *dto.MetricFamily) string {
	if len(f.GetMetric()) == 1 {
		_, text := valueOf(f.GetMetric()[0])
		return text
	}
	sum := 0.0
	for _, m := range f.GetMetric() {
		v, _ := valueOf(m)
		sum += v
	}
	return exact(sum)
}

func valuesOf(f *dto.MetricFamily) (list []seriesView) {
	for _, m := range f.GetMetric() {
		if len(list) == shownSeries {
			break
		}
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
		}
		_, text := valueOf(m)
		list = append(list, seriesView{strings.Join(labels, ", "), text})
	}
	return list
}

func metricsSheet(_ *http.Request, data any) *sheet {
	d := data.(*metricsData)
	sh := &sheet{Title: "Metrics"}
	sh.add(block{Form: &form{Action: "/debug/metrics", Fields: []field{{Name: "q", Label: "in the name or meaning", Value: d.q, Wide: true}}, Buttons: []button{{Label: "Filter"}}}})
	sh.para(txt(itoa(d.Series)+" series."), anchor("for Prometheus", "/metrics"), anchor("exact, as JSON", "/debug/vars"))
	t := &table{Columns: columns("name", "type", "#series", "#value", "meaning"), Empty: "No metric matches."}
	for _, m := range d.Metrics {
		t.Rows = append(t.Rows, []cell{{Text: m.Name, Href: with("/debug/metrics", nil, "name", m.Name), Class: "mono"}, dim(m.Type), num(m.Series), {Text: m.Value, Class: "n"}, txt(m.Help)})
	}
	sh.add(block{Table: t})
	if len(d.Metrics) == 1 && d.Metrics[0].Values != nil {
		m := &d.Metrics[0]
		series := &table{Columns: columns("labels", "#value"), Wide: true}
		for _, v := range m.Values {
			series.Rows = append(series.Rows, []cell{{Text: v.Labels, Class: "mono"}, {Text: v.Value, Class: "n"}})
		}
		sh.add(block{Heading: "Series", Table: series, Para: []cell{anchor("raw", "/metrics?"+url.Values{"name[]": {m.Name}}.Encode())}})
		return sh
	}
	if d.q == "" {
		sh.add(block{Heading: "Most series", Table: topSeries(d.Metrics)})
	}
	return sh
}

// topSeries are the ten metrics that cost a scraper most.
func topSeries(all []metricView) *table {
	list := slices.Clone(all)
	slices.SortStableFunc(list, func(a, b metricView) int { return cmp.Compare(b.Series, a.Series) })
	t := &table{Columns: columns("name", "#series"), Wide: true}
	for _, m := range list[:min(10, len(list))] {
		t.Rows = append(t.Rows, []cell{txt(m.Name), {Text: itoa(m.Series), Class: "n", Bar: float64(m.Series) / float64(max(1, list[0].Series))}})
	}
	return t
}
