package monitoring

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Limits of a search.
const (
	messagesPage = 50
	maxOffset    = 100_000
	searchTime   = 10 * time.Second
)

var messageStates = []string{"", "queued", "delivered", "partly delivered", "bounced", "refused", "authentication"}

// messagesData is what a search found.
type messagesData struct {
	Messages []history.Message `json:"messages"`
	More     bool              `json:"more"`
	Took     time.Duration     `json:"took_ns"`

	query  url.Values
	offset int
	here   bool // there is a history
}

// messageData is one message.
type messageData struct {
	history.Message
	InQueue bool `json:"in_queue"`

	traced bool // its trace is kept
}

func (s *Server) addMessages() {
	s.addView(&view{path: "/debug/messages", title: "Messages", about: "what happened to my mail? The last days, found by any of its names", group: "Mail",
		params: []string{"q", "state", "since", "until", "limit", "offset"}, load: s.loadMessages, sheet: messagesSheet})
	s.addView(&view{path: "/debug/messages/{id}", load: s.loadMessage, sheet: messageSheet})
}

// parseWhen reads a time: "2026-01-31", "2026-01-31 14:00", RFC 3339, or how long ago.
func parseWhen(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, badRequest("a time is written 2006-01-02 or 2006-01-02 15:04 (UTC), or 3h for three hours ago")
}

func parseNumber(q url.Values, name string, def, max int) (int, error) {
	t := q.Get(name)
	if t == "" {
		return def, nil
	}
	n, err := strconv.Atoi(t)
	if err != nil || n < 0 || n > max {
		return 0, badRequest("%s must be a number up to %d", name, max)
	}
	return n, nil
}

func (s *Server) loadMessages(r *http.Request) (any, error) {
	q := r.URL.Query()
	hq := history.Query{Text: strings.TrimSpace(q.Get("q")), State: q.Get("state")}
	if !slices.Contains(messageStates, hq.State) {
		return nil, badRequest("unknown state %q", clip(hq.State))
	}
	var err error
	now := time.Now()
	if hq.Since, err = parseWhen(q.Get("since"), now); err != nil {
		return nil, err
	}
	if hq.Until, err = parseWhen(q.Get("until"), now); err != nil {
		return nil, err
	}
	if hq.Limit, err = parseNumber(q, "limit", messagesPage, 1000); err != nil {
		return nil, err
	}
	if hq.Offset, err = parseNumber(q, "offset", 0, maxOffset); err != nil {
		return nil, err
	}
	d := &messagesData{query: q, offset: hq.Offset, here: s.conf.History != nil}
	if !d.here {
		return d, nil
	}
	ctx, cancel := contextFor(r, searchTime)
	defer cancel()
	start := time.Now()
	if d.Messages, d.More, err = s.conf.History.Search(ctx, hq); err != nil {
		return nil, &httpError{http.StatusServiceUnavailable, "the history cannot be searched now: " + err.Error()}
	}
	d.Took = time.Since(start)
	for i := range d.Messages {
		d.Messages[i].Events = nil
	}
	return d, nil
}

func messagesSheet(_ *http.Request, data any) *sheet {
	d := data.(*messagesData)
	sh := &sheet{Title: "Messages"}
	if !d.here {
		sh.para(cell{Text: "The history is not available: the log says why.", Class: "warn"}, anchor("log", "/debug/log?q=history"))
		return sh
	}
	fields := []field{{Name: "q", Label: "what happened to my mail?", Hint: "address, @domain, queue id, Message-ID, client, user, trace id, the remote's id", Wide: true},
		{Name: "state", Label: "state", Options: messageStates}, {Name: "since", Label: "since", Hint: "3h or 2026-01-31"}, {Name: "until", Label: "until"}}
	for i := range fields {
		fields[i].Value = d.query.Get(fields[i].Name)
	}
	sh.add(block{Form: &form{Action: "/debug/messages", Fields: fields, Buttons: []button{{Label: "Search", Class: "b"}}}})
	t := &table{Columns: columns("arrived", "state", "from and to", "client", "#size", "took"), Empty: "Nothing found. What left the server longer ago than the history is kept is not here."}
	for i := range d.Messages {
		t.Rows = append(t.Rows, messageRow(&d.Messages[i]))
	}
	sh.add(block{Table: t})
	nav := []cell{dim(fmt.Sprintf("%d messages, found in %s", len(d.Messages), span(d.Took)))}
	if d.More {
		nav = append(nav, anchor("older", with("/debug/messages", d.query, "offset", itoa(d.offset+len(d.Messages)))))
	}
	sh.para(append(nav, anchor("as JSON", with("/debug/messages.json", d.query)))...)
	return sh
}

// stateClass is the colour of a state.
func stateClass(state string) string {
	switch state {
	case "delivered":
		return "ok"
	case "bounced":
		return "bad"
	case "refused", "partly delivered":
		return "warn"
	}
	return "b"
}

// messageHref is the page of a message. A refusal has no queue id.
func messageHref(m *history.Message) string {
	if m.ID != "" {
		return "/debug/messages/" + url.PathEscape(string(m.ID))
	}
	if m.Trace != "" {
		return "/debug/messages/" + m.Trace
	}
	return ""
}

func messageRow(m *history.Message) []cell {
	to := ""
	if len(m.Rcpts) > 0 {
		to = m.Rcpts[0]
		if len(m.Rcpts) > 1 {
			to += fmt.Sprintf(" and %d more", len(m.Rcpts)-1)
		}
	}
	took := dim("–")
	if m.Took > 0 {
		took = txt(span(m.Took))
	}
	size := dim("–")
	if m.Size > 0 {
		size = cell{Text: byteSize(m.Size), Class: "n"}
	}
	return []cell{{Text: m.Arrived.UTC().Format("01-02 15:04:05"), Href: messageHref(m), Small: string(m.ID)}, {Text: m.State, Class: stateClass(m.State)},
		{Text: m.From, Small: to}, {Text: m.Client, Small: m.User}, size, took}
}

func (s *Server) loadMessage(r *http.Request) (any, error) {
	if s.conf.History == nil {
		return nil, errNotHere
	}
	id := pathID(r)
	m, ok, err := s.conf.History.Get(r.Context(), id)
	if err != nil {
		return nil, &httpError{http.StatusServiceUnavailable, "the history cannot be read now: " + err.Error()}
	}
	tid, _ := trace.ParseID(m.Trace)
	d := &messageData{Message: m, traced: s.known(tid) != trace.ID{}}
	if s.conf.Queue != nil && m.ID != "" {
		_, err := s.conf.Queue.Item(m.ID)
		d.InQueue = err == nil
	}
	if !ok {
		if s.conf.Queue != nil {
			if _, err := s.conf.Queue.Item(mail.ID(id)); err == nil {
				return nil, &redirect{"/debug/queue/" + url.PathEscape(id)} // it came a moment ago
			}
		}
		return nil, notFound("no such message in the history")
	}
	return d, nil
}

func messageSheet(_ *http.Request, data any) *sheet {
	d := data.(*messageData)
	m := &d.Message
	title := "Message " + string(m.ID)
	if m.ID == "" {
		title = "Refused message"
	}
	sh := &sheet{Title: title}
	facts := []fact{{"state", []cell{{Text: m.State, Class: stateClass(m.State)}}}, {"from", []cell{txt(m.From)}}, {"to", []cell{txt(cut(strings.Join(m.Rcpts, ", "), 1000))}},
		{"arrived", moment(m.Arrived)}, {"ended", moment(m.Ended)}, {"client", []cell{{Text: m.Client, Href: searchFor(m.Client)}}},
		{"user", []cell{{Text: m.User, Href: searchFor(m.User)}}}, {"Message-ID", []cell{txt(m.MessageID)}}}
	if m.Size > 0 {
		facts = append(facts, oneFact("size", txt(byteSize(m.Size))))
	}
	if m.Trace != "" {
		facts = append(facts, oneFact("trace", traceCell(m.Trace, d.traced)))
	}
	if d.InQueue {
		facts = append(facts, oneFact("queue", anchor("it is in the queue", "/debug/queue/"+url.PathEscape(string(m.ID)))))
	}
	sh.add(block{Facts: slices.DeleteFunc(facts, func(f fact) bool { return f.Value[0].Text == "" || f.Value[0].Text == "–" })})
	t := &table{Columns: columns("when", "what", "who", "how it went"), Empty: "no events"}
	for i := range m.Events {
		t.Rows = append(t.Rows, eventRow(&m.Events[i], m.Arrived))
	}
	sh.add(block{Heading: "What happened", Table: t})
	return sh
}

// traceCell is a trace id, with a link if there is something to see.
func traceCell(id string, kept bool) cell {
	c := cell{Text: id, Class: "mono", Small: "it is not kept"}
	if kept {
		c.Href, c.Small = "/debug/traces/"+id, ""
	}
	return c
}

func searchFor(s string) string {
	if s == "" {
		return ""
	}
	if host, _, ok := strings.Cut(s, ":"); ok && strings.Count(s, ":") == 1 {
		s = host
	}
	return with("/debug/messages", nil, "q", s)
}

// eventNames are the kinds of events in words, where their name is not good enough.
var eventNames = map[string]string{"auth": "login", "queued": "accepted", "expanded": "alias", "wait": "waits", "final": "left the queue"}

// eventRow renders one event of a message.
func eventRow(e *history.Event, start time.Time) []cell {
	at := cell{Text: e.At.UTC().Format("15:04:05.000"), Small: "+" + span(max(0, e.At.Sub(start)))}
	what := cell{Text: cmp.Or(eventNames[e.Kind], e.Kind)}
	if e.Attempt > 0 {
		what.Text += " " + itoa(e.Attempt)
	}
	who := cell{Text: strings.Join(e.Rcpts, ", ")}
	if e.Orig != "" && e.Orig != who.Text {
		who.Small = "for " + e.Orig
	}
	var how []string
	for _, p := range []string{e.Disposition, e.Reason, e.Text} {
		if p != "" && p != "none" {
			how = append(how, p)
		}
	}
	if e.Wait > 0 {
		how = append(how, "next in "+span(e.Wait))
	}
	if e.Other != "" {
		how = append(how, "as message "+e.Other)
	}
	var small []string
	for _, p := range []string{e.Reply, e.Error, e.MTA, e.TLS} {
		if p != "" && !slices.Contains(small, p) {
			small = append(small, p)
		}
	}
	if e.Took > 0 {
		small = append(small, "took "+span(e.Took))
	}
	res := cell{Text: strings.Join(how, " · "), Small: strings.Join(small, " · ")}
	if e.Other != "" {
		res.Href = "/debug/messages/" + url.PathEscape(e.Other)
	}
	switch {
	case e.Disposition == "delivered" || e.Kind == "final" && e.Error == "":
		res.Class = "ok"
	case e.Disposition == "failed" || e.Disposition == "bounced" || e.Kind == "refused":
		res.Class = "bad"
	case e.Disposition == "deferred":
		res.Class = "warn"
	}
	return []cell{at, what, who, res}
}
