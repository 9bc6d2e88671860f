package monitoring

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// sink is a log's destination that can be read.
type sink struct {
	mu  sync.Mutex
	b   bytes.Buffer
	err error
}

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return s.b.Write(b)
}
func (s *sink) Close() error { return nil }
func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestLog checks that lines are kept with their level and caller, that they reach the logger behind as they would without us, and are counted.
func TestLog(t *testing.T) {
	out := &sink{}
	reg := expvarom.New()
	behind := log.New(out)
	behind.LogTime = false
	l := NewLog(behind, reg)
	front := l.Logger()
	front.Infof("first %d", 1)
	front.Errorf("bad\xff")
	front.Debugf("not logged")
	front.Level = log.Debug
	behind.Level = log.Debug
	front.Debugf("logged")
	lines := l.Lines()
	var got []string
	for _, x := range lines {
		got = append(got, x.Level+" "+x.Text)
		if !strings.HasPrefix(x.Caller, "tools_test.go:") {
			t.Errorf("caller %q", x.Caller)
		}
	}
	if want := []string{"info first 1", "error bad�", "debug logged"}; !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	if text := out.String(); !strings.Contains(text, "_ ") || !strings.Contains(text, "first 1\n") || !strings.Contains(text, "E ") || !strings.Contains(text, ". ") {
		t.Errorf("passed on: %q", text)
	}
	out.err = errors.New("disk full")
	front.Infof("lost")
	_, metrics := metricsText(t, reg)
	for _, want := range []string{`chasquid_log_messages_total{level="info"} 2`, `chasquid_log_messages_total{level="error"} 1`, `chasquid_log_write_errors_total{log="main"} 1`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	for i := range 3 * keptLines {
		front.Infof("line %d %s", i, strings.Repeat("x", 2*keptLineSize))
	}
	if lines = l.Lines(); len(lines) != keptLines || lines[0].N+keptLines-1 != lines[keptLines-1].N || len(lines[0].Text) > keptLineSize+10 {
		t.Errorf("%d lines kept, from %d to %d", len(lines), lines[0].N, lines[len(lines)-1].N)
	}
}

// TestLogCaller checks that the logger behind names who logged, through the functions of the log package and through a trace.
func TestLogCaller(t *testing.T) {
	out := &sink{}
	old := log.Default
	defer func() { log.Default = old }()
	behind := log.New(out)
	l := NewLog(behind, nil)
	log.Default = l.Logger()
	log.Infof("one")
	var place trace.Place
	for _, conf := range []trace.Config{{Log: true}, {Log: true, Line: l.Line}} {
		_, sp := trace.Start(trace.WithRecorder(t.Context(), trace.New(conf)), trace.DNS, "x")
		for range 2 { // the second time it is known
			sp.Infof("two")
			sp.Errorf("three")
			sp.Error(errors.New("four"))
			sp.Info(&place, "five")
		}
		sp.Finish()
	}
	lines := l.Lines()
	if len(lines) != 17 {
		t.Errorf("%d lines", len(lines))
	}
	where := map[string]bool{}
	for _, x := range lines {
		where[x.Caller] = true
		if !strings.HasPrefix(x.Caller, "tools_test.go:") {
			t.Errorf("caller of %q is %q", x.Text, x.Caller)
		}
	}
	if len(where) != 5 {
		t.Errorf("five lines of code logged, the log names %d: %v", len(where), where)
	}
}

// TestLogFormat checks that lines look as they do without us, whichever way they come.
func TestLogFormat(t *testing.T) {
	plain, fronted, direct := &sink{}, &sink{}, &sink{}
	all := []*log.Logger{log.New(plain), NewLog(log.New(fronted), nil).Logger()}
	l := NewLog(log.New(direct), nil)
	for range 2 {
		for _, g := range all {
			g.Errorf("%s", "text")
			g.Infof("%s", "text")
		}
		l.Line(log.Error, 0, nil, "text")
		l.Line(log.Info, 0, nil, "text")
	}
	clean := func(s *sink) string {
		return regexp.MustCompile(`\d{4}-\d\d-\d\d [0-9:.]+ |:\d+`).ReplaceAllString(s.String(), "")
	}
	if want := strings.Repeat("E tools_test.go  text\n_ tools_test.go  text\n", 2); clean(plain) != want || clean(fronted) != want || clean(direct) != want {
		t.Errorf("lines\n%s%s%s", plain, fronted, direct)
	}
}

func metricsText(t *testing.T, reg *expvarom.Registry) (int, string) {
	t.Helper()
	_, at := serve(t, Config{Metrics: reg})
	return get(t, at+"/metrics")
}

// TestDebugLines switches debug lines on for a while.
func TestDebugLines(t *testing.T) {
	s := newSite(t, "", false)
	rec := trace.New(trace.Config{Log: true})
	conf := s.config()
	conf.Traces = rec
	srv, at := serve(t, conf)
	debug := func(text string) bool {
		_, sp := trace.Start(trace.WithRecorder(t.Context(), rec), trace.DNS, "x")
		sp.Debugf("%s", text)
		sp.Finish()
		return slices.ContainsFunc(s.log.Lines(), func(l LogLine) bool { return l.Level == "debug" && strings.HasSuffix(l.Text, text) })
	}
	if debug("before") {
		t.Error("a debug line is logged though nobody asked")
	}
	for minutes, want := range map[string]string{"61": "400", "-1": "400", "x": "400", "10": "200"} {
		if got := post(t, at+"/debug/log", url.Values{"minutes": {minutes}}, "*/*"); !strings.HasPrefix(got, want) {
			t.Errorf("%s minutes: %s", minutes, got)
		}
	}
	if !debug("during") {
		t.Error("no debug line is logged though it was asked for")
	}
	if _, body := fetch(t, at+"/debug/log?level=debug"); !strings.Contains(body, "during") || !strings.Contains(body, "Debug lines are logged until") {
		t.Errorf("the page: %s", body)
	}
	post(t, at+"/debug/log", url.Values{"minutes": {"0"}}, "*/*")
	if debug("after") {
		t.Error("debug lines go on")
	}
	srv.setDebug(20 * time.Millisecond)
	for deadline := time.Now().Add(5 * time.Second); !srv.debugUntil().IsZero(); {
		if time.Now().After(deadline) {
			t.Fatal("debug lines do not end by themselves")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if debug("much later") {
		t.Error("debug lines did not end by themselves")
	}
}

// TestTail watches live what happens to one sender, and that no more than four can.
func TestTail(t *testing.T) {
	s := newSite(t, "", false)
	open := func() *http.Response {
		resp, err := http.Get(s.url + "/debug/tail?for=Carol@example.org")
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	var all []*http.Response
	for range 4 {
		all = append(all, open())
	}
	lines := bufio.NewScanner(all[0].Body)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "# watching for Carol@example.org") {
		t.Fatalf("first line %q", lines.Text())
	}
	if resp := open(); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("the fifth watcher: %s", resp.Status)
	}
	ctx := trace.WithRecorder(t.Context(), s.rec)
	_, sp := trace.StartMessage(ctx, trace.SMTPTransaction, "other", trace.NewID())
	sp.Printf("nobody cares")
	sp.Finish()
	_, sp = trace.StartMessage(ctx, trace.SMTPTransaction, "carol@example.org", trace.NewID())
	sp.Printf("MAIL \x1b[31m ok")
	sp.Finish()
	var seen []string
	for lines.Scan() {
		if seen = append(seen, lines.Text()); strings.Contains(lines.Text(), "ok") {
			break
		}
	}
	if text := strings.Join(seen, "\n"); !strings.Contains(text, `MAIL \x1b[31m ok`) || strings.Contains(text, "nobody") {
		t.Errorf("seen: %q", seen)
	}
	for _, r := range all {
		r.Body.Close()
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		resp := open()
		resp.Body.Close()
		if resp.StatusCode == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("those who went away still count as watchers")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestSupport looks for secrets and addresses in the bundle, which must hold everything else.
func TestSupport(t *testing.T) {
	s := newSite(t, "", true)
	s.settle(t)
	front := s.log.Logger()
	front.Infof("relay smtp://user:hunter2@relay.example:587 for bob@example.net, password=hunter3")
	resp, err := http.Get(s.url + "/debug/support")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if !strings.Contains(resp.Header.Get("Content-Disposition"), ".tar.gz") {
		t.Errorf("header %v", resp.Header)
	}
	z, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "chasquid-support/")] = string(b)
	}
	for name, want := range map[string]string{"README": "Passwords are not in it", "index.txt": "READY", "metrics.txt": "chasquid_queue_items{", "config.txt": "hostname: ", "queue.json": "busy.example.com",
		"goroutines.txt": "goroutines in", "traces.txt": "550 5.1.1 no such user", "log.txt": "relay.example:587", "vars.json": "memstats", "heap.pb.gz": "\x1f\x8b", "cpu.pb.gz": "\x1f\x8b"} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q: %.300q", name, want, files[name])
		}
	}
	for name, text := range files {
		if strings.HasSuffix(name, ".gz") {
			continue
		}
		for _, secret := range []string{"hunter2", "hunter3", "alice@", "bob@", "bob0@", "spam@", `"cmdline"`} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %q", name, secret)
			}
		}
	}
}

// TestHideSecrets is what the bundle and the flags page rely on.
func TestHideSecrets(t *testing.T) {
	for in, want := range map[string]string{
		"smtp://u:p@h:25 x":              "smtp://…@h:25 x",
		`relay: "smtps://u@h"`:           `relay: "smtps://…@h"`,
		`password: "a b"`:                "password: …",
		"smarthost_password=abc, x":      "smarthost_password=… x",
		"nothing here":                   "nothing here",
		"https://example.org/path@thing": "https://example.org/path@thing",
	} {
		if got := hideSecrets(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"<bob+tag@example.org>": "<…@example.org>", "müller@exämple.org": "…@exämple.org", "@example.org": "@example.org", "a@b,c@d": "…@b,…@d"} {
		if got := hideAddresses(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestSwitches switches sampling and the flight recorder on and off.
func TestSwitches(t *testing.T) {
	_, at := serve(t, Config{})
	if code, _ := get(t, at+"/debug/pprof/flight"); code != 404 {
		t.Errorf("a snapshot of the recorder that is off: %d", code)
	}
	for do, want := range map[string]string{"sampling": "200", "flight": "200", "fly": "400"} {
		if got := post(t, at+"/debug/profiles", url.Values{"do": {do}}, "*/*"); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s", do, got)
		}
	}
	if _, body := fetch(t, at+"/debug/profiles"); !strings.Contains(body, "Sampling is on until") || !strings.Contains(body, "take a snapshot") {
		t.Errorf("the page does not say what is on: %s", body)
	}
	if code, body := get(t, at+"/debug/pprof/flight"); code != 200 || !strings.HasPrefix(body, "go 1.") {
		t.Errorf("a snapshot: %d, %.20q", code, body)
	}
	post(t, at+"/debug/profiles", url.Values{"do": {"no-flight"}}, "*/*")
	post(t, at+"/debug/profiles", url.Values{"do": {"no-sampling"}}, "*/*")
	if _, body := fetch(t, at+"/debug/profiles.json"); strings.Contains(body, "until") || !strings.Contains(body, `"flight_recorder": false`) {
		t.Errorf("still on: %s", body)
	}
	if _, body := fetch(t, at+"/debug/profiles"); strings.Contains(body, "Sampling is on") {
		t.Error("sampling still on")
	}
}

// TestDiagnose checks the form, the result and that it cannot be asked for all the time.
func TestDiagnose(t *testing.T) {
	s := newSite(t, "", false)
	if got := post(t, s.url+"/debug/diagnose", url.Values{"rcpt": {"no address"}}, "*/*"); !strings.HasPrefix(got, "400") {
		t.Errorf("no address: %s", got)
	}
	if got := post(t, s.url+"/debug/diagnose", url.Values{"rcpt": {"bob@example.net"}}, "text/html"); !strings.Contains(got, "bob@example.net goes to mx1.example.net") {
		t.Errorf("diagnosed: %s", got)
	}
	if got := post(t, s.url+"/debug/diagnose", url.Values{"rcpt": {"bob@example.net"}}, "*/*"); !strings.HasPrefix(got, "429") {
		t.Errorf("again at once: %s", got)
	}
}

// TestRecent checks what is remembered of the timeline, and that strangers cannot make it grow.
func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecent()
		for i := range 10_000 {
			name := itoa(i) + strings.Repeat("x", 1000)
			e := func(k timeline.Kind) *timeline.Event {
				return &timeline.Event{Kind: k, At: time.Now(), Client: "192.0." + itoa(i%256) + ".1:25", User: name}
			}
			a := e(timeline.Auth)
			a.Err = errors.New(name)
			r.Observe(a)
			q := e(timeline.Queued)
			q.Rcpts = make([]address.Address, 2)
			r.Observe(q)
			d := e(timeline.Attempt)
			d.Rcpt = &mail.Recipient{To: address.Address{Local: "a", Domain: name}}
			d.Outcome = &mail.Outcome{Disposition: mail.Failed, Reason: mail.ReasonPolicy, Err: errors.New(name), MTA: name}
			r.Observe(d)
		}
		for range 300 {
			r.Observe(&timeline.Event{Kind: timeline.Attempt, At: time.Now(), Took: time.Second, Rcpt: &mail.Recipient{To: address.Address{Local: "a", Domain: "Busy.example"}}, Outcome: &mail.Outcome{Disposition: mail.Delivered, TLS: "plain"}})
			r.Observe(&timeline.Event{Kind: timeline.Queued, At: time.Now(), User: "eve@example.org", Rcpts: make([]address.Address, 3)})
		}
		if n := len(r.dests.by) + len(r.users.by) + len(r.networks.by); n > keptDests+keptUsers+keptNetworks {
			t.Errorf("%d entries", n)
		}
		if len(r.Auths()) != keptAuths || len(r.Bounces(1000)) != keptFailures {
			t.Errorf("%d logins, %d bounces", len(r.Auths()), len(r.Bounces(1000)))
		}
		if f := r.Bounces(1)[0]; len(f.Text) > keptText+10 || !f.Final || f.Reason != "remote_policy" {
			t.Errorf("bounce %+v", f)
		}
		if d := r.destinations()["busy.example"]; d == nil || d.Delivered != 300 || d.P95 != time.Second || d.TLS != "plain" {
			t.Errorf("destination %+v", d)
		}
		if u := r.Senders(time.Now(), 1)[0]; u.User != "eve@example.org" || u.LastHour != 900 {
			t.Errorf("sender %+v", u)
		}
		time.Sleep(61 * time.Minute)
		if u := r.Senders(time.Now(), 1)[0]; u.LastHour != 0 {
			t.Errorf("an hour later %+v", u)
		}
	})
}

// TestHangingCheck checks that a check which hangs fails, runs only once however many ask, and keeps nobody.
func TestHangingCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		free := make(chan bool)
		s := New(Config{Checks: []Check{{Name: "resolver", Run: func(context.Context) error { runs.Add(1); <-free; return nil }}}})
		for range 3 {
			start := time.Now()
			r := s.RunChecks(t.Context())
			if r[0].Err == nil || time.Since(start) != checkTimeout {
				t.Errorf("%v after %v", r[0].Err, time.Since(start))
			}
		}
		if runs.Load() != 1 {
			t.Errorf("it ran %d times", runs.Load())
		}
		close(free)
		synctest.Wait()
		if r := s.RunChecks(t.Context()); r[0].Err != nil || runs.Load() != 2 {
			t.Errorf("afterwards: %v, %d runs", r[0].Err, runs.Load())
		}
	})
}

// TestGoroutineHead takes apart what the runtime writes.
func TestGoroutineHead(t *testing.T) {
	for head, want := range map[string]string{
		"goroutine 7 [IO wait]:":                                                        "IO wait 0s []",
		"goroutine 7 [IO wait, 3 minutes]:":                                             "IO wait 3m0s []",
		"goroutine 1 [chan receive, 61 minutes, locked to thread]:":                     "chan receive 1h1m0s []",
		`goroutine 22 [chan receive labels:{"family": "SMTP.Conn", "trace": "ab\"c"}]:`: `chan receive 0s [family=SMTP.Conn trace=ab"c]`,
		`goroutine 22 [select, 5 minutes labels:{"family": "SMTP.Conn"}]:`:              `select 5m0s [family=SMTP.Conn]`,
	} {
		state, wait, labels := parseHead(head)
		if got := state + " " + wait.String() + " [" + strings.Join(labels, " ") + "]"; got != want {
			t.Errorf("%s: %s, want %s", head, got, want)
		}
	}
}

// TestWaterfall checks that a time in which nothing happened does not squeeze the rest, and that all stays within the picture.
func TestWaterfall(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	sp := func(id byte, parent byte, at, d time.Duration) trace.SpanData {
		return trace.SpanData{ID: trace.SpanID{id}, Parent: trace.SpanID{parent}, Start: t0.Add(at), Duration: d}
	}
	w := newWaterfall([]trace.SpanData{sp(1, 0, 0, 100*time.Millisecond), sp(2, 1, 10*time.Millisecond, 50*time.Millisecond), sp(3, 0, 72*time.Hour, 100*time.Millisecond), sp(4, 3, 72*time.Hour, 0)})
	if len(w.Gaps) != 1 || w.Gaps[0].Label != "2d 23h" && w.Gaps[0].Label != "3d" {
		t.Errorf("gaps %+v", w.Gaps)
	}
	for i, want := range []struct{ depth, x, w int }{{0, 0, 454}, {1, 45, 227}, {0, 545, 454}, {1, 545, 4}} {
		if r := w.Rows[i]; r.Depth != want.depth || abs(r.X-want.x) > 15 || abs(r.W-want.w) > 15 || r.X+r.W > 1000 {
			t.Errorf("row %d: %+v, want about %+v", i, r, want)
		}
	}
}

func abs(n int) int { return max(n, -n) }

// TestWords checks that of a failure the words of the other server are shown, or the innermost of ours.
func TestWords(t *testing.T) {
	reply := smtp.NewReply(451, "4.7.28", "too much")
	wrapped := errors.New("all MXs returned transient failures (last: Could not dial: connection refused)")
	for _, c := range []struct {
		o    mail.Outcome
		want string
	}{
		{mail.Outcome{MTA: "mx.example", Reply: reply, Err: wrapped}, "451 4.7.28 too much"},
		{mail.Outcome{MTA: "mx.example", Err: wrapped}, "Could not dial: connection refused"},
		{mail.Outcome{Err: errors.New("no such file")}, "no such file"},
		{mail.Outcome{Reason: mail.ReasonDNS}, "dns_error"},
	} {
		if got := core(outcomeText(&c.o)); got != c.want {
			t.Errorf("%+v: %q, want %q", c.o, got, c.want)
		}
	}
}
