package sts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"github.com/google/go-cmp/cmp"
)

var bg = context.Background()

// rig is a cache with a policy host and a zone.
type rig struct {
	*testing.T
	c       *Cache
	host    *policyHost
	zone    *zone.Zone
	dir     string
	ca      *ca
	mu      sync.Mutex
	reports []string
}

func newRig(t *testing.T, zoneText string) *rig {
	r := &rig{T: t, dir: filepath.Join(t.TempDir(), "sts-cache"), zone: zone.MustNew(zoneText), ca: newCA(t)}
	r.host = newPolicyHost(t, r.ca.leaf(t, far(), "mta-sts.example.com"))
	r.host.text(good)
	r.restart()
	return r
}

// restart makes a new cache over the same files.
func (r *rig) restart() {
	c, err := New(Config{Resolver: r.zone, Dir: r.dir, Client: r.host.client(r.ca.pool()), Roots: r.ca.pool(), Metrics: expvarom.New(),
		Report: func(rep tlspolicy.Report) {
			r.mu.Lock()
			defer r.mu.Unlock()
			kind := "ok"
			if re := tlspolicy.ReportError(nil); errors.As(rep.Err, &re) {
				kind = re.ResultType()
			} else if rep.Err != nil {
				kind = rep.Err.Error()
			}
			r.reports = append(r.reports, fmt.Sprintf("%s %s %s %s", rep.Domain, rep.Policy, rep.Host, kind))
		}})
	if err != nil {
		r.Fatal(err)
	}
	r.c = c
}

// counts renders the eleven variables that are not zero.
func (r *rig) counts() string {
	m := r.c.m
	var b strings.Builder
	for _, v := range []struct {
		name string
		n    *expvarom.Int
	}{{"fetches", m.fetches}, {"hits", m.hits}, {"expired", m.expired}, {"ioErrors", m.ioErrors}, {"failedFetch", m.failedFetch}, {"invalid", m.invalid},
		{"marshalErrors", m.marshalErrors}, {"unmarshalErrors", m.unmarshalErrors}, {"refreshCycles", m.refreshCycles}, {"refreshes", m.refreshes}, {"refreshErrors", m.refreshErrors}} {
		if n := v.n.Value(); n != 0 {
			fmt.Fprintf(&b, "%s=%d ", v.name, n)
		}
	}
	sum := 0.0
	for _, c := range m.requests {
		sum += c.Value()
	}
	if int64(sum) != m.fetches.Value() {
		r.Errorf("%v requests by result, %d fetches", sum, m.fetches.Value())
	}
	return strings.TrimSpace(b.String())
}

func (r *rig) want(what, counts string, hits int) {
	r.Helper()
	if got := r.counts(); got != counts {
		r.Errorf("%s: %s, want %s", what, got, counts)
	}
	if n := int(r.host.hits.Swap(0)); n != hits {
		r.Errorf("%s: %d HTTP requests, want %d", what, n, hits)
	}
}

func (r *rig) policy(domain string) *Policy {
	r.Helper()
	p, _ := r.c.Policy(bg, domain)
	return p
}

// TestDAT17Files: the cache files are those of existing installations, both ways.
func TestDAT17Files(t *testing.T) {
	r := newRig(t, stsZone)
	start := time.Now()
	if p := r.policy("example.com"); p == nil {
		t.Fatal("no policy")
	}
	path := filepath.Join(r.dir, "pol:example.com")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"version":"STSv1","mode":"enforce","mx":["mx.example.com","*.example.net"],"max_age":86400000000000}`; string(data) != want {
		t.Errorf("file %s\nwant %s", data, want)
	}
	fi, _ := os.Stat(path)
	if d := fi.ModTime().Sub(start.Add(24 * time.Hour)); fi.Mode().Perm() != 0o640 || d < -time.Second || d > 5*time.Second {
		t.Errorf("mode %v, expires %v off", fi.Mode(), d)
	}
	if fi, _ := os.Stat(r.dir); fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("directory mode %v", fi.Mode())
	}
	if l, _ := os.ReadDir(r.dir); len(l) != 1 {
		t.Errorf("left behind: %v", l)
	}
	// A file that another installation wrote is used without any look-up.
	other := filepath.Join(r.dir, "pol:bücher.example")
	if err := os.WriteFile(other, []byte(`{"version":"STSv1","mode":"testing","mx":["*.x"],"max_age":100000000000}`), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chtimes(other, start.Add(time.Hour), start.Add(time.Hour))
	r.restart()
	r.zone.ResetQueries()
	if p := r.policy("bücher.example"); p == nil || p.Mode != Testing || len(r.zone.Queries()) != 0 {
		t.Errorf("policy %+v after %q", p, r.zone.Queries())
	}
	if p := r.policy("example.com"); p == nil || p.Mode != Enforce {
		t.Errorf("own file after restart: %+v", p)
	}
	r.want("files", "fetches=2 hits=2", 1)
}

// TestSTS5Variables: each of the eleven variables moves when it should, and only then.
func TestSTS5Variables(t *testing.T) {
	r := newRig(t, stsZone+"_mta-sts.broken.example SERVFAIL\n")
	r.policy("example.com")
	r.want("miss", "fetches=1", 1)
	r.policy("example.com")
	r.want("hit", "fetches=2 hits=1", 0)
	r.policy("none.example")
	r.policy("none.example")
	r.want("no policy, remembered", "fetches=4 hits=1 failedFetch=1", 0)
	r.policy("broken.example")
	r.want("DNS failure", "fetches=5 hits=1 failedFetch=2", 0)
	for _, bad := range []string{"../../etc/passwd", "a/b", "UPPER.example", "[192.0.2.1]", "", "a..b", "x\x00y"} {
		if p := r.policy(bad); p != nil {
			t.Errorf("%q has a policy", bad)
		}
	}
	r.want("names that are none", "fetches=5 hits=1 failedFetch=2", 0)

	path := filepath.Join(r.dir, "pol:example.com")
	past := time.Now().Add(-time.Minute)
	os.Chtimes(path, past, past)
	r.restart()
	r.policy("example.com")
	r.want("expired", "fetches=1 expired=1", 1)

	os.WriteFile(path, []byte("{not JSON"), 0o600)
	os.Chtimes(path, far(), far())
	r.restart()
	r.policy("example.com")
	r.want("garbage", "fetches=1 unmarshalErrors=1", 1)

	os.WriteFile(path, []byte(`{"version":"STSv1","mode":"surprise","mx":["a"],"max_age":1000000000}`), 0o600)
	os.Chtimes(path, time.Now().Add(time.Hour), time.Now().Add(time.Hour))
	r.restart()
	r.policy("example.com")
	r.want("invalid", "fetches=1 invalid=1", 1)

	os.Remove(path)
	os.Symlink("pol:example.com", path)
	r.restart()
	r.policy("example.com")
	r.want("unreadable", "fetches=1 ioErrors=2", 1) // reading, and the owner of what is replaced
	os.Remove(path)

	r.restart()
	os.RemoveAll(r.dir)
	if p := r.policy("example.com"); p == nil {
		t.Error("no policy without a directory")
	}
	r.want("unwritable", "fetches=1 ioErrors=1", 1)
	os.MkdirAll(r.dir, 0o770)

	r.restart()
	r.policy("example.com")
	r.c.refresh(bg)
	r.want("refresh: same id", "fetches=1 refreshCycles=1", 1)
	r.zone.Remove("_mta-sts.example.com")
	r.zone.Add(strings.Replace(stsZone, "id=1", "id=2", 1))
	r.c.refresh(bg)
	r.want("refresh: new id", "fetches=1 refreshCycles=2 refreshes=1", 1)
	r.restart()
	r.c.refresh(bg)
	r.want("refresh after a restart", "refreshCycles=1 refreshes=1", 1)
	r.host.text("gone")
	r.restart()
	r.c.refresh(bg)
	r.want("refresh fails", "failedFetch=1 refreshCycles=1 refreshes=1 refreshErrors=1", 1)
	if p := r.policy("example.com"); p == nil {
		t.Error("C102: the cached policy did not survive")
	}
	if _, err := New(Config{Dir: filepath.Join(path, "sub")}); err == nil || !strings.HasPrefix(err.Error(), "mkdir ") || !strings.HasSuffix(err.Error(), ": not a directory") {
		t.Errorf("bad directory: %v", err)
	}
}

// TestC102Survives: a policy applies to its end though DNS and HTTPS fail; when it ends there is none (fail open).
func TestC102Survives(t *testing.T) {
	r := newRig(t, stsZone)
	r.policy("example.com")
	r.zone.Remove("_mta-sts.example.com")
	r.zone.Add("_mta-sts.example.com SERVFAIL")
	r.host.text("gone")
	r.c.refresh(bg)
	rule, err := r.c.Rule(bg, "example.com")
	if err != nil || rule.Source != "mta-sts" || !rule.RequireTLS {
		t.Fatalf("rule %+v, %v", rule, err)
	}
	rule.Report("mx.example.com", errors.New("TLS broke")) // even when it is in doubt
	if rule, _ := r.c.Rule(bg, "example.com"); rule.Source != "mta-sts" {
		t.Error("gone after a failure")
	}
	r.zone.Remove("_mta-sts.example.com")
	r.zone.Add(strings.Replace(stsZone, "id=1", "id=2", 1)) // there is a new one, but it cannot be had
	rule.Report("mx.example.com", errors.New("TLS broke"))
	if rule, _ := r.c.Rule(bg, "example.com"); rule.Source != "mta-sts" {
		t.Error("gone after a failed fetch")
	}
	e := r.c.entry("example.com")
	e.mu.Lock()
	e.expires = time.Now().Add(-time.Second)
	e.mu.Unlock()
	if rule, err := r.c.Rule(bg, "example.com"); err != nil || rule.Source != "" {
		t.Errorf("expired: %+v, %v", rule, err)
	}
}

// TestC102NewID: a policy that is not satisfied is looked up again before it is used again.
func TestC102NewID(t *testing.T) {
	r := newRig(t, stsZone)
	rule, _ := r.c.Rule(bg, "example.com")
	if err := rule.AllowMX("new.example.org"); err == nil {
		t.Fatal("an unknown MX is allowed")
	}
	r.host.hits.Store(0)
	r.host.text(good + "mx: new.example.org\r\n")
	rule, _ = r.c.Rule(bg, "example.com")
	if err := rule.AllowMX("new.example.org"); err == nil || r.host.hits.Load() != 0 {
		t.Errorf("fetched though the id is the same: %v", err)
	}
	r.zone.Remove("_mta-sts.example.com")
	r.zone.Add(strings.Replace(stsZone, "id=1", "id=2", 1))
	rule, _ = r.c.Rule(bg, "example.com")
	if err := rule.AllowMX("new.example.org"); err != nil {
		t.Errorf("still refused: %v", err)
	}
	if err := rule.AllowMX("MX.example.com."); err != nil {
		t.Errorf("MX refused: %v", err)
	}
}

// TestNegative: a domain whose policy cannot be had is left alone for a while.
func TestNegative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := zone.MustNew("_mta-sts.bad.example TXT \"v=STSv1; id=1;\"\n_mta-sts.broken.example SERVFAIL\n")
		fetched := 0
		c, err := New(Config{Resolver: z, Client: &http.Client{Transport: transport(func(*http.Request) (*http.Response, error) {
			fetched++
			return nil, errors.New("connection refused")
		})}})
		if err != nil {
			t.Fatal(err)
		}
		asked := func(domain string) int {
			z.ResetQueries()
			c.Rule(t.Context(), domain)
			return len(z.Queries())
		}
		for i, s := range []struct {
			wait   time.Duration
			domain string
			asks   bool
		}{
			{0, "bad.example", true}, {0, "bad.example", false}, {4 * time.Minute, "bad.example", false}, {2 * time.Minute, "bad.example", true},
			{0, "none.example", true}, {4 * time.Minute, "none.example", false}, {2 * time.Minute, "none.example", true},
			{0, "broken.example", true}, {50 * time.Second, "broken.example", false}, {20 * time.Second, "broken.example", true},
		} {
			time.Sleep(s.wait)
			if n := asked(s.domain); (n > 0) != s.asks {
				t.Errorf("step %d: %s asks %d questions", i, s.domain, n)
			}
		}
		if fetched != 2 {
			t.Errorf("%d requests", fetched)
		}
	})
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestModes: what each mode demands and reports, and the counters of it.
func TestModes(t *testing.T) {
	r := newRig(t, stsZone)
	state := func(cert tls.Certificate) *tls.ConnectionState {
		c, _ := x509.ParseCertificate(cert.Certificate[0])
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
	}
	mx := state(r.ca.leaf(t, far(), "mx.example.com"))
	old := state(r.ca.leaf(t, time.Unix(1000, 0), "mx.example.com"))
	for _, mode := range []Mode{Enforce, Testing, None} {
		r.host.text(strings.Replace(good, "enforce", string(mode), 1))
		os.RemoveAll(r.dir)
		os.MkdirAll(r.dir, 0o770)
		r.restart()
		r.reports = nil
		rule, err := r.c.Rule(bg, "example.com")
		if err != nil {
			t.Fatal(err)
		}
		if n := r.c.m.legacyMode.Value(string(mode)); n != 1 {
			t.Errorf("%s: counted %d times", mode, n)
		}
		switch mode {
		case Enforce:
			if !rule.RequireTLS || !rule.RequirePKIX || rule.AllowMX("mx.example.com") != nil || rule.AllowMX("evil.example") == nil {
				t.Errorf("enforce: %+v", rule)
			}
			rule.Report("mx.example.com", nil)
			rule.Report("mx.example.com", tlspolicy.ErrNoSTARTTLS)
		case Testing:
			if rule.RequireTLS || rule.RequirePKIX || rule.AllowMX != nil {
				t.Errorf("testing: %+v", rule)
			}
			for _, s := range []struct {
				host  string
				state *tls.ConnectionState
			}{{"mx.example.com", mx}, {"mx.example.com", old}, {"mx.example.com", nil}, {"evil.example", mx}, {"mx.example.com", &tls.ConnectionState{}}} {
				if err := rule.AllowConn(s.host, s.state); err != nil {
					t.Errorf("testing refuses: %v", err)
				}
				rule.Report(s.host, nil)
			}
			rule.Report("mx.example.com", tlspolicy.ErrSTARTTLS)
		case None:
			if rule.Source != "" {
				t.Errorf("none: %+v", rule)
			}
		}
		want := map[Mode][]string{
			Enforce: {"example.com sts mx.example.com ok", "example.com sts mx.example.com the server does not offer STARTTLS"},
			Testing: {"example.com sts mx.example.com ok", "example.com sts mx.example.com x509: certificate has expired or is not yet valid",
				"example.com sts mx.example.com the server does not offer STARTTLS", "example.com sts evil.example certificate-host-mismatch",
				"example.com sts mx.example.com validation-failure", "example.com sts mx.example.com the server refused STARTTLS"},
		}[mode]
		for i := range r.reports {
			r.reports[i], _, _ = strings.Cut(r.reports[i], ": current time")
		}
		if d := cmp.Diff(want, r.reports); d != "" {
			t.Errorf("%s: reports\n%s", mode, d)
		}
		pass, fail := r.c.m.legacySecurity.Value("pass"), r.c.m.legacySecurity.Value("fail")
		if len(want) > 0 && (pass != 1 || int(fail) != len(want)-1) {
			t.Errorf("%s: pass %d, fail %d", mode, pass, fail)
		}
		if c := r.c.m.checks[mode]; c[1].Value() != float64(pass) || c[0].Value() != float64(fail) {
			t.Errorf("%s: the twins differ", mode)
		}
	}
	// A fetch that fails is reported, and mail goes on.
	r.host.text("gone")
	os.RemoveAll(r.dir)
	r.restart()
	r.reports = nil
	if rule, err := r.c.Rule(bg, "example.com"); err != nil || rule.Source != "" {
		t.Errorf("failed fetch: %+v, %v", rule, err)
	}
	if d := cmp.Diff([]string{"example.com sts  sts-policy-invalid"}, r.reports); d != "" {
		t.Error(d)
	}
}

// TestOneFetch: many deliveries at once fetch a policy once.
func TestOneFetch(t *testing.T) {
	r := newRig(t, stsZone)
	r.host.serve(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(50 * time.Millisecond)
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, good)
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if p := r.policy("example.com"); p == nil {
				t.Error("no policy")
			}
		})
	}
	wg.Wait()
	if n := r.host.hits.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestRun: the loop refreshes at once, every ten minutes, and ends with its context.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := zone.MustNew(stsZone)
		var fetched atomic.Int32
		c, _ := New(Config{Resolver: z, Client: &http.Client{Transport: transport(func(*http.Request) (*http.Response, error) {
			fetched.Add(1)
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/plain"}}, Body: io.NopCloser(strings.NewReader(good))}, nil
		})}})
		c.Policy(t.Context(), "example.com")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.Run(ctx) }()
		time.Sleep(35 * time.Minute)
		if n := c.m.refreshCycles.Value(); n != 4 || fetched.Load() != 1 {
			t.Errorf("%d cycles, %d fetches", n, fetched.Load())
		}
		// Half of max_age later the same id is not enough.
		time.Sleep(12 * time.Hour)
		if fetched.Load() != 2 {
			t.Errorf("%d fetches after half its life", fetched.Load())
		}
		cancel()
		<-done
	})
}

// TestD50Addresses: a policy host at an address inside is not connected to.
func TestD50Addresses(t *testing.T) {
	z := zone.MustNew(stsZone + "mta-sts.example.com A 127.0.0.1")
	_, _, err := Fetch(bg, z, NewClient(z, nil, false), "example.com")
	if !errors.Is(err, dns.ErrPrivate) {
		t.Errorf("got %v", err)
	}
}

// TestN3Bounded: domains do not pile up in memory.
func TestN3Bounded(t *testing.T) {
	c, _ := New(Config{Resolver: zone.MustNew(""), Max: 50})
	for i := range 500 {
		c.Rule(bg, fmt.Sprintf("d%d.example", i))
	}
	if n := c.entries.Len(); n != 50 {
		t.Errorf("%d entries", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("version:STSv1\nmode:none\nmax_age:1\n")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		p.Allows("mx.example.com")
		again, err := Parse(strings.Join(p.Lines(), "\n"))
		if err != nil || again.Mode != p.Mode || again.MaxAge != p.MaxAge || len(again.MXs) != len(p.MXs) {
			t.Fatalf("%q: lines give %+v, %v", s, again, err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add("v=STSv1; id=20160831085700Z;")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := recordID([]string{s}); len(id) > 32 || err != nil && id != "" {
			t.Fatalf("%q: %q, %v", s, id, err)
		}
	})
}
