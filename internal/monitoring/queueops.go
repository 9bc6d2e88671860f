package monitoring

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/log"
)

// queueAll selects every message.
var queueAll queue.Filter

// operateWait is how long the answer to an operation waits for its end.
const operateWait = 15 * time.Second

// operation is one of them.
type operation struct{ name, label, class, about string }

func findOperation(name string) (operation, bool) {
	i := slices.IndexFunc(operations, func(o operation) bool { return o.name == name })
	if i < 0 {
		return operation{}, false
	}
	return operations[i], true
}

// operations are what can be done, and what they are called.
var operations = []operation{
	{"hold", "Hold", "", "is not attempted until it is released"},
	{"release", "Release", "", "is attempted again"},
	{"retry", "Retry now", "", "is attempted at once"},
	{"bounce", "Return to sender", "bad", "is given up, and its sender is told"},
	{"drop", "Drop", "bad", "is removed, and nobody is told"},
}

// operateForm offers the operations on what the query selects.
func operateForm(q url.Values) *form {
	f := &form{Action: "/debug/queue", Post: true, Fields: hiddenFilter(q)}
	for _, o := range operations {
		f.Buttons = append(f.Buttons, button{"op", o.name, o.label, o.class})
	}
	return f
}

func hiddenFilter(q url.Values) (fields []field) {
	for _, p := range filterParams {
		if v := q.Get(p); v != "" {
			fields = append(fields, field{Name: p, Value: v, Hidden: true})
		}
	}
	return fields
}

// operateQueue does an operation. Without "confirm" it only tells how many messages it is for. confirm is their number, or "yes".
func (s *Server) operateQueue(w http.ResponseWriter, r *http.Request) {
	if s.conf.Queue == nil {
		sendError(w, errNotHere)
		return
	}
	form, err := postForm(w, r, append([]string{"op", "confirm"}, filterParams...))
	if err != nil {
		sendError(w, err)
		return
	}
	f, err := parseFilter(form)
	o, ok := findOperation(form.Get("op"))
	if err == nil && !ok {
		err = badRequest("op must be hold, release, retry, bounce or drop")
	}
	if err != nil {
		sendError(w, err)
		return
	}
	n, err := s.conf.Queue.Count(r.Context(), f)
	if err != nil {
		sendError(w, err)
		return
	}
	confirmed := form.Get("confirm")
	if most, err := strconv.Atoi(confirmed); confirmed != "yes" && (err != nil || n > most) {
		s.sendSheet(w, r, http.StatusOK, previewSheet(o, form, n, confirmed != ""))
		return
	}
	s.operate(w, r, form, f)
}

// previewSheet asks whether to do it.
func previewSheet(o operation, q url.Values, n int, grew bool) *sheet {
	sh := &sheet{Title: fmt.Sprintf("%s: %d messages", o.label, n)}
	if grew {
		sh.para(cell{Text: "There are more messages now than there were when you confirmed. Nothing was done.", Class: "warn"})
	}
	sh.para(txt("Each of"), anchor(itoa(n)+" messages", with("/debug/queue", onlyFilter(q))), txt(o.about+"."))
	for _, f := range hiddenFilter(q) {
		sh.add(block{Facts: []fact{oneFact(f.Name, txt(f.Value))}})
	}
	class := "b"
	if o.class != "" {
		class = o.class
	}
	fields := append(hiddenFilter(q), field{Name: "op", Value: o.name, Hidden: true}, field{Name: "confirm", Value: itoa(n), Hidden: true})
	if n > 0 {
		sh.add(block{Form: &form{Action: "/debug/queue", Post: true, Fields: fields, Buttons: []button{{Label: fmt.Sprintf("%s: all %d", o.label, n), Class: class}}}})
	}
	sh.para(anchor("back to the queue", with("/debug/queue", onlyFilter(q))))
	return sh
}

func onlyFilter(q url.Values) url.Values {
	c := url.Values{}
	for _, f := range hiddenFilter(q) {
		c.Set(f.Name, f.Value)
	}
	return c
}

// operate does it. Very many messages take longer than an answer may: then it goes on and the log tells the end.
func (s *Server) operate(w http.ResponseWriter, r *http.Request, form url.Values, f queue.Filter) {
	op, err := queue.ParseOp(form.Get("op"))
	if err != nil {
		sendError(w, badRequest("%v", err))
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	who := s.operator(r)
	started := s.background(func() {
		defer cancel()
		stop := context.AfterFunc(s.life, cancel)
		defer stop()
		n, err := s.conf.Queue.Operate(ctx, op, f, who)
		log.Infof("monitoring: %v of %d messages done for %s (error: %v)", op, n, who, err)
		done <- result{n, err}
	})
	if !started {
		cancel()
		sendError(w, &httpError{http.StatusServiceUnavailable, "the server is stopping"})
		return
	}
	timer := time.NewTimer(operateWait)
	defer timer.Stop()
	sh := &sheet{Title: "Done"}
	select {
	case res := <-done:
		if res.err != nil {
			sh.Title = "Not all done"
			sh.para(cell{Text: oneLine(res.err), Class: "bad"})
		}
		sh.para(txt(fmt.Sprintf("%v: %d messages.", op, res.n)))
	case <-timer.C:
		sh.Title = "Under way"
		sh.para(txt(fmt.Sprintf("%v goes on; the log tells when it is done.", op)))
	}
	sh.para(anchor("to the queue", with("/debug/queue", onlyFilter(form))), anchor("log", "/debug/log?q=monitoring"))
	s.sendSheet(w, r, http.StatusOK, sh)
}

// postForm reads the form of a POST, strictly.
func postForm(w http.ResponseWriter, r *http.Request, known []string) (url.Values, error) {
	if r.URL.RawQuery != "" {
		return nil, badRequest("parameters belong into the form, not into the address")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		return nil, badRequest("the form cannot be read")
	}
	for k := range r.PostForm {
		if !slices.Contains(known, k) {
			return nil, badRequest("unknown field %q; known are %s", clip(k), strings.Join(known, ", "))
		}
	}
	return r.PostForm, nil
}

// sendSheet answers a POST, with text for who does not ask for HTML.
func (s *Server) sendSheet(w http.ResponseWriter, r *http.Request, code int, sh *sheet) {
	if acceptsHTML(r) {
		s.render(w, "sheet", sh.Title, sh)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	sh.writeText(w)
}
