package trace

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of watches.
const (
	maxWatches     = 4
	maxWatchTime   = time.Hour
	maxWatchText   = 256
	maxWatchTraces = 200
	watchLines     = 256 // lines that wait for their reader
)

// errWatches says that there are too many watches.
var errWatches = errors.New("too many watches")

// Watch follows live what happens to traces that mention a text: a client's address, a sender, a recipient, a user. From the first mention
// on it sees all of the trace, and of those linked to it that begin later; they are also kept.
type Watch struct {
	r       *Recorder
	text    string // in lower case
	expire  *time.Timer
	dropped atomic.Int64

	mu    sync.Mutex
	lines chan string // nil once closed
	ids   map[ID]bool
}

// Watch begins to follow traces that mention the text, in any case, until it is closed or ttl, an hour at most, is over. At most four are
// followed at once.
func (r *Recorder) Watch(text string, ttl time.Duration) (*Watch, error) {
	if text == "" || len(text) > maxWatchText {
		return nil, errors.New("a watch needs a text of 1 to 256 bytes")
	}
	w := &Watch{r: r, text: strings.ToLower(text), lines: make(chan string, watchLines), ids: map[ID]bool{}}
	r.watchMu.Lock()
	defer r.watchMu.Unlock()
	ws := r.watching()
	if len(ws) >= maxWatches {
		return nil, errWatches
	}
	ws = append(append([]*Watch(nil), ws...), w)
	w.expire = time.AfterFunc(min(max(ttl, 0), maxWatchTime), w.Close)
	r.watches.Store(&ws)
	return w, nil
}

// watching returns the watches. Mostly there are none.
func (r *Recorder) watching() []*Watch {
	if ws := r.watches.Load(); ws != nil {
		return *ws
	}
	return nil
}

// Lines returns the channel of what happens, one line each. It is closed when the watch ends. Lines that nobody takes in time are dropped.
func (w *Watch) Lines() <-chan string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lines == nil {
		closed := make(chan string)
		close(closed)
		return closed
	}
	return w.lines
}

// Dropped returns how many lines were dropped since it was last asked.
func (w *Watch) Dropped() int64 { return w.dropped.Swap(0) }

// Close ends the watch.
func (w *Watch) Close() {
	w.r.watchMu.Lock()
	var ws []*Watch
	for _, o := range w.r.watching() {
		if o != w {
			ws = append(ws, o)
		}
	}
	if ws == nil {
		w.r.watches.Store(nil)
	} else {
		w.r.watches.Store(&ws)
	}
	w.r.watchMu.Unlock()

	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire.Stop()
	if w.lines != nil {
		close(w.lines)
		w.lines = nil
	}
}

// tell passes on what happened to the span, if the watch follows its trace or the text makes it do so. from is a linked trace.
func (w *Watch) tell(s *Span, from ID, text string) {
	mentioned := strings.Contains(strings.ToLower(text), w.text) || strings.Contains(strings.ToLower(s.title), w.text)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lines == nil {
		return
	}
	if !w.ids[s.id] {
		if !mentioned && !w.ids[from] || len(w.ids) >= maxWatchTraces {
			return
		}
		w.ids[s.id] = true
	}
	line := fmt.Sprintf("%s %s %s %s: %s", time.Now().UTC().Format("15:04:05.000"), s.id.Short(), s.family, s.title, text)
	select {
	case w.lines <- line:
	default:
		w.dropped.Add(1)
	}
}

// follows says whether the watch follows the trace.
func (w *Watch) follows(id ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ids[id]
}

// watchStart, watchEvent and watchFinish tell the watches what happens.
func (s *Span) watchStart(from *Span) {
	for _, w := range s.rec.watching() {
		w.tell(s, from.ID(), "begins")
	}
}

func (s *Span) watchEvent(k Kind, text []byte) {
	ws := s.rec.watching()
	if ws == nil {
		return
	}
	line := printable(text[:min(len(text), maxText)])
	if k == Error {
		line = "error: " + line
	}
	for _, w := range ws {
		w.tell(s, ID{}, line)
	}
}

// watchFinish says whether the trace is followed, and so to be kept.
func (s *Span) watchFinish(failed bool) (followed bool) {
	for _, w := range s.rec.watching() {
		if w.follows(s.id) {
			followed = true
			outcome := "well"
			if failed {
				outcome = "badly"
			}
			w.tell(s, ID{}, fmt.Sprintf("ends %s after %v", outcome, s.dur))
		}
	}
	return followed
}

// LogDebug hands f the lines that the process log leaves out because they are of level debug, until it is called again. A nil f ends it.
// Config.Log must be set. f is called by many goroutines, within what they trace.
func (r *Recorder) LogDebug(f func(line string)) {
	if f == nil {
		r.debug.Store(nil)
		return
	}
	r.debug.Store(&f)
}
