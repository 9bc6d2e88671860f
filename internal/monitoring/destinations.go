package monitoring

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// destinationData is what is known of one destination: of deliveries to it since the start, and of what waits for it now.
type destinationData struct {
	Name      string        `json:"name"`
	Delivered int           `json:"delivered"`
	Deferred  int           `json:"deferred"`
	Failed    int           `json:"failed"`
	P95       time.Duration `json:"p95_ns,omitempty"` // of the last attempts
	TLS       string        `json:"tls,omitempty"`    // of the last delivery
	MTA       string        `json:"mta,omitempty"`
	Last      time.Time     `json:"last_attempt,omitzero"`
	Failure   *Failure      `json:"last_failure,omitempty"`

	Queued  int       `json:"queued,omitempty"` // deliveries in the queue
	Running int       `json:"running,omitempty"`
	Limit   int       `json:"limit,omitempty"` // attempts at once
	Why     string    `json:"limit_because,omitempty"`
	Dead    bool      `json:"dead,omitempty"` // left alone until it is probed
	ProbeAt time.Time `json:"probe_at,omitzero"`
	LastErr string    `json:"site_error,omitempty"`
}

func (d *destinationData) attempts() int { return d.Delivered + d.Deferred + d.Failed }

func (s *Server) addDestinations() {
	s.addView(&view{path: "/debug/destinations", title: "Destinations", about: "where mail goes to, how well, and how much at once", group: "Mail",
		load: func(r *http.Request) (any, error) { return s.destinations(r.Context()), nil }, sheet: destinationSheet})
}

// destinations puts together what the timeline and the queue know, those with most work first.
func (s *Server) destinations(ctx context.Context) []destinationData {
	by := s.conf.Recent.destinations()
	if s.conf.Queue != nil {
		for _, q := range s.conf.Queue.Destinations(ctx, shownDestinations) {
			d := by[q.Name]
			if d == nil {
				d = &destinationData{Name: q.Name}
				by[q.Name] = d
			}
			d.Queued, d.Running, d.Limit, d.Why, d.Dead, d.ProbeAt = q.Units, q.Running, q.Limit, q.Why, q.Dead, q.ProbeAt
			d.LastErr = clip(q.LastErr)
		}
	}
	list := make([]destinationData, 0, len(by))
	for _, d := range by {
		list = append(list, *d)
	}
	slices.SortFunc(list, func(a, b destinationData) int {
		return cmp.Or(cmp.Compare(b.Queued, a.Queued), cmp.Compare(b.attempts(), a.attempts()), cmp.Compare(a.Name, b.Name))
	})
	return list[:min(len(list), shownDestinations)]
}

// destinations are the tallies of the destinations, by name.
func (r *Recent) destinations() map[string]*destinationData {
	by := map[string]*destinationData{}
	if r == nil {
		return by
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, t := range r.dests.all() {
		d := &destinationData{Name: name, Delivered: t.delivered, Deferred: t.deferred, Failed: t.failed, TLS: t.tls, MTA: t.mta, Last: t.last}
		if f := t.lastFailure; !f.At.IsZero() {
			d.Failure = &f
		}
		took := slices.Clone(t.took[:min(t.tookN, keptTook)])
		if slices.Sort(took); len(took) > 0 {
			d.P95 = took[(len(took)*95+99)/100-1]
		}
		by[name] = d
	}
	return by
}

func destinationSheet(_ *http.Request, data any) *sheet {
	sh := &sheet{Title: "Destinations"}
	sh.para(dim("Attempts since the start, for the destinations with the most; what waits is of now. A destination that fails is tried with fewer deliveries at once, then left alone and probed."))
	t := &table{Columns: columns("destination", "#delivered", "#deferred", "#failed", "#p95", "TLS", "#queued", "at once", "last failure"), Empty: "Nothing was delivered yet."}
	for _, d := range data.([]destinationData) {
		share := cell{Text: itoa(d.Deferred), Class: "n"}
		if n := d.attempts(); n > 0 && d.Deferred > 0 {
			share.Small = fmt.Sprintf("%d %%", 100*d.Deferred/n)
		}
		p95 := dim("–")
		if d.P95 > 0 {
			p95 = cell{Text: span(d.P95), Class: "n"}
		}
		at := cell{}
		switch {
		case d.Dead:
			at = cell{Text: "left alone", Class: "bad", Small: "next try " + due(d.ProbeAt)}
		case d.Limit > 0:
			at = cell{Text: fmt.Sprintf("%d of %d", d.Running, d.Limit), Small: d.Why}
		}
		fail := cell{Text: d.LastErr}
		if f := d.Failure; f != nil {
			fail = cell{Text: f.Reason, Small: ago(f.At) + ": " + cut(f.Text, 160), Href: "/debug/messages/" + string(f.ID)}
		}
		queued := num(d.Queued)
		if d.Queued > 0 {
			queued.Href = with("/debug/queue", nil, "destination", d.Name)
		}
		t.Rows = append(t.Rows, []cell{{Text: d.Name, Class: "b", Small: d.MTA}, num(d.Delivered), share, num(d.Failed), p95, txt(d.TLS), queued, at, fail})
	}
	sh.add(block{Table: t})
	return sh
}
