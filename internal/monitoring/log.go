package monitoring

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
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
	lines  map[string]*expvarom.Counter
	failed *expvarom.Counter

	mu   sync.Mutex
	ring []LogLine
	n    uint64
}

// NewLog returns a Log in front of next, which is log.Default as log.Init left it. To take part, Logger becomes log.Default.
func NewLog(next *log.Logger, r *expvarom.Registry) *Log {
	l := &Log{next: next, lines: map[string]*expvarom.Counter{}, ring: make([]LogLine, 0, 64)}
	lines := r.CounterVec("chasquid_log_messages_total", "Lines written to the process log, by level.", []string{"level"}, logLevels)
	for _, level := range logLevels {
		l.lines[level] = lines.With(level)
	}
	l.failed = r.CounterVec("chasquid_log_write_errors_total", "Lines that could not be written, by log.", []string{"log"}, []string{"main", "maillog"}).With("main")
	return l
}

// Logger returns the logger that feeds the Log.
func (l *Log) Logger() *log.Logger {
	front := log.New(logSink{l})
	front.Level, front.LogTime, front.LogCaller = l.next.Level, false, false
	return front
}

// Reopen reopens the file that is logged to, if it is one.
func (l *Log) Reopen() error { return l.next.Reopen() }

// Debug takes a line of the kind that is logged only for a while, when somebody asked for it on the log's page.
func (l *Log) Debug(text string) {
	l.add("debug", "", text)
	if err := l.next.Log(log.Info, 1, "debug: %s", text); err != nil {
		l.failed.Inc()
	}
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
	caller, depth := logCaller()
	s.l.add(name, caller, text)
	// The logger behind counts frames from its caller, and one more since it is used to being called through functions.
	if err := s.l.next.Log(level, depth-1, "%s", text); err != nil {
		s.l.failed.Inc()
	}
	return len(b), nil
}

func (s logSink) Close() error {
	s.l.next.Close()
	return nil
}

// logCaller finds who logged: the first function that belongs neither to the log nor to the tracing. depth is how many frames it is
// above its caller.
func logCaller() (where string, depth int) {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for ; ; depth++ {
		f, more := frames.Next()
		name := f.Function
		if depth > 0 && !strings.HasPrefix(name, "blitiri.com.ar/go/log.") && !strings.HasPrefix(name, "blitiri.com.ar/go/chasquid/internal/trace.") {
			return shortFrame(f), depth
		}
		if !more {
			return "", depth
		}
	}
}

func shortFrame(f runtime.Frame) string {
	file := f.File[strings.LastIndexByte(f.File, '/')+1:]
	return file + ":" + itoa(f.Line)
}

func (l *Log) add(level, caller, text string) {
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
