package monitoring

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Limits of trying out deliveries, as each opens connections to other servers.
const (
	diagnoseTime  = 25 * time.Second
	diagnoseEvery = 5 * time.Second
)

// diagnoseGate admits one dry run now and then.
type diagnoseGate struct {
	mu   sync.Mutex
	last time.Time
}

func (g *diagnoseGate) admit(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.Sub(g.last) < diagnoseEvery {
		return false
	}
	g.last = now
	return true
}

func (s *Server) addDiagnose() {
	if s.conf.Diagnose == nil {
		return
	}
	s.addView(&view{path: "/debug/diagnose", title: "Diagnose", about: "where mail for an address would go, tried out up to the recipient", group: "Mail",
		load: func(*http.Request) (any, error) { return struct{}{}, nil }, sheet: func(*http.Request, any) *sheet { return diagnoseSheet("", "") }})
	s.mux.HandleFunc("POST /debug/diagnose", s.diagnose)
}

func diagnoseSheet(rcpt, result string) *sheet {
	sh := &sheet{Title: "Diagnose a delivery"}
	sh.add(block{Form: &form{Action: "/debug/diagnose", Post: true, Buttons: []button{{Label: "Try", Class: "b"}}, Fields: []field{{Name: "rcpt", Label: "recipient", Value: rcpt, Wide: true}}}})
	sh.para(dim("Aliases, route, DNS, policies, connection, TLS and the recipient are tried. No message is sent."))
	sh.add(block{Pre: result})
	return sh
}

func (s *Server) diagnose(w http.ResponseWriter, r *http.Request) {
	form, err := postForm(w, r, []string{"rcpt"})
	rcpt := form.Get("rcpt")
	switch {
	case err != nil:
	case rcpt == "" || len(rcpt) > 320 || !strings.Contains(rcpt, "@"):
		err = badRequest("rcpt must be a mail address")
	case !s.dry.admit(time.Now()):
		err = &httpError{http.StatusTooManyRequests, "one was tried a moment ago; wait some seconds"}
	}
	if err != nil {
		sendError(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), diagnoseTime)
	defer cancel()
	b := &limitedBuffer{left: 256 << 10}
	if err := s.conf.Diagnose(ctx, b, rcpt); err != nil {
		b.WriteString("\nfailed: " + oneLine(err) + "\n")
	}
	s.sendSheet(w, r, http.StatusOK, diagnoseSheet(rcpt, b.String()))
}
