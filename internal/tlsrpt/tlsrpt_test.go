package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"github.com/google/go-cmp/cmp"
)

type sent struct{ from, to, msg string }

// rig is a Recorder whose reports end in lists.
type rig struct {
	*Recorder
	mu     sync.Mutex
	mailed []sent
	posted []string // URL and report
	fail   error    // of the next POSTs
}

// mails waits until nothing moves and returns the mails so far.
func (g *rig) mails() []sent {
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.mailed)
}

// posts is mails for POSTs.
func (g *rig) posts() []string {
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.posted)
}

func (g *rig) waiting() int {
	g.Recorder.mu.Lock()
	defer g.Recorder.mu.Unlock()
	return len(g.due)
}

func (g *rig) setFail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fail = err
}

func newRig(t *testing.T, zoneText, state string, edit ...func(*Config)) *rig {
	g := &rig{}
	cfg := Config{
		Resolver: zone.MustNew(zoneText), Hostname: "mx.here.example", Organization: "Here", State: state, Metrics: expvarom.New(),
		Mail: func(_ context.Context, from, to string, msg []byte) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.mailed = append(g.mailed, sent{from, to, string(msg)})
			return nil
		},
		Client: &http.Client{Transport: transport(func(req *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(req.Body)
			g.mu.Lock()
			defer g.mu.Unlock()
			g.posted = append(g.posted, req.Method+" "+req.URL.String()+" "+req.Header.Get("Content-Type")+" "+unzip(t, body))
			if g.fail != nil {
				return nil, g.fail
			}
			return &http.Response{StatusCode: 202, Body: io.NopCloser(strings.NewReader(""))}, nil
		})},
	}
	for _, f := range edit {
		f(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.Recorder = r
	return g
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func unzip(t *testing.T, gz []byte) string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	stsPolicy = tlspolicy.Report{Domain: "example.com", Policy: "sts", Text: []string{"version: STSv1", "mode: enforce"}, MX: []string{"*.example.com"}, Host: "mx.example.com"}
	danePol   = tlspolicy.Report{Domain: "example.com", Policy: "tlsa", Text: []string{"_25._tcp.mx.example.com. IN TLSA 3 1 1 00"}, MX: []string{"mx.example.com"}, Host: "mx.example.com"}
)

func with(r tlspolicy.Report, err error) tlspolicy.Report {
	r.Err = err
	return r
}

type typed string

func (e typed) Error() string      { return "typed " + string(e) }
func (e typed) ResultType() string { return string(e) }

// TestC105Report: a day of sessions makes the JSON of RFC 8460 section 4.4, sent after the day's end by mail and by HTTPS.
func TestC105Report(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, `_smtp._tls.example.com TXT "v=TLSRPTv1; rua=mailto:tls@reports.example,https://reports.example/in?x=1"`, "")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); g.Run(ctx) }()
		for range 3 {
			g.Observe(stsPolicy)
		}
		g.Observe(danePol)
		g.Observe(with(stsPolicy, fmt.Errorf("TLS: %w", x509.HostnameError{Host: "x", Certificate: &x509.Certificate{}})))
		g.Observe(with(stsPolicy, tlspolicy.ErrNoSTARTTLS))
		g.Observe(with(stsPolicy, tlspolicy.ErrNoSTARTTLS))
		g.Observe(tlspolicy.Report{Domain: "example.com", Policy: "sts", Err: typed("sts-policy-fetch-error")})
		g.Observe(tlspolicy.Report{Domain: "unasked.example", Policy: "sts"})
		time.Sleep(24*time.Hour - time.Second)
		if len(g.mails())+len(g.posts()) != 0 {
			t.Fatal("sent before the day was over")
		}
		time.Sleep(6 * time.Hour)
		if len(g.mails()) != 1 || len(g.posts()) != 1 {
			t.Fatalf("%d mails, %d posts", len(g.mails()), len(g.posts()))
		}
		head, body, _ := strings.Cut(g.posts()[0], "{")
		if head != "POST https://reports.example/in?x=1 application/tlsrpt+gzip " {
			t.Errorf("posted %q", head)
		}
		var got any
		if err := json.Unmarshal([]byte("{"+body), &got); err != nil {
			t.Fatal(err)
		}
		id := got.(map[string]any)["report-id"].(string)
		if !regexp.MustCompile(`^20000101\.[0-9a-f]{16}@mx\.here\.example$`).MatchString(id) {
			t.Errorf("id %q", id)
		}
		got.(map[string]any)["report-id"] = "ID"
		var want any
		if err := json.Unmarshal([]byte(`{
			"organization-name": "Here",
			"date-range": {"start-datetime": "2000-01-01T00:00:00Z", "end-datetime": "2000-01-01T23:59:59Z"},
			"contact-info": "postmaster@mx.here.example",
			"report-id": "ID",
			"policies": [
				{"policy": {"policy-type": "sts", "policy-string": ["version: STSv1", "mode: enforce"], "policy-domain": "example.com", "mx-host": ["*.example.com"]},
				 "summary": {"total-successful-session-count": 3, "total-failure-session-count": 4},
				 "failure-details": [
					{"result-type": "certificate-host-mismatch", "receiving-mx-hostname": "mx.example.com", "failed-session-count": 1,
					 "failure-reason-code": "TLS: x509: certificate is not valid for any names, but wanted to match x"},
					{"result-type": "starttls-not-supported", "receiving-mx-hostname": "mx.example.com", "failed-session-count": 2,
					 "failure-reason-code": "the server does not offer STARTTLS"},
					{"result-type": "sts-policy-fetch-error", "failed-session-count": 1, "failure-reason-code": "typed sts-policy-fetch-error"}]},
				{"policy": {"policy-type": "tlsa", "policy-string": ["_25._tcp.mx.example.com. IN TLSA 3 1 1 00"], "policy-domain": "example.com", "mx-host": ["mx.example.com"]},
				 "summary": {"total-successful-session-count": 1, "total-failure-session-count": 0}}]
		}`), &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		checkMail(t, g.mails()[0], id, "{"+body)
		if n := g.domains(); n != 0 {
			t.Errorf("%d domains left", n)
		}
		// Nothing happened since: nothing is sent.
		time.Sleep(48 * time.Hour)
		if len(g.mails()) != 1 || len(g.posts()) != 1 || g.m.reports["mailto"][1].Value() != 1 || g.m.reports["https"][1].Value() != 1 {
			t.Errorf("%d mails, %d posts", len(g.mails()), len(g.posts()))
		}
		cancel()
		<-done
	})
}

// checkMail reads a report mail as its receiver would (RFC 8460 section 5.3).
func checkMail(t *testing.T, s sent, id, report string) {
	t.Helper()
	if s.from != "postmaster@mx.here.example" || s.to != "tls@reports.example" {
		t.Errorf("from %q to %q", s.from, s.to)
	}
	if strings.Contains(strings.ReplaceAll(s.msg, "\r\n", ""), "\n") {
		t.Error("bare LF")
	}
	for l := range strings.SplitSeq(s.msg, "\r\n") {
		if len(l) > 200 {
			t.Errorf("line of %d bytes", len(l))
		}
	}
	m, err := netmail.ReadMessage(strings.NewReader(s.msg))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Subject": "Report Domain: example.com Submitter: mx.here.example Report-ID: <" + id + ">", "TLS-Report-Domain": "example.com",
		"TLS-Report-Submitter": "mx.here.example", "TLS-Required": "No", "Auto-Submitted": "auto-generated", "Message-ID": "<" + id + ">",
	} {
		if got := m.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, err := m.Header.Date(); err != nil {
		t.Error(err)
	}
	mt, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || mt != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Fatalf("type %q, %v", mt, err)
	}
	r := multipart.NewReader(m.Body, params["boundary"])
	first, err := r.NextPart()
	if err != nil || !strings.HasPrefix(first.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("first part %v, %v", first, err)
	}
	second, err := r.NextPart()
	if err != nil || second.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
		t.Fatalf("second part %v, %v", second, err)
	}
	if !regexp.MustCompile(`^mx\.here\.example!example\.com!946684800!946771199![0-9a-f]+\.json\.gz$`).MatchString(second.FileName()) {
		t.Errorf("file name %q", second.FileName())
	}
	text, _ := io.ReadAll(second)
	gz, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(text), "\r\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	if got := unzip(t, gz); strings.TrimSpace(got) != strings.TrimSpace(report) {
		t.Errorf("another report than posted:\n%s", got)
	}
	if _, err := r.NextPart(); err != io.EOF {
		t.Errorf("a third part: %v", err)
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("wrapped: %w", typed("dnssec-invalid")), "dnssec-invalid"},
		{tlspolicy.ErrSTARTTLS, "starttls-not-supported"},
		{x509.HostnameError{}, "certificate-host-mismatch"},
		{x509.CertificateInvalidError{Reason: x509.Expired}, "certificate-expired"},
		{x509.CertificateInvalidError{Reason: x509.TooManyIntermediates}, "validation-failure"},
		{x509.UnknownAuthorityError{}, "certificate-not-trusted"},
		{errors.New("handshake failed"), "validation-failure"},
	} {
		if got := classify(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

func TestParseRecord(t *testing.T) {
	for _, c := range []struct {
		txt  []string
		want []target
	}{
		{[]string{"v=TLSRPTv1; rua=mailto:a@b.example"}, []target{{Mail: "a@b.example"}}},
		{[]string{"v=TLSRPTv1;rua=https://b.example/x , mailto:a%2Cb@c.example;"}, []target{{URL: "https://b.example/x"}}},
		{[]string{"v=TLSRPTv1; ext=1; rua=MAILTO:a%2Bb@c.example?subject=x"}, []target{{Mail: "a+b@c.example"}}},
		{[]string{"hello", "v=TLSRPTv1 ; rua=mailto:a@b.example"}, []target{{Mail: "a@b.example"}}},
		{[]string{"v=TLSRPTv1; rua=mailto:a@b.example", "v=TLSRPTv1; rua=mailto:c@d.example"}, nil},
		{[]string{"v=TLSRPTv2; rua=mailto:a@b.example"}, nil},
		{[]string{"v=TLSRPTv1"}, nil},
		{[]string{"v=TLSRPTv1; rua=http://b.example/,ftp://x/,mailto:nobody,mailto:,https://,https://u:p@x/,gopher:x,%zz"}, nil},
		{[]string{"v=TLSRPTv1; rua=mailto:a@b.example%0d%0aX:y"}, nil},
		{[]string{"v=TLSRPTv1; rua=mailto:a@b%C3%BCcher.example,mailto:%C3%BC@b.example"}, []target{{Mail: "a@xn--bcher-kva.example"}}},
		{nil, nil},
		{[]string{""}, nil},
	} {
		if d := cmp.Diff(c.want, parseRecord(c.txt)); d != "" {
			t.Errorf("%q:\n%s", c.txt, d)
		}
	}
	many := "v=TLSRPTv1; rua=" + strings.Repeat("mailto:a@b.example,", 100)
	if l := parseRecord([]string{many}); len(l) != maxTargets {
		t.Errorf("%d targets", len(l))
	}
}

// TestRetry: a POST that fails is tried again for a day, then given up.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, `_smtp._tls.example.com TXT "v=TLSRPTv1; rua=https://a.example/"`+"\n"+`_smtp._tls.b.example TXT "v=TLSRPTv1; rua=https://b.example/"`, "")
		g.setFail(errors.New("connection refused"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); g.Run(ctx) }()
		g.Observe(stsPolicy)
		time.Sleep(31 * time.Hour)
		tries := len(g.posts())
		if tries < 2 || tries > 5 {
			t.Errorf("%d tries in the first hours", tries)
		}
		g.setFail(nil)
		time.Sleep(12 * time.Hour)
		if len(g.posts()) != tries+1 || g.m.reports["https"][1].Value() != 1 {
			t.Errorf("%d tries, %v delivered", len(g.posts()), g.m.reports["https"][1].Value())
		}
		g.setFail(errors.New("connection refused"))
		before := len(g.posts())
		g.Observe(tlspolicy.Report{Domain: "b.example", Policy: "sts"})
		time.Sleep(4 * 24 * time.Hour)
		if n := len(g.posts()) - before; n < 4 || n > 8 || g.waiting() != 0 || g.m.reports["https"][0].Value() != 1 {
			t.Errorf("%d tries, %d due, %v given up", n, g.waiting(), g.m.reports["https"][0].Value())
		}
		cancel()
		<-done
	})
}

// TestLater: a recorder that was told that the file is another process's for now counts, and adds what that process counted when it loads.
func TestLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tlsrpt.json")
	zoneText := `_smtp._tls.example.com TXT "v=TLSRPTv1; rua=mailto:a@b.example"`
	old, next := newRig(t, zoneText, path), newRig(t, zoneText, path, func(c *Config) { c.Later = true })
	old.Observe(stsPolicy)
	old.Observe(with(stsPolicy, tlspolicy.ErrSTARTTLS))
	next.Observe(stsPolicy)
	next.Observe(with(stsPolicy, tlspolicy.ErrSTARTTLS))
	other := stsPolicy
	other.Domain = "example.net"
	old.Observe(other)
	if err := old.save(); err != nil {
		t.Fatal(err)
	}
	if err := next.Load(); err != nil {
		t.Fatal(err)
	}
	day := next.days[time.Now().UTC().Format(dateFormat)]
	p := day.Domains[stsPolicy.Domain].Policies
	if len(p) != 1 || p[0].Successful != 2 || len(p[0].Failures) != 1 || p[0].Failures[0].Count != 2 {
		t.Errorf("%+v", p[0])
	}
	if day.Domains["example.net"] == nil || day.Domains["example.net"].Policies[0].Successful != 1 {
		t.Error("a domain that only the other process met is lost")
	}
}

// TestState: the counts outlive a restart, a broken file does not stop anything.
func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tlsrpt.json")
	zoneText := `_smtp._tls.example.com TXT "v=TLSRPTv1; rua=mailto:a@b.example"`
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, zoneText, path)
		g.Observe(stsPolicy)
		g.Observe(with(stsPolicy, tlspolicy.ErrSTARTTLS))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g.Run(ctx)
		time.Sleep(40 * time.Hour)
		g = newRig(t, zoneText, path)
		ctx, cancel = context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); g.Run(ctx) }()
		time.Sleep(time.Minute)
		if len(g.mails()) != 1 {
			t.Errorf("%d mails after the restart", len(g.mails()))
		}
		cancel()
		<-done
	})
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{State: path, Resolver: zone.MustNew("")})
	if err == nil || r == nil {
		t.Errorf("broken state: %v", err)
	}
	r.Observe(stsPolicy)
	if r.domains() != 1 {
		t.Error("does not count")
	}
}

// TestN3Bounded: domains, policies and failures of one day are bounded; the sum of failures stays right.
// TestN2Configure: who reports changes, and whether; what was counted stays.
func TestN2Configure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, `_smtp._tls.example.com TXT "v=TLSRPTv1; rua=mailto:reports@example.com"`, "")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		g.Observe(stsPolicy)
		g.Configure("new.here.example", false)
		g.Observe(stsPolicy)
		time.Sleep(30 * time.Hour)
		if n := len(g.mails()); n != 0 {
			t.Errorf("%d reports while they are off", n)
		}
		g.Configure("new.here.example", true)
		time.Sleep(5 * time.Hour)
		mails := g.mails()
		if len(mails) != 1 || mails[0].from != "postmaster@new.here.example" {
			t.Errorf("reports %v", mails)
		}
		cancel()
		<-done
	})
}

func TestN3Bounded(t *testing.T) {
	r, _ := New(Config{Resolver: zone.MustNew(""), Max: 100})
	for i := range 1000 {
		r.Observe(tlspolicy.Report{Domain: fmt.Sprint("d", i), Policy: "sts"})
	}
	if n := r.domains(); n != 100 {
		t.Errorf("%d domains", n)
	}
	for i := range 1000 {
		r.Observe(tlspolicy.Report{Domain: "d1", Policy: "sts", Text: []string{fmt.Sprint(i)}})
		r.Observe(tlspolicy.Report{Domain: "d2", Policy: "sts", Host: fmt.Sprint(i), Err: errors.New(strings.Repeat("x\n", 1000))})
	}
	for _, day := range r.days {
		if n := len(day.Domains["d1"].Policies); n != maxPolicies {
			t.Errorf("%d policies", n)
		}
		sum := int64(0)
		f := day.Domains["d2"].Policies[0].Failures
		for _, x := range f {
			sum += x.Count
			if len(x.Reason) > maxReason || strings.Contains(x.Reason, "\n") {
				t.Errorf("reason %q", x.Reason)
			}
		}
		if len(f) != maxFailures || sum != 1000 {
			t.Errorf("%d failures, sum %d", len(f), sum)
		}
	}
}

// TestD50Client: reports are not posted to addresses inside, nor where a redirect leads; a wrong certificate does not matter.
func TestD50Client(t *testing.T) {
	r, _ := New(Config{Resolver: zone.MustNew("in.example A 127.0.0.1"), Hostname: "x"})
	err := r.tryPost(t.Context(), &delivery{url: "https://in.example/"})
	if !errors.Is(err, dns.ErrPrivate) {
		t.Errorf("inside: %v", err)
	}
	hits := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		hits++
		if req.URL.Path == "/" {
			http.Redirect(w, req, "/elsewhere", http.StatusTemporaryRedirect)
		}
	}))
	defer srv.Close()
	d := &dns.Dialer{Private: true}
	r.cfg.Client.Transport.(*http.Transport).DialContext = d.DialContext
	if err := r.tryPost(t.Context(), &delivery{url: srv.URL + "/"}); err == nil || hits != 1 {
		t.Errorf("redirect: %v after %d requests", err, hits)
	}
	if err := r.tryPost(t.Context(), &delivery{url: srv.URL + "/ok"}); err != nil {
		t.Errorf("self-signed: %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add("v=TLSRPTv1; rua=mailto:a@b.example,https://c.example/x")
	f.Fuzz(func(t *testing.T, s string) {
		for _, x := range parseRecord([]string{s}) {
			if (x.Mail == "") == (x.URL == "") || strings.ContainsAny(x.Mail+x.URL, "\r\n") {
				t.Fatalf("%q: %+v", s, x)
			}
		}
	})
}
