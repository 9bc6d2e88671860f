package expvarom

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Info describes one variable, for the metrics page and the reference.
type Info struct {
	Name    string     // on /metrics
	Legacy  string     // in expvar, "" for those that are not there
	Help    string     //
	Type    string     // counter, gauge, histogram or untyped
	Unit    string     // seconds, bytes or ""
	Labels  []string   //
	Known   [][]string // for each label, its closed set of values; missing or empty for a label without one
	Buckets []float64  // of a histogram: upper bounds
}

// Describe lists the registered variables, sorted by name. Those of the Go runtime and the process are not among them.
func (r *Registry) Describe() []Info {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	infos := make([]Info, len(r.order))
	for i, v := range r.order {
		infos[i] = v.info
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

// WriteMarkdown writes the list of Describe as a Markdown table.
func (r *Registry) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, i := range r.Describe() {
		name := "`" + i.Name + "`"
		if i.Legacy != "" {
			name += "<br>`" + i.Legacy + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, i.Type, markdownLabels(i), markdownText(i.Help))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func markdownLabels(i Info) string {
	var ls []string
	for n, l := range i.Labels {
		s := "`" + l + "`"
		if n < len(i.Known) && len(i.Known[n]) > 0 {
			s += ": " + markdownText(strings.Join(i.Known[n], ", "))
		}
		ls = append(ls, s)
	}
	return strings.Join(ls, "; ")
}

var markdownEscaper = strings.NewReplacer("|", `\|`, "<", "&lt;", ">", "&gt;", "\n", " ")

func markdownText(s string) string { return markdownEscaper.Replace(s) }
