package trace

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	xtrace "golang.org/x/net/trace"
)

// The mirror into golang.org/x/net/trace, for /debug/requests and /debug/events as people know them. That package must be handled with
// care: a trace that is used after its end writes into others, and one that overflows races. So the handle stays under the span's lock and
// is gone once the span is finished, and a trace gets one event less than it can take.
//
// It costs more than all the rest of tracing. On a busy server only some spans are mirrored from their start (Config.Mirrors a second);
// others join when they fail or take long, or when somebody looks at the page while they are active.
const (
	DefaultMirrors = 50
	mirrorMax      = 100         // events of a mirrored trace
	mirrorReplay   = 60          // earlier events shown of a span that joins late
	mirrorSlow     = time.Second // a span that takes this long joins
	mirrorActive   = 20          // active spans of a family that the page shows
)

// mirror is the twin of a span in golang.org/x/net/trace. Nil is none.
type mirror struct {
	tr xtrace.Trace
	n  int
}

func (m *mirror) on() bool { return m != nil }

// newMirror makes the twin of a span.
func newMirror(s *Span) *mirror {
	m := &mirror{tr: xtrace.New(s.family.String(), s.title+" "+s.id.Short())}
	m.tr.SetMaxEvents(mirrorMax)
	return m
}

// add adds an event, unless there are too many. Two are left for finish, and one that is never used.
func (m *mirror) add(k Kind, text string) {
	if k == Error {
		m.tr.SetError()
	}
	if m.n < mirrorMax-3 {
		m.n++
		m.tr.LazyPrintf("%s", text)
	}
}

// finish ends the twin. Its last line leads to the page of the trace.
func (m *mirror) finish(id ID, failed bool) {
	if failed {
		m.tr.SetError()
	}
	if m.n == mirrorMax-3 {
		m.tr.LazyPrintf("(more events on the page of the trace)")
	}
	m.tr.LazyPrintf("/debug/traces/%s", id.String())
	m.tr.Finish()
}

// joinMirror makes the twin of a span that has been active for a while. It is called with the span's lock held.
func (s *Span) joinMirror() {
	m := newMirror(s)
	s.mirror = m
	m.add(Info, "(joins "+time.Since(s.start).Round(time.Microsecond).String()+" after its start)")
	events := s.buf.notes().events(s.start)
	for _, e := range events[:min(len(events), mirrorReplay)] {
		m.add(e.Kind, "+"+e.Offset.String()+" "+e.Text)
	}
}

// mirrorEvent passes an event on to the span's twin. It is called with the span's lock held, after the event went to the span's buffer.
func (s *Span) mirrorEvent(k Kind, at time.Duration, text []byte) {
	switch {
	case s.mirror.on():
		s.mirror.add(k, printable(text))
	case s.rec.cfg.Mirror && s.family.mirrored() && (k == Error || at >= mirrorSlow) && s.rec.mirrors.urgent(s.start.Add(at)):
		s.joinMirror()
	}
}

// mirrorLimit bounds how many spans are mirrored in a second.
type mirrorLimit struct {
	max        int64
	plain, bad struct{ second, n atomic.Int64 }
}

func (l *mirrorLimit) allow(now time.Time) bool {
	return within(&l.plain.second, &l.plain.n, l.max, now)
}
func (l *mirrorLimit) urgent(now time.Time) bool {
	return within(&l.bad.second, &l.bad.n, l.max, now)
}

// within counts to max in each second. Racing calls may count a few more.
func within(second, n *atomic.Int64, max int64, now time.Time) bool {
	if s := now.Unix(); second.Load() != s {
		second.Store(s)
		n.Store(0)
	}
	return n.Add(1) <= max
}

// mirrorAll makes twins of the active spans that the page would show.
func (r *Recorder) mirrorAll() {
	if !r.cfg.Mirror {
		return
	}
	var spans []*Span
	r.mu.Lock()
	for f := range r.fams {
		if Family(f).mirrored() {
			n := 0
			for s := r.fams[f].oldest; s != nil && n < mirrorActive; s = s.next {
				spans = append(spans, s)
				n++
			}
		}
	}
	r.mu.Unlock()
	for _, s := range spans {
		s.mu.Lock()
		if !s.done && !s.mirror.on() {
			s.joinMirror()
		}
		s.mu.Unlock()
	}
}

// RequestsHandler serves the page of golang.org/x/net/trace, /debug/requests. Who may see it is the caller's business.
func (r *Recorder) RequestsHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !knownFamily(w, req) {
			return
		}
		r.mirrorAll()
		var b bytes.Buffer // so that a slow reader holds none of that package's locks
		xtrace.Render(&b, req, true)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(b.Bytes())
	})
}

// EventsHandler serves the page of golang.org/x/net/trace for long-lived things, /debug/events.
func (r *Recorder) EventsHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !knownFamily(w, req) {
			return
		}
		b := &page{header: http.Header{}}
		xtrace.RenderEvents(b, req, true)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(b.Bytes())
	})
}

// knownFamily refuses families that do not exist: that package would make them, and keep them.
func knownFamily(w http.ResponseWriter, req *http.Request) bool {
	fam := req.FormValue("fam")
	if _, ok := ParseFamily(fam); !ok && fam != "" {
		http.Error(w, "no such family", http.StatusNotFound)
		return false
	}
	return true
}

// page is a response in memory.
type page struct {
	bytes.Buffer
	header http.Header
}

func (p *page) Header() http.Header { return p.header }
func (p *page) WriteHeader(int)     {}

// EventLog is the log of one long-lived thing, such as a listener or the reload loop, on /debug/events. A nil *EventLog does nothing.
// It is for things that say little: each line costs a microsecond.
type EventLog struct {
	family, title string

	mu     sync.Mutex
	el     xtrace.EventLog // nil once finished
	n      int
	recent []logLine
}

type logLine struct {
	text   string
	failed bool
}

const (
	logMax    = 100 // lines that package keeps of a log
	logReplay = 32  // lines shown again when the log starts anew
)

// EventLog returns a log, nil if r is nil or does not mirror. Finish ends it.
func (r *Recorder) EventLog(f Family, title string) *EventLog {
	if r == nil || !r.cfg.Mirror || f >= numFamilies {
		return nil
	}
	l := &EventLog{family: f.String(), title: cleanTitle(title)}
	l.el = xtrace.NewEventLog(l.family, l.title)
	return l
}

// Printf adds a line.
func (l *EventLog) Printf(format string, a ...any) { l.add(false, format, a) }

// Errorf adds a line that says what went wrong.
func (l *EventLog) Errorf(format string, a ...any) { l.add(true, format, a) }

func (l *EventLog) add(failed bool, format string, a []any) {
	if l == nil {
		return
	}
	b := fmt.Appendf(nil, format, a...)
	line := logLine{printable(b[:min(len(b), maxText)]), failed}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.el == nil {
		return
	}
	if l.n == logMax-1 { // one more would overflow: start anew with the latest lines
		l.el.Finish()
		l.el, l.n = xtrace.NewEventLog(l.family, l.title), 0
		for _, r := range l.recent {
			l.put(r)
		}
	}
	l.put(line)
	if len(l.recent) == logReplay {
		l.recent = append(l.recent[:0], l.recent[1:]...)
	}
	l.recent = append(l.recent, line)
}

func (l *EventLog) put(line logLine) {
	l.n++
	if line.failed {
		l.el.Errorf("%s", line.text)
		return
	}
	l.el.Printf("%s", line.text)
}

// Finish ends the log.
func (l *EventLog) Finish() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.el != nil {
		l.el.Finish()
		l.el = nil
	}
}
