package monitoring

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// TestIndexStaysSmall fills the index with the longest of everything: it stays within 20 KB.
func TestIndexStaysSmall(t *testing.T) {
	long := strings.Repeat("long words of strangers, ", 40)
	conf := Config{Hostname: "mail.example.org", Recent: NewRecent(), Queue: bigQueue{n: 7}, Started: time.Now(), Status: func() Status {
		st := Status{Domains: 3, ReloadErr: errors.New(long), ChangedAt: time.Now()}
		for i := range 30 {
			st.Changes, st.Restart = append(st.Changes, long), append(st.Restart, long)
			st.Listeners = append(st.Listeners, ListenerStatus{Address: fmt.Sprintf("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:%d]:25", i), Mode: "submission+TLS", Total: 1 << 40})
			st.Certificates = append(st.Certificates, CertificateStatus{Name: "mail.example.org", Names: []string{long}})
			st.Rejections = append(st.Rejections, Rejection{At: time.Now(), Client: "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:1]:65535", From: long, To: long, Reason: long})
		}
		return st
	}}
	for range 20 {
		conf.Recent.Observe(&timeline.Event{Kind: timeline.Attempt, At: time.Now(), ID: "33333333333333333", Rcpt: &mail.Recipient{}, Outcome: &mail.Outcome{Disposition: mail.Failed, Err: errors.New(long)}})
	}
	reg := expvarom.New()
	s := New(conf)
	fill := s.vitals
	for i := range 360 {
		n := reg.CounterVec("chasquid_smtp_in_messages_total", "", []string{"mode", "result"}, []string{"smtp"}, []string{"accepted", "rejected"})
		n.With("smtp", "accepted").Add(float64(i * 7919 % 103))
		n.With("smtp", "rejected").Add(float64(i * 104729 % 97))
		fams, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		fill.Sample(fams, time.Now(), time.Duration(i)*vitals.Step)
	}
	var problems []vitals.Problem
	for range 40 {
		problems = append(problems, vitals.Problem{Severity: vitals.Page, Text: long, Link: "/debug/queue?reason=remote_rate_limit", Since: time.Now()})
	}
	s.problems.Store(&problems)
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "http://localhost/", nil)
	r.RemoteAddr = "127.0.0.1:1"
	r.Header.Set("Accept", "text/html")
	s.ServeHTTP(w, r)
	body := w.Body.String()
	if len(body) > 20<<10 {
		t.Errorf("the index has %d bytes", len(body))
	}
	if !strings.Contains(body, "and 34 more") {
		t.Error("the index does not say how many problems it leaves out")
	}
}

// TestIndexShowsChanges: what the last reload changed, when, and what waits for a restart.
func TestIndexShowsChanges(t *testing.T) {
	s := New(Config{Status: func() Status {
		st := Status{ChangedAt: time.Now().Add(-3 * time.Minute), Restart: []string{"data_dir: a -> <b>"}}
		for i := range 10 {
			st.Changes = append(st.Changes, fmt.Sprintf("max_recipients: 1 -> %d", i))
		}
		return st
	}})
	for path, want := range map[string][]string{
		"/?format=html":             {`<a href="/debug/config">settings changed</a> 3m`, "1 wait for a restart"},
		"/?format=text":             {"settings changed 3m", "max_recipients: 1 -> 9", "takes effect at the next restart: data_dir: a"},
		"/?format=json":             {`"changes":[`, `"restart":[`, `"changed_at":`, `"data_dir: a`},
		"/debug/config?format=html": {"max_recipients: 1 -&gt; 9", "3m", "at the next restart", "data_dir: a -&gt; &lt;b&gt;"},
	} {
		r := httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil)
		r.RemoteAddr = "127.0.0.1:5"
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		for _, text := range want {
			if body := strings.ReplaceAll(w.Body.String(), `": `, `":`); !strings.Contains(body, text) {
				t.Errorf("%s lacks %q:\n%s", path, text, body)
			}
		}
	}
}
