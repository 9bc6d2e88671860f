package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/log"
)

// describeBuild publishes what was built, the old variables included.
func (s *server) describeBuild() {
	s.reg.RegisterRuntime(s.build.version, "", s.build.date.Format("2006-01-02 15:04:05 -0700 MST"))
	s.reg.PublishExpvar()
}

// startMonitoring opens the monitoring listener, if there is an address for one, and serves the pages.
func (s *server) startMonitoring(ctx context.Context, wg *sync.WaitGroup) error {
	addr := s.conf.GetMonitoringAddress()
	if addr == "" {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("Error listening on monitoring_address: %w (another process may use it; choose another address)", err)
	}
	s.monitor = monitoring.New(monitoring.Config{Hostname: s.conf.GetHostname(), AllowedHosts: s.conf.GetMonitoringAllowedHosts(),
		Build:   monitoring.Build{Version: s.build.version, SourceDate: s.build.date, GoVersion: runtime.Version()},
		Started: s.started, Pages: s.pages(), Checks: s.healthChecks(), Status: s.status, Exit: s.exit, Metrics: s.reg})
	log.Infof("Monitoring HTTP server listening on %s", l.Addr())
	wg.Go(func() {
		if err := s.monitor.Serve(ctx, l); err != nil {
			log.Errorf("monitoring: %v", err)
		}
	})
	return nil
}

// text makes a page of plain text.
func text(f func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, f())
	})
}

// pages are the pages of the other parts.
func (s *server) pages() []monitoring.Page {
	return []monitoring.Page{
		{Path: "/debug/queue", Title: "Queue", About: "messages that wait, and why", Group: "Mail", Handler: s.queuePage()},
		{Path: "/metrics", Title: "Metrics", About: "for Prometheus", Group: "Metrics", Public: true, Handler: s.reg.MetricsHandler()},
		{Path: "/debug/vars", Title: "Variables", About: "the same as JSON, exact", Group: "Metrics", Handler: s.reg.VarsHandler()},
		{Path: "/debug/requests", Title: "Requests", About: "active and recent operations by family and duration", Group: "Traces",
			Handler: monitoring.Buffered(s.rec.RequestsHandler())},
		{Path: "/debug/events", Title: "Events", About: "events of long-lived parts", Group: "Traces", Handler: monitoring.Buffered(s.rec.EventsHandler())},
		{Path: "/debug/config", Title: "Configuration", About: "the settings in force", Group: "Configuration", Handler: text(s.conf.RedactedText)},
	}
}

// status is what the index shows.
func (s *server) status() monitoring.Status {
	st := monitoring.Status{Domains: len(s.domains.Current().Domains), Users: s.count(s.auth.Count)}
	for _, l := range s.smtp.Listeners() {
		st.Listeners = append(st.Listeners, monitoring.ListenerStatus{Address: l.Addr, Mode: l.Mode.String(), Open: l.Open, Total: l.Total})
	}
	for _, c := range s.domains.Current().Certs {
		st.Certificates = append(st.Certificates, monitoring.CertificateStatus{Name: c.Name, Names: c.Names, NotAfter: c.NotAfter})
	}
	last := s.reload.Last()
	st.ReloadAt = last.At
	for _, e := range last.Errors {
		st.ReloadErr = errors.Join(st.ReloadErr, e)
	}
	s.queueStatus(&st)
	for _, r := range s.smtp.Rejections(10) {
		to := ""
		if len(r.Rcpts) > 0 {
			to = r.Rcpts[0]
		}
		st.Rejections = append(st.Rejections, monitoring.Rejection{At: r.At, Client: r.Client, From: r.From, To: to, Reason: r.Reason})
	}
	return st
}

// certificateWarning is how long before its end a certificate makes the server not ready: it is too late to wait for the renewal.
const certificateWarning = time.Hour

// healthChecks are what /readyz runs.
func (s *server) healthChecks() []monitoring.Check {
	return []monitoring.Check{
		{Name: "listeners", Run: func(context.Context) error {
			if len(s.smtp.Listeners()) == 0 {
				return errors.New("no SMTP listener is open")
			}
			return nil
		}},
		{Name: "queue_dir", Run: func(context.Context) error { return s.store.Err() }},
		{Name: "certificates", Run: s.checkCertificates},
		{Name: "config", Run: func(context.Context) error {
			var errs []error
			for _, e := range s.reload.Last().Errors {
				errs = append(errs, fmt.Errorf("%w%s", e, remedy(e)))
			}
			return errors.Join(errs...)
		}},
		{Name: "mda", Run: func(context.Context) error {
			if s.conf.LocalMaildir != "" || s.conf.LocalLMTP != "" {
				return nil
			}
			if _, err := exec.LookPath(s.conf.GetMailDeliveryAgentBin()); err != nil {
				return fmt.Errorf("local mail waits: the delivery program cannot be run: %w (set mail_delivery_agent_bin or local_delivery)", err)
			}
			return nil
		}},
		{Name: "shutdown", Run: func(context.Context) error {
			select {
			case <-s.draining:
				return errors.New("the server is stopping")
			default:
				return nil
			}
		}},
	}
}

// checkCertificates fails when a certificate has expired, or the only ones there are will in a moment.
func (s *server) checkCertificates(context.Context) error {
	var errs []error
	for _, c := range s.domains.Current().Certs {
		if left := time.Until(c.NotAfter); left < 0 {
			errs = append(errs, fmt.Errorf("the certificate in %s expired on %s: renew it and it is taken within seconds", c.Dir, c.NotAfter.UTC().Format(time.DateTime)))
		} else if left < certificateWarning {
			errs = append(errs, fmt.Errorf("the certificate in %s expires in %v", c.Dir, left.Round(time.Second)))
		}
	}
	return errors.Join(errs...)
}
