package monitoring

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

// waterfall draws spans below each other on one axis of time.
type waterfall struct {
	Rows []waterRow
	Gaps []waterGap
}

// waterRow is one span; X and W are in thousandths of the width.
type waterRow struct {
	Depth       int
	Label, Took string
	Href        string
	X, W        int
	Class       string
}

// waterGap is a time in which nothing happened, which is drawn shorter than it was.
type waterGap struct {
	X     int
	Label string
}

// axis maps times to thousandths of the width.
type axis struct {
	parts []axisPart
	sum   time.Duration
}

// axisPart is a time in which something happened, or a gap, which counts for less.
type axisPart struct {
	from, to time.Time
	counts   time.Duration
	gap      bool
}

// newAxis finds the times in which something happened. A gap that is longer than all of them together is cut to a tenth of that.
func newAxis(spans []trace.SpanData) *axis {
	type interval struct{ from, to time.Time }
	var merged []interval
	sorted := slices.Clone(spans)
	slices.SortStableFunc(sorted, func(a, b trace.SpanData) int { return a.Start.Compare(b.Start) })
	for _, s := range sorted {
		end := s.Start.Add(max(s.Duration, 0))
		if n := len(merged); n > 0 && !s.Start.After(merged[n-1].to) {
			if end.After(merged[n-1].to) {
				merged[n-1].to = end
			}
			continue
		}
		merged = append(merged, interval{s.Start, end})
	}
	busy := time.Millisecond
	for _, m := range merged {
		busy += m.to.Sub(m.from)
	}
	a := &axis{}
	for i, m := range merged {
		if i > 0 {
			p := axisPart{from: merged[i-1].to, to: m.from, gap: true}
			p.counts = p.to.Sub(p.from)
			if p.counts > busy {
				p.counts = busy / 10
			} else {
				p.gap = false
			}
			a.parts = append(a.parts, p)
			a.sum += p.counts
		}
		p := axisPart{from: m.from, to: m.to, counts: max(m.to.Sub(m.from), busy/50)}
		a.parts = append(a.parts, p)
		a.sum += p.counts
	}
	return a
}

// at is where a time is.
func (a *axis) at(t time.Time) int {
	var before time.Duration
	for _, p := range a.parts {
		if !t.After(p.to) {
			if d := p.to.Sub(p.from); d > 0 && t.After(p.from) {
				before += time.Duration(float64(p.counts) * float64(t.Sub(p.from)) / float64(d))
			}
			break
		}
		before += p.counts
	}
	if a.sum <= 0 {
		return 0
	}
	return int(min(1000, 1000*before/a.sum))
}

func newWaterfall(spans []trace.SpanData) *waterfall {
	a := newAxis(spans)
	w := &waterfall{}
	depth := map[trace.SpanID]int{}
	for _, s := range spans {
		d := 0
		if up, ok := depth[s.Parent]; ok {
			d = min(up+1, 6)
		}
		depth[s.ID] = d
		r := waterRow{Depth: d, Label: s.Family.String() + " " + s.Title, Took: span(s.Duration), Href: "#s" + s.ID.String(), X: a.at(s.Start)}
		r.W = max(4, a.at(s.Start.Add(s.Duration))-r.X)
		r.X = min(r.X, 1000-r.W)
		switch {
		case s.Failed:
			r.Class = "e"
		case s.Active:
			r.Class, r.Took = "a", r.Took+" so far"
		}
		w.Rows = append(w.Rows, r)
	}
	for _, p := range a.parts {
		if p.gap {
			w.Gaps = append(w.Gaps, waterGap{(a.at(p.from) + a.at(p.to)) / 2, span(p.to.Sub(p.from))})
		}
	}
	return w
}

func traceSheet(_ *http.Request, data any) *sheet {
	t := data.(*trace.Trace)
	sh := &sheet{Title: "Trace " + t.ID.Short()}
	spans := t.Spans[:min(len(t.Spans), shownSpans)]
	if len(spans) == 0 {
		sh.para(dim("Nothing of it is kept."))
		return sh
	}
	first, generations := spans[0].Start, map[int64]bool{}
	end := first
	for _, s := range spans {
		generations[s.Generation] = true
		if e := s.Start.Add(s.Duration); e.After(end) {
			end = e
		}
	}
	facts := []fact{oneFact("id", cell{Text: t.ID.String(), Class: "mono"}), {"began", moment(first)}, oneFact("took", txt(span(end.Sub(first)))),
		{"spans", []cell{txt(itoa(len(t.Spans)))}}}
	if hidden := t.Dropped + len(t.Spans) - len(spans); hidden > 0 {
		facts = append(facts, oneFact("not shown", cell{Text: itoa(hidden) + " spans", Class: "warn"}))
	}
	if len(generations) > 1 {
		facts = append(facts, oneFact("processes", txt(itoa(len(generations))+": the server was started anew meanwhile")))
	}
	sh.add(block{Facts: facts})
	sh.para(anchor("the message", with("/debug/messages", nil, "q", t.ID.String())), anchor("as text", "?format=text"), anchor("OpenTelemetry JSON", "/debug/traces/"+t.ID.String()+".json"))
	sh.add(block{Water: newWaterfall(spans)})
	for i := range spans {
		spanBlocks(sh, &spans[i], first)
	}
	return sh
}

// spanBlocks shows one span with its events, SMTP dialogue included.
func spanBlocks(sh *sheet, s *trace.SpanData, first time.Time) {
	line := []cell{dim(fmt.Sprintf("+%s, took %s", span(max(0, s.Start.Sub(first))), span(s.Duration)))}
	switch {
	case s.Active:
		line = append(line, cell{Text: "under way", Class: "warn"}, anchor("its goroutines", with("/debug/goroutines", nil, "label", "trace="+s.Trace.String())))
	case s.Failed:
		line = append(line, cell{Text: "failed", Class: "bad"})
	}
	for _, a := range s.Attrs {
		line = append(line, txt(a.Key+"="+a.Value))
	}
	for _, l := range s.Links {
		line = append(line, anchor("linked: "+l.Trace.Short(), "/debug/traces/"+l.Trace.String()))
	}
	sh.add(block{Heading: s.Family.String() + " " + s.Title, ID: "s" + s.ID.String(), Para: line})
	if len(s.Events) == 0 {
		return
	}
	t := &table{Columns: columns("#after", "event"), Wide: true, Style: "tight"}
	for _, e := range s.Events {
		if e.Gap > 0 {
			t.Rows = append(t.Rows, []cell{{}, dim(fmt.Sprintf("… %d events were not kept …", e.Gap))})
		}
		c := cell{Text: strings.TrimRight(e.Text, "\r\n")}
		switch e.Kind {
		case trace.Error:
			c.Class = "bad"
		case trace.Debug:
			c.Class = "dim"
		}
		t.Rows = append(t.Rows, []cell{{Text: span(e.Offset), Class: "n"}, c})
	}
	sh.add(block{Table: t})
}
