package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/acmecert"
	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/auth"
	"blitiri.com.ar/go/chasquid/internal/auth/dovecot"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/dane"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/handover"
	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/listen"
	"blitiri.com.ar/go/chasquid/internal/maillog"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/spool"
	"blitiri.com.ar/go/chasquid/internal/reload"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/selfcheck"
	"blitiri.com.ar/go/chasquid/internal/smtpsrv"
	"blitiri.com.ar/go/chasquid/internal/sts"
	"blitiri.com.ar/go/chasquid/internal/supervise"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/tlsrpt"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/trace/otlp"
	"blitiri.com.ar/go/log"
)

// server is everything that runs, in the order in which it is made.
type server struct {
	flags   *flags
	build   build
	started time.Time
	current atomic.Pointer[config.Config] // see conf

	reg      *expvarom.Registry
	rec      *trace.Recorder
	log      *monitoring.Log
	recent   *monitoring.Recent
	maillog  *maillog.Log
	history  *history.History
	observer timeline.Observers

	dns       *dns.Client
	domains   *domains.Table
	auth      *auth.Authenticator
	aliases   *aliases.Resolver
	reload    *reload.Runner
	dovecot   *dovecot.Client
	signer    *dkim.Signer
	certs     atomic.Pointer[acmecert.Manager] // has no names without the acme setting
	levels    *domaininfo.DB
	sts       *sts.Cache
	dane      *dane.Source
	reports   *tlsrpt.Recorder
	rate      *policy.Rate
	checkers  checkers
	clientTLS *tls.Config
	selfcheck *selfcheck.Runner
	sending   *sending
	slot      *queue.Slot // of the queue: holds store, or nothing while another process has the directory
	store     atomic.Pointer[spool.Store]
	queue     *queue.Queue
	intake    *handover.Intake
	smtp      *smtpsrv.Server
	listeners *listen.Set
	sockets   *listen.Sockets
	monitor   *monitoring.Server
	control   *control.Server

	supervisor *supervise.Supervisor
	up         upgrades
	run        running
	settings   settings

	exit     context.CancelFunc // asks the server to stop
	draining chan struct{}      // closed when it does
}

// newServer makes all parts in start-up order; an error says what is wrong and ends the start.
func newServer(ctx context.Context, f *flags, conf *config.Config, b build, o origin) (*server, error) {
	s := &server{flags: f, build: b, started: time.Now(), draining: make(chan struct{})}
	s.current.Store(conf)
	s.settings.started = make(chan struct{})
	s.reg = expvarom.New()
	s.initUpgrades(o)
	s.log = monitoring.NewLog(log.Default, s.reg)
	log.Default = s.log.Logger()
	if err := s.makeTracer(); err != nil {
		return nil, err
	}

	s.describeBuild()
	ctx = trace.WithRecorder(ctx, s.rec)
	for _, step := range []func(context.Context) error{
		s.openMailLog, s.loadDomains, s.loadUsers, s.makeSigner, s.makeCertificates, s.openData, s.makeSending, s.openQueue, s.makeReceiving, s.openControl,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// makeTracer makes the recorder of traces, and what pushes them to a collector if there is one.
func (s *server) makeTracer() error {
	tc := trace.Config{Metrics: s.reg, Log: true, Line: s.log.Line, Mirror: true, Labels: true, Generation: nextGeneration(s.conf().GetDataDir())}
	push, err := s.newExporter(s.conf())
	if err != nil {
		return fmt.Errorf("otlp_endpoint: %w", err)
	}
	if push != nil {
		tc.Export = push.Export
		s.settings.push.exporter = push
	}
	s.rec = trace.New(tc)
	return nil
}

// newExporter makes what pushes traces elsewhere, nil if nothing does.
func (s *server) newExporter(conf *config.Config) (*otlp.Exporter, error) {
	url := conf.GetOtlpEndpoint()
	if url == "" {
		return nil, nil
	}
	return otlp.New(otlp.Config{Endpoint: url, Metrics: s.reg,
		Resource: otlp.Resource{Service: "chasquid", Version: s.build.version, Instance: conf.GetHostname()}})
}

func (s *server) openMailLog(context.Context) error {
	failed := s.reg.CounterVec("chasquid_log_write_errors_total", "Lines that could not be written, by log.", []string{"log"}, []string{"main", "maillog"}).With("maillog")
	var err error
	if s.maillog, err = maillog.Open(maillog.Config{Path: s.conf().GetMailLogPath(), OnError: failed.Inc}); err != nil {
		return remedy.With(fmt.Errorf("Error opening mail log: %w", err), "correct mail_log_path, or let the server's user write there")
	}
	s.recent = monitoring.NewRecent()
	s.up.events.here = timeline.Observers{s.recent}
	s.observer = timeline.Observers{s.maillog, &s.up.events}
	return nil
}

func (s *server) loadDomains(ctx context.Context) error {
	var warnings []string
	var err error
	s.domains, warnings, err = domains.Load(ctx, domains.Config{Hostname: s.conf().GetHostname(), CertsOptional: s.conf().ACME != nil, Metrics: s.reg,
		Users: func() int { return s.count(s.auth.Count) }, Aliases: func() int { return s.count(s.aliases.Count) }})
	if err != nil {
		return err
	}
	log.Infof("Loading certificates:")
	for _, c := range s.domains.Current().Certs {
		log.Infof("  %s", c.Name)
	}
	for _, w := range warnings {
		log.Infof("%s", w)
	}
	return nil
}

// count adds up a number over the local domains; zero until users and aliases are there.
func (s *server) count(of func(domain string) int) int {
	if s.auth == nil || s.aliases == nil {
		return 0
	}
	n := 0
	for _, d := range s.domains.Current().Domains {
		n += of(d.Name)
	}
	return n
}

// openData opens what lives in the data directory.
func (s *server) openData(ctx context.Context) error {
	dir := s.conf().GetDataDir()
	if err := os.MkdirAll(dir, 0700); err != nil {
		return remedy.With(fmt.Errorf("Error making the data directory: %w", err), "let the server's user make it, or correct data_dir")
	}
	var err error
	s.history, err = history.Open(history.Config{Path: filepath.Join(dir, "history.db"), Settings: historySettings(s.conf()), Metrics: s.reg})
	if err != nil {
		// Mail is more important than its history.
		log.Errorf("The history of messages is not available: %v", err)
	} else {
		s.up.events.here = append(s.up.events.here, s.history)
	}
	return s.openState(ctx, dir)
}

func historySettings(conf *config.Config) history.Settings {
	return history.Settings{Keep: time.Duration(conf.GetHistoryDays()) * 24 * time.Hour, MaxBytes: int64(conf.GetHistoryMaxMb()) << 20,
		HashAddresses: conf.GetHistoryHashAddresses()}
}

// running is what runs, by when it stops.
type running struct {
	base       context.Context // of all of it; it ends only when the process does
	life       context.Context // ends when the server is asked to stop
	explaining loops           // traces that are pushed; stops last
	pages      loops
	recording  loops // the history
	tending    loops // files that other processes must not have open
	delivering loops
	asking     loops // the control socket
	living     loops
	receiving  sync.WaitGroup // listeners
}

// serve runs everything until ctx ends or another process has taken over, then stops it in order: receiving, delivering, the store, and what
// explains it last.
func (s *server) serve(ctx context.Context, stop context.CancelFunc) error {
	s.exit = stop
	s.supervisor = supervise.New(supervise.FromEnvironment(s.probes()...))
	s.run.life, s.run.base = ctx, trace.WithRecorder(context.WithoutCancel(ctx), s.rec)
	defer s.maillog.Close()
	err := s.takeOver(ctx)
	if err != nil {
		return err
	}
	if err = s.startAll(ctx); err == nil {
		s.log.Gather(!toSyslog()) // only while we serve: how a start or an end goes wrong is in the log to the last line
		select {
		case <-ctx.Done():
			s.log.Gather(false)
			stop() // a second signal ends the process at once
		case <-s.up.done:
			s.log.Gather(false)
		}
		s.endReloads()
		if s.handedOver() {
			s.retire(ctx)
			stop()
		} else {
			s.supervisor.Stopping()
			log.Infof("Stopping: no new connections, running transactions may finish")
		}
	}
	close(s.draining)
	s.drain(s.run.base)
	return errors.Join(err, s.stopAll())
}

// startAll starts everything. Of what another process has still open, it starts what it can when that is closed.
func (s *server) startAll(ctx context.Context) error {
	r := &s.run
	s.runExporter(s.settings.push.exporter)
	if err := s.startMonitoring(); err != nil {
		return err
	}
	r.delivering.start(r.base, s.deliver)
	if err := s.listen(r.base); err != nil {
		return err
	}
	r.living.start(r.base, tuneGC)
	r.asking.start(r.base, func(ctx context.Context) {
		if err := s.control.Serve(ctx); err != nil {
			log.Errorf("%v", err)
		}
	})
	s.signals(ctx)
	r.living.start(ctx, s.watchUpgrades)
	s.serving(ctx)
	return nil
}

// startRest starts what no other process may have open.
func (s *server) startRest() {
	r := &s.run
	if s.history != nil {
		r.recording.start(r.base, s.history.Run)
	}
	s.tend()
	r.living.start(r.base, s.supervisor.Run)
	s.supervisor.Ready("serving")
	s.startReloads()
}

// deliver runs the queue.
func (s *server) deliver(ctx context.Context) {
	if err := s.queue.Run(ctx); err != nil {
		log.Errorf("queue: %v", err)
	}
}

// stopAll stops everything but receiving, which has ended.
func (s *server) stopAll() error {
	r := &s.run
	s.up.awaiting.stop()
	r.delivering.stop()
	r.tending.stop()
	r.asking.stop()
	r.living.stop()
	s.sending.close()
	s.dovecot.Close()
	err := s.slot.Close()
	r.pages.stop()
	r.recording.stop()
	r.explaining.stop()
	return err
}

// drain lets the sessions end, for as long as the settings say.
func (s *server) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.conf().Time.Drain)
	defer cancel()
	s.stopPredecessor(ctx)
	if err := s.smtp.Drain(ctx); err != nil {
		log.Infof("Some sessions were cut: %v", err)
	}
	s.listeners.Close()
	s.run.receiving.Wait()
	s.awaitPredecessor(ctx)
}

// tend runs the loops that tend what delivery and receiving use.
func (s *server) tend() {
	fs := []func(context.Context){s.levels.Run, s.sts.Run, s.selfcheck.Run, func(ctx context.Context) {
		// What was read at start may have changed since, and the gauges of reloads shall not be empty until the first one.
		s.reload.Now(ctx, reload.Start)
		s.reload.Run(ctx)
	}}
	s.run.tending.start(s.run.base, append(fs, s.reports.Run)...)
	s.runCertificates()
}

// roles are the listeners the settings ask for.
func roles(conf *config.Config) []listen.Role {
	return []listen.Role{
		{Name: "smtp", Label: smtpsrv.SMTP.String(), Addresses: conf.GetSmtpAddress()},
		{Name: "submission", Label: smtpsrv.Submission.String(), Addresses: conf.GetSubmissionAddress()},
		{Name: "submission_tls", Label: smtpsrv.SubmissionTLS.String(), Addresses: conf.GetSubmissionOverTlsAddress()},
	}
}

var modes = map[string]smtpsrv.Mode{"smtp": smtpsrv.SMTP, "submission": smtpsrv.Submission, "submission_tls": smtpsrv.SubmissionTLS}

// listen opens the listeners and serves them.
func (s *server) listen(ctx context.Context) error {
	if s.up.opened == nil {
		if err := s.openListeners(ctx); err != nil {
			return err
		}
	}
	s.serveListeners(ctx, s.up.opened)
	return nil
}

// openListeners opens the listeners that are not open yet.
func (s *server) openListeners(ctx context.Context) error {
	added, _, warnings, err := s.listeners.Apply(ctx, roles(s.conf()))
	for _, w := range warnings {
		log.Infof("%s", w)
	}
	if err != nil {
		return err
	}
	s.up.opened = append(s.up.opened, added...)
	return nil
}

func (s *server) serveListeners(ctx context.Context, ls []*listen.Listener) {
	s.up.opened = nil
	for _, l := range ls {
		log.Infof("Server listening on %s", l)
		s.run.receiving.Go(func() {
			if err := s.smtp.Serve(ctx, l, modes[l.Role]); err != nil && !errors.Is(err, net.ErrClosed) {
				log.Errorf("listener %s: %v", l, err)
			}
		})
	}
}

// signals reopens logs and reloads on SIGHUP.
func (s *server) signals(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-ctx.Done():
				signal.Stop(hup)
				return
			case <-hup:
				s.hangup(ctx)
			}
		}
	}()
}

func (s *server) hangup(ctx context.Context) {
	log.Infof("SIGHUP: reopening logs and reloading")
	if err := s.log.Reopen(); err != nil {
		log.Errorf("reopening the log: %v", err)
	}
	if err := s.maillog.Reopen(); err != nil {
		log.Errorf("reopening the mail log: %v", err)
	}
	s.certs.Load().Retry()
	s.reloadNow(trace.WithRecorder(ctx, s.rec), reload.Signal)
}
