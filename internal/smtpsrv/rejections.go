package smtpsrv

import (
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// keptRejections is how many refusals the pages can show.
const keptRejections = 100

// Rejection is one refused command or message as the monitoring pages show it. Its texts come from strangers.
type Rejection struct {
	At           time.Time
	Mode, Client string
	User         string // authenticated "user@domain", or empty
	From         string // "<>" for the null sender, empty if there was none yet
	Rcpts        []string
	Reply        string
	Reason       string
	Trace        trace.ID
}

// rejections is the last refusals, in a ring.
type rejections struct {
	mu   sync.Mutex
	ring [keptRejections]*timeline.Event
	next int
}

func (r *rejections) add(e *timeline.Event) {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	r.mu.Lock()
	r.ring[r.next%keptRejections] = e
	r.next++
	r.mu.Unlock()
}

// Rejections returns the last refusals, at most n, the newest first.
func (srv *Server) Rejections(n int) []Rejection {
	r := &srv.rejects
	r.mu.Lock()
	var events []*timeline.Event
	for i := r.next - 1; i >= 0 && i >= r.next-keptRejections && len(events) < n; i-- {
		events = append(events, r.ring[i%keptRejections])
	}
	r.mu.Unlock()
	list := make([]Rejection, 0, len(events))
	for _, e := range events {
		x := Rejection{At: e.At, Mode: e.Mode, Client: e.Client, User: e.User, Reply: e.Reply.String(), Reason: e.Text, Trace: e.Trace}
		if e.Trace != (trace.ID{}) {
			x.From = e.From.LogString()
		}
		for _, to := range e.Rcpts {
			x.Rcpts = append(x.Rcpts, to.String())
		}
		list = append(list, x)
	}
	return list
}
