package monitoring

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/log"
)

//go:embed templates/*
var templateFiles embed.FS

// styles are the style sheets: one for all pages, and what the index and the others need besides. Each page has its own within, and allows
// by its hash nothing but that.
var styles = map[string]string{
	"index": mustRead("templates/style.css") + "\n" + mustRead("templates/index.css"),
	"sheet": mustRead("templates/style.css") + "\n" + mustRead("templates/sheet.css"),
}

// stylePolicies are the content policies of pages made here, by style.
var stylePolicies = func() map[string]string {
	policies := map[string]string{}
	for name, css := range styles {
		sum := sha256.Sum256([]byte(css))
		policies[name] = strings.Replace(contentPolicy, "'unsafe-inline'", "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'", 1)
	}
	return policies
}()

func mustRead(name string) string {
	b, err := templateFiles.ReadFile(name)
	if err != nil {
		panic(err) // the file is part of the program
	}
	return strings.TrimSpace(string(b))
}

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"ago":   ago,
	"p":     printable,
	"lines": multiline,
	"cut":   func(s string) string { return cut(s, indexProblem) },
	"dots":  dots,
	"utc":   utc,
	"style": func(name string) template.CSS { return template.CSS(styles[name]) },
	"bar":   func(f float64) string { return strconv.Itoa(int(min(max(f, 0), 1)*100 + 0.5)) },
	"nav":   func() []link { return navigation },
}).ParseFS(templateFiles, "templates/*.html"))

// navigation is on top of each page.
var navigation = []link{
	{"/debug/queue", "queue", ""}, {"/debug/messages", "messages", ""}, {"/debug/traces", "traces", ""}, {"/debug/destinations", "destinations", ""},
	{"/debug/metrics", "metrics", ""}, {"/debug/log", "log", ""}, {"/debug/config", "config", ""}, {"/debug/goroutines", "process", ""},
}

// Limits of a request and of its answer.
const (
	maxQuery   = 4 << 10
	maxBody    = 64 << 10
	maxAnswer  = 8 << 20
	maxRefresh = 3600
)

// view is one page in its forms: HTML, text and JSON.
type view struct {
	path   string // "/debug/auth"; ".json" is added for its twin. A last element "{id}" may stand for anything
	title  string // in the index, with about and group
	about  string
	group  string
	params []string                                           // parameters it understands; others are refused
	plain  bool                                               // clients that do not ask for HTML get text, as existing tools expect
	load   func(r *http.Request) (any, error)                 // what the JSON shows
	sheet  func(r *http.Request, data any) *sheet             // what the HTML and the text are made of
	html   func(s *Server, w http.ResponseWriter, data any)   // instead of sheet, for HTML
	text   func(w io.Writer, r *http.Request, data any) error // instead of sheet, for text
	json   func(w io.Writer, r *http.Request, data any) error // instead of marshalling
}

// httpError is an error with a status code, fit to be shown.
type httpError struct {
	code int
	msg  string
}

func (e *httpError) Error() string { return e.msg }

func badRequest(format string, a ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Sprintf(format, a...)}
}
func notFound(format string, a ...any) error {
	return &httpError{http.StatusNotFound, fmt.Sprintf(format, a...)}
}

// addView registers the page with its twin, unless the wiring brings its own.
func (s *Server) addView(v *view) {
	if s.replaced(v.path) {
		return
	}
	s.views = append(s.views, v)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveView(w, r, v) })
	s.mux.Handle("GET "+v.path, h)
	switch {
	case v.path == "/{$}":
		s.mux.Handle("GET /index.json", h)
	case !strings.HasSuffix(v.path, "}"): // "{id}" takes "id.json", too
		s.mux.Handle("GET "+v.path+".json", h)
	}
}

func (s *Server) replaced(path string) bool {
	return slices.ContainsFunc(s.conf.Pages, func(p Page) bool { return p.Path == path })
}

func (s *Server) serveView(w http.ResponseWriter, r *http.Request, v *view) {
	form, err := v.check(w, r)
	if err != nil {
		sendError(w, err)
		return
	}
	if !s.admit() {
		http.Error(w, "too many pages are being made; try again in a moment", http.StatusServiceUnavailable)
		return
	}
	defer s.release()
	var data any
	if v.load != nil {
		if data, err = v.load(r); err != nil {
			sendError(w, err)
			return
		}
	}
	s.send(w, r, v, form, data)
}

// send renders into memory and sends it, so that a failing page gives an error and a slow client holds nothing.
func (s *Server) send(w http.ResponseWriter, r *http.Request, v *view, form string, data any) {
	if form == "html" && v.html != nil {
		v.html(s, w, data)
		return
	}
	b := &limitedBuffer{left: maxAnswer}
	var err error
	switch {
	case form == "json" && v.json != nil:
		err = v.json(b, r, data)
	case form == "json":
		enc := json.NewEncoder(b)
		enc.SetIndent("", "  ")
		err = enc.Encode(data)
	case form == "text" && v.text != nil:
		err = v.text(b, r, data)
	case form == "text":
		v.sheet(r, data).writeText(b)
	default:
		sh := v.sheet(r, data)
		s.render(w, "sheet", sh.Title, sh)
		return
	}
	if err != nil {
		sendError(w, err)
		return
	}
	contentType := "text/plain; charset=utf-8"
	if form == "json" {
		contentType = "application/json"
	}
	w.Header().Set("Content-Type", contentType)
	w.Write(b.Bytes())
}

// check looks at the query and returns the form that is wanted.
func (v *view) check(w http.ResponseWriter, r *http.Request) (form string, err error) {
	q, err := query(r)
	if err != nil {
		return "", err
	}
	for k := range q {
		if k != "format" && k != "refresh" && !slices.Contains(v.params, k) {
			return "", badRequest("unknown parameter %q; this page knows: %s", clip(k), strings.Join(append(slices.Clone(v.params), "format", "refresh"), ", "))
		}
	}
	if t := q.Get("refresh"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil || n < 1 || n > maxRefresh {
			return "", badRequest("refresh must be a number of seconds up to %d", maxRefresh)
		}
		w.Header().Set("Refresh", strconv.Itoa(n))
	}
	form = q.Get("format")
	switch {
	case strings.HasSuffix(r.URL.Path, ".json"):
		return "json", nil
	case form == "" && v.plain && !acceptsHTML(r):
		return "text", nil
	case form == "":
		return "html", nil
	case form == "html" || form == "text" || form == "json":
		return form, nil
	}
	return "", badRequest("format must be html, text or json")
}

// query parses the query strictly.
func query(r *http.Request) (url.Values, error) {
	if len(r.URL.RawQuery) > maxQuery {
		return nil, &httpError{http.StatusRequestURITooLong, "the query is too long"}
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query cannot be read")
	}
	return q, nil
}

func acceptsHTML(r *http.Request) bool {
	return slices.ContainsFunc(r.Header["Accept"], func(a string) bool { return strings.Contains(a, "text/html") })
}

// pathID is the last element of the path, without the ".json" of a twin.
func pathID(r *http.Request) string { return strings.TrimSuffix(r.PathValue("id"), ".json") }

func sendError(w http.ResponseWriter, err error) {
	var he *httpError
	var rd *redirect
	switch {
	case errors.As(err, &rd):
		w.Header().Set("Location", rd.to)
		w.WriteHeader(http.StatusFound)
	case errors.As(err, &he):
		http.Error(w, printable(he.msg), he.code)
	case errors.Is(err, errNotHere):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.Is(err, errTooMuch):
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
	default:
		log.Errorf("monitoring: %v", err)
		http.Error(w, "this page failed; the log has the details", http.StatusInternalServerError)
	}
}

// page is what every template gets.
type page struct {
	Title    string
	Style    string
	Build    Build
	Hostname string
	Started  time.Time
	Now      time.Time
	Data     any
}

// Uptime is how long the server runs.
func (p page) Uptime() string { return span(p.Now.Sub(p.Started)) }

// render sends a page made with a template.
func (s *Server) render(w http.ResponseWriter, name, title string, data any) {
	b := &limitedBuffer{left: maxAnswer}
	p := page{Title: title, Style: name, Build: s.conf.Build, Hostname: s.names.Load().hostname, Started: s.conf.Started, Now: time.Now(), Data: data}
	if err := templates.ExecuteTemplate(b, name+".html", p); err != nil {
		sendError(w, fmt.Errorf("rendering %s: %w", name, err))
		return
	}
	w.Header().Set("Content-Security-Policy", stylePolicies[name])
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(b.Bytes())
}

var errTooMuch = errors.New("the page would be too large; narrow down what it shows")

// limitedBuffer is a buffer that refuses to grow without end.
type limitedBuffer struct {
	bytes.Buffer
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, errTooMuch
	}
	b.left -= len(p)
	return b.Buffer.Write(p)
}

// maxRendering is how many pages are made at a time.
const maxRendering = 8

func (s *Server) admit() bool {
	select {
	case s.rendering <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) release() { <-s.rendering }
