package monitoring

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Limits of the log that is kept.
const (
	keptLines    = 2000
	keptLineSize = 1000
)

// LogLine is one line of the process log.
type LogLine struct {
	N      uint64    `json:"n"` // counts lines since the start
	At     time.Time `json:"at"`
	Level  string    `json:"level"` // error, info, debug
	Caller string    `json:"caller,omitempty"`
	Text   string    `json:"text"`
}

// logLevels are the values of the metric's label.
var logLevels = []string{"error", "info", "debug"}

// Log keeps the last lines of the process log for the pages, and passes everything on to the logger that was there before.
type Log struct {
	next   *log.Logger
	w      *logWriter
	lines  map[string]*expvarom.Counter
	places sync.Map // of *place, by the [2]uintptr that runtime.Callers gave for it
	known  atomic.Int32

	mu   sync.Mutex
	ring []LogLine
	n    uint64
}

// place is a line of code that logs.
type place struct {
	short  string // "work.go:352"
	column string // the same as the logger writes it before the text
}

// NewLog returns a Log in front of next, which is log.Default as log.Init left it. To take part, Logger becomes log.Default.
func NewLog(next *log.Logger, r *expvarom.Registry) *Log {
	l := &Log{next: next, lines: map[string]*expvarom.Counter{}, ring: make([]LogLine, 0, 64)}
	lines := r.CounterVec("chasquid_log_messages_total", "Lines written to the process log, by level.", []string{"level"}, logLevels)
	for _, level := range logLevels {
		l.lines[level] = lines.With(level)
	}
	failed := r.CounterVec("chasquid_log_write_errors_total", "Lines that could not be written, by log.", []string{"log"}, []string{"main", "maillog"}).With("main")
	l.w = newLogWriter(next, failed)
	return l
}

// Logger returns the logger that feeds the Log.
func (l *Log) Logger() *log.Logger {
	front := log.New(logSink{l})
	front.Level, front.LogTime, front.LogCaller = l.next.Level, false, false
	return front
}

// Gather says whether lines that come fast are written together, 2 milliseconds late at most. Until it is called, and for syslog always,
// each is written at once; errors always are, with all that came before them. Switched off, it writes what waits.
func (l *Log) Gather(on bool) { l.w.setGather(on) }

// Reopen reopens the file that is logged to, if it is one.
func (l *Log) Reopen() error { return l.w.reopen() }

// Debug takes a line of the kind that is logged only for a while, when somebody asked for it on the log's page.
func (l *Log) Debug(text string) {
	at := l.add("debug", "", text)
	l.w.write(at, log.Info, "", "debug: "+text)
}

// Line takes a line as log.Log does, but for the formatting: it is what a line costs that is written for every message. depth is how many
// frames whoever logs is above the caller. That is looked at once only for a place that is not nil.
func (l *Log) Line(level log.Level, depth int, where *trace.Place, text string) {
	place, ok := where.Known().(*place)
	if !ok {
		var pcs [2]uintptr // the second is needed to tell inlined functions
		runtime.Callers(depth+2, pcs[:])
		place = l.place(pcs)
		where.Keep(place)
	}
	at := l.add(levelName(level), place.short, text)
	l.w.write(at, level, place.column, text)
}

func levelName(level log.Level) string {
	switch {
	case level < log.Info:
		return "error"
	case level > log.Info:
		return "debug"
	}
	return "info"
}

// logSink is what the front logger writes to: each Write is one line that begins with the letter of its level.
type logSink struct{ l *Log }

func (s logSink) Write(b []byte) (int, error) {
	letter, text, _ := strings.Cut(strings.TrimSuffix(string(b), "\n"), " ")
	level, name := log.Info, "info"
	switch letter {
	case "E":
		level, name = log.Error, "error"
	case ".":
		level, name = log.Debug, "debug"
	case "☠":
		level, name = log.Fatal, "error"
	}
	place := newPlace(logCaller())
	at := s.l.add(name, place.short, text)
	s.l.w.write(at, level, place.column, text)
	return len(b), nil
}

func (s logSink) Close() error {
	s.l.w.flush()
	s.l.next.Close()
	return nil
}

// logCaller finds who logged: the first function that belongs neither to the log nor to the tracing.
func logCaller() runtime.Frame {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "blitiri.com.ar/go/log.") && !strings.HasPrefix(f.Function, "blitiri.com.ar/go/chasquid/internal/trace.") {
			return f
		}
		if !more {
			return runtime.Frame{}
		}
	}
}

// maxPlaces bounds the places remembered. A program has fewer that log.
const maxPlaces = 10_000

// place names the code at pcs. Finding that out takes longer than writing a line, so it is remembered.
func (l *Log) place(pcs [2]uintptr) *place {
	if at, ok := l.places.Load(pcs); ok {
		return at.(*place)
	}
	f, _ := runtime.CallersFrames(pcs[:]).Next()
	at := newPlace(f)
	if l.known.Add(1) <= maxPlaces {
		l.places.Store(pcs, at)
	}
	return at
}

// newPlace renders a place. The column is as wide as package log makes it, and cut from the left.
func newPlace(f runtime.Frame) *place {
	if f.Line == 0 {
		return &place{column: fmt.Sprintf("%-18s ", "unknown:0")}
	}
	file := f.File[strings.LastIndexByte(f.File, '/')+1:]
	column := fmt.Sprintf("%s:%-4d", file, f.Line)
	return &place{file + ":" + itoa(f.Line), fmt.Sprintf("%-18s ", column[max(0, len(column)-18):])}
}

// add keeps a line and returns its time.
func (l *Log) add(level, caller, text string) time.Time {
	if len(text) > keptLineSize {
		text = text[:keptLineSize] + "…"
	}
	l.lines[level].Inc()
	line := LogLine{At: time.Now(), Level: level, Caller: caller, Text: strings.ToValidUTF8(text, "�")}
	l.mu.Lock()
	defer l.mu.Unlock()
	line.N = l.n + 1
	if len(l.ring) < keptLines {
		l.ring = append(l.ring, line)
	} else {
		l.ring[l.n%keptLines] = line
	}
	l.n++
	return line.At
}

// Lines returns the kept lines, oldest first.
func (l *Log) Lines() []LogLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < keptLines {
		return slices.Clone(l.ring)
	}
	i := l.n % keptLines
	return slices.Concat(l.ring[i:], l.ring[:i])
}
