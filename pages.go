package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/selfcheck"
	"blitiri.com.ar/go/log"
)

// describeBuild publishes what was built, the old variables included.
func (s *server) describeBuild() {
	s.reg.RegisterRuntime(s.build.version, "", s.build.date.Format("2006-01-02 15:04:05 -0700 MST"))
	s.reg.PublishExpvar()
}

// openMonitoring opens the monitoring listener, if there is an address for one and it is not open yet.
func (s *server) openMonitoring() error {
	addr := s.conf.GetMonitoringAddress()
	if addr == "" || s.up.pages != nil {
		return nil
	}
	web := s.conf.GetMonitoringWebConfig()
	if web != "" {
		if err := monitoring.CheckWebConfig(web); err != nil {
			return err
		}
	}
	l, err := s.inheritOne(monitoringKey(addr))
	if l == nil && err == nil {
		l, err = net.Listen("tcp", addr)
	}
	if err != nil {
		return remedy.With(fmt.Errorf("Error listening on monitoring_address: %w", err), "another process may use it, or the address is not of this machine: choose another")
	}
	s.up.pages = l
	return nil
}

// startMonitoring serves the pages.
func (s *server) startMonitoring() error {
	if err := s.openMonitoring(); err != nil || s.up.pages == nil {
		return err
	}
	l := s.up.pages
	s.monitor = monitoring.New(s.monitoringConfig(s.conf.GetMonitoringWebConfig()))
	log.Infof("Monitoring HTTP server listening on %s", l.Addr())
	s.run.pages.start(s.run.base, func(ctx context.Context) {
		if err := s.monitor.Serve(ctx, l); err != nil {
			log.Errorf("monitoring: %v", err)
		}
	})
	return nil
}

// monitoringConfig gives the pages everything they show.
func (s *server) monitoringConfig(web string) monitoring.Config {
	c := monitoring.Config{Hostname: s.conf.GetHostname(), AllowedHosts: s.conf.GetMonitoringAllowedHosts(), WebConfig: web,
		Build:   monitoring.Build{Version: s.build.version, SourceDate: s.build.date, GoVersion: runtime.Version()},
		Started: s.started, Succeeded: s.up.succeeded(), Checks: s.healthChecks(), Disks: s.disks(), MinFree: int64(s.conf.GetMinFreeDiskMb()) << 20, Exit: s.exit, Metrics: s.reg, Status: s.status, Queue: s.queue, Traces: s.rec,
		Recent: s.recent, Log: s.log, ConfigText: s.conf.RedactedText, Settings: s.settings, Domains: s.domainPage, Levels: s.levelPage,
		DNS: s.dnsPage, Diagnose: s.diagnose}
	if s.history != nil {
		c.History = s.history
	}
	return c
}

// disks are the file systems that mail needs.
func (s *server) disks() []monitoring.Disk {
	data := s.conf.GetDataDir()
	list := []monitoring.Disk{{Name: "data", Path: data}, {Name: "queue", Path: s.queuePath()}}
	if path := s.conf.GetMailLogPath(); path != "" && !strings.HasPrefix(path, "<") {
		list = append(list, monitoring.Disk{Name: "log", Path: filepath.Dir(path)})
	}
	return list
}

func (s *server) settings() []monitoring.Setting {
	var out []monitoring.Setting
	for _, v := range s.conf.List() {
		out = append(out, monitoring.Setting{Name: v.Name, Text: v.Text, Origin: v.Origin})
	}
	return out
}

func (s *server) domainPage() []monitoring.Domain {
	var out []monitoring.Domain
	now := s.domains.Current()
	for _, d := range now.Domains {
		p := monitoring.Domain{Name: d.Name, Users: s.auth.Count(d.Name), Aliases: s.aliases.Count(d.Name)}
		for _, k := range d.Keys {
			p.Keys = append(p.Keys, monitoring.Key{Selector: k.Selector, Algorithm: k.Algo})
		}
		for _, c := range now.Certs {
			if slices.Contains(c.Names, d.Name) {
				p.Certificates = append(p.Certificates, c.Name)
			}
		}
		for _, f := range s.selfcheck.Last(d.Name).Findings {
			if f.Result == selfcheck.Warn || f.Result == selfcheck.Fail {
				p.Notes = append(p.Notes, selfcheckNote(f))
			}
		}
		out = append(out, p)
	}
	return out
}

// selfcheckNote is a finding as a sentence.
func selfcheckNote(f selfcheck.Finding) string {
	note := strings.ToUpper(f.Text[:1]) + f.Text[1:]
	if f.Fix != "" {
		note += " (" + f.Fix + ")"
	}
	return note + "."
}

func (s *server) levelPage() []monitoring.TLSLevel {
	var out []monitoring.TLSLevel
	for _, e := range s.levels.List() {
		out = append(out, monitoring.TLSLevel{Domain: e.Domain, Incoming: e.Incoming.String(), Outgoing: e.Outgoing.String()})
	}
	return out
}

func (s *server) dnsPage() monitoring.DNS {
	var out monitoring.DNS
	addrs, trusted := s.dns.Servers()
	for i, a := range addrs {
		out.Servers = append(out.Servers, monitoring.DNSServer{Address: a, Trusted: trusted[i]})
	}
	for _, f := range s.dns.Failures() {
		out.Failures = append(out.Failures, monitoring.DNSFailure{At: f.At, Name: f.Name, Type: f.Type, Purpose: f.Purpose.String(), Took: f.Took, Error: f.Err.Error()})
	}
	return out
}

// diagnose writes what would happen to a message for the recipient, found out by the code that would do it.
func (s *server) diagnose(ctx context.Context, w io.Writer, rcpt string) error {
	addr, err := address.Parse(rcpt)
	if err != nil {
		return err
	}
	steps, rcpts, err := s.aliases.Explain(ctx, addr)
	for _, step := range steps {
		fmt.Fprintf(w, "%*s%s %s\n", 2*step.Depth, "", step.Address, step.Text)
	}
	if err != nil {
		return err
	}
	for _, r := range rcpts {
		route, err := s.sending.router.Load().Route(ctx, r, &mail.Envelope{})
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s: %s\n", r.Target(), route.Why)
		if route.Transport != mail.SMTP && route.Transport != mail.Relay {
			continue
		}
		plan := s.sending.smtp.Plan(ctx, route)
		if plan.Refusal != nil {
			fmt.Fprintf(w, "  nothing would be tried: %v\n", plan.Refusal.Err)
		}
		for _, d := range plan.Demands {
			fmt.Fprintf(w, "  demanded: %s\n", d)
		}
		for _, p := range plan.Servers {
			fmt.Fprintf(w, "  server: %+v\n", p)
		}
	}
	return nil
}

// status is what the index shows.
func (s *server) status() monitoring.Status {
	st := monitoring.Status{Domains: len(s.domains.Current().Domains), Users: s.count(s.auth.Count)}
	for _, l := range s.smtp.Listeners() {
		st.Listeners = append(st.Listeners, monitoring.ListenerStatus{Address: l.Addr, Mode: l.Mode.String(), Open: l.Open, Total: l.Total})
	}
	for _, c := range s.domains.Current().Certs {
		st.Certificates = append(st.Certificates, monitoring.CertificateStatus{Name: c.Name, Names: c.Names, NotBefore: c.NotBefore,
			NotAfter: c.NotAfter, Issuer: c.Leaf.Issuer.CommonName, Key: c.Leaf.PublicKeyAlgorithm.String()})
	}
	st.Renewals = s.renewals()
	last := s.reload.Last()
	st.ReloadAt = last.At
	for _, e := range last.Errors {
		st.ReloadErr = errors.Join(st.ReloadErr, e)
	}
	for _, r := range s.smtp.Rejections(10) {
		to := ""
		if len(r.Rcpts) > 0 {
			to = r.Rcpts[0]
		}
		st.Rejections = append(st.Rejections, monitoring.Rejection{At: r.At, Client: r.Client, User: r.User, From: r.From, To: to,
			Reason: r.Reason, Reply: r.Reply, Trace: r.Trace})
	}
	return st
}
