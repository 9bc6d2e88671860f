package monitoring

import (
	"cmp"
	"context"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of looking at goroutines, which stops all of them for a moment.
const (
	maxStacks   = 16 << 20        // bytes of stacks
	stacksEvery = 2 * time.Second // between two looks
	maxGroups   = 200
	growsFor    = 10 * time.Minute
)

// goroutineGroup is a set of goroutines that do the same.
type goroutineGroup struct {
	Count   int            `json:"count"`
	State   string         `json:"state"`
	Wait    time.Duration  `json:"max_wait_ns,omitempty"` // the longest time one of them waits, in minutes
	Labels  map[string]int `json:"labels,omitempty"`      // of the profiler, "family=SMTP.Conn", with how many carry it
	Top     string         `json:"top"`
	Creator string         `json:"created_by,omitempty"`
	Stack   string         `json:"stack"`
	Grew    bool           `json:"only_grew,omitempty"` // there were more and more of them over the last minutes
}

// goroutineData is one look.
type goroutineData struct {
	At     time.Time        `json:"at"`
	Total  int              `json:"total"`
	Groups []goroutineGroup `json:"groups"`
	Cut    bool             `json:"cut,omitempty"` // there were more stacks than are looked at
}

// goroutineWatch takes looks, seldom enough not to disturb, and remembers how groups grew.
type goroutineWatch struct {
	mu   sync.Mutex
	last *goroutineData
	seen map[string]*growth
}

// growth is how a group developed.
type growth struct {
	first, count int
	since, last  time.Time
}

func (s *Server) addGoroutines() {
	s.addView(&view{path: "/debug/goroutines", title: "Goroutines", about: "what every goroutine does, grouped by stack", group: "Process",
		params: []string{"q", "state", "label"}, load: func(r *http.Request) (any, error) {
			return filterGoroutines(s.goroutines.look(), r), nil
		}, sheet: goroutineSheet})
}

// look returns the goroutines of now or of a moment ago.
func (g *goroutineWatch) look() *goroutineData {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.last != nil && now.Sub(g.last.At) < stacksEvery {
		return g.last
	}
	stacks, cut := allStacks()
	d := groupStacks(stacks)
	d.At, d.Cut = now, cut
	g.grow(d, now)
	g.last = d
	return d
}

// sampleEvery is how often the groups are looked at for growth, without anybody asking.
const sampleEvery = time.Minute

// run looks at the goroutines now and then, so that a leak shows whenever somebody asks.
func (g *goroutineWatch) run(ctx context.Context) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if runtime.NumGoroutine() > 1000 { // below that, a leak is no problem yet, and the look not worth it
				g.look()
			}
		}
	}
}

// grow marks the groups that only grew for a while.
func (g *goroutineWatch) grow(d *goroutineData, now time.Time) {
	seen := map[string]*growth{}
	for i := range d.Groups {
		x := &d.Groups[i]
		key := x.State + x.Stack
		old := g.seen[key]
		if old == nil || x.Count < old.count {
			old = &growth{first: x.Count, since: now}
		}
		old.count, old.last = x.Count, now
		x.Grew = now.Sub(old.since) >= growsFor && x.Count >= old.first+20
		if len(seen) < maxGroups {
			seen[key] = old
		}
	}
	g.seen = seen
}

// allStacks returns the stacks of all goroutines as text.
func allStacks() (text string, cut bool) {
	buf := make([]byte, 256<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return string(buf[:n]), false
		}
		if len(buf) >= maxStacks {
			return string(buf[:n]), true
		}
		buf = make([]byte, min(4*len(buf), maxStacks))
	}
}

// groupStacks groups goroutines by state and stack, the largest group first.
func groupStacks(text string) *goroutineData {
	d := &goroutineData{}
	by := map[string]*goroutineGroup{}
	for g := range strings.SplitSeq(text, "\n\n") {
		head, stack, ok := strings.Cut(g, "\n")
		if !ok || !strings.HasPrefix(head, "goroutine ") {
			continue
		}
		state, wait, labels := parseHead(head)
		key := normaliseStack(stack)
		e := by[state+key]
		if e == nil {
			top, _, _ := strings.Cut(key, "\n")
			e = &goroutineGroup{State: state, Stack: key, Top: top, Creator: creator(key), Labels: map[string]int{}}
			by[state+key] = e
		}
		e.Count++
		d.Total++
		e.Wait = max(e.Wait, wait)
		for _, l := range labels {
			if len(e.Labels) < 20 || e.Labels[l] > 0 {
				e.Labels[l]++
			}
		}
	}
	for _, g := range by {
		d.Groups = append(d.Groups, *g)
	}
	slices.SortFunc(d.Groups, func(a, b goroutineGroup) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Stack, b.Stack), cmp.Compare(a.State, b.State))
	})
	return d
}

// parseHead takes apart `goroutine 7 [IO wait, 3 minutes, locked to thread labels:{"family": "DNS", "trace": "4bf9"}]:`.
func parseHead(head string) (state string, wait time.Duration, labels []string) {
	_, rest, _ := strings.Cut(head, "[")
	rest = strings.TrimSuffix(strings.TrimSuffix(rest, ":"), "]")
	rest, tags, ok := strings.Cut(rest, "labels:{")
	if ok {
		for pair := range strings.SplitSeq(strings.TrimSuffix(tags, "}"), ", ") {
			k, v, ok := strings.Cut(pair, ": ")
			k, err := strconv.Unquote(k)
			v, err2 := strconv.Unquote(v)
			if ok && err == nil && err2 == nil {
				labels = append(labels, k+"="+v)
			}
		}
	}
	state, rest, _ = strings.Cut(rest, ",")
	for part := range strings.SplitSeq(rest, ",") {
		if n, ok := strings.CutSuffix(strings.TrimSpace(part), " minutes"); ok {
			m, _ := strconv.Atoi(n)
			wait = time.Duration(m) * time.Minute
		}
	}
	return strings.TrimSpace(state), wait, labels
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

// creator finds the function that started a goroutine.
func creator(stack string) string {
	_, rest, ok := strings.Cut(stack, "created by ")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "\n")
	return name
}

// filterGoroutines leaves what the query asks for.
func filterGoroutines(d *goroutineData, r *http.Request) *goroutineData {
	q := r.URL.Query()
	out := *d
	out.Groups, out.Total = nil, 0
	for _, g := range d.Groups {
		if text := q.Get("q"); text != "" && !strings.Contains(strings.ToLower(g.Stack), strings.ToLower(text)) {
			continue
		}
		if state := q.Get("state"); state != "" && g.State != state {
			continue
		}
		if l := q.Get("label"); l != "" && !slices.ContainsFunc(slices.Collect(mapKeys(g.Labels)), func(k string) bool { return strings.Contains(k, l) }) {
			continue
		}
		out.Total += g.Count
		if len(out.Groups) < maxGroups {
			out.Groups = append(out.Groups, g)
		}
	}
	return &out
}

func goroutineSheet(r *http.Request, data any) *sheet {
	d, q := data.(*goroutineData), r.URL.Query()
	sh := &sheet{Title: itoa(d.Total) + " goroutines in " + itoa(len(d.Groups)) + " groups"}
	sh.add(block{Form: &form{Action: "/debug/goroutines", Buttons: []button{{Label: "Filter"}}, Fields: []field{
		{Name: "q", Label: "function or file", Value: q.Get("q"), Wide: true}, {Name: "state", Label: "state", Value: q.Get("state"), Hint: "IO wait"},
		{Name: "label", Label: "label", Value: q.Get("label"), Hint: "family=SMTP.Conn or a trace id"}}}})
	sh.para(dim("Raw:"), anchor("counted", "/debug/pprof/goroutine?debug=1"), anchor("all", "/debug/pprof/goroutine?debug=2"), anchor("profiles", "/debug/profiles"))
	if d.Cut {
		sh.para(cell{Text: "There are more stacks than are looked at; the counts are too low.", Class: "warn"})
	}
	for _, g := range d.Groups {
		head := itoa(g.Count) + " × " + g.State + " · " + g.Top
		line := []cell{}
		if g.Wait > 0 {
			line = append(line, dim("waits up to "+span(g.Wait)))
		}
		if g.Grew {
			line = append(line, cell{Text: "only grew over the last minutes: perhaps a leak", Class: "warn"})
		}
		line = append(line, labelCells(g.Labels)...)
		sh.add(block{Pre: g.Stack, Fold: head})
		if len(line) > 0 {
			sh.add(block{Para: line})
		}
	}
	return sh
}

// labelCells shows labels, most frequent first; a trace id leads to its trace.
func labelCells(labels map[string]int) (cells []cell) {
	keys := slices.SortedFunc(mapKeys(labels), func(a, b string) int { return cmp.Or(cmp.Compare(labels[b], labels[a]), cmp.Compare(a, b)) })
	for _, k := range keys[:min(len(keys), 6)] {
		c := cell{Text: itoa(labels[k]) + " × " + k, Class: "dim"}
		if id, ok := strings.CutPrefix(k, "trace="); ok {
			c = anchor(k, "/debug/traces/"+id)
		}
		cells = append(cells, c)
	}
	return cells
}
