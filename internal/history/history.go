// Package history keeps the last days of message timelines in SQLite, searchable; it observes the timeline and never delays mail.
package history

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Defaults and bounds.
const (
	DefaultDays  = 7
	DefaultBytes = 1 << 30

	flushEvery   = time.Second
	maxBuffered  = 8 << 20 // bytes of events that wait to be taken; more is dropped and counted
	wakeBuffered = 1 << 20 // taken at once rather than at the next tick
	lingers      = 10 * time.Second
	maxPending   = 20000    // messages whose events are held in memory until they end
	maxEvents    = 64 << 10 // bytes of events kept of one message; what comes after is dropped and counted
	trimEvery    = time.Minute
	maxChecks    = 4 << 10 // bytes of events kept of a message that has no id yet
	usualEvents  = 512     // bytes of the events of most messages
	maxSpare     = 2048    // used up records of pending messages that are kept for reuse
	spareEvents  = 2 << 10 // bytes of events one of them may hold
)

// Config of a History. The zero value of a limit means its default.
type Config struct {
	Path string // the database file
	Settings
	Metrics *expvarom.Registry
}

// Settings are the part of a Config that may change while the History works; see Configure.
type Settings struct {
	Keep     time.Duration // messages that ended longer ago are forgotten
	MaxBytes int64         // the oldest are forgotten when the database is larger
	// HashAddresses keeps a keyed hash of each address instead of the address: searching for an address still works.
	HashAddresses bool
}

// History is the observer and the search. Run writes; until it runs, events wait in memory.
type History struct {
	settings atomic.Pointer[Settings]
	m        *metrics
	key      []byte // of address hashes

	mu   sync.Mutex
	enc  encoder
	buf  []byte // events in order, as encoder.appendWaiting puts them
	wake chan struct{}

	syncs   chan chan struct{}
	done    chan struct{}
	db      *database // owned by Run, but for reads
	pending map[mail.ID]*pendingMessage
	spare   []*pendingMessage            // for reuse
	checks  map[trace.ID]*pendingMessage // by trace: what checks said of messages that have no id yet
	current batch
}

type pendingMessage struct {
	events []byte
	named  bool // one of the events that were added has the id
	since  time.Time
	dirty  bool // not in the database as it is
	stored bool // in the table of unfinished messages
}

type metrics struct {
	dropped  *expvarom.Counter
	failures *expvarom.Counter
	messages *expvarom.Counter
}

// Open opens the database, setting a damaged one aside, and returns a History ready to observe.
func Open(conf Config) (*History, error) {
	db, err := openDatabase(conf.Path)
	if err != nil {
		return nil, err
	}
	key, err := db.secret()
	if err != nil {
		return nil, err
	}
	h := &History{key: key, db: db, wake: make(chan struct{}, 1), syncs: make(chan chan struct{}), done: make(chan struct{}),
		pending: map[mail.ID]*pendingMessage{}, checks: map[trace.ID]*pendingMessage{}}
	h.m = &metrics{
		dropped:  conf.Metrics.Counter("chasquid_history_events_dropped_total", "Timeline events not kept because the history could not keep up, or one message had too many."),
		failures: conf.Metrics.Counter("chasquid_history_errors_total", "Failed operations of the history database. Mail is not affected."),
		messages: conf.Metrics.Counter("chasquid_history_messages_total", "Messages written to the history."),
	}
	h.Configure(conf.Settings)
	return h, nil
}

// Configure changes the settings. What is in the database stays as it was written, until it is forgotten.
func (h *History) Configure(s Settings) {
	if s.Keep <= 0 {
		s.Keep = DefaultDays * 24 * time.Hour
	}
	if s.MaxBytes <= 0 {
		s.MaxBytes = DefaultBytes
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settings.Store(&s)
	h.enc.hash = nil
	if s.HashAddresses {
		h.enc.hash = func(a address.Address) string { return h.hash(a.String()) }
	}
}

// Settings returns the settings in force.
func (h *History) Settings() Settings { return *h.settings.Load() }

// Observe takes an event. It only copies bytes into memory.
func (h *History) Observe(e *timeline.Event) {
	if e.Kind == timeline.Listen {
		return
	}
	h.mu.Lock()
	if len(h.buf) > maxBuffered {
		h.mu.Unlock()
		h.m.dropped.Inc()
		return
	}
	h.buf = h.enc.appendWaiting(h.buf, e)
	full := len(h.buf) > wakeBuffered
	h.mu.Unlock()
	if full {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

func (h *History) hash(s string) string {
	m := hmac.New(sha256.New, h.key)
	m.Write([]byte(strings.ToLower(s)))
	return hex.EncodeToString(m.Sum(nil)[:12])
}

// Run writes what was observed until ctx ends, then writes the rest and closes the database.
func (h *History) Run(ctx context.Context) {
	defer close(h.done)
	h.current.id = h.db.lastBatch() + 1 // not earlier: until now another process may have written
	tick, trim := time.NewTicker(flushEvery), time.NewTicker(trimEvery)
	defer tick.Stop()
	defer trim.Stop()
	var spare []byte
	for {
		var waiting chan struct{}
		select {
		case <-ctx.Done():
			h.take(nil)
			h.flush(true)
			h.db.close()
			return
		case <-h.wake:
			spare = h.take(spare)
			continue // what is not a whole batch is written at the next tick
		case <-tick.C:
		case <-trim.C:
			s := h.settings.Load()
			h.report("forgetting old messages", h.db.trim(time.Now().Add(-s.Keep), s.MaxBytes))
		case waiting = <-h.syncs:
		}
		spare = h.take(spare)
		h.flush(waiting != nil) // a search reads the database alone
		if waiting != nil {
			close(waiting)
		}
	}
}

// take sorts the waiting events to their messages and returns the buffer for reuse.
func (h *History) take(spare []byte) []byte {
	h.mu.Lock()
	events := h.buf
	h.buf = spare[:0]
	h.mu.Unlock()
	now := time.Now()
	for b := events; len(b) > 0; {
		var w waiting
		w, b = nextWaiting(b)
		if len(w.id) == 0 {
			h.anonymous(&w)
		} else {
			h.event(&w, now)
		}
	}
	return events
}

// event takes an event of a message that has an id.
func (h *History) event(w *waiting, now time.Time) {
	kind := w.kind()
	p := h.pending[mail.ID(w.id)]
	if p == nil {
		id := mail.ID(w.id)
		p = h.newPending(now)
		if kind != timeline.Queued && kind != timeline.Check {
			if events := h.db.live(id); events != nil { // it lingered, or we were restarted
				p.events, p.stored = events, true
			}
		}
		h.pending[id] = p
	}
	if kind == timeline.Queued || kind == timeline.Refused {
		h.moveChecks(w.trace, p)
	}
	if len(p.events)+len(w.event) > maxEvents && kind != timeline.Final {
		h.m.dropped.Inc()
	} else {
		p.events = append(p.events, w.event...)
		if !p.named {
			p.events, p.named = appendID(p.events, mail.ID(w.id)), true
		}
		p.dirty = true
	}
	if kind == timeline.Final || kind == timeline.Refused {
		h.add(p.events)
		if p.stored {
			h.current.ended = append(h.current.ended, mail.ID(w.id))
		}
		delete(h.pending, mail.ID(w.id))
		h.release(p)
	}
}

// anonymous takes an event of a message that has no id yet. What checks say of it waits for the message; other events stand for
// themselves.
func (h *History) anonymous(w *waiting) {
	p := h.checks[w.trace]
	if w.kind() != timeline.Check {
		if p == nil {
			h.add(w.event)
			return
		}
		h.add(append(p.events, w.event...))
		delete(h.checks, w.trace)
		h.release(p)
		return
	}
	if p == nil {
		if len(h.checks) >= maxPending { // of clients that never went on; nobody will ask for them
			clear(h.checks)
		}
		p = h.newPending(time.Time{})
		h.checks[w.trace] = p
	}
	if len(p.events)+len(w.event) <= maxChecks {
		p.events = append(p.events, w.event...)
	}
}

// moveChecks gives the message what checks said of it before it had an id.
func (h *History) moveChecks(tr trace.ID, p *pendingMessage) {
	if checks := h.checks[tr]; checks != nil {
		p.events = append(p.events, checks.events...)
		delete(h.checks, tr)
		h.release(checks)
	}
}

// newPending returns an empty pendingMessage, a used one if there is one.
func (h *History) newPending(now time.Time) *pendingMessage {
	if n := len(h.spare); n > 0 {
		p := h.spare[n-1]
		h.spare = h.spare[:n-1]
		*p = pendingMessage{events: p.events[:0], since: now}
		return p
	}
	return &pendingMessage{since: now, events: make([]byte, 0, usualEvents)}
}

// release keeps a pendingMessage that nobody uses any more for the next one.
func (h *History) release(p *pendingMessage) {
	if len(h.spare) < maxSpare && cap(p.events) <= spareEvents {
		h.spare = append(h.spare, p)
	}
}

// add puts a finished message into the current batch.
func (h *History) add(events []byte) {
	h.current.add(events)
	h.m.messages.Inc()
	if h.current.n >= batchMessages {
		h.seal()
	}
}

func (h *History) seal() {
	h.report("writing", h.db.write(&h.current))
	h.current.next()
}

// flush writes the current batch as it is, and the messages that linger.
func (h *History) flush(all bool) {
	if h.current.dirty {
		h.report("writing", h.db.write(&h.current))
		if time.Since(h.current.began) > batchAge {
			h.current.next()
		}
	}
	var lingering []mail.ID
	now := time.Now()
	for id, p := range h.pending {
		if p.dirty && (all || now.Sub(p.since) > lingers || len(h.pending) > maxPending) {
			lingering = append(lingering, id)
		}
	}
	if len(lingering) == 0 {
		return
	}
	if err := h.db.writeLive(lingering, h.pending); err != nil {
		h.report("writing", err)
		return
	}
	for _, id := range lingering {
		// What is written can be read back when the message moves again.
		delete(h.pending, id)
	}
}

func (h *History) report(what string, err error) {
	if err == nil {
		return
	}
	h.m.failures.Inc()
	log.Errorf("history: %s: %v", what, err)
	if h.db.damaged(err) {
		if err := h.db.replace(); err != nil {
			log.Errorf("history: starting a new database: %v", err)
		}
	}
}

// sync waits until everything observed so far can be found.
func (h *History) sync(ctx context.Context) {
	w := make(chan struct{})
	select {
	case h.syncs <- w:
		<-w
	case <-h.done:
	case <-ctx.Done():
	}
}
