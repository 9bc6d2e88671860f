package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/auth"
	"blitiri.com.ar/go/chasquid/internal/auth/dovecot"
	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/dkim"
	"blitiri.com.ar/go/chasquid/internal/listen"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/opctl"
	"blitiri.com.ar/go/chasquid/internal/reload"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/smtpsrv"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// aliasHook and postDataHook are run when they exist, relative to the configuration directory.
const (
	aliasHook    = "hooks/alias-resolve"
	postDataHook = "hooks/post-data"
)

// loadUsers makes what knows users and aliases, and the loop that reloads them.
func (s *server) loadUsers(ctx context.Context) error {
	conf := s.conf()
	s.dovecot = dovecot.New(dovecotPaths(conf))
	if conf.GetDovecotAuth() {
		log.Infof("Users that the domains' files do not know are looked up in Dovecot")
		if err := s.dovecot.Probe(ctx); err != nil {
			log.Errorf("Dovecot does not answer: %v (its users cannot log in until it does)", err)
		}
	}
	s.auth = auth.New(auth.Config{})
	s.useDovecot(conf)
	s.aliases = aliases.New(aliases.Config{Settings: aliasSettings(conf), Local: s.domains.IsLocal, User: s.auth.Exists, First: s.auth.First, Primary: s.primaryDomain, Hook: aliasHook,
		HookEnv: os.Environ(), Metrics: s.reg})
	if err := s.loadDomainFiles(ctx); err != nil {
		return err
	}
	log.Infof("Loading domains:")
	for _, d := range s.domains.Current().Domains {
		if d.Dir != "" {
			log.Infof("  %s (%d users, %d aliases, %d DKIM keys)", d.Name, s.auth.Count(d.Name), s.aliases.Count(d.Name), len(d.Keys))
		}
	}
	for _, err := range s.aliases.Broken(ctx) {
		log.Infof("Warning: %v%s", err, remedy.Text(err))
	}
	s.reload = reload.New(reload.Config{Every: s.flags.reloadEvery, Metrics: s.reg, Steps: []reload.Step{
		{Name: "settings", Do: s.reloadSettings},
		{Name: "domains", Do: func(ctx context.Context, r *reload.Report) (err error) {
			_, r.Warnings, err = s.domains.Reload(ctx)
			return err
		}},
		{Name: "users and aliases", Do: func(ctx context.Context, _ *reload.Report) error { return s.loadDomainFiles(ctx) }},
	}})
	return nil
}

// loadDomainFiles reads the users and aliases of the domains there are now.
func (s *server) loadDomainFiles(ctx context.Context) error {
	var users []auth.File
	var lists []aliases.File
	for _, d := range s.domains.Current().Domains {
		if d.Dir == "" {
			continue
		}
		users = append(users, auth.File{Domain: d.Name, Path: d.Users})
		lists = append(lists, aliases.File{Domain: d.Name, Path: d.Aliases})
	}
	return errors.Join(s.auth.Load(ctx, users), s.aliases.Load(ctx, lists))
}

// primaryDomain is the domain of a bare "postmaster": that of our host name if it is local, else the first local one.
func (s *server) primaryDomain() string {
	name := s.conf().GetHostname()
	if d, err := address.NormalizeDomain(name); err == nil && s.domains.IsLocal(d) {
		return d
	}
	for _, d := range s.domains.Current().Domains {
		if d.Dir != "" {
			return d.Name
		}
	}
	return ""
}

// makeReceiving makes the SMTP server and the set of its listeners.
func (s *server) makeReceiving(context.Context) error {
	conf := s.conf()
	s.makeCheckers()
	cfg, err := s.smtpConfig(conf)
	if err != nil {
		return err
	}
	s.smtp = smtpsrv.New(cfg)
	if s.sockets, err = listen.FromEnvironment(); err != nil {
		return err
	}
	s.listeners = listen.New(listen.Config{Sockets: s.sockets, Inherited: s.inherited, Metrics: s.reg})
	s.listeners.SetProxy(proxy(conf))
	return nil
}

// signNotice signs a notice of ours with the keys of the domain it comes from.
func (s *server) signNotice(ctx context.Context, domain string, content io.Reader) ([]byte, error) {
	seeker, ok := content.(io.ReadSeeker)
	if !ok {
		return nil, errors.New("the notice cannot be read twice")
	}
	return s.signer.SignMessage(ctx, domain, seeker)
}

// makeSigner makes what signs with the keys of the present domains.
func (s *server) makeSigner(context.Context) error {
	s.signer = dkim.NewSigner(func(domain string) []dkim.Key {
		d := s.domains.Current().Domain(domain)
		if d == nil {
			return nil
		}
		keys := make([]dkim.Key, len(d.Keys))
		for i, k := range d.Keys {
			keys[i] = dkim.Key{Domain: k.Domain, Selector: k.Selector, Signer: k.Signer}
		}
		return keys
	}, s.reg)
	return nil
}

// openControl makes the control socket with the methods of existing tools.
func (s *server) openControl(context.Context) error {
	var past opctl.History
	if s.history != nil {
		past = s.history
	}
	methods := opctl.Methods(s.queue, past, s.operatorReload)
	maps.Copy(methods, opctl.LevelMethods(s.levels))
	methods["AliasResolve"] = s.rpcAliasResolve
	methods["DomaininfoClear"] = s.rpcDomaininfoClear
	methods[opctl.Upgrade] = s.rpcUpgrade
	slow := opctl.Slow()
	slow[opctl.Upgrade] = true
	path := filepath.Join(s.conf().GetDataDir(), control.SocketName)
	l, err := s.inheritOne(controlKey(path))
	if err != nil {
		return err
	}
	s.control, err = control.Listen(control.Config{Path: path, Listener: l, Methods: methods, Slow: slow,
		Metrics: s.reg, Trace: func(ctx context.Context) context.Context { return trace.WithRecorder(ctx, s.rec) }})
	return err
}

// rpcAliasResolve lists the final recipients of an address, by kind.
func (s *server) rpcAliasResolve(ctx context.Context, args url.Values) (url.Values, error) {
	addr, err := address.ParsePath(args.Get("Address"))
	if err != nil {
		return nil, err
	}
	rcpts, err := s.aliases.Resolve(ctx, addr)
	if err != nil {
		return nil, err
	}
	kinds := map[mail.Kind]string{mail.Email: "(email)", mail.Pipe: "(pipe)", mail.Forward: "(forward)"}
	out := url.Values{}
	for _, r := range rcpts {
		target := r.To.String()
		if r.Kind == mail.Pipe {
			target = r.Command
		}
		out.Add(kinds[r.Kind], target)
	}
	return out, nil
}
