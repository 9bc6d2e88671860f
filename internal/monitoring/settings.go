package monitoring

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"regexp"
	"strings"
)

func mapKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// addSettings adds the pages about how the server was told to be.
func (s *Server) addSettings() {
	s.addView(&view{path: "/debug/config", title: "Configuration", about: "the settings in force, and where each comes from", group: "Configuration", plain: true,
		load: s.loadConfig, text: func(w io.Writer, _ *http.Request, _ any) error {
			if s.conf.ConfigText == nil {
				return errNotHere
			}
			_, err := io.WriteString(w, multiline(s.conf.ConfigText()))
			return err
		}, sheet: s.configSheet})
	s.addView(&view{path: "/debug/flags", title: "Flags", about: "command-line flags", group: "Configuration", plain: true,
		load: func(*http.Request) (any, error) { return loadFlags(), nil }, text: writeFlags, sheet: flagSheet})
}

func (s *Server) loadConfig(*http.Request) (any, error) {
	if s.conf.Settings == nil {
		return []Setting{}, nil
	}
	return s.conf.Settings(), nil
}

// changesTable lists what the last reload changed, and what waits for a restart; nil if there is nothing.
func (s *Server) changesTable() *table {
	if s.conf.Status == nil {
		return nil
	}
	st := s.conf.Status()
	t := &table{Columns: columns("when", "change")}
	for _, text := range st.Changes {
		t.Rows = append(t.Rows, []cell{dim(ago(st.ChangedAt)), {Text: text, Class: "mono"}})
	}
	for _, text := range st.Restart {
		t.Rows = append(t.Rows, []cell{{Text: "at the next restart", Class: "b"}, {Text: text, Class: "mono"}})
	}
	if len(t.Rows) == 0 {
		return nil
	}
	return t
}

func (s *Server) configSheet(_ *http.Request, data any) *sheet {
	sh := &sheet{Title: "Configuration"}
	if changes := s.changesTable(); changes != nil {
		sh.add(block{Table: changes, Heading: "What the last reload changed"})
	}
	sh.para(dim("What is written nowhere has its default, and is dim. Passwords are not shown."), anchor("As a file", "/debug/config?format=text"))
	t := &table{Columns: columns("setting", "from"), Empty: "not available"}
	for _, c := range data.([]Setting) {
		class := "mono"
		if c.Origin == "default" {
			class = "dim"
		}
		lines := strings.Split(strings.TrimSpace(c.Text), "\n")
		first := cell{Text: lines[0], Class: class, Small: strings.Join(lines[1:], " ")}
		t.Rows = append(t.Rows, []cell{first, dim(c.Origin)})
	}
	sh.add(block{Table: t})
	return sh
}

// flagValue is one flag of the command line.
type flagValue struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Default string `json:"default"`
	Set     bool   `json:"set"`
	Usage   string `json:"usage"`
}

func loadFlags() (list []flagValue) {
	set := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
	for _, wanted := range []bool{true, false} {
		flag.VisitAll(func(f *flag.Flag) {
			if set[f.Name] == wanted {
				list = append(list, flagValue{f.Name, hideSecrets(f.Value.String()), f.DefValue, wanted, f.Usage})
			}
		})
	}
	return list
}

// writeFlags lists the flags that were set, an empty line, and the others with their defaults.
func writeFlags(w io.Writer, _ *http.Request, data any) error {
	list, errs := data.([]flagValue), []error{}
	for i, f := range list {
		if !f.Set && (i == 0 || list[i-1].Set) {
			_, err := fmt.Fprintln(w)
			errs = append(errs, err)
		}
		_, err := fmt.Fprintf(w, "-%s=%s\n", f.Name, multiline1(f.Value))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func multiline1(s string) string { return strings.TrimSuffix(multiline(s), "\n") }

func flagSheet(_ *http.Request, data any) *sheet {
	sh := &sheet{Title: "Flags"}
	t := &table{Columns: columns("flag", "value", "meaning")}
	for _, f := range data.([]flagValue) {
		class := "dim"
		if f.Set {
			class = "b"
		}
		t.Rows = append(t.Rows, []cell{{Text: "-" + f.Name, Class: class}, {Text: f.Value, Class: "mono"}, dim(f.Usage)})
	}
	sh.add(block{Table: t})
	return sh
}

// urlUser is the user part of a URL, which may hold a password, and secretField a setting whose name says that it is secret.
var (
	urlUser     = regexp.MustCompile(`(\w://)[^/@\s"']*@`)
	secretField = regexp.MustCompile(`(?i)((?:password|passwd|secret|token)[\w-]*"?\s*[:=]\s*)("[^"]*"|'[^']*'|\S+)`)
)

// hideSecrets replaces what may be a password.
func hideSecrets(s string) string {
	return secretField.ReplaceAllString(urlUser.ReplaceAllString(s, "$1…@"), "$1…")
}
