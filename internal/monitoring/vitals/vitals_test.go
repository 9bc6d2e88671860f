package vitals

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	dto "github.com/prometheus/client_model/go"
)

// world is a server's metrics over time.
type world struct {
	*testing.T
	s    *Sampler
	vals map[string]map[string]*dto.Metric // by family and label values
	reg  *expvarom.Registry                // for histograms
	now  time.Time
	mono time.Duration
	e    Evidence
}

// catalogue are the metrics the rules look at, with their labels.
var catalogue = map[string][]string{
	messages: {"mode", "result"}, "chasquid_smtp_in_recipients_total": {"mode", "result"}, logins: {"mode", "backend", "result"}, "chasquid_panics_total": {"component"},
	"chasquid_delivery_attempts_total": {"type", "result"}, failures: {"kind", "reason"}, "chasquid_delivery_remote_replies_total": {"command", "class"},
	"chasquid_delivery_provider_attempts_total": {"provider", "result"}, "chasquid_dns_lookups_total": {"purpose", "result"}, "chasquid_hook_runs_total": {"hook", "result"},
	"chasquid_queue_disk_errors_total": {"op"}, "chasquid_tls_certificate_load_errors_total": {"name"}, "chasquid_dkim_signatures_total": {"algorithm", "result"},
	"chasquid_metrics_label_overflow_total": {"metric"}, "chasquid_history_errors_total": {}, "chasquid_queue_items": {"state"}, "chasquid_filesystem_free_bytes": {"path"}, "chasquid_log_write_errors_total": {"log"}, "chasquid_queue_puts_total": {"source", "result"},
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, s: New(), vals: map[string]map[string]*dto.Metric{}, reg: expvarom.New(), now: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}
	w.e.Examples = map[string]Example{}
	w.set(messages, 0, "smtp", "accepted")
	return w
}

// metric is the value of a counter or gauge with these label values.
func (w *world) metric(name string, values ...string) *float64 {
	if w.vals[name] == nil {
		w.vals[name] = map[string]*dto.Metric{}
	}
	key := strings.Join(values, " ")
	m := w.vals[name][key]
	if m == nil {
		m = &dto.Metric{Counter: &dto.Counter{Value: new(float64)}}
		for i, v := range values {
			m.Label = append(m.Label, &dto.LabelPair{Name: &catalogue[name][i], Value: &v})
		}
		w.vals[name][key] = m
	}
	return m.Counter.Value
}

// add counts n with these label values, set replaces the value.
func (w *world) add(name string, n float64, values ...string) { *w.metric(name, values...) += n }
func (w *world) set(name string, n float64, values ...string) { *w.metric(name, values...) = n }

// pass lets time pass, in steps.
func (w *world) pass(d time.Duration) {
	w.Helper()
	for left := d; left > 0; left -= Step {
		w.now, w.mono = w.now.Add(Step), w.mono+Step
		fams, err := w.reg.Gather()
		if err != nil {
			w.Fatal(err)
		}
		for name, metrics := range w.vals {
			f := &dto.MetricFamily{Name: &name}
			for _, m := range metrics {
				v := *m.Counter.Value // what is sampled does not change afterwards
				f.Metric = append(f.Metric, &dto.Metric{Label: m.Label, Counter: &dto.Counter{Value: &v}})
			}
			fams = append(fams, f)
		}
		w.s.Sample(fams, w.now, w.mono)
	}
}

func (w *world) problems() []Problem {
	w.e.Now = w.now
	return w.s.Problems(&w.e)
}

// TestRules has for each rule a case in which it speaks and one in which it is silent: nearly the same, but not enough.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		alert  string
		sev    Severity
		want   string // in the text
		fire   func(w *world)
		silent func(w *world)
	}{
		{"our errors", "ChasquidAcceptErrorsBudgetBurn", Page, "3 of 3 messages", func(w *world) {
			w.add(messages, 3, "smtp", "server_error")
			w.add("chasquid_queue_puts_total", 3, "smtp", "error")
		},
			func(w *world) { w.add(messages, 1, "smtp", "server_error"); w.add(messages, 300, "smtp", "accepted") }},
		{"password backend", "ChasquidAuthBackendErrors", Page, "Dovecot does not answer", func(w *world) { w.add(logins, 1, "smtp", "dovecot", "backend_error") },
			func(w *world) { w.add(logins, 5, "smtp", "dovecot", "bad_credentials") }},
		{"guessing", "ChasquidAuthBruteForce", Info, "guesses passwords", func(w *world) { w.add(logins, 1000, "smtp", "userdb", "bad_credentials") }, func(w *world) { w.add(logins, 800, "smtp", "userdb", "bad_credentials") }},
		{"harvest", "ChasquidDirectoryHarvest", Info, "2000 unknown", func(w *world) { w.add("chasquid_smtp_in_recipients_total", 2000, "smtp", "unknown_user") },
			func(w *world) { w.add("chasquid_smtp_in_recipients_total", 2000, "smtp", "relay_denied") }},
		{"stolen account, young server", "ChasquidSubmissionSpike", Ticket, "eve@example.org sent to 250", func(w *world) { w.e.Senders = []Sender{{User: "eve@example.org", Recipients: 250}} },
			func(w *world) { w.e.Senders = []Sender{{User: "eve@example.org", Recipients: 150}} }},
		{"queue nearly full", "ChasquidQueueNearFull", Page, "900 of at most 1000", func(w *world) { w.queue(900, 1000) }, func(w *world) { w.queue(700, 1000) }},
		{"queue grows", "ChasquidQueueGrows", Ticket, "grew from 10 to 5000", func(w *world) { w.queue(10, 1e6); w.pass(time.Minute); w.queue(5000, 1e6) }, func(w *world) { w.queue(10, 1e6); w.pass(time.Minute); w.queue(900, 1e6) }},
		{"old message", "ChasquidQueueOldest", Ticket, "for 5 h", func(w *world) { w.oldest(5 * 3600) }, func(w *world) { w.oldest(3 * 3600) }},
		{"disk errors", "ChasquidQueueDiskErrors", Page, "fsync 1", func(w *world) { w.add("chasquid_queue_disk_errors_total", 1, "fsync") }, func(*world) {}},
		{"disk full", "ChasquidDiskWillFill", Page, "The disk is full: 100 MiB are free", func(w *world) { w.disk(100 << 20) }, func(w *world) { w.disk(10 << 30) }},
		{"disk full, as configured", "ChasquidDiskWillFill", Page, "below 2.0 GiB", func(w *world) { w.e.MinFree = 2 << 30; w.disk(1 << 30) }, func(w *world) { w.e.MinFree = 16 << 20; w.disk(17 << 20) }},
		{"disk nearly full", "ChasquidDiskWillFill", Ticket, "400 MiB are free", func(w *world) { w.disk(400 << 20) }, func(w *world) { w.disk(600 << 20) }},
		{"disk of the log full", "ChasquidDiskWillFill", Ticket, "its log does not", func(w *world) { w.set("chasquid_filesystem_free_bytes", 1000, "log") }, func(w *world) { w.set("chasquid_filesystem_free_bytes", 2<<20, "log") }},
		{"failing check", "ChasquidNotReady", Page, "No mail is taken. The check listeners fails: none is open", func(w *world) { w.e.Failing = []Failing{{Name: "listeners", Err: "none is open"}} }, func(*world) {}},
		{"failing check that a rule explains", "ChasquidReloadFailed", Ticket, "line 3", func(w *world) {
			w.e.ReloadErr, w.e.Failing = "line 3", []Failing{{Name: "config", Err: "line 3", Warning: true}}
		}, func(*world) {}},
		{"wrong delivery program", "ChasquidLocalDeliveryFailing", Page, "the local delivery fails: 3 attempts of the last 10 minutes failed (mda_error). The last one, to bob@example.org: fork/exec /no: no such file. Mail waits in the queue", func(w *world) {
			w.add(failures, 3, "deferred", "mda_error")
			w.add(attempts, 3, "local", "deferred")
			w.e.Examples["mda_error"] = Example{To: "bob@example.org", Text: "fork/exec /no: no such file"}
		}, func(w *world) {
			w.add(failures, 1, "deferred", "remote_greylist")
			w.add("chasquid_delivery_attempts_total", 1, "remote", "deferred")
		}},
		{"a full mailbox", "ChasquidLocalDeliveryFailing", Ticket, "Some users do not get their mail: 3 attempts", func(w *world) {
			w.add(failures, 3, "deferred", "mda_error")
			w.add(attempts, 3, "local", "deferred")
			w.add(attempts, 30, "local", "delivered")
		}, func(w *world) { w.add(attempts, 30, "local", "delivered") }},
		{"domains without DNS", "ChasquidRemoteDeliveryFailing", Ticket, "Mail for some domains cannot leave", func(w *world) {
			w.e.Unresolved = 1
			w.add(failures, 3, "deferred", "dns_error")
			w.add(lookups, 3, "mx", "temporary")
			w.add(lookups, 3, "mx", "ok")
		}, func(w *world) { w.add(failures, 2, "deferred", "dns_error") }},
		{"far failures", "ChasquidRemoteDeliveryFailing", Ticket, "80 % of all deliveries: 8 delivery attempts of the last 10 minutes failed because the other server finds that we send too much", func(w *world) {
			w.add(failures, 8, "deferred", "remote_rate_limit")
			w.add("chasquid_delivery_attempts_total", 10, "remote", "deferred")
		}, func(w *world) {
			w.add(failures, 8, "deferred", "remote_rate_limit")
			w.add("chasquid_delivery_attempts_total", 100, "remote", "delivered")
		}},
		{"dead relay", "ChasquidRemoteDeliveryFailing", Page, "The relay relay.example:587, which mail leaves through, cannot be used: refused. 3 deliveries wait. It is tried again in 30 s.", func(w *world) {
			w.e.Dead = []Dead{{Name: "relay:relay.example:587 smtp://relay.example:587 for a.example", Waiting: 2, Err: "refused", ProbeAt: w.now.Add(Step + 30*time.Second)},
				{Name: "relay:relay.example:587 smtp://relay.example:587 for b.example", Waiting: 1, Err: "refused"}}
		}, func(*world) {}},
		{"dead site", "ChasquidRemoteDeliveryFailing", Info, "The hosts of x.example cannot be used: timeout. 1 delivery waits.", func(w *world) { w.e.Dead = []Dead{{Name: "x.example", Waiting: 1, Err: "timeout"}} }, func(*world) {}},
		{"many dead sites", "ChasquidRemoteDeliveryFailing", Ticket, "2 destinations more cannot be used either; 4 deliveries wait", func(w *world) {
			for i := range 5 {
				w.e.Dead = append(w.e.Dead, Dead{Name: fmt.Sprintf("x%d.example", i), Waiting: 2})
			}
		}, func(w *world) { w.e.Dead = []Dead{{Name: "x.example", Waiting: 1}} }},
		{"provider", "ChasquidProviderDeferring", Ticket, "google puts us off: 30 of 40", func(w *world) {
			w.add("chasquid_delivery_provider_attempts_total", 30, "google", "deferred")
			w.add("chasquid_delivery_provider_attempts_total", 10, "google", "delivered")
		}, func(w *world) {
			w.add("chasquid_delivery_provider_attempts_total", 10, "google", "deferred")
			w.add("chasquid_delivery_provider_attempts_total", 30, "google", "delivered")
		}},
		{"reputation", "ChasquidReputation", Ticket, "refuse our mail by policy (5.7.x): 6 times in the last hour. The last reply of that kind, from mx.example: 550 5.7.1 no", func(w *world) {
			w.add("chasquid_delivery_remote_replies_total", 6, "RCPT", "5.7")
			w.e.Examples["remote_policy"] = Example{At: w.now, MTA: "mx.example", Text: "550 5.7.1 no"}
		}, func(w *world) {
			w.add("chasquid_delivery_remote_replies_total", 6, "RCPT", "5.7")
			w.add("chasquid_delivery_remote_replies_total", 600, "RCPT", "2xx")
		}},
		{"put off by policy", "ChasquidReputation", Ticket, "put our mail off by policy (4.7.x)", func(w *world) { w.add("chasquid_delivery_remote_replies_total", 6, "end_of_data", "4.7") },
			func(w *world) { w.add("chasquid_delivery_remote_replies_total", 4, "end_of_data", "4.7") }},
		{"dead resolver", "ChasquidDNSFailing", Page, "30 of 40 look-ups of the last 5 minutes got no answer (timeout 30). The servers asked are 127.0.0.1:53: do they run, and can they be reached?", func(w *world) {
			w.e.Resolvers = []string{"127.0.0.1:53"}
			w.add("chasquid_dns_lookups_total", 30, "mx", "timeout")
			w.add("chasquid_dns_lookups_total", 10, "mx", "ok")
		}, func(w *world) {
			w.add("chasquid_dns_lookups_total", 3, "mx", "timeout")
			w.add("chasquid_dns_lookups_total", 100, "mx", "notfound")
		}},
		{"dead resolver, not only for one domain", "ChasquidDNSFailing", Page, "30 of 30", func(w *world) { w.e.Unresolved = 3; w.add(lookups, 30, "mx", "timeout") },
			func(w *world) { w.e.Unresolved = 2; w.add(lookups, 30, "mx", "timeout") }},
		{"broken hook", "ChasquidHookBroken", Page, "hooks/post-data is broken: 2 of 4 runs", func(w *world) {
			w.add("chasquid_hook_runs_total", 2, "post_data", "timeout")
			w.add("chasquid_hook_runs_total", 2, "post_data", "success")
		},
			func(w *world) { w.add("chasquid_hook_runs_total", 2, "post_data", "permanent") }},
		{"hung hook", "ChasquidHookHung", Page, "post-data has been running for 3 min", func(w *world) { w.e.Stuck = []Stuck{{Family: trace.Hook, Title: "post-data", For: 3 * time.Minute}} }, func(*world) {}},
		{"hung delivery", "ChasquidLocalDeliveryFailing", Ticket, "A local delivery hangs: bob", func(w *world) { w.e.Stuck = []Stuck{{Family: trace.DeliveryLocal, Title: "bob", For: time.Hour}} }, func(*world) {}},
		{"unsigned", "ChasquidDKIMSignErrors", Ticket, "1 message of", func(w *world) { w.add("chasquid_dkim_signatures_total", 1, "rsa_sha256", "error") }, func(w *world) { w.add("chasquid_dkim_signatures_total", 1, "rsa_sha256", "ok") }},
		{"expired certificate", "ChasquidCertExpires2d", Page, "mail.example expired 3 h ago", func(w *world) { w.cert(-3 * time.Hour) }, func(w *world) { w.cert(1000 * time.Hour) }},
		{"certificate in 30 hours", "ChasquidCertExpires2d", Page, "expires in 30 h", func(w *world) { w.cert(30 * time.Hour) }, func(w *world) { w.cert(22 * 24 * time.Hour) }},
		{"certificate in 9 days", "ChasquidCertExpires21d", Ticket, "expires in 9 days", func(w *world) { w.cert(9 * 24 * time.Hour) }, func(w *world) { w.cert(22 * 24 * time.Hour) }},
		{"ACME without a certificate", "ChasquidACMEFailing", Page, "no certificate for mail.example for 2 h: open the port. Meanwhile there is no TLS", func(w *world) { w.renewal(time.Time{}) }, func(w *world) { w.renewal(w.now.Add(time.Hour)) }},
		{"ACME after the end", "ChasquidACMEFailing", Page, "has ended, and it is tried again in", func(w *world) { w.renewal(w.now) }, func(w *world) { w.renewal(w.now.Add(time.Hour)) }},
		{"ACME while it lasts", "ChasquidACMEFailing", Ticket, "lasts for 3 h", func(w *world) { w.renewal(w.now.Add(3*time.Hour + Step)) }, func(*world) {}},
		{"certificate file", "ChasquidCertLoadErrors", Ticket, "mail 2", func(w *world) { w.add("chasquid_tls_certificate_load_errors_total", 2, "mail") }, func(*world) {}},
		{"reload", "ChasquidReloadFailed", Ticket, "aliases: line 3", func(w *world) { w.e.ReloadErr = "aliases: line 3" }, func(*world) {}},
		{"panic", "ChasquidPanic", Ticket, "courier 1", func(w *world) { w.add("chasquid_panics_total", 1, "courier") }, func(*world) {}},
		{"history", "ChasquidHistoryLossy", Info, "has gaps", func(w *world) { w.add("chasquid_history_errors_total", 1) }, func(*world) {}},
		{"log", "ChasquidLogWriteErrors", Ticket, "maillog 1", func(w *world) { w.add("chasquid_log_write_errors_total", 1, "maillog") }, func(*world) {}},
		{"fuzzing", "ChasquidLabelOverflow", Info, "200 unknown values", func(w *world) { w.add("chasquid_metrics_label_overflow_total", 200, "m") }, func(w *world) { w.add("chasquid_metrics_label_overflow_total", 50, "m") }},
		{"clock forward", "ChasquidClockJump", Ticket, "set forward by 60 min", func(w *world) { w.now = w.now.Add(time.Hour) }, func(w *world) { w.now = w.now.Add(2 * time.Second) }},
		{"policies not refreshed", "ChasquidSTSRefreshStalled", Ticket, "not refreshed for 3 days", func(w *world) {
			w.set("chasquid_sts_cache_last_refresh_timestamp_seconds", float64(w.now.Add(-72*time.Hour).Unix()))
		}, func(w *world) {
			w.set("chasquid_sts_cache_last_refresh_timestamp_seconds", float64(w.now.Add(-10*time.Minute).Unix()))
		}},
		{"clock back", "ChasquidClockJump", Ticket, "set back by 2 days", func(w *world) { w.now = w.now.Add(-48*time.Hour - time.Minute) }, func(*world) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, fire := range []bool{true, false} {
				w := newWorld(t)
				w.pass(5 * Step)
				if list := w.problems(); len(list) > 0 {
					t.Fatalf("problems before anything happened: %+v", list)
				}
				if fire {
					c.fire(w)
				} else {
					c.silent(w)
				}
				w.pass(Step)
				var found *Problem
				for _, p := range w.problems() {
					if p.Alert == c.alert && p.Severity == c.sev && strings.Contains(p.Text, c.want) {
						found = &p
					} else if !fire && p.Alert == c.alert && p.Severity == c.sev {
						found = &p
					}
				}
				if fire && found == nil {
					t.Errorf("not found within one step: %+v", w.problems())
				}
				if !fire && found != nil {
					t.Errorf("found without reason: %+v", found)
				}
				for _, p := range w.problems() {
					if fire && p.Alert == "ChasquidNotReady" && c.alert != p.Alert {
						t.Errorf("told twice: %+v", p)
					}
				}
				if found != nil && (!strings.HasPrefix(found.Link, "/") || found.Since.IsZero()) {
					t.Errorf("without link or time: %+v", found)
				}
			}
		})
	}
}

func (w *world) queue(items, capacity float64) {
	w.set("chasquid_queue_items", items, "waiting")
	w.set("chasquid_queue_capacity_items", capacity)
}

func (w *world) oldest(s float64) { w.set("chasquid_queue_oldest_item_age_seconds", s) }

func (w *world) disk(free float64) { w.set("chasquid_filesystem_free_bytes", free, "queue") }

func (w *world) cert(left time.Duration) {
	w.e.Certificates = []Certificate{{"mail.example", w.now.Add(left + Step)}}
}

func (w *world) renewal(notAfter time.Time) {
	w.e.Renewals = []Renewal{{Name: "mail.example", NotAfter: notAfter, Since: w.now.Add(Step - 2*time.Hour), Next: w.now.Add(time.Hour), Err: "403", Remedy: "open the port"}}
}

// TestProblemsEnd checks that a problem goes away when its cause is over, keeps its beginning while it lasts, and that the worst comes first.
func TestProblemsEnd(t *testing.T) {
	w := newWorld(t)
	w.pass(Step)
	w.e.ReloadErr = "bad file"
	w.add("chasquid_dns_lookups_total", 30, "mx", "timeout")
	w.pass(Step)
	first := w.problems()
	if len(first) != 2 || first[0].Severity != Page || first[1].Severity != Ticket {
		t.Fatalf("order: %+v", first)
	}
	began := w.now
	w.pass(2 * time.Minute)
	for _, p := range w.problems() {
		if !p.Since.Equal(began) {
			t.Errorf("%s began at %v, want %v", p.Alert, p.Since, began)
		}
	}
	w.e.ReloadErr = ""
	w.pass(5 * time.Minute)
	if list := w.problems(); len(list) != 0 {
		t.Errorf("still there: %+v", list)
	}
}

// TestOver checks that a trouble is over soon after it was mended, not while it goes on, and that one that comes and goes does not blink.
func TestOver(t *testing.T) {
	w := newWorld(t)
	w.pass(Step)
	there := func() bool { return len(w.problems()) > 0 }
	fail := func() { w.add(lookups, 30, "mx", "timeout") }
	well := func() { w.add(lookups, 3, "mx", "ok") }
	fail()
	w.pass(Step)
	if !there() {
		t.Fatal("not found")
	}
	w.pass(time.Minute)
	if !there() {
		t.Error("over though nothing went well")
	}
	fail()
	well()
	w.pass(Step)
	well()
	w.pass(Step)
	if !there() {
		t.Error("over within one step of a failure")
	}
	w.pass(Step)
	if there() {
		t.Errorf("not over: %+v", w.problems())
	}
	// It comes back, and each time it takes longer until it is believed to be over.
	for _, want := range []time.Duration{40 * time.Second, 80 * time.Second} {
		fail()
		w.pass(Step)
		if !there() {
			t.Fatal("not found when it came back")
		}
		var held time.Duration
		for ; there(); held += Step {
			well()
			w.pass(Step)
		}
		if held != want {
			t.Errorf("over after %v, want %v", held, want)
		}
	}
}

// TestToldOnce checks that what one rule tells better is not told by others as well, and that causes come first.
func TestToldOnce(t *testing.T) {
	w := newWorld(t)
	w.pass(Step)
	w.add("chasquid_delivery_provider_attempts_total", 30, "google", "deferred")
	w.add(attempts, 30, "remote", "deferred")
	w.add(failures, 30, "deferred", "remote_rate_limit")
	w.add("chasquid_delivery_remote_replies_total", 30, "RCPT", "4.7")
	w.pass(Step)
	if list := w.problems(); len(list) != 1 || list[0].Alert != "ChasquidProviderDeferring" {
		t.Errorf("a provider: %+v", list)
	}
	w = newWorld(t)
	w.pass(Step)
	w.add(lookups, 30, "mx", "timeout")
	w.add(failures, 30, "deferred", "dns_error")
	w.pass(Step)
	if list := w.problems(); len(list) != 1 || list[0].Alert != "ChasquidDNSFailing" || list[0].Check != "resolver" {
		t.Errorf("the resolver: %+v", list)
	}
	w = newWorld(t)
	w.pass(Step)
	w.disk(1 << 20)
	w.add(messages, 30, "smtp", "server_error")
	w.e.Refused = Example{Text: "452 4.3.1 full", Trace: trace.ID{1}}
	w.pass(Step)
	if list := w.problems(); len(list) != 2 || list[0].Alert != "ChasquidDiskWillFill" || list[0].Check != "queue_space" || list[0].Trace != (trace.ID{1}) {
		t.Errorf("the disk: %+v", list)
	}
}

// TestSpike compares with what is usual.
func TestSpike(t *testing.T) {
	w := newWorld(t)
	for range 30 {
		w.add("chasquid_smtp_in_recipients_total", 2, "submission", "accepted")
		w.pass(LongStep)
	}
	w.add("chasquid_smtp_in_recipients_total", 90, "submission", "accepted")
	w.pass(Step)
	if list := w.problems(); len(list) != 0 {
		t.Errorf("90 recipients are a spike: %+v", list)
	}
	w.add("chasquid_smtp_in_recipients_total", 200, "submission", "accepted")
	w.e.Senders = []Sender{{User: "eve@example.org", Recipients: 290}}
	w.pass(Step)
	if list := w.problems(); len(list) != 1 || !strings.Contains(list[0].Text, "the usual 12: an account may be stolen. eve@example.org alone sent to 290 recipients") {
		t.Errorf("the spike: %+v", list)
	}
}

// TestNoInbound needs a day with mail and six hours without.
func TestNoInbound(t *testing.T) {
	for _, perHour := range []float64{5, 1} {
		w := newWorld(t)
		for range 18 {
			w.add(messages, perHour, "smtp", "accepted")
			w.pass(time.Hour)
		}
		w.pass(6*time.Hour - Step)
		if list := w.problems(); len(list) != 0 {
			t.Errorf("too early: %+v", list)
		}
		w.pass(6 * time.Minute)
		if list := w.problems(); (len(list) == 1) != (perHour == 5) {
			t.Errorf("%v messages an hour, then none: %+v", perHour, list)
		}
	}
}

// TestTrends: what will run out, by its slope.
func TestTrends(t *testing.T) {
	w := newWorld(t)
	free := 20.0 * (1 << 30)
	free, items := 20.0*(1<<30), 1000.0
	for range 180 {
		free -= 20 << 20 // 7 GiB an hour
		items += 8
		w.queue(items, 10_000)
		w.disk(free)
		w.pass(Step)
	}
	var alerts []string
	for _, p := range w.problems() {
		alerts = append(alerts, p.Alert+": "+p.Text)
	}
	all := strings.Join(alerts, "\n")
	for _, want := range []string{"ChasquidDiskWillFill: The disk fills: at the rate of the last half hour it is full in 2 h.", "ChasquidQueueFillsSoon: The queue grows by 48 messages a minute: at this rate it is full in 3 h."} {
		if !strings.Contains(all, want) {
			t.Errorf("want %q in\n%s", want, all)
		}
	}
}

// TestJumps counts how often the clock was set.
func TestJumps(t *testing.T) {
	w := newWorld(t)
	w.pass(Step)
	for _, d := range []time.Duration{time.Hour, 2 * time.Second, -time.Hour} {
		w.now = w.now.Add(d)
		w.pass(3 * Step)
	}
	if n := w.s.Jumps(); n != 2 {
		t.Errorf("%d jumps", n)
	}
}

// TestSeries checks rates, gauges, the 99th percentile, gaps and the memory that is used.
func TestSeries(t *testing.T) {
	w := newWorld(t)
	h := w.reg.HistogramVec("chasquid_smtp_in_accept_duration_seconds", "x", expvarom.Net, []string{"mode", "result"}, []string{"smtp"}, []string{"accepted"}).With("smtp", "accepted")
	w.pass(Step)
	w.add(messages, 5, "smtp", "accepted")
	for range 98 {
		h.Observe(0.007)
	}
	h.Observe(0.02)
	h.Observe(0.09)
	w.pass(Step)
	last := map[string]float32{}
	for _, s := range w.s.Series() {
		last[s.Name] = s.Last
	}
	if last["in_accepted"] != 30 {
		t.Errorf("5 messages in 10 s are %v a minute", last["in_accepted"])
	}
	if p := last["in_p99"]; p < 0.01 || p > 0.025 {
		t.Errorf("p99 %v", p)
	}
	if !math.IsNaN(float64(last["disk_free"])) {
		t.Errorf("disk_free is %v though nobody tells", last["disk_free"])
	}
	w.pass(25 * time.Hour)
	for _, s := range w.s.Series() {
		if len(s.Short) != shortLen || len(s.Long) != longLen {
			t.Fatalf("%s has %d and %d points", s.Name, len(s.Short), len(s.Long))
		}
	}
	if n := w.s.Size(); n > 128<<10 {
		t.Errorf("the rings use %d bytes", n)
	}
	if len(w.s.rings) != 24 {
		t.Errorf("%d series", len(w.s.rings))
	}
}

// TestWindowBounds checks that a family with very many metrics, which no family of ours has, costs no more.
func TestWindowBounds(t *testing.T) {
	w := newWindow()
	name, typ := "x", dto.MetricType_COUNTER
	f := &dto.MetricFamily{Name: &name, Type: &typ}
	for i := range 10_000 {
		v, label := float64(i), fmt.Sprint(i)
		f.Metric = append(f.Metric, &dto.Metric{Label: []*dto.LabelPair{{Name: &name, Value: &label}}, Counter: &dto.Counter{Value: &v}})
	}
	w.sample(f, 0)
	if len(w.cells) != maxWindow {
		t.Errorf("%d cells", len(w.cells))
	}
}
