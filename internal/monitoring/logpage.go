package monitoring

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/log"
)

// Limits of the log's page.
const (
	shownLines      = 300
	maxDebugMinutes = 60
)

// debugSwitch has debug lines logged for a while.
type debugSwitch struct {
	mu    sync.Mutex
	until time.Time
	timer *time.Timer
}

// logData is the page of the log.
type logData struct {
	Lines      []LogLine `json:"lines"` // newest first
	Matching   int       `json:"matching"`
	DebugUntil time.Time `json:"debug_until,omitzero"`

	q, level string
	can      bool // debug lines can be switched on
}

func (s *Server) addLog() {
	s.addView(&view{path: "/debug/log", title: "Log", about: "the last lines, and more of them for a while", group: "Process", params: []string{"q", "level", "limit"},
		load: s.loadLog, sheet: logSheet})
	s.mux.HandleFunc("POST /debug/log", s.switchDebug)
}

func (s *Server) loadLog(r *http.Request) (any, error) {
	if s.conf.Log == nil {
		return nil, errNotHere
	}
	q := r.URL.Query()
	limit, err := parseNumber(q, "limit", shownLines, keptLines)
	if err != nil {
		return nil, err
	}
	d := &logData{q: q.Get("q"), level: q.Get("level"), Lines: []LogLine{}, can: s.conf.Traces != nil}
	if d.level != "" && !slices.Contains(logLevels, d.level) {
		return nil, badRequest("level must be one of %s", strings.Join(logLevels, ", "))
	}
	d.DebugUntil = s.debugUntil()
	lines := s.conf.Log.Lines()
	text := strings.ToLower(d.q)
	for _, l := range slices.Backward(lines) {
		if d.level != "" && l.Level != d.level || text != "" && !strings.Contains(strings.ToLower(l.Caller+" "+l.Text), text) {
			continue
		}
		if d.Matching++; len(d.Lines) < limit {
			d.Lines = append(d.Lines, l)
		}
	}
	return d, nil
}

func logSheet(_ *http.Request, data any) *sheet {
	d := data.(*logData)
	sh := &sheet{Title: "Log"}
	sh.add(block{Form: &form{Action: "/debug/log", Buttons: []button{{Label: "Filter"}}, Fields: []field{{Name: "q", Label: "contains", Value: d.q, Wide: true},
		{Name: "level", Label: "level", Value: d.level, Options: append([]string{""}, logLevels...)}}}})
	switch {
	case !d.can:
	case d.DebugUntil.After(time.Now()):
		sh.para(cell{Text: "Debug lines are logged until " + utc(d.DebugUntil) + ".", Class: "warn"})
		sh.add(block{Form: &form{Action: "/debug/log", Post: true, Buttons: []button{{"minutes", "0", "Stop debug lines now", ""}}}})
	default:
		sh.add(block{Form: &form{Action: "/debug/log", Post: true, Buttons: []button{{"minutes", "10", "Log debug lines for 10 minutes", ""}}}})
	}
	var b strings.Builder
	for _, l := range d.Lines {
		fmt.Fprintf(&b, "%s %-5s %-18s %s\n", l.At.UTC().Format("01-02 15:04:05.000"), l.Level, l.Caller, l.Text)
	}
	sh.para(dim(fmt.Sprintf("%d of %d lines that match, the newest first.", len(d.Lines), d.Matching)), anchor("refresh by itself", with("/debug/log", nil, "q", d.q, "level", d.level, "refresh", "5")))
	sh.add(block{Pre: b.String()})
	return sh
}

// switchDebug has debug lines logged for some minutes, or no longer.
func (s *Server) switchDebug(w http.ResponseWriter, r *http.Request) {
	if s.conf.Log == nil || s.conf.Traces == nil {
		sendError(w, errNotHere)
		return
	}
	form, err := postForm(w, r, []string{"minutes"})
	if err != nil {
		sendError(w, err)
		return
	}
	n, err := strconv.Atoi(form.Get("minutes"))
	if err != nil || n < 0 || n > maxDebugMinutes {
		sendError(w, badRequest("minutes must be a number up to %d", maxDebugMinutes))
		return
	}
	s.setDebug(time.Duration(n) * time.Minute)
	log.Infof("monitoring: debug lines for %d minutes, asked by %q", n, s.operator(r))
	seeOther(w, r, "/debug/log", fmt.Sprintf("debug lines are logged for %d minutes\n", n))
}

func (s *Server) debugUntil() time.Time {
	s.debug.mu.Lock()
	defer s.debug.mu.Unlock()
	return s.debug.until
}

// setDebug has debug lines logged for the time; zero ends it.
func (s *Server) setDebug(d time.Duration) {
	s.debug.mu.Lock()
	defer s.debug.mu.Unlock()
	if s.debug.timer != nil {
		s.debug.timer.Stop()
	}
	if d <= 0 {
		s.debug.until = time.Time{}
		s.conf.Traces.LogDebug(nil)
		return
	}
	until := time.Now().Add(d)
	s.debug.until = until
	s.conf.Traces.LogDebug(s.conf.Log.Debug)
	s.debug.timer = time.AfterFunc(d, func() {
		if !s.debugUntil().After(until) { // not prolonged

			s.setDebug(0)
		}
	})
}

// seeOther answers a POST: browsers go to a page, others get text.
func seeOther(w http.ResponseWriter, r *http.Request, path, text string) {
	if acceptsHTML(r) {
		w.Header().Set("Location", path)
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte(text))
}
