package monitoring

import (
	"strconv"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/stamp"
	"blitiri.com.ar/go/log"
)

const (
	// gatherTime is how long lines may wait for others, so that a busy server does not make a system call for each.
	gatherTime = 2 * time.Millisecond
	// gatherBytes bounds one write. It is PIPE_BUF of Linux: what a pipe or a socket takes whole, so that two processes that write to the
	// same, as during an upgrade, do not cut each other's lines. A longer line is written as it is.
	gatherBytes = 4096
	// spareBytes bounds the buffer that is kept for reuse.
	spareBytes = 64 << 10
)

// logWriter renders lines as package log does, and writes them to the logger behind.
type logWriter struct {
	next                    *log.Logger // gets complete lines
	times, letters, callers bool        // what a line begins with
	failed                  *expvarom.Counter

	out   sync.Mutex // held while writing; taken before mu
	spare lineBuffer

	mu      sync.Mutex
	gather  bool
	waiting bool      // timer is going to write the lines
	wrote   time.Time // when it last began to
	timer   *time.Timer
	lines   lineBuffer // to be written
	clock   stamp.Clock
}

// lineBuffer is lines one after the other. Some log texts have line ends in them, so the ends are kept.
type lineBuffer struct {
	text []byte
	ends []int
}

// newLogWriter takes over from next what a line begins with.
func newLogWriter(next *log.Logger, failed *expvarom.Counter) *logWriter {
	w := &logWriter{next: next, times: next.LogTime, letters: next.LogLevel, callers: next.LogCaller, failed: failed}
	next.LogTime, next.LogLevel, next.LogCaller = false, false, false
	return w
}

// setGather switches the gathering. When it is off, every line is written before write returns.
func (w *logWriter) setGather(on bool) {
	w.mu.Lock()
	w.gather = on
	w.mu.Unlock()
	w.flush()
}

// write takes a line. It may wait for others while lines come fast; errors do not, and take along what waits.
func (w *logWriter) write(at time.Time, level log.Level, column, text string) {
	if !w.next.V(level) {
		return
	}
	w.mu.Lock()
	w.lines.text = append(w.appendStart(w.lines.text, at, level, column), text...)
	w.lines.text = append(w.lines.text, '\n')
	w.lines.ends = append(w.lines.ends, len(w.lines.text))
	now := !w.gather || level < log.Info || len(w.lines.text) >= gatherBytes || !w.waiting && at.Sub(w.wrote) >= gatherTime
	switch {
	case now:
		w.wrote = at
	case !w.waiting:
		w.waiting = true
		w.writeAfter(gatherTime - at.Sub(w.wrote))
	}
	w.mu.Unlock()
	if now {
		w.flush()
	}
}

func (w *logWriter) appendStart(b []byte, at time.Time, level log.Level, column string) []byte {
	if w.times {
		b = w.clock.Append(b, at)
	}
	if w.letters {
		b = append(append(b, levelLetter(level)...), ' ')
	}
	if w.callers {
		b = append(b, column...)
	}
	return b
}

// levelLetter is what package log writes for the level.
func levelLetter(level log.Level) string {
	switch level {
	case log.Fatal:
		return "☠"
	case log.Error:
		return "E"
	case log.Info:
		return "_"
	case log.Debug:
		return "."
	}
	return strconv.Itoa(int(level))
}

// writeAfter has the lines written after the time. w.mu is held.
func (w *logWriter) writeAfter(d time.Duration) {
	if w.timer != nil {
		w.timer.Reset(d)
		return
	}
	w.timer = time.AfterFunc(d, func() {
		w.mu.Lock()
		w.waiting, w.wrote = false, time.Now()
		w.mu.Unlock()
		w.flush()
	})
}

// flush writes all lines that were taken before the call.
func (w *logWriter) flush() {
	w.out.Lock()
	defer w.out.Unlock()
	w.flushLocked()
}

// reopen has the logger behind open its file again. Lines taken before go to the old one.
func (w *logWriter) reopen() error {
	w.out.Lock()
	defer w.out.Unlock()
	w.flushLocked()
	return w.next.Reopen()
}

func (w *logWriter) flushLocked() {
	w.mu.Lock()
	lines, limit := w.lines, gatherBytes
	if !w.gather {
		limit = 0 // as syslog needs it: one write is one message there
	}
	w.lines = w.spare
	w.mu.Unlock()
	start := 0
	for i := 0; i < len(lines.ends); {
		n := 1
		for i+n < len(lines.ends) && lines.ends[i+n]-start <= limit {
			n++
		}
		end := lines.ends[i+n-1]
		if err := w.next.Log(log.Fatal, 0, "%s", lines.text[start:end-1]); err != nil { // it adds the last line end
			w.failed.Add(float64(n))
		}
		start, i = end, i+n
	}
	if w.spare = (lineBuffer{}); cap(lines.text) <= spareBytes {
		w.spare = lineBuffer{lines.text[:0], lines.ends[:0]}
	}
}
