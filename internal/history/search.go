package history

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Message is one message, or one refusal, as it is found.
type Message struct {
	ID        mail.ID       `json:"id,omitempty"`
	Trace     string        `json:"trace,omitempty"`
	State     string        `json:"state"` // delivered, partly delivered, bounced, queued, refused
	Arrived   time.Time     `json:"arrived"`
	Ended     time.Time     `json:"ended,omitzero"`
	From      string        `json:"from"`
	Rcpts     []string      `json:"recipients"`
	MessageID string        `json:"message_id,omitempty"`
	Client    string        `json:"client,omitempty"`
	User      string        `json:"user,omitempty"`
	Size      int64         `json:"size,omitempty"`
	Events    []Event       `json:"events,omitempty"`
	Took      time.Duration `json:"took_ns,omitempty"`
}

// Query says what to find. Text is a queue id, trace id (or its first 16 digits), Message-ID, address, domain, client address,
// user, or the id the remote gave; empty finds everything.
type Query struct {
	Text          string
	State         string // empty: any
	Since, Until  time.Time
	Limit, Offset int // Limit 0 means 100
}

// Search returns matching messages, latest first, and whether there are more.
func (h *History) Search(ctx context.Context, q Query) (found []Message, more bool, err error) {
	h.sync(ctx)
	if q.Limit <= 0 {
		q.Limit = 100
	}
	m := newMatcher(h, q)
	if err := h.db.use(func(db *sql.DB) error { return m.live(ctx, db) }); err != nil {
		return nil, false, err
	}
	if err := h.db.use(func(db *sql.DB) error { return m.batches(ctx, db) }); err != nil {
		return nil, false, err
	}
	slices.SortStableFunc(m.found, func(a, b Message) int { return b.Arrived.Compare(a.Arrived) })
	m.found = m.found[min(q.Offset, len(m.found)):]
	if len(m.found) > q.Limit {
		return m.found[:q.Limit], true, nil
	}
	return m.found, false, nil
}

// Get returns the message with the queue id or trace id, with all that is known of it.
func (h *History) Get(ctx context.Context, id string) (Message, bool, error) {
	found, _, err := h.Search(ctx, Query{Text: id})
	for _, m := range found {
		if string(m.ID) == id || m.Trace == id {
			return m, true, err
		}
	}
	return Message{}, false, err
}

// matcher collects what a query finds.
type matcher struct {
	q     Query
	text  []string // the text, and its hash if it is an address: what was written while addresses are hashed has that
	keys  []uint64
	found []Message
}

func newMatcher(h *History, q Query) *matcher {
	m := &matcher{q: q}
	if t := strings.ToLower(strings.Trim(strings.TrimSpace(q.Text), "<>")); t != "" {
		m.text = []string{t}
		if strings.Contains(t, "@") {
			m.text = append(m.text, h.hash(t))
		}
	}
	for _, t := range m.text {
		m.keys = append(m.keys, hashKey(t))
	}
	return m
}

// full reports that enough was found, one more than asked for.
func (m *matcher) full() bool { return len(m.found) > m.q.Limit+m.q.Offset }

func (m *matcher) live(ctx context.Context, db *sql.DB) error {
	rows, err := db.QueryContext(ctx, `select events from live order by since desc limit 100000`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() && !m.full() {
		var events sql.RawBytes
		if err := rows.Scan(&events); err != nil {
			return err
		}
		m.try(events)
	}
	return rows.Err()
}

func (m *matcher) batches(ctx context.Context, db *sql.DB) error {
	since, until := int64(0), time.Now().Add(24*time.Hour).UnixMicro()
	if !m.q.Since.IsZero() {
		since = m.q.Since.UnixMicro()
	}
	if !m.q.Until.IsZero() {
		until = m.q.Until.UnixMicro()
	}
	rows, err := db.QueryContext(ctx, `select f.id, f.bloom from batches b join filters f on f.id = b.id where b.ended >= ? and b.began <= ? order by b.id desc`, since, until)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() && !m.full() {
		var id int64
		var filter sql.RawBytes
		if err := rows.Scan(&id, &filter); err != nil {
			return err
		}
		if !m.mayMatch(filter) {
			continue
		}
		var data []byte
		if err := db.QueryRowContext(ctx, `select events from data where id = ?`, id).Scan(&data); err != nil {
			return err
		}
		var newest [][]byte
		messages(data, func(events []byte) bool { newest = append(newest, events); return true })
		for _, events := range slices.Backward(newest) {
			m.try(events)
		}
	}
	return rows.Err()
}

func (m *matcher) mayMatch(filter []byte) bool {
	if len(m.keys) == 0 {
		return true
	}
	return slices.ContainsFunc(m.keys, func(k uint64) bool { return bloomHas(filter, k) })
}

// try keeps the message if it matches.
func (m *matcher) try(events []byte) {
	if len(m.keys) > 0 {
		var keys []uint64
		keys = appendKeys(keys, events)
		if !slices.ContainsFunc(m.keys, func(k uint64) bool { return slices.Contains(keys, k) }) {
			return
		}
	}
	msg := newMessage(events)
	if m.q.State == "" && len(m.text) == 0 && msg.State == "authentication" { // no mail: shown when looked for
		return
	}
	if m.q.State != "" && msg.State != m.q.State || !m.q.Since.IsZero() && msg.Arrived.Before(m.q.Since) || !m.q.Until.IsZero() && msg.Arrived.After(m.q.Until) {
		return
	}
	m.found = append(m.found, msg)
}

// newMessage puts a message together from its events.
func newMessage(b []byte) Message {
	var m Message
	for len(b) > 0 {
		e, rest, ok := decodeEvent(b)
		if !ok {
			break
		}
		m.Events = append(m.Events, e)
		b = rest
	}
	delivered, failed := 0, 0
	for i, e := range m.Events {
		if i == 0 || e.kind == timeline.Queued {
			m.Arrived = e.At
		}
		m.note(e)
		switch {
		case e.kind == timeline.Attempt && e.disposition == mail.Delivered:
			delivered++
		case e.kind == timeline.Attempt && e.disposition == mail.Failed:
			failed++
		}
	}
	m.State = m.state(delivered, failed)
	if !m.Ended.IsZero() {
		m.Took = m.Ended.Sub(m.Arrived)
	}
	return m
}

// note takes what the event tells of the message itself.
func (m *Message) note(e Event) {
	if e.ID != "" {
		m.ID = e.ID
	}
	if e.Trace != (trace.ID{}) {
		m.Trace = e.Trace.String()
	}
	for dst, v := range map[*string]string{&m.MessageID: e.MessageID, &m.Client: e.Client, &m.User: e.User} {
		if v != "" {
			*dst = v
		}
	}
	if e.Size > 0 {
		m.Size = e.Size
	}
	if e.kind == timeline.Queued || e.kind == timeline.Refused {
		m.From, m.Rcpts = e.From, e.Rcpts
	}
	if e.kind == timeline.Final || e.kind == timeline.Refused {
		m.Ended = e.At
	}
}

func (m *Message) state(delivered, failed int) string {
	last := m.Events[len(m.Events)-1].kind
	switch {
	case last == timeline.Refused:
		return "refused"
	case last == timeline.Auth:
		return "authentication"
	case last != timeline.Final:
		return "queued"
	case failed > 0 && delivered > 0:
		return "partly delivered"
	case delivered > 0:
		return "delivered"
	}
	return "bounced"
}
