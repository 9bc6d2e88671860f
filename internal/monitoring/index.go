package monitoring

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
)

// How much the index shows of each.
const (
	shownProblems     = 6
	shownRecent       = 10
	shownListeners    = 6
	shownCertificates = 6
	indexName         = 32  // bytes of an address
	indexText         = 56  // bytes of a text
	indexProblem      = 304 // bytes of a problem
)

// indexData is the content of the index.
type indexData struct {
	Ready        bool                `json:"ready"`
	Checks       []checkView         `json:"checks"`
	Problems     []vitals.Problem    `json:"problems"`
	Vitals       map[string]*float64 `json:"vitals"`
	Queue        QueueStatus         `json:"queue"`
	Listeners    []ListenerStatus    `json:"listeners"`
	Certificates []CertificateStatus `json:"certificates"`
	Domains      int                 `json:"domains"`
	Users        int                 `json:"users"`
	Reload       reloadView          `json:"reload"`
	Rejections   []Rejection         `json:"rejections"`
	Bounces      []Failure           `json:"bounces"`
	Build        Build               `json:"build"`
	Host         string              `json:"host"`
	Platform     string              `json:"platform"`
	Started      time.Time           `json:"started"`
	Succeeded    *Succession         `json:"succeeded,omitempty"`

	More   int         `json:"-"` // problems not shown
	Cards  []vital     `json:"-"`
	Groups []linkGroup `json:"-"`
}

type checkView struct {
	Name    string `json:"name"`
	Error   string `json:"error,omitempty"`
	Warning bool   `json:"warning,omitempty"` // the server is ready in spite of it
}

type reloadView struct {
	At        time.Time `json:"at,omitzero"`
	Error     string    `json:"error,omitempty"`
	ChangedAt time.Time `json:"changed_at,omitzero"`
	Changes   []string  `json:"changes,omitempty"`
	Restart   []string  `json:"restart,omitempty"`
}

type linkGroup struct {
	Name  string
	Links []link
}

type link struct{ Path, Title, About string }

func (s *Server) addIndex() {
	s.addView(&view{path: "/{$}", load: s.loadIndex, text: writeIndex, html: func(s *Server, w http.ResponseWriter, data any) {
		s.render(w, "index", "chasquid", data)
	}})
}

// links lists the pages by group.
func (s *Server) links() []linkGroup {
	var groups []linkGroup
	add := func(group string, l link) {
		if l.Title == "" {
			return
		}
		i := slices.IndexFunc(groups, func(g linkGroup) bool { return g.Name == group })
		if i < 0 {
			i = len(groups)
			groups = append(groups, linkGroup{Name: group})
		}
		groups[i].Links = append(groups[i].Links, l)
	}
	for _, v := range s.views {
		add(v.group, link{v.path, v.title, v.about})
	}
	for _, p := range slices.Concat(s.more, s.conf.Pages) {
		add(p.Group, link{p.Path, p.Title, p.About})
	}
	add("Health", link{"/healthz", "Alive", "answers while the process runs"})
	add("Health", link{"/readyz?verbose", "Ready", "every check with its reason"})
	return groups
}

func (s *Server) loadIndex(r *http.Request) (any, error) {
	d := &indexData{Ready: true, Groups: s.links(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Build: s.conf.Build, Started: s.conf.Started, Succeeded: s.conf.Succeeded,
		Problems: slices.Clone(s.currentProblems()), Vitals: map[string]*float64{}, Bounces: s.conf.Recent.Bounces(shownRecent)}
	for i := range d.Problems {
		d.Problems[i].Trace = s.known(d.Problems[i].Trace)
	}
	d.Host, _ = os.Hostname()
	for _, c := range s.RunChecks(r.Context()) {
		v := checkView{Name: c.Name}
		if c.Err != nil {
			v.Error, v.Warning = strings.ReplaceAll(c.Err.Error(), "\n", "; "), c.Warning
			d.Ready = d.Ready && c.Warning
		}
		d.Checks = append(d.Checks, v)
	}
	if s.conf.Status != nil {
		st := s.conf.Status()
		d.Listeners, d.Certificates, d.Domains, d.Users, d.Queue = st.Listeners, st.Certificates, st.Domains, st.Users, st.Queue
		d.Rejections = slices.Clone(st.Rejections[:min(len(st.Rejections), shownRecent)])
		for i := range d.Rejections {
			d.Rejections[i].Trace = s.known(d.Rejections[i].Trace)
		}
		d.Reload = reloadView{At: st.ReloadAt, ChangedAt: st.ChangedAt, Changes: st.Changes, Restart: st.Restart}
		if st.ReloadErr != nil {
			d.Reload.Error = strings.ReplaceAll(st.ReloadErr.Error(), "\n", "; ")
		}
	}
	if s.conf.Queue != nil {
		q := s.conf.Queue.Stats()
		d.Queue = QueueStatus{Items: int64(q.Messages), Capacity: int64(q.Capacity), Sending: int64(q.Sending), Held: int64(q.Held), Bytes: q.Bytes, Oldest: q.Oldest}
	}
	all := s.vitals.Series()
	d.Cards = vitalCards(all)
	for i := range all {
		if v := float64(all[i].Last); !math.IsNaN(v) {
			d.Vitals[all[i].Name] = &v
		}
	}
	slices.SortStableFunc(d.Certificates, func(a, b CertificateStatus) int { return a.NotAfter.Compare(b.NotAfter) })
	return d, nil
}

// Failed are the checks for which the server is not ready.
func (d *indexData) Failed() (failed []checkView) {
	for _, c := range d.Checks {
		if c.Error != "" && !c.Warning {
			failed = append(failed, c)
		}
	}
	return failed
}

// Warned names the checks that fail while mail is taken.
func (d *indexData) Warned() string {
	var names []string
	for _, c := range d.Checks {
		if c.Warning {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ", ")
}

// Well is whether nothing calls for anybody.
func (d *indexData) Well() bool {
	return d.Ready && d.Warned() == "" && !slices.ContainsFunc(d.Problems, func(p vitals.Problem) bool { return p.Severity != vitals.Info })
}

// Passed names the checks that pass.
func (d *indexData) Passed() string {
	var names []string
	for _, c := range d.Checks {
		if c.Error == "" {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ", ")
}

// Worst are the problems that are shown, and Rest how many are not.
func (d *indexData) Worst() []vitals.Problem { return d.Problems[:min(len(d.Problems), shownProblems)] }
func (d *indexData) Rest() int               { return len(d.Problems) - len(d.Worst()) }

// ListenerTable, CertificateTable, RejectionTable and BounceTable are the tables of the index.
func (d *indexData) ListenerTable() *table {
	t := &table{Columns: columns("address", "mode", "#open", "#total"), Empty: "none: no mail can come in", Wide: true}
	for _, l := range d.Listeners[:min(len(d.Listeners), shownListeners)] {
		t.Rows = append(t.Rows, []cell{txt(l.Address), txt(l.Mode), num(l.Open), num(l.Total)})
	}
	return t
}

func (d *indexData) CertificateTable() *table {
	t := &table{Columns: columns("certificate", "#days left"), Empty: "none: nobody can use TLS", Wide: true}
	for _, c := range d.Certificates[:min(len(d.Certificates), shownCertificates)] {
		t.Rows = append(t.Rows, []cell{{Text: c.Name, Href: "/debug/certs", Small: cut(strings.Join(c.Names, ", "), indexName)}, daysCell(c.NotAfter)})
	}
	return t
}

// daysCell tells how many days are left, in the colour of how soon that is.
func daysCell(t time.Time) cell {
	left := daysLeft(t)
	c := cell{Text: itoa(left), Class: "n"}
	switch {
	case left < 0:
		c = cell{Text: "expired", Class: "bad"}
	case left < 2:
		c.Class = "bad"
	case left < 21:
		c.Class = "warn"
	}
	return c
}

func (d *indexData) RejectionTable() *table {
	t := &table{Columns: columns("when", "client", "from", "to", "reason"), Empty: "none yet", Wide: true, Style: "flow"}
	for _, r := range d.Rejections {
		c := txt(ago(r.At))
		if r.Trace != [16]byte{} {
			c.Href = "/debug/traces/" + r.Trace.String()
		}
		t.Rows = append(t.Rows, []cell{c, txt(cut(r.Client, 46)), txt(cut(r.From, indexName)), txt(cut(r.To, indexName)), txt(cut(r.Reason, indexText))})
	}
	return t
}

func (d *indexData) BounceTable() *table {
	t := &table{Columns: columns("when", "to", "reason", "last words"), Empty: "none yet", Wide: true, Style: "flow"}
	for _, f := range d.Bounces {
		t.Rows = append(t.Rows, []cell{anchor(ago(f.At), "/debug/messages/"+string(f.ID)), txt(cut(f.To, indexName)), txt(f.Reason), txt(cut(f.Text, indexText))})
	}
	return t
}

// cut shortens a text for a place that has little room.
func cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// writeIndex is the index as text.
func writeIndex(w io.Writer, _ *http.Request, data any) error {
	d := data.(*indexData)
	fmt.Fprintf(w, "chasquid %s on %s, %s, %s\nup %s, since %s\n\n", printable(d.Build.Version), printable(d.Host), d.Build.GoVersion, d.Platform,
		span(time.Since(d.Started)), utc(d.Started))
	if p := d.Succeeded; p != nil {
		fmt.Fprintf(w, "took over from version %s, process %d, on %s\n\n", printable(p.Version), p.PID, utc(p.At))
	}
	if d.Ready {
		fmt.Fprintf(w, "READY: mail is taken (%s)\n", d.Passed())
		if names := d.Warned(); names != "" {
			fmt.Fprintf(w, "  but not well: %s\n", names)
		}
	} else {
		fmt.Fprintln(w, "NOT READY: no mail is taken")
		for _, c := range d.Failed() {
			fmt.Fprintf(w, "  %s: %s\n", c.Name, printable(c.Error))
		}
	}
	fmt.Fprintf(w, "\n## Problems now\n\n")
	for _, p := range d.Problems {
		fmt.Fprintf(w, "[%s] %s\n  since %s, see %s\n", p.Severity, printable(p.Text), ago(p.Since), p.Link)
	}
	if len(d.Problems) == 0 {
		fmt.Fprintln(w, "none")
	}
	fmt.Fprintf(w, "\n## Now (most of the last hour)\n\n")
	cards := &table{Columns: columns("what", "#now", "#peak")}
	for _, c := range d.Cards {
		cards.Rows = append(cards.Rows, []cell{txt(c.Title), txt(c.Value), txt(c.Peak)})
	}
	cards.writeText(w)
	for _, t := range []struct {
		name  string
		table *table
	}{{"Listeners", d.ListenerTable()}, {"Certificates", d.CertificateTable()}, {"Last rejections", d.RejectionTable()}, {"Last bounces", d.BounceTable()}} {
		fmt.Fprintf(w, "## %s\n\n", t.name)
		t.table.writeText(w)
	}
	fmt.Fprintf(w, "%d domains, %d users; last reload %s %s\n", d.Domains, d.Users, ago(d.Reload.At), printable(d.Reload.Error))
	if !d.Reload.ChangedAt.IsZero() {
		fmt.Fprintf(w, "settings changed %s: %s\n", ago(d.Reload.ChangedAt), printable(strings.Join(d.Reload.Changes, "; ")))
	}
	for _, text := range d.Reload.Restart {
		fmt.Fprintf(w, "takes effect at the next restart: %s\n", printable(text))
	}
	fmt.Fprintln(w)
	for _, g := range d.Groups {
		fmt.Fprintf(w, "## %s\n\n", g.Name)
		for _, l := range g.Links {
			fmt.Fprintf(w, "%-22s %s\n", l.Path, l.About)
		}
		fmt.Fprintln(w)
	}
	return nil
}
