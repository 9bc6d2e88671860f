package monitoring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"golang.org/x/net/html"
)

// markup is what a stranger might put into any name or reply: elements, attributes, terminal escapes, marks that turn the writing.
const markup = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m\u202e&amp;"

// textPages are paths of plain text or downloads, which have no twins.
var textPages = []string{"/healthz", "/readyz", "/metrics", "/debug/vars", "/debug/pprof", "/debug/support", "/debug/requests", "/debug/events", "/debug/traces.jsonl"}

// inputValue is the value of a form's field, which is sent back as it is.
var inputValue = regexp.MustCompile(`value="[^"]*"`)

func isTextPage(path string) bool {
	return slices.ContainsFunc(textPages, func(p string) bool { return strings.HasPrefix(path, p) })
}

// crawl follows every link from the index and calls visit with each page.
func crawl(t *testing.T, base string, visit func(path string, resp *http.Response, body string)) (paths []string) {
	t.Helper()
	todo, seen := []string{"/"}, map[string]bool{"/": true}
	for len(todo) > 0 {
		path := todo[0]
		todo = todo[1:]
		if strings.HasPrefix(path, "/debug/support") || strings.HasPrefix(path, "/debug/pprof/profile") || strings.HasPrefix(path, "/debug/pprof/trace") {
			continue // they take seconds; tested by themselves
		}
		paths = append(paths, path)
		resp, body := fetch(t, base+path)
		visit(path, resp, body)
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
			continue
		}
		for _, l := range links(t, path, body) {
			if !seen[l] {
				seen[l] = true
				todo = append(todo, l)
			}
		}
		if len(paths) > 2000 {
			t.Fatal("the links do not end")
		}
	}
	return paths
}

// links are the addresses a page refers to, made absolute. Those of other servers fail the test.
func links(t *testing.T, path, body string) (out []string) {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	base, err := url.Parse(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range doc.Descendants() {
		for _, a := range n.Attr {
			if a.Key != "href" && a.Key != "src" && a.Key != "action" && a.Key != "xlink:href" || strings.HasPrefix(a.Val, "data:") {
				continue
			}
			u, err := base.Parse(a.Val)
			if err != nil || u.Host != "" || u.Scheme != "" {
				t.Errorf("%s: link to %q", path, a.Val)
				continue
			}
			if u.Fragment = ""; n.Data != "form" {
				out = append(out, u.String())
			}
		}
	}
	return out
}

// TestCrawl follows every link: none is dead, none leads elsewhere, and every page has its twins.
func TestCrawl(t *testing.T) {
	s := newSite(t, "", true)
	s.settle(t)
	s.sample(t.Context())
	paths := crawl(t, s.url, func(path string, resp *http.Response, body string) {
		if resp.StatusCode != 200 {
			t.Errorf("%s: %s: %s", path, resp.Status, body)
		}
		if strings.HasPrefix(path, "/debug/requests") || strings.HasPrefix(path, "/debug/events") || strings.HasPrefix(path, "/debug/pprof") {
			return // not ours
		}
		checkHTML(t, path, resp, body)
	})
	for _, p := range paths {
		u, _ := url.Parse(p)
		if isTextPage(u.Path) || u.Path == "/debug/tail" || strings.HasSuffix(u.Path, ".json") || u.Query().Get("format") != "" {
			continue
		}
		twin(t, s.url, p)
	}
	for _, must := range []string{"/debug/queue", "/debug/messages", "/debug/traces", "/debug/destinations", "/debug/metrics", "/debug/goroutines", "/debug/config", "/debug/flags",
		"/debug/domains", "/debug/certs", "/debug/sts", "/debug/dns", "/debug/auth", "/debug/log", "/debug/tail", "/debug/profiles", "/debug/requests", "/debug/events", "/metrics", "/debug/vars"} {
		if !slices.Contains(paths, must) {
			t.Errorf("no link leads to %s", must)
		}
	}
}

// checkHTML looks for what a page must have: it is closed properly, forbids scripts, and has a title.
func checkHTML(t *testing.T, path string, resp *http.Response, body string) {
	t.Helper()
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		return
	}
	csp := resp.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") {
		t.Errorf("%s: policy %q", path, csp)
	}
	if !strings.HasPrefix(body, "<!DOCTYPE html>") || !strings.HasSuffix(strings.TrimSpace(body), "</html>") || strings.Count(body, "<h1>") != 1 {
		t.Errorf("%s: not a whole page", path)
	}
	var open []string
	z := html.NewTokenizer(strings.NewReader(body))
	for {
		switch tt := z.Next(); tt {
		case html.ErrorToken:
			if len(open) > 0 {
				t.Errorf("%s: not closed: %v", path, open)
			}
			return
		case html.StartTagToken:
			name, _ := z.TagName()
			if !slices.Contains([]string{"meta", "link", "input", "br", "img"}, string(name)) {
				open = append(open, string(name))
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			if len(open) == 0 || open[len(open)-1] != string(name) {
				t.Errorf("%s: </%s> closes %v", path, name, open)
				return
			}
			open = open[:len(open)-1]
		}
	}
}

// twin fetches a page as JSON and as text.
func twin(t *testing.T, base, path string) {
	t.Helper()
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	resp, body := fetch(t, base+path+sep+"format=json")
	if resp.StatusCode != 200 || !json.Valid([]byte(body)) || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s as JSON: %s %s", path, resp.Status, body[:min(len(body), 200)])
	}
	if p, query, _ := strings.Cut(path, "?"); p != "/" {
		resp, byName := fetch(t, base+p+".json?"+query)
		if resp.StatusCode != 200 || !json.Valid([]byte(byName)) {
			t.Errorf("%s.json: %s", p, resp.Status)
		}
	}
	resp, body = fetch(t, base+path+sep+"format=text")
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") || strings.Contains(body, "<td") || len(body) < 10 {
		t.Errorf("%s as text: %s %s", path, resp.Status, body[:min(len(body), 200)])
	}
}

// TestEscapingWalk puts markup into everything a stranger can name and walks all pages and twins: it is nowhere more than text.
func TestEscapingWalk(t *testing.T) {
	s := newSite(t, markup, true)
	s.settle(t)
	s.sample(t.Context())
	seen := 0
	look := func(path, kind, body string) {
		if strings.Contains(body, "<script") || strings.Contains(body, "<img") {
			t.Errorf("%s: markup is markup in %s", path, kind)
		}
		if strings.ContainsAny(inputValue.ReplaceAllString(body, ""), "\x1b\u202e") {
			t.Errorf("%s: control characters in %s", path, kind)
		}
		if strings.Contains(body, "alert(1)") {
			seen++
		}
	}
	paths := crawl(t, s.url, func(path string, resp *http.Response, body string) {
		switch {
		case strings.HasPrefix(path, "/debug/requests"), strings.HasPrefix(path, "/debug/events"):
			if strings.Contains(body, "<script>alert") || strings.Contains(body, "<img") {
				t.Errorf("%s: markup is markup", path)
			}
		case strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") && !strings.HasPrefix(path, "/debug/pprof"):
			look(path, "HTML", body)
			checkHTML(t, path, resp, body)
		}
	})
	if seen < 12 {
		t.Errorf("the markup was on %d pages only: is it really in what they show?", seen)
	}
	for _, p := range paths {
		if u, _ := url.Parse(p); isTextPage(u.Path) || u.Path == "/debug/tail" || strings.HasSuffix(u.Path, ".json") || u.Query().Has("format") {
			continue
		}
		sep := "?"
		if strings.Contains(p, "?") {
			sep = "&"
		}
		resp, body := fetch(t, s.url+p+sep+"format=text")
		if strings.ContainsAny(body, "\x1b\u202e") {
			t.Errorf("%s: control characters in the text", p)
		}
		if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: text is sent as %q", p, ct)
		}
		resp, body = fetch(t, s.url+p+sep+"format=json")
		if strings.Contains(body, "<script") || resp.StatusCode == 200 && resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: markup in JSON", p)
		}
	}
	for _, path := range []string{"/debug/queue", "/debug/log", "/debug/profiles", "/debug/diagnose"} {
		form := url.Values{"op": {"hold"}, "sender": {markup}, "rcpt": {markup + "@x"}, "minutes": {markup}, "do": {markup}}
		for k := range form {
			resp := post(t, s.url+path, url.Values{k: form[k]}, "text/html")
			if strings.Contains(resp, "<script") {
				t.Errorf("POST %s %s: markup came back", path, k)
			}
		}
	}
}

// post sends a form and returns the answer.
func post(t testing.TB, to string, form url.Values, accept string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := fmt.Fprintln(&b, resp.Status); err != nil {
		t.Fatal(err)
	}
	resp.Write(&b)
	return b.String()
}

// TestBadQueries sends queries no page knows: refused, and nothing grows.
func TestBadQueries(t *testing.T) {
	s := newSite(t, "", false)
	for q, want := range map[string]int{
		"/debug/queue?nonsense=1": 400, "/debug/queue?state=x": 400, "/debug/queue?reason=x": 400, "/debug/queue?sort=x": 400, "/debug/queue?after=x": 400, "/debug/queue?limit=-1": 400,
		"/debug/queue?limit=100000000": 400, "/debug/queue?older=x": 400, "/debug/queue?by=x": 400, "/debug/queue?format=xml": 400, "/debug/queue?refresh=0": 400, "/debug/queue/none": 404,
		"/debug/traces?fam=None": 404, "/debug/traces?b=8": 400, "/debug/traces?b=-3": 400, "/debug/traces?b=x": 400, "/debug/traces?slower=x": 400, "/debug/traces?state=x": 400,
		"/debug/traces/0123456789abcdef0123456789abcdef": 404, "/debug/traces/zz": 404, "/debug/messages?state=x": 400, "/debug/messages?since=x": 400, "/debug/messages?offset=x": 400,
		"/debug/messages/none": 404, "/debug/metrics?name=none": 404, "/debug/log?level=x": 400, "/debug/log?limit=99999": 400, "/debug/tail?x=1": 400, "/debug/support?x=1": 400,
		"/?x=1": 400, "/debug/config?x": 400, "/debug/queue?%zz": 400, "/debug/queue?sender=" + strings.Repeat("a", maxQuery): 414, "/nothing": 404, "/debug/": 404,
	} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+q, nil)
		req.Header.Set("Accept", "text/html")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", q[:min(len(q), 60)], resp.StatusCode, want)
		}
	}
	var before, after runtime.MemStats
	get(t, s.url+"/metrics")
	_, metricsBefore := get(t, s.url+"/metrics")
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 10_000 {
		req, _ := http.NewRequest(http.MethodGet, fmt.Sprintf("http://localhost/debug/page%d?p%d=%d", i, i, i), nil)
		req.RemoteAddr = "127.0.0.1:1"
		s.ServeHTTP(&discard{}, req)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 2<<20 {
		t.Errorf("10,000 unknown pages grew the heap by %d bytes", grew)
	}
	if _, metricsAfter := get(t, s.url+"/metrics"); strings.Count(metricsAfter, "\n") != strings.Count(metricsBefore, "\n") {
		t.Errorf("10,000 unknown pages made new series: %d lines, before %d", strings.Count(metricsAfter, "\n"), strings.Count(metricsBefore, "\n"))
	}
}

// discard is a response nobody reads.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header {
	if d.h == nil {
		d.h = http.Header{}
	}
	return d.h
}
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// TestHammer asks for every page again and again, from many sides, while mail flows. With -race it shows that none of them disturbs.
func TestHammer(t *testing.T) {
	s := newSite(t, "", false)
	s.settle(t)
	paths := []string{"/", "/index.json", "/metrics", "/debug/vars", "/debug/queue?sort=next", "/debug/queue?format=text", "/debug/messages?q=example.net", "/debug/traces?b=0", "/debug/traces?state=active",
		"/debug/traces.jsonl", "/debug/requests?fam=SMTP.Conn&b=-1&exp=1", "/debug/events", "/debug/destinations", "/debug/goroutines", "/debug/metrics", "/debug/log?q=a", "/debug/auth", "/debug/dns.json",
		"/debug/sts", "/debug/certs", "/debug/domains", "/debug/config", "/debug/flags", "/debug/profiles", "/readyz?verbose", "/debug/queue/" + s.firstQueued(t)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if resp, body := fetch(t, s.url+paths[i%len(paths)]); resp.StatusCode >= 500 && resp.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s: %s %s", paths[i%len(paths)], resp.Status, body)
				}
			}
		})
	}
	front := s.log.Logger()
	load := trace.WithRecorder(ctx, s.rec)
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, sp := trace.StartMessage(load, trace.SMTPTransaction, "carol@example.org", trace.NewID())
			sp.Printf("line %d", i)
			front.Infof("line %d", i)
			s.recent.Observe(&timeline.Event{Kind: timeline.Auth, At: time.Now(), Client: "192.0.2.1:5", User: "carol@example.org", Err: errors.New("no")})
			s.sample(load)
			sp.Finish()
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			for path, form := range map[string]url.Values{"/debug/queue": {"op": {"retry"}, "confirm": {"yes"}}, "/debug/log": {"minutes": {"1"}}, "/debug/profiles": {"do": {"sampling"}}} {
				post(t, s.url+path, form, "text/html")
			}
			post(t, s.url+"/debug/profiles", url.Values{"do": {"no-sampling"}}, "*/*")
		}
	})
	wg.Wait()
}
