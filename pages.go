package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/selfcheck"
	"blitiri.com.ar/go/chasquid/internal/trace/otlp"
	"blitiri.com.ar/go/log"
)

// describeBuild publishes what was built, the old variables included.
func (s *server) describeBuild() {
	s.reg.RegisterRuntime(s.build.version, "", s.build.date.Format("2006-01-02 15:04:05 -0700 MST"))
	s.reg.PublishExpvar()
}

// pages is where the monitoring pages are served.
type pages struct {
	address, web string             // as in the settings
	l            net.Listener       // nil: nowhere
	leave        context.CancelFunc // ends serving there, once the requests under way are answered
}

// openMonitoring opens the monitoring listener, if there is an address for one and it is not open yet.
func (s *server) openMonitoring() (err error) {
	if s.settings.pages.l == nil {
		s.settings.pages, err = s.openPages(s.conf(), pages{})
	}
	return err
}

// startMonitoring serves the pages.
func (s *server) startMonitoring() error {
	if err := s.openMonitoring(); err != nil {
		return err
	}
	next := s.settings.pages
	s.settings.pages = pages{}
	s.movePages(next)
	return nil
}

// openPages makes ready what the settings ask for: old is where the pages are now.
func (s *server) openPages(conf *config.Config, old pages) (next pages, err error) {
	next = pages{address: conf.GetMonitoringAddress(), web: conf.GetMonitoringWebConfig()}
	if next.address == "" {
		return next, nil
	}
	if next.web != "" {
		if err := monitoring.CheckWebConfig(next.web); err != nil {
			return next, err
		}
	}
	next.l, err = s.inheritOne(monitoringKey(next.address))
	if next.l == nil && err == nil {
		next.l, err = listenAgain(next.address, old.address, old.l)
	}
	if err != nil {
		return next, remedy.With(fmt.Errorf("Error listening on monitoring_address: %w", err), "another process may use it, or the address is not of this machine: choose another")
	}
	return next, nil
}

// movePages serves the pages at the next place, and no more where they were.
func (s *server) movePages(next pages) {
	old := s.settings.pages
	if next.l != nil {
		if s.monitor == nil {
			s.monitor = monitoring.New(s.monitoringConfig())
			s.run.pages.start(s.run.base, s.monitor.Run)
		}
		var there context.Context
		there, next.leave = context.WithCancel(s.run.base)
		log.Infof("Monitoring HTTP server listening on %s", next.l.Addr())
		s.run.pages.start(there, func(ctx context.Context) {
			if err := s.monitor.ServeOn(ctx, next.l, next.web); err != nil {
				log.Errorf("monitoring: %v", err)
			}
		})
	}
	s.settings.pages = next
	if old.l != nil {
		old.leave()
		old.l.Close() // at once: the next change may want the address back
	}
}

// prepareMonitoring opens the pages elsewhere, or with other rules.
func (s *server) prepareMonitoring(_ context.Context, c *change) error {
	names := func() {
		if s.monitor != nil {
			s.monitor.SetNames(c.new.GetHostname(), c.new.GetMonitoringAllowedHosts())
			s.monitor.SetDisks(disks(c.new), minFree(c.new))
		}
	}
	old := s.settings.pages
	if old.address == c.new.GetMonitoringAddress() && old.web == c.new.GetMonitoringWebConfig() {
		c.onSwap(names, nil)
		return nil
	}
	next, err := s.openPages(c.new, old)
	if err != nil && next.l == nil && next.web != "" && monitoring.CheckWebConfig(next.web) != nil {
		return c.new.Problem("monitoring_web_config", err, "correct the file; it is in the format of the Prometheus exporter toolkit")
	} else if err != nil {
		return c.new.Problem("monitoring_address", err, "choose an address of this machine that nobody else listens on")
	}
	undo := func() {
		if next.l != nil {
			next.l.Close()
		}
	}
	c.onSwap(func() { s.movePages(next); names() }, undo)
	return nil
}

// listenAgain opens an address for another server in the place of the one that serves l at the address was: if it is the same address,
// both have it until the old one closes its end, and no connection is lost.
func listenAgain(address, was string, l net.Listener) (net.Listener, error) {
	socket, ok := l.(interface{ File() (*os.File, error) })
	if !ok || address != was {
		return net.Listen("tcp", address)
	}
	f, err := socket.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

// exporter pushes traces elsewhere.
type exporter struct {
	exporter *otlp.Exporter // nil: they stay here
	stop     context.CancelFunc
}

// runExporter makes an exporter work, which may be nil, and the one before stop.
func (s *server) runExporter(next *otlp.Exporter) {
	old := s.settings.push
	s.settings.push = exporter{exporter: next}
	if next != nil {
		var ctx context.Context
		ctx, s.settings.push.stop = context.WithCancel(s.run.base)
		s.run.explaining.start(ctx, next.Run)
	}
	if old.stop != nil {
		old.stop()
	}
}

// prepareTraces makes another exporter.
func (s *server) prepareTraces(_ context.Context, c *change) error {
	if c.old.GetOtlpEndpoint() == c.new.GetOtlpEndpoint() && c.old.GetHostname() == c.new.GetHostname() {
		return nil
	}
	next, err := s.newExporter(c.new)
	if err != nil {
		return c.new.Problem("otlp_endpoint", err, "write the URL of the collector")
	}
	c.onSwap(func() {
		if next == nil {
			s.rec.SetExport(nil)
		} else {
			s.rec.SetExport(next.Export)
		}
		s.runExporter(next)
	}, nil)
	return nil
}

// monitoringConfig gives the pages everything they show.
func (s *server) monitoringConfig() monitoring.Config {
	c := monitoring.Config{Hostname: s.conf().GetHostname(), AllowedHosts: s.conf().GetMonitoringAllowedHosts(),
		Build:   monitoring.Build{Version: s.build.version, SourceDate: s.build.date, GoVersion: runtime.Version()},
		Started: s.started, Succeeded: s.up.succeeded(), Checks: s.healthChecks(), Disks: disks(s.conf()), MinFree: minFree(s.conf()), Exit: s.exit, Metrics: s.reg, Status: s.status,
		Queue: s.queue, Traces: s.rec, Recent: s.recent, Log: s.log, ConfigText: func() string { return s.conf().RedactedText() }, Settings: s.settingList,
		Domains: s.domainPage, Levels: s.levelPage,
		DNS: s.dnsPage, Diagnose: s.diagnose}
	if s.history != nil {
		c.History = s.history
	}
	return c
}

// disks are the file systems that mail needs.
func disks(conf *config.Config) []monitoring.Disk {
	data := conf.GetDataDir()
	list := []monitoring.Disk{{Name: "data", Path: data}, {Name: "queue", Path: filepath.Join(data, "queue")}}
	if path := conf.GetMailLogPath(); path != "" && !strings.HasPrefix(path, "<") {
		list = append(list, monitoring.Disk{Name: "log", Path: filepath.Dir(path)})
	}
	return list
}

func (s *server) settingList() []monitoring.Setting {
	var out []monitoring.Setting
	for _, v := range s.conf().List() {
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
	out := s.sending.now.Load()
	for _, r := range rcpts {
		route, err := out.router.Route(ctx, r, &mail.Envelope{})
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s: %s\n", r.Target(), route.Why)
		if route.Transport != mail.SMTP && route.Transport != mail.Relay {
			continue
		}
		plan := out.smtp.Plan(ctx, route)
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
	st.ReloadAt, st.ChangedAt, st.Changes, st.Restart = last.At, last.ChangedAt, last.LastChanges, last.Restart
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
