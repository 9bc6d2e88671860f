package monitoring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/memstore"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// site is a monitoring server in front of a real queue, history and trace recorder, with a bit of everything in them. mark is put into
// every text that comes from outside.
type site struct {
	*Server
	url     string
	reg     *expvarom.Registry
	rec     *trace.Recorder
	queue   *queue.Queue
	history *history.History
	recent  *Recent
	log     *Log
	conf    Config
	mark    string
	ids     []mail.ID
	refused trace.ID
	hung    *trace.Span
}

// siteCourier delivers according to the domain.
type siteCourier struct{ mark string }

func (c siteCourier) Deliver(ctx context.Context, job mail.Job) []mail.Outcome {
	ctx, sp := trace.StartMessage(ctx, trace.DeliveryRemote, "to "+job.Rcpts[0].To.Domain+c.mark, job.Env.Trace)
	defer sp.Finish()
	sp.Set("mx", "mx1."+job.Rcpts[0].To.Domain+c.mark)
	out := make([]mail.Outcome, len(job.Rcpts))
	for i, r := range job.Rcpts {
		o := mail.Outcome{MTA: "mx1." + r.To.Domain + " [192.0.2.25]:25" + c.mark, TLS: "secure TLS1.3 (MTA-STS)"}
		_, dns := trace.Start(ctx, trace.DNS, "MX "+r.To.Domain)
		dns.Printf("1 answer%s", c.mark)
		dns.Finish()
		sp.Debugf("<- 220 mx1.%s ESMTP%s", r.To.Domain, c.mark)
		sp.Debugf("-> RCPT TO:<%s>", r.To)
		switch {
		case strings.HasPrefix(r.To.Domain, "busy"):
			o.Reason, o.Reply = mail.ReasonRateLimit, smtp.NewReply(450, "4.7.1", "slow down, too much from you"+c.mark)
			o.Err = errors.New("450 4.7.1 slow down, too much from you" + c.mark)
		case strings.HasPrefix(r.To.Domain, "gone"):
			o.Disposition, o.Reason, o.Reply = mail.Failed, mail.ReasonMailbox, smtp.NewReply(550, "5.1.1", "no such user"+c.mark)
			o.Err = errors.New("550 5.1.1 no such user" + c.mark)
		case strings.HasPrefix(r.To.Domain, "dead"):
			o.Reason, o.Err = mail.ReasonConnectRefused, errors.New("dial tcp 192.0.2.25:25: connection refused"+c.mark)
		default:
			o.Disposition, o.Reply = mail.Delivered, smtp.NewReply(250, "2.0.0", "Ok: queued as 4QxYz"+c.mark)
		}
		sp.Debugf("<- %s", o.Reply)
		if o.Err != nil {
			sp.Error(o.Err)
		}
		out[i] = o
	}
	return out
}

type nopLog struct{}

func (nopLog) Write(b []byte) (int, error) { return len(b), nil }
func (nopLog) Close() error                { return nil }

// newSite makes one, with an hour of samples if it has lived. It runs until the test ends.
func newSite(t testing.TB, mark string, lived bool) *site {
	t.Helper()
	s := &site{mark: mark, reg: expvarom.New()}
	s.rec = trace.New(trace.Config{Metrics: s.reg, Mirror: true, Generation: 1})
	s.log = NewLog(log.New(nopLog{}), s.reg)
	var err error
	if s.history, err = history.Open(history.Config{Path: filepath.Join(t.TempDir(), "history.db"), Metrics: s.reg}); err != nil {
		t.Fatal(err)
	}
	s.recent = NewRecent()
	observer := timeline.Observers{s.history, s.recent}
	s.queue = queue.New(queue.Config{Store: memstore.New(), Courier: siteCourier{mark}, Observer: observer, Metrics: s.reg, Hostname: "mail.example.org"})
	ctx, cancel := context.WithCancel(trace.WithRecorder(context.Background(), s.rec))
	var wg sync.WaitGroup
	wg.Go(func() { s.history.Run(ctx) })
	wg.Go(func() {
		if err := s.queue.Run(ctx); err != nil {
			t.Errorf("queue: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	s.metrics()
	s.fill(t, ctx, observer)
	s.conf = s.config()
	s.Server = New(s.conf)
	s.cpuTime = 100 * time.Millisecond
	if lived {
		s.live()
	}
	s.url = start(t, s.Server)
	return s
}

// metrics publishes some of what other packages count.
func (s *site) metrics() {
	modes := []string{"smtp", "submission", "submission_tls"}
	m := s.reg.CounterVec("chasquid_smtp_in_messages_total", "Messages.", []string{"mode", "result"}, modes, []string{"accepted", "rejected", "client_tempfail", "server_error", "aborted"})
	m.With("smtp", "accepted").Add(40)
	s.reg.HistogramVec("chasquid_smtp_in_accept_duration_seconds", "Time.", expvarom.Net, []string{"mode", "result"}, modes, []string{"accepted"}).With("smtp", "accepted").Observe(0.01)
	s.reg.CounterVec("chasquid_auth_attempts_total", "Logins.", []string{"mode", "backend", "result"}, modes, []string{"userdb"}, []string{"ok", "bad_credentials", "backend_error"})
	s.reg.CounterVec("chasquid_dns_lookups_total", "Look-ups.", []string{"purpose", "result"}, []string{"mx", "spf"}, []string{"ok", "notfound", "timeout", "temporary", "error"})
	s.reg.RegisterRuntime("1.0", "", "2026-01-01 00:00:00 +0000")
}

// fill makes things happen.
func (s *site) fill(t testing.TB, ctx context.Context, observer timeline.Observers) {
	domains := []string{"example.net", "busy.example.com", "gone.example.com", "dead.example.com", "busy.example.com"}
	for i := range 20 {
		d, err := s.queue.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(d, "Subject: hello\r\n\r\nhello\r\n")
		id := trace.NewID()
		_, conn := trace.Start(ctx, trace.SMTPConn, fmt.Sprintf("192.0.2.%d:4025", i)+s.mark)
		_, tx := trace.StartMessage(trace.WithRecorder(ctx, s.rec), trace.SMTPTransaction, "alice@example.org"+s.mark, id)
		tx.Printf("<- MAIL FROM:<alice@example.org>%s", s.mark)
		tx.Printf("-> 250 2.1.0 ok")
		env := &mail.Envelope{From: address.Address{Local: "alice" + s.mark, Domain: "example.org"}, Arrived: time.Now(), Trace: id,
			Client: fmt.Sprintf("192.0.2.%d:4025", i), Auth: "alice@example.org" + s.mark, MessageID: fmt.Sprintf("m%d@example.org", i) + s.mark}
		for j := range 1 + i%3 {
			to := address.Address{Local: fmt.Sprintf("bob%d", j) + s.mark, Domain: domains[i%len(domains)]}
			env.Rcpts = append(env.Rcpts, mail.Recipient{To: to, Orig: to})
		}
		mid, err := d.Commit(ctx, env, []byte("Received: x\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		s.ids = append(s.ids, mid)
		tx.Finish()
		conn.Finish()
	}
	for i := range 6 {
		e := &timeline.Event{Kind: timeline.Auth, Mode: "submission", Client: fmt.Sprintf("203.0.113.%d:999", i), User: "alice@example.org" + s.mark}
		if i%2 == 0 {
			e.Err = errors.New("wrong user or password" + s.mark)
		}
		observer.Observe(e)
	}
	s.refused = trace.NewID()
	observer.Observe(&timeline.Event{Kind: timeline.Refused, Trace: s.refused, Client: "198.51.100.7:5", From: address.Address{Local: "spam" + s.mark, Domain: "example.com"},
		Rcpts: []address.Address{{Local: "x" + s.mark, Domain: "example.org"}}, Reply: smtp.NewReply(550, "5.1.1", "no such user"+s.mark), Text: "unknown_user" + s.mark})
	_, s.hung = trace.StartMessage(ctx, trace.Hook, "post-data"+s.mark, trace.NewID())
	t.Cleanup(s.hung.Finish)
	front := s.log.Logger()
	front.Infof("Server listening on 127.0.0.1:25%s", s.mark)
	front.Errorf("courier: something went wrong: %q", s.mark)
}

// config is a configuration that uses everything.
func (s *site) config() Config {
	m := s.mark
	return Config{Hostname: "mail.example.org" + m, Build: Build{"1.0" + m, time.Unix(1767225600, 0), "go1.26"}, Started: time.Now().Add(-51 * time.Hour), Metrics: s.reg,
		Queue: s.queue, Traces: s.rec, History: s.history, Recent: s.recent, Log: s.log, Exit: func() {},
		Checks: []Check{{Name: "listeners", Run: func(context.Context) error { return nil }}, {Name: "queue_dir", Run: func(context.Context) error { return nil }},
			{Name: "certificates", Run: func(context.Context) error {
				if m != "" {
					return errors.New("the certificate has expired" + m)
				}
				return nil
			}}},
		Status: func() Status {
			return Status{Domains: 3, Users: 41, ReloadAt: time.Now().Add(-12 * time.Second), ReloadErr: markError(m),
				Listeners:    []ListenerStatus{{"192.0.2.1:25" + m, "SMTP" + m, 14, 22034}, {"192.0.2.1:587", "submission", 3, 1200}, {"192.0.2.1:465", "submission+TLS", 8, 981}},
				Certificates: []CertificateStatus{{Name: "mail.example.org" + m, Names: []string{"mail.example.org" + m}, NotAfter: time.Now().Add(41 * 24 * time.Hour), Issuer: "Example CA" + m, Key: "ECDSA P-256"}, {Name: "example.net", Names: []string{"mx.example.net"}, NotAfter: time.Now().Add(9 * 24 * time.Hour)}},
				Rejections: []Rejection{{At: time.Now().Add(-30 * time.Second), Client: "198.51.100.7:5" + m, From: "spam@example.com" + m, To: "x@example.org" + m, Reason: "unknown_user" + m, Reply: "550" + m, Trace: s.refused},
					{At: time.Now().Add(-90 * time.Second), Client: "198.51.100.7:5", From: "<>", Reason: "spf_fail"}}}
		},
		ConfigText: func() string {
			return "hostname: \"mail.example.org" + m + "\"\n" + strings.Repeat("max_data_size_mb: 50\n", 12)
		},
		Settings: func() []Setting {
			return []Setting{{"hostname", "hostname: \"mail.example.org\"" + m, "chasquid.conf:1" + m}, {"max_data_size_mb", "max_data_size_mb: 50", "default"}}
		},
		Domains: func() []Domain {
			return []Domain{{Name: "example.org" + m, Users: 40, Aliases: 12, Keys: []Key{{"20260101" + m, "rsa-sha256", "yes" + m}}, Certificates: []string{"mail.example.org"}}, {Name: "example.net", Users: 1, Notes: []string{"It has no DKIM key." + m}}}
		},
		Policies: func() []Policy {
			return []Policy{{Domain: "example.net" + m, Mode: "enforce" + m, MX: []string{"mx1.example.net" + m}, Error: m}}
		},
		Levels: func() []TLSLevel { return []TLSLevel{{"example.com" + m, "TLS, verified" + m, "TLS"}} },
		DNS: func() DNS {
			return DNS{Servers: []DNSServer{{"127.0.0.1:53" + m, true}}, Failures: []DNSFailure{{time.Now(), "example.com" + m, "MX", "mx", 2 * time.Second, "timeout" + m}}}
		},
		Diagnose: func(_ context.Context, w io.Writer, rcpt string) error {
			_, err := fmt.Fprintf(w, "%s goes to mx1.example.net%s\n", rcpt, m)
			return err
		}}
}

func markError(m string) error {
	if m == "" {
		return nil
	}
	return errors.New("reload failed" + m)
}

// settle waits until the queue has tried everything once.
func (s *site) settle(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		l, err := s.queue.List(context.Background(), queue.Filter{}, queue.Page{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		busy := false
		for _, it := range l.Items {
			for _, r := range it.Rcpts {
				busy = busy || r.Attempts == 0 && r.Doing != "ready" && r.Doing != "waiting"
			}
		}
		if !busy && len(l.Items) < 20 && len(s.recent.Bounces(1)) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the queue does not settle: %+v", l.Items)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// live gives the site an hour of history, as if it had been watched.
func (s *site) live() {
	s.began = time.Now().Add(-time.Hour)
	in := s.reg.CounterVec("chasquid_smtp_in_messages_total", "Messages.", []string{"mode", "result"})
	dns := s.reg.CounterVec("chasquid_dns_lookups_total", "Look-ups.", []string{"purpose", "result"})
	accept := s.reg.HistogramVec("chasquid_smtp_in_accept_duration_seconds", "Time.", expvarom.Net, []string{"mode", "result"})
	for i := range 360 {
		x := float64(i) / 360
		in.With("smtp", "accepted").Add(math.Floor(10 + 6*math.Sin(x*12) + float64(i*7%5)))
		in.With("smtp", "rejected").Add(float64(i * 13 % 4))
		if i > 330 {
			dns.With("mx", "timeout").Add(float64(i % 3))
		}
		accept.With("smtp", "accepted").Observe(0.02 + 0.1*math.Abs(math.Sin(x*30)))
		fams, _ := s.reg.Gather()
		s.vitals.Sample(fams, time.Now().Add(time.Duration(i-360)*10*time.Second), time.Duration(i)*10*time.Second)
	}
}

// firstQueued is the id of a message that is still in the queue.
func (s *site) firstQueued(t testing.TB) string {
	t.Helper()
	l, err := s.queue.List(context.Background(), queue.Filter{}, queue.Page{Limit: 1})
	if err != nil || len(l.Items) == 0 {
		t.Fatalf("nothing is queued: %v", err)
	}
	return string(l.Items[0].ID)
}
