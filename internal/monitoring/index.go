package monitoring

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"os"
	"runtime"
	"slices"
	"time"

	"blitiri.com.ar/go/log"
)

//go:embed templates/*.html
var templateFiles embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"ago":   ago,
	"days":  daysLeft,
	"bytes": byteSize,
	"utc":   func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}).ParseFS(templateFiles, "templates/*.html"))

// Status is what the index shows of the rest of the server, taken at the time of the request.
type Status struct {
	Listeners    []ListenerStatus
	Queue        QueueStatus
	Certificates []CertificateStatus
	Domains      int
	Users        int
	ReloadAt     time.Time
	ReloadErr    error
	Traffic      []Figure
	Rejections   []Rejection
}

// ListenerStatus is one SMTP listener.
type ListenerStatus struct {
	Address, Mode string
	Open, Total   int64
}

// QueueStatus is the queue in figures.
type QueueStatus struct {
	Items, Capacity int64
	Recipients      int64
	Sending         int64
	Held            int64
	Bytes           int64
	Oldest          time.Duration
}

// CertificateStatus is one certificate in use.
type CertificateStatus struct {
	Name     string
	Names    []string
	NotAfter time.Time
}

// Figure is a labelled number for the index.
type Figure struct {
	Label string
	Value int64
	Bad   bool // a number above zero deserves a look
}

// Rejection is one refused message or command.
type Rejection struct {
	At       time.Time
	Client   string
	From, To string
	Reason   string
}

// page is what every template gets.
type page struct {
	Title    string
	Build    Build
	Hostname string
	Started  time.Time
	Now      time.Time
	Data     any
}

// Uptime is how long the server runs.
func (p page) Uptime() time.Duration { return p.Now.Sub(p.Started).Round(time.Second) }

// render renders a template into memory and sends it, so that a failing template gives an error page and a slow client holds nothing.
func (s *Server) render(w http.ResponseWriter, r *http.Request, name, title string, data any) {
	var b bytes.Buffer
	p := page{Title: title, Build: s.conf.Build, Hostname: s.conf.Hostname, Started: s.conf.Started, Now: time.Now(), Data: data}
	if err := templates.ExecuteTemplate(&b, name+".html", p); err != nil {
		log.Errorf("monitoring: rendering %s: %v", name, err)
		http.Error(w, "this page failed; the log has the details", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(b.Bytes())
}

// indexData is the content of the index.
type indexData struct {
	Checks []CheckResult
	Failed []CheckResult
	Status Status
	Groups []linkGroup
	OSHost string
	GoOS   string
}

type linkGroup struct {
	Name  string
	Links []link
}

type link struct{ Path, Title, About string }

// builtinLinks are the pages of this package; those of other components are in Config.Pages.
var builtinLinks = []Page{
	{Path: "/debug/goroutines", Title: "Goroutines", About: "what every goroutine does, grouped by stack", Group: "Process"},
	{Path: "/debug/pprof/", Title: "Profiles", About: "for go tool pprof: CPU, heap, mutexes, execution traces", Group: "Process"},
	{Path: "/debug/flags", Title: "Flags", About: "command-line flags", Group: "Configuration"},
	{Path: "/healthz", Title: "Alive", About: "answers while the process runs", Group: "Health"},
	{Path: "/readyz?verbose", Title: "Ready", About: "every check with its reason", Group: "Health"},
}

func (s *Server) links() []linkGroup {
	var groups []linkGroup
	for _, p := range slices.Concat(s.conf.Pages, builtinLinks) {
		if p.Title == "" {
			continue
		}
		i := slices.IndexFunc(groups, func(g linkGroup) bool { return g.Name == p.Group })
		if i < 0 {
			i = len(groups)
			groups = append(groups, linkGroup{Name: p.Group})
		}
		groups[i].Links = append(groups[i].Links, link{p.Path, p.Title, p.About})
	}
	return groups
}

func (s *Server) index(w http.ResponseWriter, r *http.Request) {
	d := indexData{Checks: s.RunChecks(r.Context()), Groups: s.links(), GoOS: runtime.GOOS + "/" + runtime.GOARCH}
	d.OSHost, _ = os.Hostname()
	for _, c := range d.Checks {
		if c.Err != nil {
			d.Failed = append(d.Failed, c)
		}
	}
	if s.conf.Status != nil {
		d.Status = s.conf.Status()
	}
	s.render(w, r, "index", "chasquid on "+s.conf.Hostname, d)
}

// ago renders a time relative to now, "3m12s ago".
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}

// daysLeft is the number of whole days until t; negative when it has passed.
func daysLeft(t time.Time) int { return int(time.Until(t).Hours() / 24) }

// byteSize renders a size in binary units.
func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}
