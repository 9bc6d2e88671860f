package monitoring

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
)

func (s *Server) addRuntime() {
	s.mux.HandleFunc("GET /debug/flags", flags)
	s.mux.HandleFunc("GET /debug/goroutines", s.goroutines)
}

// Buffered makes a handler whose output is rendered into memory first, so that no lock it takes is held while a slow client reads.
func Buffered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := &memoryWriter{header: w.Header(), code: http.StatusOK}
		h.ServeHTTP(b, r)
		w.WriteHeader(b.code)
		w.Write(b.Bytes())
	})
}

type memoryWriter struct {
	bytes.Buffer
	header http.Header
	code   int
}

func (m *memoryWriter) Header() http.Header  { return m.header }
func (m *memoryWriter) WriteHeader(code int) { m.code = code }

// flags lists the flags that were set, an empty line, and the others with their defaults.
func flags(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	set := map[string]bool{}
	flag.Visit(func(f *flag.Flag) {
		set[f.Name] = true
		fmt.Fprintf(w, "-%s=%s\n", f.Name, f.Value)
	})
	fmt.Fprintln(w)
	flag.VisitAll(func(f *flag.Flag) {
		if !set[f.Name] {
			fmt.Fprintf(w, "-%s=%s\n", f.Name, f.Value)
		}
	})
}

// maxStacks bounds the text of all stacks that is looked at.
const maxStacks = 16 << 20

// group is a set of goroutines with the same stack.
type group struct {
	Count int
	State string
	Stack string
	Top   string
}

// goroutineGroups groups all goroutines by stack, most frequent first.
func goroutineGroups() []group {
	buf := make([]byte, 256<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) || len(buf) >= maxStacks {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	byStack := map[string]*group{}
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		head, stack, ok := strings.Cut(g, "\n")
		if !ok {
			continue
		}
		state, key := goroutineState(head), normaliseStack(stack)
		if e := byStack[state+key]; e != nil {
			e.Count++
			continue
		}
		top, _, _ := strings.Cut(key, "\n")
		byStack[state+key] = &group{Count: 1, State: state, Stack: key, Top: top}
	}
	groups := make([]group, 0, len(byStack))
	for _, g := range byStack {
		groups = append(groups, *g)
	}
	slices.SortFunc(groups, func(a, b group) int {
		if a.Count != b.Count {
			return b.Count - a.Count
		}
		return strings.Compare(a.Stack, b.Stack)
	})
	return groups
}

// goroutineState takes "IO wait" out of "goroutine 7 [IO wait, 3 minutes]:".
func goroutineState(head string) string {
	_, rest, _ := strings.Cut(head, "[")
	state, _, _ := strings.Cut(rest, "]")
	state, _, _ = strings.Cut(state, ",")
	return state
}

// normaliseStack removes arguments and addresses, which differ between goroutines that do the same.
func normaliseStack(stack string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimSpace(stack), "\n") {
		if creator, _, ok := strings.Cut(line, " in goroutine "); ok {
			line = creator
		} else if strings.HasPrefix(line, "\t") {
			if i := strings.LastIndex(line, " +0x"); i > 0 {
				line = line[:i]
			}
		} else if i := strings.LastIndexByte(line, '('); i > 0 {
			line = line[:i]
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

func (s *Server) goroutines(w http.ResponseWriter, r *http.Request) {
	groups := goroutineGroups()
	if wantsText(r) {
		for _, g := range groups {
			fmt.Fprintf(w, "%d [%s]\n%s\n", g.Count, g.State, g.Stack)
		}
		return
	}
	total := 0
	for _, g := range groups {
		total += g.Count
	}
	s.render(w, r, "goroutines", "Goroutines", struct {
		Total  int
		Groups []group
	}{total, groups})
}

// wantsText reports whether the client asked for plain text.
func wantsText(r *http.Request) bool { return r.URL.Query().Get("format") == "text" }
