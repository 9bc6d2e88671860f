package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/auth/dovecot"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/listen"
	"blitiri.com.ar/go/chasquid/internal/maillog"
	"blitiri.com.ar/go/chasquid/internal/opctl"
	"blitiri.com.ar/go/chasquid/internal/reload"
	"blitiri.com.ar/go/chasquid/internal/smtpsrv"
	"blitiri.com.ar/go/log"
)

// settings is what it takes to change the settings of a running server.
type settings struct {
	asked   sync.Mutex    // held for a whole reload that somebody asked for
	started chan struct{} // closed when everything runs that settings may change

	mu      sync.Mutex // held while settings are read and changed
	ended   bool       // the server stops: nothing changes any more
	seen    string     // the state of the files when they were last read
	failure error      // why the last attempt did not succeed
	restart []string   // changes that wait for a restart

	pages    pages
	push     exporter
	renewing renewing
}

// conf is the configuration in force. What needs more than one value of it asks once.
func (s *server) conf() *config.Config { return s.current.Load() }

// settle is how long a file has to be left alone before it is picked up unasked: an editor may not be done with it.
const settle = time.Second

// startReloads lets settings change from now on.
func (s *server) startReloads() { close(s.settings.started) }

// endReloads waits for a change of settings that is under way, and lets none begin.
func (s *server) endReloads() {
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	s.settings.ended = true
}

// reloadNow reloads everything because somebody asks for it, and tells systemd.
func (s *server) reloadNow(ctx context.Context, why reload.Trigger) reload.Status {
	s.settings.asked.Lock()
	defer s.settings.asked.Unlock()
	s.supervisor.Reloading()
	defer s.supervisor.Ready("serving")
	if err := s.levels.Reload(ctx); err != nil {
		log.Errorf("reloading the TLS levels of domains: %v", err)
	}
	// What could not be loaded stays as it was; the runner logs why.
	return s.reload.Now(ctx, why)
}

// operatorReload is reloadNow for the control socket.
func (s *server) operatorReload(ctx context.Context) opctl.Reloaded {
	st := s.reloadNow(ctx, reload.Operator)
	r := opctl.Reloaded{Changes: st.Changes, Restart: st.Restart, Warnings: st.Warnings}
	for _, e := range st.Errors {
		r.Errors = append(r.Errors, opctl.ReloadError{What: e.Step, Error: e.Err.Error(), Remedy: e.Remedy()})
	}
	return r
}

// reloadSettings is the reload step of chasquid.conf. What it says takes effect as a whole or not at all.
func (s *server) reloadSettings(ctx context.Context, r *reload.Report) error {
	select {
	case <-s.settings.started:
	case <-ctx.Done():
		return nil
	}
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	r.Restart = s.settings.restart
	old, files := s.conf(), s.settingFiles()
	seen := domains.FileState(files...)
	unasked := r.Trigger == reload.Periodic || r.Trigger == reload.Start
	if s.settings.ended || unasked && (beingWritten(files) || s.settings.failure == nil && seen == s.settings.seen) {
		r.Warnings = old.Warnings
		return s.settings.failure
	}
	s.settings.failure = s.readSettings(ctx, r, old, files, seen)
	return s.settings.failure
}

// readSettings reads chasquid.conf and puts it in force; seen is the state of the files before.
func (s *server) readSettings(ctx context.Context, r *reload.Report, old *config.Config, files []string, seen string) error {
	loaded, err := config.Load(files[0], s.flags.overrides)
	if err == nil && loaded.Empty() && !old.Empty() {
		err = loaded.Problem(config.FileName, errors.New("the file sets nothing, as if it had been cut off"),
			"write the settings back; a restart would take an empty file as it is")
	}
	if err != nil {
		return err
	}
	next, restart, err := keepFixed(old, loaded)
	if err != nil {
		return err
	}
	c := &change{old: old, new: next}
	if err := s.change(ctx, c); err != nil {
		return err
	}
	s.settings.restart, s.settings.seen = restart, seen
	if after := s.settingFiles(); !slices.Equal(files, after) {
		s.settings.seen = domains.FileState(after...)
	}
	r.Changes, r.Restart, r.Warnings = c.told, restart, slices.Concat(next.Warnings, c.warnings)
	return nil
}

// settingFiles are the files that settings come from, chasquid.conf first.
func (s *server) settingFiles() []string {
	conf := s.conf()
	files := conf.Files()
	files[0] = filepath.Join(conf.Dir, config.FileName)
	if conf.SRS {
		files = append(files, conf.SRSSecretFile)
	}
	return files
}

// beingWritten reports a file that changed a moment ago.
func beingWritten(files []string) bool {
	return slices.ContainsFunc(files, func(path string) bool {
		st, err := os.Stat(path)
		return err == nil && time.Since(st.ModTime()).Abs() < settle
	})
}

// keepFixed returns the configuration with the settings that cannot change now as they are, and what waits for the restart therefore.
func keepFixed(old, loaded *config.Config) (next *config.Config, restart []string, err error) {
	for _, c := range config.Diff(old, loaded) {
		if slices.Contains(config.RestartOnly(), c.Name) {
			restart = append(restart, c.String())
		}
	}
	if len(restart) == 0 {
		return loaded, nil, nil
	}
	next, err = loaded.Keep(old, config.RestartOnly()...)
	return next, restart, err
}

// change is new settings on their way. Everything that can fail is made before anything takes effect.
type change struct {
	old, new *config.Config
	told     []string // what is others now
	warnings []string

	swap []func() // put in force what was made; none can fail, and their order does not matter
	undo []func() // drop what was made
}

// onSwap adds what puts a made thing in force, and what drops it instead.
func (c *change) onSwap(swap, undo func()) {
	c.swap = append(c.swap, swap)
	if undo != nil {
		c.undo = append(c.undo, undo)
	}
}

// change makes everything for the new settings and swaps, or leaves all as it is and says why.
func (s *server) change(ctx context.Context, c *change) error {
	for _, d := range config.Diff(c.old, c.new) {
		c.told = append(c.told, d.String())
	}
	secretChanged, err := s.prepareSending(c)
	if secretChanged {
		c.told = append(c.told, "srs_secret_file: its content as it was -> its content as it is now")
	}
	if err == nil && len(c.told) == 0 {
		s.current.Store(c.new) // it may stand in other lines
		return nil
	}
	errs := []error{err}
	for _, prepare := range []func(context.Context, *change) error{
		s.prepareReceiving, s.prepareAliases, s.prepareMailLog, s.prepareMonitoring, s.prepareTraces, s.prepareCertificates, s.prepareOthers,
	} {
		errs = append(errs, prepare(ctx, c))
	}
	var added []*listen.Listener
	if err = errors.Join(errs...); err == nil {
		added, err = s.moveListeners(ctx, c) // the last that can fail: it changes something
	}
	if err != nil {
		for _, undo := range c.undo {
			undo()
		}
		return err
	}
	s.current.Store(c.new)
	for _, swap := range c.swap {
		swap()
	}
	s.serveListeners(s.run.base, added)
	return nil
}

// moveListeners opens what is to be opened, and then closes what is not wanted any more. Sessions there go on.
func (s *server) moveListeners(ctx context.Context, c *change) (added []*listen.Listener, err error) {
	added, removed, warnings, err := s.listeners.Apply(ctx, roles(c.new))
	if err != nil {
		return nil, listenProblem(c.new, err)
	}
	c.warnings = append(c.warnings, warnings...)
	for _, l := range removed {
		log.Infof("Server no longer listening on %s", l)
	}
	return added, nil
}

// listenProblem says where the address is set that cannot be listened on.
func listenProblem(conf *config.Config, err error) error {
	setting := map[string]string{"smtp": "smtp_address", "submission": "submission_address", "submission_tls": "submission_over_tls_address"}
	var out []error
	for _, err := range flatten(err) {
		if e, ok := errors.AsType[*listen.Error](err); ok && e.Role != "" {
			err = conf.Problem(setting[e.Role], e, e.Fix)
		}
		out = append(out, err)
	}
	return errors.Join(out...)
}

func (s *server) prepareReceiving(_ context.Context, c *change) error {
	cfg, err := s.smtpConfig(c.new)
	if err != nil {
		return err
	}
	c.onSwap(func() {
		s.smtp.Configure(cfg)
		s.rate.SetLimits(rateLimits(c.new))
		s.listeners.SetProxy(proxy(c.new))
	}, nil)
	return nil
}

func proxy(conf *config.Config) listen.Proxy {
	return listen.Proxy{On: conf.GetHaproxyIncoming(), Trusted: conf.TrustedProxy}
}

func (s *server) prepareAliases(ctx context.Context, c *change) error {
	apply, err := s.aliases.Prepare(ctx, aliasSettings(c.new))
	if err != nil {
		field := "suffix_separators"
		if c.old.GetSuffixSeparators() == c.new.GetSuffixSeparators() {
			field = "drop_characters"
		}
		return c.new.Problem(field, fmt.Errorf("the alias files cannot be read anew: %w", err), "correct the alias files first")
	}
	c.onSwap(apply, nil)
	return nil
}

func aliasSettings(conf *config.Config) aliases.Settings {
	return aliases.Settings{SuffixSeparators: conf.GetSuffixSeparators(), DropCharacters: conf.GetDropCharacters(), HookTimeout: conf.Time.AliasHook}
}

func (s *server) prepareMailLog(_ context.Context, c *change) error {
	path := c.new.GetMailLogPath()
	if path == c.old.GetMailLogPath() {
		return nil
	}
	d, err := maillog.OpenDestination(path)
	if err != nil {
		return c.new.Problem("mail_log_path", err, "make its directory writable for the server's user, or choose another file")
	}
	c.onSwap(func() { s.maillog.Use(d) }, func() { d.Close() })
	return nil
}

// prepareOthers is for what cannot fail.
func (s *server) prepareOthers(ctx context.Context, c *change) error {
	if c.new.GetDovecotAuth() && dovecotConfig(c.old) != dovecotConfig(c.new) {
		probe := dovecot.New(dovecotPaths(c.new))
		if err := probe.Probe(ctx); err != nil {
			c.warnings = append(c.warnings, fmt.Sprintf("Dovecot does not answer: %v (its users cannot log in until it does)", err))
		}
		probe.Close()
	}
	c.onSwap(func() {
		if !slices.Equal(c.old.Resolvers, c.new.Resolvers) || c.old.GetDnsTrustAd() != c.new.GetDnsTrustAd() {
			s.dns.SetServers(resolvers(c.new), c.new.GetDnsTrustAd())
		}
		s.domains.Expect(c.new.GetHostname(), c.new.ACME != nil)
		s.useDovecot(c.new)
		if s.history != nil {
			s.history.Configure(historySettings(c.new))
		}
		s.reports.Configure(reportHost(c.new), c.new.TLSReports)
		s.selfcheck.Set(c.new.GetSelfcheck() == "on")
		if store := s.store.Load(); store != nil {
			store.SetMinFree(minFree(c.new))
		}
	}, nil)
	return nil
}

// useDovecot asks Dovecot, or does not, as the settings say.
func (s *server) useDovecot(conf *config.Config) {
	paths := dovecotPaths(conf)
	s.dovecot.SetPaths(paths.UserDB, paths.Client)
	if conf.GetDovecotAuth() {
		s.auth.SetFallback(s.dovecot)
		return
	}
	s.auth.SetFallback(nil)
	s.dovecot.Rest()
}

func dovecotPaths(conf *config.Config) dovecot.Config {
	return dovecot.Config{UserDB: conf.GetDovecotUserdbPath(), Client: conf.GetDovecotClientPath()}
}

// dovecotConfig is everything the settings say of Dovecot, to compare.
func dovecotConfig(conf *config.Config) [3]string {
	return [3]string{fmt.Sprint(conf.GetDovecotAuth()), conf.GetDovecotUserdbPath(), conf.GetDovecotClientPath()}
}

// smtpConfig is the SMTP server's configuration.
func (s *server) smtpConfig(conf *config.Config) (smtpsrv.Config, error) {
	cfg := smtpsrv.Config{Hostname: conf.GetHostname(), MaxSize: conf.MaxDataSize, MaxRecipients: int(conf.GetMaxRecipients()),
		MaxReceived: int(conf.GetMaxReceivedHeaders()), MaxConns: int(conf.GetMaxConnections()), MaxConnsPerIP: int(conf.GetMaxConnectionsPerIp()),
		CommandTimeout: conf.Time.Command, DataTimeout: conf.Time.Data, SessionTimeout: conf.Time.Session,
		OwnName: func(host string) bool {
			now := s.domains.Current()
			return now.IsLocal(host) || now.HasCert(host, time.Now())
		},
		TLS: s.tlsForClients, TLSReady: s.hasCertificate, Transaction: aliases.Pin, Auth: s.auth, Intake: s.intake, Observer: s.observer, Metrics: s.reg}
	if s.flags.maxReceived > 0 {
		cfg.MaxReceived = s.flags.maxReceived
	}
	return cfg, s.checks(conf, &cfg)
}
