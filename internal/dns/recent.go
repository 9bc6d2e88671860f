package dns

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Failure is one look-up that got no answer.
type Failure struct {
	At      time.Time
	Name    string
	Type    string // "MX", "A+AAAA", …
	Purpose Purpose
	Took    time.Duration
	Err     error
}

// maxRecent is how many failures are remembered.
const maxRecent = 64

// recent is a ring of the last failures.
type recent struct {
	mu   sync.Mutex
	ring [maxRecent]Failure
	n    int // failures so far
}

func (r *recent) add(f Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[r.n%maxRecent] = f
	r.n++
}

// Failures returns the last look-ups that failed, newest first, at most 64.
func (c *Client) Failures() []Failure {
	c.recent.mu.Lock()
	defer c.recent.mu.Unlock()
	l := slices.Clone(c.recent.ring[:min(c.recent.n, maxRecent)])
	slices.SortStableFunc(l, func(a, b Failure) int { return cmp.Compare(b.At.UnixNano(), a.At.UnixNano()) })
	return l
}

// Servers returns the addresses of the servers in use and whether their word on DNSSEC is believed.
func (c *Client) Servers() (addrs []string, trusted []bool) {
	servers, _ := c.servers.Load().list()
	for _, s := range servers {
		addrs, trusted = append(addrs, s.addr), append(trusted, s.trusted)
	}
	return addrs, trusted
}

// Flush forgets all answers: for an operator who just repaired a zone.
func (c *Client) Flush() { c.cache.flush() }

// ServeHTTP shows servers, cache and failures as text.
func (c *Client) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	addrs, trusted := c.Servers()
	for i, a := range addrs {
		fmt.Fprintf(w, "server %s (validation believed: %t)\n", a, trusted[i])
	}
	entries, bytes, hits, misses, evicted := c.cache.stats()
	fmt.Fprintf(w, "cache %d answers, %d bytes, %d hits, %d misses, %d pushed out\n\n", entries, bytes, hits, misses, evicted)
	fmt.Fprintln(w, "recent failures, newest first:")
	for _, f := range c.Failures() {
		fmt.Fprintf(w, "%s  %-6s %-5s %q in %v: %q\n", f.At.UTC().Format("2006-01-02 15:04:05"), f.Type, f.Purpose, f.Name, f.Took.Round(time.Millisecond), f.Err)
	}
}
