package monitoring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/trace/otlp"
)

// Limits of what the traces' pages show.
const (
	shownTraces = 100
	shownSpans  = 200
	bulkTraces  = 200
)

// Values of the parameter b besides the ranges of durations.
const (
	bucketErrors = -2
	bucketActive = -1
)

// tracesData is the overview and what was asked for besides it.
type tracesData struct {
	Families []trace.FamilyStats `json:"families"`
	Bounds   []time.Duration     `json:"bounds_ns"`
	Size     int64               `json:"store_bytes"`
	List     []trace.Summary     `json:"list,omitempty"`

	what  string // what the list is
	query url.Values
	text  string // what was searched for
	lat   *trace.FamilyStats
}

func (s *Server) addTraces() {
	if s.conf.Traces == nil {
		return
	}
	s.addView(&view{path: "/debug/traces", title: "Traces", about: "what was done, how long it took and what went wrong, by family and duration", group: "Traces",
		params: []string{"fam", "family", "b", "all", "lat", "trace", "ref", "q", "state", "errors", "slower", "limit"}, load: s.loadTraces, sheet: tracesSheet})
	s.addView(&view{path: "/debug/traces/{id}", params: []string{"ref"}, load: s.loadTrace, sheet: traceSheet, json: s.traceJSON})
	s.mux.HandleFunc("GET /debug/traces.jsonl", s.traceLines)
	for _, p := range []struct {
		path, title, about string
		h                  http.Handler
	}{{"/debug/requests", "Requests", "active and recent operations, as golang.org/x/net/trace shows them", s.conf.Traces.RequestsHandler()},
		{"/debug/events", "Events", "of long-lived parts", s.conf.Traces.EventsHandler()}} {
		if !s.replaced(p.path) {
			s.add(Page{Path: p.path, Handler: Buffered(p.h)})
			s.more = append(s.more, Page{Path: p.path, Title: p.title, About: p.about, Group: "Traces"})
		}
	}
}

// traceQuery is what the query of the overview asks for.
type traceQuery struct {
	trace.Query
	bucket    int
	hasBucket bool
	all       bool // that bucket and above
	lat       bool
}

func parseTraceQuery(q url.Values) (t traceQuery, err error) {
	t.all, t.Text, t.Limit = true, q.Get("q"), shownTraces
	name := q.Get("fam") + q.Get("family")
	if name != "" {
		if t.Family, t.HasFamily = trace.ParseFamily(name); !t.HasFamily {
			return t, notFound("there is no family %q", clip(name))
		}
	}
	if b := q.Get("b"); b != "" {
		if t.bucket, err = strconv.Atoi(b); err != nil || t.bucket < bucketErrors || t.bucket >= trace.NumBuckets {
			return t, badRequest("b must be a number from %d to %d", bucketErrors, trace.NumBuckets-1)
		}
		t.hasBucket = true
	}
	for name, v := range map[string]*bool{"all": &t.all, "lat": &t.lat, "errors": &t.Failed} {
		if text := q.Get(name); text != "" {
			if *v, err = strconv.ParseBool(text); err != nil {
				return t, badRequest("%s must be true or false", name)
			}
		}
	}
	switch q.Get("state") {
	case "":
	case "active":
		t.bucket, t.hasBucket = bucketActive, true
	default:
		return t, badRequest("state can only be active")
	}
	if d := q.Get("slower"); d != "" {
		if t.Slower, err = time.ParseDuration(d); err != nil || t.Slower < 0 {
			return t, badRequest("slower must be a duration such as 500ms")
		}
	}
	if t.Limit, err = parseNumber(q, "limit", shownTraces, 1000); err != nil {
		return t, err
	}
	return t, nil
}

func (s *Server) loadTraces(r *http.Request) (any, error) {
	q := r.URL.Query()
	if id := q.Get("trace"); id != "" {
		return nil, &redirect{"/debug/traces/" + url.PathEscape(id)}
	}
	t, err := parseTraceQuery(q)
	if err != nil {
		return nil, err
	}
	rec := s.conf.Traces
	d := &tracesData{Families: rec.Families(), Bounds: trace.BucketBounds(), Size: rec.Size(), query: q, text: t.Text}
	if t.lat && t.HasFamily {
		d.lat = &d.Families[t.Family]
	}
	switch {
	case t.hasBucket:
		d.what, d.List = tracesIn(rec, t)
	case t.HasFamily && t.Text == "":
		// The search knows only what begins a trace; of a family all that is kept is wanted.
		if t.all = true; t.Failed {
			t.bucket = bucketErrors
		}
		d.what, d.List = tracesIn(rec, t)
		d.List = slices.DeleteFunc(d.List, func(x trace.Summary) bool { return x.Duration < t.Slower })
	case t.Text != "" || t.HasFamily || t.Failed || t.Slower > 0:
		d.what, d.List = "Found", rec.Search(t.Query)
	}
	return d, nil
}

// tracesIn are the examples of one field of the grid.
func tracesIn(rec *trace.Recorder, t traceQuery) (what string, list []trace.Summary) {
	families := trace.Families()
	if t.HasFamily {
		families = []trace.Family{t.Family}
	}
	var spans []trace.SpanData
	switch t.bucket {
	case bucketActive:
		what = "Active, the oldest first"
		spans = rec.Active(t.Limit, families...)
	case bucketErrors:
		what = "Failed"
		for _, f := range families {
			spans = append(spans, rec.Errors(f)...)
		}
	default:
		bounds := trace.BucketBounds()
		if what = "At least " + span(bounds[t.bucket]); t.bucket == 0 && t.all {
			what = "Kept"
		}
		for b := t.bucket; b < trace.NumBuckets; b++ {
			for _, f := range families {
				spans = append(spans, rec.Examples(f, b)...)
			}
			if !t.all {
				if b+1 < trace.NumBuckets {
					what = span(bounds[b]) + " to " + span(bounds[b+1])
				}
				break
			}
		}
	}
	if t.bucket != bucketActive {
		slices.SortStableFunc(spans, func(a, b trace.SpanData) int { return b.Start.Compare(a.Start) })
	}
	for _, d := range spans[:min(len(spans), t.Limit)] {
		list = append(list, trace.Summary{Trace: d.Trace, ID: d.ID, Family: d.Family, Title: d.Title, Start: d.Start, Duration: d.Duration,
			Active: d.Active, Failed: d.Failed, Stored: true})
	}
	return what, list
}

func tracesSheet(_ *http.Request, data any) *sheet {
	d := data.(*tracesData)
	sh := &sheet{Title: "Traces"}
	sh.add(block{Form: &form{Action: "/debug/traces", Buttons: []button{{Label: "Search"}}, Fields: []field{
		{Name: "q", Label: "part of a title, or digits of a trace id", Value: d.text, Wide: true},
		{Name: "family", Label: "family", Value: d.query.Get("fam") + d.query.Get("family"), Options: familyNames()},
		{Name: "slower", Label: "at least", Value: d.query.Get("slower"), Hint: "500ms"}, {Name: "errors", Label: "failed", Value: d.query.Get("errors"), Options: []string{"", "true"}}}}})
	if d.what != "" {
		sh.add(block{Heading: d.what, Table: summaryTable(d.List)})
	}
	if d.lat != nil {
		sh.add(block{Heading: "Durations of " + d.lat.Family.String(), Table: latencyTable(d.lat, d.Bounds)})
	}
	sh.add(block{Heading: "By family and duration", Table: gridTable(d)})
	sh.para(dim("Counts since the start; a number leads to examples. "+byteSize(d.Size)+" are kept."), anchor("watch live", "/debug/tail"),
		anchor("requests", "/debug/requests"), anchor("as JSON", with("/debug/traces.json", d.query)))
	return sh
}

func familyNames() []string {
	names := []string{""}
	for _, f := range trace.Families() {
		names = append(names, f.String())
	}
	return names
}

func gridTable(d *tracesData) *table {
	t := &table{Columns: columns("family", "#active", "#failed"), Wide: true}
	for _, b := range d.Bounds {
		t.Columns = append(t.Columns, column{Name: "≥ " + span(b), Class: "n"})
	}
	t.Columns[3].Name = "fast"
	for i := range d.Families {
		f := &d.Families[i]
		if f.Done == 0 && f.Active == 0 {
			continue
		}
		name := f.Family.String()
		at := func(b, n int, text string, class string) cell {
			c := cell{Text: text, Class: "n"}
			if n > 0 {
				c.Href = with("/debug/traces", nil, "family", name, "b", strconv.Itoa(b), "all", "false")
				if class != "" {
					c.Class = class
				}
			}
			return c
		}
		row := []cell{{Text: name, Href: with("/debug/traces", nil, "family", name, "lat", "true")}, at(bucketActive, f.Active, itoa(f.Active), ""),
			at(bucketErrors, f.Errors, strconv.FormatUint(f.Failed, 10), "bad")}
		for b := range d.Bounds {
			text := "·"
			if f.Counts[b] > 0 {
				text = strconv.FormatUint(f.Counts[b], 10)
			}
			row = append(row, at(b, f.Examples[b], text, ""))
		}
		t.Rows = append(t.Rows, row)
	}
	t.Empty = "Nothing was done yet."
	return t
}

// latencyTable is the distribution of durations of one family.
func latencyTable(f *trace.FamilyStats, bounds []time.Duration) *table {
	t := &table{Columns: columns("at least", "#count", "share", "up to here"), Wide: true}
	sum := uint64(0)
	for b, bound := range bounds {
		n := f.Counts[b]
		sum += n
		share, upTo := 0.0, 0.0
		if f.Done > 0 {
			share, upTo = float64(n)/float64(f.Done), float64(sum)/float64(f.Done)
		}
		t.Rows = append(t.Rows, []cell{txt(span(bound)), {Text: strconv.FormatUint(n, 10), Class: "n"}, {Text: fmt.Sprintf("%.2f %%", 100*share), Bar: share}, txt(fmt.Sprintf("%.2f %%", 100*upTo))})
	}
	if f.Done > 0 {
		t.Rows = append(t.Rows, []cell{dim(fmt.Sprintf("mean %s, least %s, most %s", span(f.Sum/time.Duration(f.Done)), span(f.Min), span(f.Max))), num(int64(f.Done)), {}, {}})
	}
	return t
}

func summaryTable(list []trace.Summary) *table {
	t := &table{Columns: columns("began", "family", "what", "#took"), Empty: "none"}
	for _, x := range list {
		began := cell{Text: x.Start.UTC().Format("15:04:05.000"), Small: ago(x.Start)}
		title := cell{Text: x.Title}
		if x.Stored || x.Active {
			title.Href = "/debug/traces/" + x.Trace.String()
		}
		if x.Failed {
			title.Class = "bad"
		}
		took := cell{Text: span(x.Duration), Class: "n"}
		if x.Active {
			took.Small = "active"
		}
		t.Rows = append(t.Rows, []cell{began, txt(x.Family.String()), title, took})
	}
	return t
}

// redirect is an error that sends the client elsewhere.
type redirect struct{ to string }

func (r *redirect) Error() string { return "see " + r.to }

// loadTrace finds the trace by its id or the first digits of it.
func (s *Server) loadTrace(r *http.Request) (any, error) {
	text := strings.ToLower(pathID(r))
	id, err := trace.ParseID(text)
	if err != nil {
		ids := s.conf.Traces.Lookup(text)
		if len(ids) == 0 {
			return nil, notFound("no such trace is kept")
		}
		if len(ids) > 1 {
			return nil, &redirect{with("/debug/traces", nil, "q", text)}
		}
		id = ids[0]
	}
	t, ok := s.conf.Traces.Trace(id)
	if !ok {
		return nil, notFound("no such trace is kept; /debug/messages?q=%s may know the message", id)
	}
	for i := range t.Spans {
		t.Spans[i].Links = slices.DeleteFunc(t.Spans[i].Links, func(l trace.Link) bool { return s.known(l.Trace) == trace.ID{} })
	}
	return &t, nil
}

// known is the id if its page exists now, zero otherwise: no link is to be dead.
func (s *Server) known(id trace.ID) trace.ID {
	if id == (trace.ID{}) || s.conf.Traces == nil {
		return trace.ID{}
	}
	if _, ok := s.conf.Traces.Trace(id); !ok {
		return trace.ID{}
	}
	return id
}

func (s *Server) traceJSON(w io.Writer, _ *http.Request, data any) error {
	b, err := otlp.JSON(data.(*trace.Trace).Spans, otlp.Resource{Version: s.conf.Build.Version, Instance: s.names.Load().hostname})
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// traceLines sends kept traces in bulk, one a line.
func (s *Server) traceLines(w http.ResponseWriter, r *http.Request) {
	q, err := query(r)
	var t traceQuery
	if err == nil {
		t, err = parseTraceQuery(q)
	}
	if err != nil {
		sendError(w, err)
		return
	}
	t.Limit = min(t.Limit, bulkTraces)
	seen := map[trace.ID]bool{}
	b := &limitedBuffer{left: maxAnswer}
	for _, x := range s.conf.Traces.Search(t.Query) {
		if seen[x.Trace] || !x.Stored {
			continue
		}
		seen[x.Trace] = true
		if tr, ok := s.conf.Traces.Trace(x.Trace); ok {
			if err := s.traceJSON(b, r, &tr); errors.Is(err, errTooMuch) {
				break
			}
			b.Write([]byte("\n"))
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Write(b.Bytes())
}

// contextFor bounds what a request may take.
func contextFor(r *http.Request, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), d)
}
