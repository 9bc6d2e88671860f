package monitoring

import (
	"fmt"
	"net/http"
	"time"
)

// Limits of watching live.
const (
	tailTime  = 5 * time.Minute
	tailPulse = 15 * time.Second // without news for so long, a sign of life is sent
)

func (s *Server) addTail() {
	if s.conf.Traces == nil {
		return
	}
	s.mux.HandleFunc("GET /debug/tail", s.tail)
	s.more = append(s.more, Page{Path: "/debug/tail", Title: "Live", About: "watch what happens to one client, user, sender or recipient", Group: "Traces"})
}

// tail shows as it happens what is traced about a text. Four can watch at once, for five minutes each.
func (s *Server) tail(w http.ResponseWriter, r *http.Request) {
	q, err := query(r)
	text := ""
	if err == nil {
		for k := range q {
			if k != "for" {
				err = badRequest("unknown parameter %q; this page knows: for", clip(k))
			}
		}
		text = q.Get("for")
	}
	if err != nil {
		sendError(w, err)
		return
	}
	if text == "" {
		s.sendSheet(w, r, http.StatusOK, tailSheet())
		return
	}
	watch, err := s.conf.Traces.Watch(text, tailTime)
	if err != nil {
		http.Error(w, printable(err.Error()), http.StatusServiceUnavailable)
		return
	}
	defer watch.Close()
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Time{}) // the deadline for reading the request would end it
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "# watching for %s, until %s; what begins from now on shows\n", printable(text), utc(time.Now().Add(tailTime)))
	pulse := time.NewTicker(tailPulse)
	defer pulse.Stop()
	for {
		if rc.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil || rc.Flush() != nil {
			return
		}
		select {
		case line, ok := <-watch.Lines():
			if !ok {
				fmt.Fprintln(w, "# the time is over")
				return
			}
			if n := watch.Dropped(); n > 0 {
				fmt.Fprintf(w, "# %d lines were dropped: they came faster than they could be sent\n", n)
			}
			fmt.Fprintln(w, printable(line))
		case <-pulse.C:
			fmt.Fprintf(w, "# %s\n", time.Now().UTC().Format("15:04:05"))
		case <-r.Context().Done():
			return
		case <-s.life.Done():
			fmt.Fprintln(w, "# the server is stopping")
			return
		}
	}
}

func tailSheet() *sheet {
	sh := &sheet{Title: "Live"}
	sh.add(block{Form: &form{Action: "/debug/tail", Buttons: []button{{Label: "Watch", Class: "b"}}, Fields: []field{{Name: "for", Label: "client address, user, sender or recipient", Wide: true}}}})
	sh.para(dim("Lines appear as things happen, for five minutes. With curl: curl -N 'http://…/debug/tail?for=someone@example.org'"))
	return sh
}
