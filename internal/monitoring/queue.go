package monitoring

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// How much the queue's page shows.
const (
	queuePage    = 50
	shownGroups  = 8
	manyGroups   = 100
	dumpMessages = 10_000
)

// filterParams are the parameters that choose messages, and listParams those that say how to list them.
var (
	filterParams = []string{"id", "sender", "recipient", "destination", "reason", "state", "older", "younger"}
	listParams   = []string{"sort", "after", "limit", "by"}
	queueSorts   = []string{"", "age", "-age", "next", "size", "attempts"}
	queueStates  = []string{"", "waiting", "sending", "held"}
	groupings    = []string{"destination", "reason", "sender"}
)

// queueData is the queue's page.
type queueData struct {
	Stats  QueueStatus              `json:"stats"`
	Ages   map[string]float64       `json:"by_age,omitempty"`
	Total  int                      `json:"selected"` // messages that the filter selects
	Groups map[string][]queue.Group `json:"groups,omitempty"`
	Items  []queue.Item             `json:"messages"`
	Next   string                   `json:"next_page,omitempty"`

	filter queue.Filter
	query  url.Values
}

func (s *Server) addQueue() {
	s.addView(&view{path: "/debug/queue", title: "Queue", about: "messages that wait, and what for", group: "Mail", plain: true,
		params: slices.Concat(filterParams, listParams), load: s.loadQueue, sheet: queueSheet, text: s.dumpQueue})
	s.addView(&view{path: "/debug/queue/{id}", load: s.loadItem, sheet: itemSheet})
	if !s.replaced("/debug/queue") {
		s.mux.HandleFunc("POST /debug/queue", s.operateQueue)
	}
}

// parseFilter reads the filter of a query or form.
func parseFilter(q url.Values) (f queue.Filter, err error) {
	f = queue.Filter{ID: mail.ID(q.Get("id")), Sender: q.Get("sender"), Recipient: q.Get("recipient"), Destination: q.Get("destination"),
		Reason: q.Get("reason"), State: q.Get("state")}
	if f.Reason == mail.ReasonNone.String() {
		f.Reason = ""
	}
	if _, ok := mail.ParseReason(f.Reason); f.Reason != "" && !ok {
		return f, badRequest("unknown reason %q", clip(f.Reason))
	}
	if !slices.Contains(queueStates, f.State) {
		return f, badRequest("unknown state %q", clip(f.State))
	}
	for name, d := range map[string]*time.Duration{"older": &f.OlderThan, "younger": &f.YoungerThan} {
		if t := q.Get(name); t != "" {
			if *d, err = time.ParseDuration(t); err != nil || *d < 0 {
				return f, badRequest("%s must be a duration such as 30m or 4h", name)
			}
		}
	}
	return f, nil
}

func parsePage(q url.Values) (p queue.Page, err error) {
	p = queue.Page{Sort: q.Get("sort"), After: q.Get("after"), Limit: queuePage}
	if !slices.Contains(queueSorts, p.Sort) {
		return p, badRequest("sort must be one of %s", strings.Join(queueSorts[1:], ", "))
	}
	if key, id, ok := strings.Cut(p.After, "-"); p.After != "" && (!ok || !isHex(key, 16) || len(id) != 32 || !isHex(id, 32)) {
		return p, badRequest("bad page")
	}
	if t := q.Get("limit"); t != "" {
		if p.Limit, err = strconv.Atoi(t); err != nil || p.Limit < 1 || p.Limit > queue.MaxList {
			return p, badRequest("limit must be a number up to %d", queue.MaxList)
		}
	}
	return p, nil
}

func isHex(s string, max int) bool {
	return s != "" && len(s) <= max && strings.Trim(s, "0123456789abcdef") == ""
}

func (s *Server) loadQueue(r *http.Request) (any, error) {
	if s.conf.Queue == nil {
		return nil, errNotHere
	}
	q := r.URL.Query()
	f, err := parseFilter(q)
	if err != nil {
		return nil, err
	}
	p, err := parsePage(q)
	if err != nil {
		return nil, err
	}
	by := groupings
	limit := shownGroups
	if g := q.Get("by"); g != "" {
		if !slices.Contains(groupings, g) {
			return nil, badRequest("by must be one of %s", strings.Join(groupings, ", "))
		}
		by, limit = []string{g}, manyGroups
	}
	d := &queueData{filter: f, query: q, Groups: map[string][]queue.Group{}}
	if !acceptsHTML(r) && q.Get("format") != "html" && !strings.HasSuffix(r.URL.Path, ".json") && q.Get("format") != "json" {
		return d, nil // the dump looks for itself
	}
	st := s.conf.Queue.Stats()
	d.Stats = QueueStatus{Items: int64(st.Messages), Capacity: int64(st.Capacity), Sending: int64(st.Sending), Held: int64(st.Held), Bytes: st.Bytes, Oldest: st.Oldest}
	if a := s.ages.Load(); a != nil {
		d.Ages = *a
	}
	l, err := s.conf.Queue.List(r.Context(), f, p)
	if err != nil {
		return nil, err
	}
	d.Total, d.Items, d.Next = l.Total, l.Items, l.Next
	for _, g := range by {
		if d.Groups[g], err = s.conf.Queue.Groups(r.Context(), f, g, limit); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// dumpQueue is what existing tools read. Of a very long queue it shows the beginning.
func (s *Server) dumpQueue(w io.Writer, r *http.Request, data any) error {
	b := &limitedBuffer{left: maxAnswer / 2}
	if err := s.conf.Queue.WriteDump(r.Context(), b, dumpMessages); err != nil && !errors.Is(err, errTooMuch) {
		return err
	}
	_, err := io.WriteString(w, multiline(b.String()))
	return err
}

// with returns the path with the query changed: pairs of names and values, empty ones removed.
func with(path string, q url.Values, pairs ...string) string {
	c := url.Values{}
	for k, v := range q {
		if len(v) > 0 && v[0] != "" && k != "after" {
			c.Set(k, v[0])
		}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if c.Del(pairs[i]); pairs[i+1] != "" {
			c.Set(pairs[i], pairs[i+1])
		}
	}
	if len(c) == 0 {
		return path
	}
	return path + "?" + c.Encode()
}

func queueSheet(r *http.Request, data any) *sheet {
	d := data.(*queueData)
	q := d.query
	sh := &sheet{Title: "Queue"}
	sh.add(block{Facts: []fact{
		{"messages", []cell{{Text: strconv.FormatInt(d.Stats.Items, 10), Class: "b"}, dim("of at most " + strconv.FormatInt(d.Stats.Capacity, 10) + ", " + byteSize(d.Stats.Bytes))}},
		{"of these", []cell{anchor(fmt.Sprintf("%d being sent", d.Stats.Sending), with("/debug/queue", nil, "state", "sending")), anchor(fmt.Sprintf("%d held", d.Stats.Held), with("/debug/queue", nil, "state", "held"))}},
		{"oldest", []cell{txt(oldest(d.Stats))}}}})
	sh.add(block{Table: ageTable(d.Ages)})
	if q.Get("after") == "" {
		for _, g := range groupings {
			if groups, ok := d.Groups[g]; ok {
				sh.add(groupBlock(g, groups, d))
			}
		}
	}
	sh.add(block{Heading: "Messages", Form: filterForm(q)})
	what := "All " + itoa(d.Total) + " messages"
	if d.filter != (queue.Filter{}) {
		what = itoa(d.Total) + " messages match"
	}
	sh.para(cell{Text: what, Class: "b"}, anchor("as text", with("/debug/queue", nil, "format", "text")), anchor("as JSON", with("/debug/queue.json", q)))
	sh.add(block{Table: itemTable(d)})
	if d.Next != "" {
		sh.para(anchor("next page", with("/debug/queue", q, "after", d.Next)))
	}
	if d.Total > 0 {
		sh.add(block{Heading: "Do to all " + itoa(d.Total) + " that match", Form: operateForm(q)})
		sh.para(dim("Nothing happens before you have seen how many it is for and confirmed it."))
	}
	return sh
}

func oldest(st QueueStatus) string {
	if st.Items == 0 {
		return "–"
	}
	return span(st.Oldest)
}

// ageNames are the classes of the metric in order, and what they are called here.
var ageNames = []struct{ key, name string }{{"under_5m", "under 5 min"}, {"5m_1h", "5 min – 1 h"}, {"1h_4h", "1 – 4 h"}, {"4h_24h", "4 – 24 h"}, {"over_24h", "over 24 h"}}

// ageTable is the shape of the queue.
func ageTable(ages map[string]float64) *table {
	if len(ages) == 0 {
		return nil
	}
	t, row, top := &table{Wide: true, Style: "even"}, []cell{}, 1.0
	for _, a := range ageNames {
		top = max(top, ages[a.key])
	}
	for _, a := range ageNames {
		t.Columns = append(t.Columns, column{Name: a.name})
		row = append(row, cell{Text: short(ages[a.key]), Bar: ages[a.key] / top})
	}
	t.Rows = [][]cell{row}
	return t
}

func groupBlock(by string, groups []queue.Group, d *queueData) block {
	t := &table{Columns: columns(by, "#messages", "#recipients", "#size", "oldest"), Empty: "none", Wide: true}
	t.Columns[2].Class, t.Columns[3].Class = "n o", "n o" // left out where it is narrow
	top := 1
	for _, g := range groups {
		top = max(top, g.Messages)
	}
	for _, g := range groups {
		name := g.Name
		switch {
		case by == "reason" && (name == "" || name == "none"):
			name = "not tried yet"
		case by == "sender" && name == "":
			name = "<>"
		}
		c := cell{Text: name, Href: with("/debug/queue", d.query, by, g.Name, "by", ""), Bar: float64(g.Messages) / float64(top)}
		if by == "reason" && name == "not tried yet" {
			c.Href = ""
		}
		t.Rows = append(t.Rows, []cell{c, num(g.Messages), num(g.Recipients), {Text: byteSize(g.Bytes), Class: "n"}, txt(ago(g.Oldest))})
	}
	b := block{Heading: "By " + by, ID: by, Table: t}
	if len(groups) == shownGroups && d.query.Get("by") == "" {
		b.Para = []cell{anchor("more", with("/debug/queue", d.query, "by", by))}
	}
	return b
}

func filterForm(q url.Values) *form {
	reasons := []string{""}
	for r := mail.ReasonNone + 1; r < mail.NumReasons; r++ {
		reasons = append(reasons, r.String())
	}
	fields := []field{{Name: "sender", Label: "sender", Hint: "user@domain, @domain, <>"}, {Name: "recipient", Label: "recipient", Hint: "user@domain, @domain"},
		{Name: "destination", Label: "destination"}, {Name: "reason", Label: "reason", Options: reasons}, {Name: "state", Label: "state", Options: queueStates},
		{Name: "older", Label: "older than", Hint: "4h"}, {Name: "sort", Label: "order", Options: queueSorts}}
	for i := range fields {
		fields[i].Value = q.Get(fields[i].Name)
	}
	return &form{Action: "/debug/queue", Fields: fields, Buttons: []button{{Label: "Filter"}}}
}

func itemTable(d *queueData) *table {
	t := &table{Columns: columns("id", "from and to", "age", "next attempt", "#tries", "last failure", "#size"), Empty: "No message matches."}
	for i, s := range map[int]string{2: "age", 3: "next", 4: "attempts", 6: "size"} {
		if s == "age" && cmp.Or(d.query.Get("sort"), "age") == "age" {
			s = "-age"
		}
		t.Columns[i].Href = with("/debug/queue", d.query, "sort", s)
	}
	for i := range d.Items {
		t.Rows = append(t.Rows, itemRow(&d.Items[i]))
	}
	return t
}

func itemRow(it *queue.Item) []cell {
	tries, to, fail := 0, "", cell{}
	for _, r := range it.Rcpts {
		tries = max(tries, r.Attempts)
		if to == "" || r.Status == "PENDING" && fail.Text == "" {
			to = r.To
		}
		if r.LastFailure != "" && fail.Text == "" {
			fail = cell{Text: r.Reason, Small: cut(r.LastFailure, 200)}
		}
	}
	if n := len(it.Rcpts); n > 1 {
		to += fmt.Sprintf(" and %d more", n-1)
	}
	if it.Error != "" {
		fail = cell{Text: it.Error, Class: "bad"}
	}
	next := dim("–")
	switch {
	case it.State == "sending":
		next = cell{Text: "now", Class: "ok"}
	case it.State == "held":
		next = cell{Text: "held", Class: "warn"}
	case !it.Next.IsZero():
		next = txt(due(it.Next))
	}
	return []cell{{Text: string(it.ID), Href: "/debug/queue/" + url.PathEscape(string(it.ID)), Class: "mono"}, {Text: it.From, Small: to}, txt(span(time.Since(it.Arrived))), next,
		num(tries), fail, {Text: byteSize(it.Size), Class: "n"}}
}

// due is when an attempt will be, which may be overdue for lack of a slot.
func due(t time.Time) string {
	if !t.After(time.Now()) {
		return "waits for a slot"
	}
	return ago(t)
}

func (s *Server) loadItem(r *http.Request) (any, error) {
	if s.conf.Queue == nil {
		return nil, errNotHere
	}
	it, err := s.conf.Queue.Item(mail.ID(pathID(r)))
	if errors.Is(err, queue.ErrNotFound) {
		return nil, notFound("no such message in the queue; /debug/messages knows those that have left it")
	}
	tid, _ := trace.ParseID(it.Trace)
	return &itemData{it, s.known(tid) != trace.ID{}}, err
}

// itemData is one message of the queue.
type itemData struct {
	queue.Item
	traced bool // its trace is kept
}

func itemSheet(_ *http.Request, data any) *sheet {
	it := data.(*itemData)
	sh := &sheet{Title: "Message " + string(it.ID)}
	state := cell{Text: it.State, Class: "b"}
	facts := []fact{{"state", []cell{state}}, {"from", []cell{txt(it.From)}}, {"arrived", moment(it.Arrived)}, {"size", []cell{txt(byteSize(it.Size))}},
		{"source", []cell{txt(it.Source)}}, {"client", []cell{txt(it.Client)}}, {"user", []cell{txt(it.User)}}, {"Message-ID", []cell{txt(it.MessageID)}}}
	if it.Trace != "" {
		facts = append(facts, fact{"trace", []cell{traceCell(it.Trace, it.traced)}})
	}
	facts = slices.DeleteFunc(facts, func(f fact) bool { return f.Value[0].Text == "" })
	if it.Error != "" {
		facts = append(facts, fact{"error", []cell{{Text: it.Error, Class: "bad"}}})
	}
	sh.add(block{Facts: facts})
	sh.para(anchor("What happened to it so far", with("/debug/messages", nil, "q", string(it.ID))), dim("with every attempt"))
	t := &table{Columns: columns("recipient", "status", "destination", "#tries", "next attempt", "gives up", "last failure"), Empty: "none"}
	for _, r := range it.Rcpts {
		to := cell{Text: r.To}
		if r.Orig != r.To {
			to.Small = "for " + r.Orig
		}
		status := cell{Text: strings.ToLower(r.Status), Small: r.Doing}
		next, giveUp := dim("–"), dim("–")
		if !r.Next.IsZero() {
			next = cell{Text: due(r.Next), Small: utc(r.Next)}
		}
		if r.Held {
			next = cell{Text: "held", Class: "warn"}
		}
		if !r.GiveUp.IsZero() {
			giveUp = txt(ago(r.GiveUp))
		}
		fail := cell{Text: r.LastFailure, Small: strings.TrimSpace(r.Reason + " " + r.MTA)}
		t.Rows = append(t.Rows, []cell{to, status, {Text: r.Destination, Href: with("/debug/queue", nil, "destination", r.Destination)}, num(r.Attempts), next, giveUp, fail})
	}
	sh.add(block{Heading: "Recipients", Table: t})
	sh.add(block{Heading: "Do", Form: operateForm(url.Values{"id": {string(it.ID)}})})
	sh.para(dim("The content of a message is not shown here."))
	return sh
}
