package monitoring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
)

// serve runs a server on loopback for the test and returns its URL.
func serve(t testing.TB, conf Config) (*Server, string) {
	t.Helper()
	s := New(conf)
	return s, start(t, s)
}

// start runs a server on loopback for the test and returns its URL.
func start(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestAccess walks method, Host, Origin, Sec-Fetch-Site and peer: what a stranger or a web page may not reach.
func TestAccess(t *testing.T) {
	exited := false
	s := New(Config{Hostname: "mail.example", AllowedHosts: []string{"mon.example"}, Exit: func() { exited = true },
		Pages: []Page{{Path: "/debug/queue", Handler: http.NotFoundHandler()}}})
	for _, c := range []struct {
		method, path, host, peer, local string
		header                          map[string]string
		want                            int
	}{
		{"GET", "/", "localhost:1099", "127.0.0.1:5", "127.0.0.1:1099", nil, 200},
		{"GET", "/", "[::1]:1099", "[::1]:5", "[::1]:1099", nil, 200},
		{"GET", "/", "mail.example", "127.0.0.1:5", "127.0.0.1:1099", nil, 200},
		{"GET", "/", "MON.example:1099", "127.0.0.1:5", "127.0.0.1:1099", nil, 200},
		{"GET", "/", "evil.example", "127.0.0.1:5", "127.0.0.1:1099", nil, 403},
		{"GET", "/", "localhost.evil.example", "127.0.0.1:5", "127.0.0.1:1099", nil, 403},
		{"GET", "/", "192.0.2.1:1099", "192.0.2.7:5", "192.0.2.1:1099", nil, 403},
		{"GET", "/debug/queue", "192.0.2.1:1099", "192.0.2.7:5", "192.0.2.1:1099", nil, 403},
		{"GET", "/debug/pprof/heap", "192.0.2.1:1099", "192.0.2.7:5", "192.0.2.1:1099", nil, 403},
		{"GET", "/healthz", "192.0.2.1:1099", "192.0.2.7:5", "192.0.2.1:1099", nil, 200},
		{"GET", "/readyz", "192.0.2.1:1099", "192.0.2.7:5", "192.0.2.1:1099", nil, 200},
		{"GET", "/nothing", "localhost", "127.0.0.1:5", "127.0.0.1:1099", nil, 404},
		{"GET", "/exit", "localhost", "127.0.0.1:5", "127.0.0.1:1099", nil, 405},
		{"POST", "/exit", "localhost", "127.0.0.1:5", "127.0.0.1:1099", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"POST", "/exit", "localhost", "127.0.0.1:5", "127.0.0.1:1099", map[string]string{"Origin": "http://evil.example"}, 403},
		{"POST", "/exit", "localhost", "192.0.2.7:5", "192.0.2.1:1099", nil, 403},
	} {
		r := httptest.NewRequest(c.method, "http://"+c.host+c.path, nil)
		r.RemoteAddr = c.peer
		local, err := net.ResolveTCPAddr("tcp", c.local)
		if err != nil {
			t.Fatal(err)
		}
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(local)))
		for k, v := range c.header {
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s %s Host %s from %s %v: %d, want %d (%s)", c.method, c.path, c.host, c.peer, c.header, w.Code, c.want, w.Body)
		}
		if w.Header().Get("Content-Security-Policy") == "" {
			t.Errorf("%s: no Content-Security-Policy", c.path)
		}
	}
	if exited {
		t.Error("a refused POST /exit stopped the server")
	}
}

// TestExit checks that a plain POST /exit answers first and then stops.
func TestExit(t *testing.T) {
	exits := make(chan bool, 2)
	_, url := serve(t, Config{Exit: func() { exits <- true }})
	resp, err := http.Post(url+"/exit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.HasPrefix(string(b), "OK exiting") {
		t.Errorf("POST /exit: %d %q", resp.StatusCode, b)
	}
	<-exits
}

// TestReady checks the verdict, the reasons, the exclusion and the single checks.
func TestReady(t *testing.T) {
	var full atomic.Bool
	hang := func(ctx context.Context) error { <-ctx.Done(); return nil }
	_, url := serve(t, Config{Checks: []Check{
		{Name: "listeners", Run: func(context.Context) error { return nil }},
		{Name: "queue_dir", Run: func(context.Context) error {
			if full.Load() {
				return errors.New("disk is full: free some space on /var")
			}
			return nil
		}},
	}})
	if code, body := get(t, url+"/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("ready: %d %q", code, body)
	}
	full.Store(true)
	code, body := get(t, url+"/readyz?verbose")
	if want := "[+] listeners: ok\n[-] queue_dir: disk is full: free some space on /var\nnot ready: queue_dir\n"; code != 503 || body != want {
		t.Errorf("not ready: %d %q, want %q", code, body, want)
	}
	if code, _ := get(t, url+"/readyz?exclude=queue_dir"); code != 200 {
		t.Errorf("excluded: %d", code)
	}
	if code, body := get(t, url+"/readyz/queue_dir"); code != 503 || !strings.Contains(body, "disk is full") {
		t.Errorf("one check: %d %q", code, body)
	}
	if code, _ := get(t, url+"/readyz/other"); code != 404 {
		t.Errorf("unknown check: %d", code)
	}
	if code, body := get(t, url+"/"); code != 200 || !strings.Contains(body, "NOT READY") || !strings.Contains(body, "disk is full") {
		t.Errorf("index does not say why: %d %s", code, body)
	}
	if code, _ := get(t, url+"/healthz"); code != 200 {
		t.Errorf("healthz: %d: nothing outside may make it fail", code)
	}
	testWarnings(t)
	s := New(Config{Checks: []Check{{Name: "resolver", Run: hang}, {Name: "mda", Run: func(context.Context) error { panic("boom") }}}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for _, r := range s.RunChecks(ctx) {
		if r.Name == "mda" && r.Err == nil {
			t.Error("a panicking check passed")
		}
	}
}

// testWarnings: what does not keep mail out leaves the server ready, be it found by the check itself or by the rules; and what a check has said
// is said for a moment more.
func testWarnings(t *testing.T) {
	t.Helper()
	disk := errors.New("no space")
	s := New(Config{Checks: []Check{
		{Name: "queue_space", Run: func(context.Context) error { return disk }, Hold: time.Minute},
		{Name: "mda", Run: func(context.Context) error { return errors.New("no such program") }, Warning: true},
		{Name: "resolver", Warning: true},
	}})
	web := httptest.NewServer(s) // no samples are taken
	defer web.Close()
	url := web.URL
	list := []vitals.Problem{{Alert: "ChasquidDNSFailing", Check: "resolver", Severity: vitals.Page, Text: "The DNS fails"},
		{Alert: "ChasquidClockJump", Severity: vitals.Ticket, Text: "The clock was set"}}
	s.problems.Store(&list)
	const rest = "[!] mda: no such program\n[!] resolver: The DNS fails\n[!] ChasquidClockJump: The clock was set\n"
	if code, body := get(t, url+"/readyz?verbose&exclude=queue_space"); code != 200 || body != "[+] queue_space: excluded\n"+rest+"ready, with warnings: mda, resolver\n" {
		t.Errorf("warnings: %d %q", code, body)
	}
	if code, body := get(t, url+"/readyz?verbose"); code != 503 || body != "[-] queue_space: no space\n"+rest+"not ready: queue_space\n" {
		t.Errorf("warnings and a failure: %d %q", code, body)
	}
	disk = nil
	if code, body := get(t, url+"/readyz"); code != 503 || body != "not ready: queue_space\n" {
		t.Errorf("a moment later: %d %q", code, body)
	}
	for _, name := range []string{"mda", "resolver"} {
		if code, _ := get(t, url+"/readyz/"+name); code != 503 {
			t.Errorf("%s alone: %d", name, code)
		}
	}
	if _, body := get(t, url+"/?format=text"); !strings.Contains(body, "NOT READY: no mail is taken\n  queue_space") {
		t.Errorf("the index: %s", body)
	}
}

// TestPagesSurvive checks that a panicking page gives 500, is counted, and leaves the server working.
func TestPagesSurvive(t *testing.T) {
	reg := expvarom.New()
	_, url := serve(t, Config{Metrics: reg, Pages: []Page{{Path: "/debug/bad", Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })}}})
	if code, body := get(t, url+"/debug/bad"); code != 500 || strings.Contains(body, "boom") {
		t.Errorf("panicking page: %d %q", code, body)
	}
	if code, _ := get(t, url+"/"); code != 200 {
		t.Errorf("index after the panic: %d", code)
	}
	if v := newMetrics(reg).panics.Value(); v != 1 {
		t.Errorf("panics counted: %v", v)
	}
}

// TestEscaping puts markup into everything a stranger can name.
func TestEscaping(t *testing.T) {
	const evil = `<script>alert(1)</script>"'&`
	_, url := serve(t, Config{Hostname: evil, Checks: []Check{{Name: "config", Run: func(context.Context) error { return errors.New(evil) }}},
		Status: func() Status {
			return Status{Listeners: []ListenerStatus{{Address: evil, Mode: evil}}, Certificates: []CertificateStatus{{Name: evil, Names: []string{evil}}},
				ReloadErr: errors.New(evil), Rejections: []Rejection{{Client: evil, From: evil, To: evil, Reason: evil}}}
		}})
	if _, body := get(t, url+"/"); strings.Contains(body, "<script") {
		t.Error("markup from outside reached the index unescaped")
	}
}

// TestPagesAnswer requests every page of this package, as existing checks do: at least ten lines for the main ones.
func TestPagesAnswer(t *testing.T) {
	_, url := serve(t, Config{})
	for path, lines := range map[string]int{"/": 10, "/debug/flags": 10, "/debug/goroutines": 10, "/debug/goroutines?format=text": 10,
		"/debug/pprof/": 10, "/debug/pprof/heap?debug=1": 10} {
		code, body := get(t, url+path)
		if code != 200 || strings.Count(body, "\n") < lines {
			t.Errorf("%s: %d, %d lines, want at least %d", path, code, strings.Count(body, "\n"), lines)
		}
	}
}

// TestProfiles checks the caps, and that only one profile runs at a time.
func TestProfiles(t *testing.T) {
	s, url := serve(t, Config{})
	for _, q := range []string{"profile?seconds=301", "trace?seconds=61", "profile?seconds=-1", "profile?seconds=NaN", "profile?seconds=x"} {
		if code, _ := get(t, url+"/debug/pprof/"+q); code != 400 {
			t.Errorf("%s: %d, want 400", q, code)
		}
	}
	s.profiles.busy.Store(true)
	if code, _ := get(t, url+"/debug/pprof/profile?seconds=1"); code != 503 {
		t.Errorf("second profile: %d, want 503", code)
	}
	s.profiles.busy.Store(false)
	if code, body := get(t, url+"/debug/pprof/trace?seconds=0.05"); code != 200 || len(body) == 0 {
		t.Errorf("trace: %d, %d bytes", code, len(body))
	}
}

// TestHalfRequests holds every connection slot with an unfinished request; a scrape must be served once the header time is up.
func TestHalfRequests(t *testing.T) {
	s := New(Config{})
	s.headerTime = 200 * time.Millisecond
	url := start(t, s)
	addr := strings.TrimPrefix(url, "http://")
	for range maxConnections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n")
	}
	began := time.Now()
	if code, _ := get(t, url+"/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	if d := time.Since(began); d > 10*s.headerTime {
		t.Errorf("served after %v", d)
	}
}

// TestGoroutines checks that equal stacks are one group.
func TestGoroutines(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	for range 7 {
		go func() { <-stop }()
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		stacks, _ := allStacks()
		groups := groupStacks(stacks).Groups
		for _, g := range groups {
			if g.Count == 7 && strings.Contains(g.Stack, "TestGoroutines") && g.State == "chan receive" {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the seven goroutines are not one group: %+v", groups)
		}
	}
}

// TestN2Sites: the pages move to another listener with other rules, while requests on the old one are answered by its own.
func TestN2Sites(t *testing.T) {
	web := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(web, []byte("basic_auth_users:\n  alice: $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked, release := make(chan struct{}), make(chan struct{})
	var s *Server
	s = New(Config{Hostname: "old.example.org", Pages: []Page{{Path: "/slow", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-release
		fmt.Fprintf(w, "credentials %t", s.hasCredentials(r))
	})}}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.Run(ctx) })
	serve := func(web string) (addr string, leave func()) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(ctx)
		wg.Go(func() {
			if err := s.ServeOn(ctx, l, web); err != nil {
				t.Error(err)
			}
		})
		return l.Addr().String(), leave
	}
	get := func(addr, path, host string) (int, string) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
		req.Host = host
		req.SetBasicAuth("alice", "guess")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	old, leave := serve("")
	slow := make(chan string)
	go func() {
		_, body := get(old, "/slow", "localhost")
		slow <- body
	}()
	<-asked
	next, _ := serve(web)
	leave()
	s.SetNames("new.example.org", nil)
	close(release)
	if got, want := <-slow, "credentials false"; got != want {
		t.Errorf("the request on the old listener: %s, want %s", got, want)
	}
	if code, body := get(next, "/healthz", "localhost"); code != http.StatusUnauthorized {
		t.Errorf("a wrong password on the new listener: %d %s", code, body)
	}
	third, _ := serve("")
	for host, want := range map[string]int{"old.example.org": http.StatusForbidden, "new.example.org": http.StatusOK} {
		if code, body := get(third, "/debug/flags", host); code != want {
			t.Errorf("Host %s: %d, want %d: %s", host, code, want, body)
		}
	}
	if code, body := get(old, "/healthz", "localhost"); code != 0 {
		t.Errorf("the old listener still answers: %d %s", code, body)
	}
}
