package cli

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/courier"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/sts"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

func explainCommand() *command {
	return &command{name: "explain", args: "[options] <address>", short: "Say what would happen to mail for an address, and why",
		long: "Follows the way of a message for the address with the code that delivers, but nothing is sent and nobody is connected to: " +
			"aliases, where each recipient goes and why, the servers in the order in which they would be tried, and the TLS that is demanded of them.\n\n" +
			"It works on the files of the configuration; the server need not run. The alias hook is run. Users in Dovecot are not asked about.",
		prepare: func(fs *flag.FlagSet) func(*call) error {
			asJSON := fs.Bool("json", false, "write JSON")
			return func(c *call) error {
				if err := c.wantArgs(1, 1); err != nil {
					return err
				}
				e, err := c.explain(c.args[0])
				if err != nil {
					return err
				}
				if *asJSON {
					return printJSON(c.Stdout, e)
				}
				e.print(c)
				return nil
			}
		}}
}

// explanation is what would happen to mail for an address.
type explanation struct {
	Address    string          `json:"address"`
	Local      bool            `json:"local"`
	Accepted   bool            `json:"accepted"` // from anybody, on port 25
	Why        string          `json:"why"`
	Steps      []string        `json:"steps"`
	Error      string          `json:"error,omitempty"`
	Recipients []explainedRcpt `json:"recipients"`
	MaxSize    int64           `json:"max_size"`          // bytes
	Signing    []string        `json:"signing,omitempty"` // selectors of the keys that mail from the address is signed with
}

type explainedRcpt struct {
	To        string            `json:"to"`
	Kind      string            `json:"kind"`
	Transport string            `json:"transport"`
	Why       string            `json:"why"`
	Demands   []string          `json:"demands,omitempty"`
	Servers   []explainedServer `json:"servers,omitempty"`
	Refusal   string            `json:"refusal,omitempty"`
	Level     string            `json:"tls_level_seen,omitempty"`
}

type explainedServer struct {
	Name      string   `json:"name"`
	Pref      uint16   `json:"preference"`
	Addresses []string `json:"addresses"`
	Demands   []string `json:"demands,omitempty"`
	Refused   string   `json:"refused,omitempty"`
}

// explainer is the part of the server that decides where mail goes, made from files.
type explainer struct {
	conf    *config.Config
	domains *domains.Table
	aliases *aliases.Resolver
	router  *courier.Router
	smtp    *courier.SMTP
	levels  *domaininfo.DB // nil: nothing is known
}

func (c *call) explain(text string) (*explanation, error) {
	conf, err := config.Load(filepath.Join(c.configDir, config.FileName), "")
	if err != nil {
		return nil, err
	}
	addr, err := address.ParsePath(text)
	if err != nil {
		return nil, err
	}
	if addr.IsNull() {
		return nil, usageError("an address is needed")
	}
	x, err := c.newExplainer(conf)
	if err != nil {
		return nil, err
	}
	defer x.smtp.Close()
	e := &explanation{Address: addr.String(), Local: x.domains.IsLocal(addr.Domain), MaxSize: conf.MaxDataSize}
	if addr.Domain == "" {
		e.Local = true
	}
	if d := x.domains.Current().Domain(addr.Domain); d != nil {
		for _, k := range d.Keys {
			e.Signing = append(e.Signing, k.Selector+" ("+k.Algo+")")
		}
	}
	x.accepted(c.ctx, addr, e)
	steps, rcpts, err := x.aliases.Explain(c.ctx, addr)
	for _, s := range steps {
		e.Steps = append(e.Steps, strings.Repeat("  ", s.Depth)+s.Address.String()+" "+s.Text)
	}
	if err != nil {
		e.Error = err.Error()
	}
	for _, r := range rcpts {
		e.Recipients = append(e.Recipients, x.recipient(c.ctx, r))
	}
	return e, nil
}

// newExplainer makes the parts as the server makes them.
func (c *call) newExplainer(conf *config.Config) (*explainer, error) {
	x := &explainer{conf: conf}
	var err error
	if x.domains, _, err = domains.Load(c.ctx, domains.Config{Dir: c.configDir, Hostname: conf.GetHostname(), CertsOptional: true}); err != nil {
		return nil, err
	}
	users := readUsers(x.domains.Current())
	x.aliases = aliases.New(aliases.Config{Settings: aliases.Settings{SuffixSeparators: conf.GetSuffixSeparators(), DropCharacters: conf.GetDropCharacters(), HookTimeout: conf.Time.AliasHook},
		Local: x.domains.IsLocal, FS: os.DirFS(c.configDir), Hook: filepath.Join(absolute(c.configDir), "hooks/alias-resolve"), HookDir: c.configDir,
		HookEnv: os.Environ(),
		User: func(_ context.Context, a address.Address) (bool, error) {
			db := users[a.Domain]
			return db != nil && db.Has(a.Local), nil
		},
		First: func(domain string) (address.Address, bool) {
			db := users[domain]
			if db == nil || db.Len() == 0 {
				return address.Address{}, false
			}
			return address.Address{Local: db.Names()[0], Domain: domain}, true
		},
		Primary: func() string { return primaryDomain(conf, x.domains.Current()) }})
	var files []aliases.File
	for _, d := range x.domains.Current().Domains {
		if d.Aliases != "" {
			files = append(files, aliasFile(c.configDir, d))
		}
	}
	if err := x.aliases.Load(c.ctx, files); err != nil {
		return nil, err
	}
	if x.router, err = courier.NewRouter(courier.RouterConfig{Local: x.domains.IsLocal, LocalTarget: conf.LocalTarget(),
		RelayVia: conf.RelayURL(), Routes: conf.RouteTable()}); err != nil {
		return nil, err
	}
	return x, x.makeSMTP(c)
}

// makeSMTP makes what plans deliveries to other servers. It remembers nothing: the files of the caches belong to the server.
func (x *explainer) makeSMTP(c *call) error {
	resolver := c.configuredResolver(x.conf)
	policies, err := sts.New(sts.Config{Resolver: resolver})
	if err != nil {
		return err
	}
	sc := courier.Config{Hostname: x.conf.GetHostname(), Resolver: resolver, SourceAddrs: x.conf.OutgoingIPs, Sources: []tlspolicy.Source{policies}}
	dir := filepath.Join(x.conf.Path(x.conf.GetDataDir()), "domaininfo")
	if _, err := os.Stat(dir); err == nil {
		if x.levels, err = domaininfo.Open(c.ctx, domaininfo.Config{Dir: dir}); err != nil {
			return err
		}
		sc.Ledger = x.levels
	}
	x.smtp = courier.NewSMTP(sc)
	return nil
}

// readUsers reads the users of the domains; those that cannot be read have none here, and "chasquid check" says why.
func readUsers(s *domains.Snapshot) map[string]*userdb.DB {
	m := map[string]*userdb.DB{}
	for _, d := range s.Domains {
		if d.Users == "" {
			continue
		}
		if db, err := userdb.ReadFile(d.Users); err == nil {
			m[d.Name] = db
		}
	}
	return m
}

// aliasFile is the alias file of a domain, as seen from the configuration directory.
func aliasFile(dir string, d *domains.Domain) aliases.File {
	path, err := filepath.Rel(dir, d.Aliases)
	if err != nil {
		path = d.Aliases
	}
	return aliases.File{Domain: d.Name, Path: path}
}

// primaryDomain is the domain of a bare <postmaster>: that of the server's name, or else the first.
func primaryDomain(conf *config.Config, s *domains.Snapshot) string {
	if d, err := address.NormalizeDomain(conf.GetHostname()); err == nil && s.IsLocal(d) {
		return d
	}
	for _, d := range s.Domains {
		if d.Dir != "" {
			return d.Name
		}
	}
	return ""
}

// absolute is the path from the root.
func absolute(path string) string {
	if a, err := filepath.Abs(path); err == nil {
		return a
	}
	return path
}

// configuredResolver is the resolver that the server would use.
func (c *call) configuredResolver(conf *config.Config) dns.Resolver {
	if c.Resolver != nil {
		return c.Resolver
	}
	servers := make([]string, len(conf.Resolvers))
	for i, r := range conf.Resolvers {
		servers[i] = r.String()
	}
	return dns.New(dns.Config{Servers: servers, TrustAD: conf.GetDnsTrustAd()})
}

// accepted says whether strangers may send to the address.
func (x *explainer) accepted(ctx context.Context, addr address.Address, e *explanation) {
	if !e.Local {
		e.Why = "the domain is not one of ours: only authenticated users may send to it"
		return
	}
	ok, err := x.aliases.Exists(ctx, addr)
	switch {
	case err != nil:
		e.Why = "it cannot be told for now whether there is such an address, so clients are told to try again later"
	case ok:
		e.Accepted, e.Why = true, "the address exists"
	case x.conf.GetDovecotAuth():
		e.Why = "neither a user of the domain's file nor an alias; Dovecot decides"
	default:
		e.Why = "there is no such user and no such alias"
	}
}

func (x *explainer) recipient(ctx context.Context, r mail.Recipient) explainedRcpt {
	out := explainedRcpt{To: r.Target(), Kind: r.Kind.String()}
	route, err := x.router.Route(ctx, r, &mail.Envelope{})
	if err != nil {
		out.Refusal = err.Error()
		return out
	}
	out.Transport, out.Why = route.Transport.String(), route.Why
	if route.Transport != mail.SMTP && route.Transport != mail.Relay {
		return out
	}
	if x.levels != nil {
		if entry, ok := x.levels.Lookup(r.To.Domain); ok {
			out.Level = entry.Outgoing.String()
		}
	}
	plan := x.smtp.Plan(ctx, route)
	out.Demands = plan.Demands
	if plan.Refusal != nil {
		out.Refusal = plan.Refusal.Disposition.String() + " (" + plan.Refusal.Reason.String() + ")"
		if plan.Refusal.Err != nil {
			out.Refusal += ": " + plan.Refusal.Err.Error()
		}
	}
	for _, s := range plan.Servers {
		es := explainedServer{Name: s.Name, Pref: s.Pref, Demands: s.Demands, Refused: s.Refused}
		for _, a := range s.Addrs {
			es.Addresses = append(es.Addresses, a.String())
		}
		out.Servers = append(out.Servers, es)
	}
	return out
}

func (e *explanation) print(c *call) {
	w := c.Stdout
	accepted := "no"
	if e.Accepted {
		accepted = "yes"
	}
	fmt.Fprintf(w, "%s\n  accepted from strangers: %s, %s\n  largest message: %s\n", e.Address, accepted, e.Why, humanSize(e.MaxSize))
	if len(e.Signing) > 0 {
		fmt.Fprintf(w, "  mail from it is signed with: %s\n", strings.Join(e.Signing, ", "))
	}
	if len(e.Steps) > 0 {
		fmt.Fprintln(w, "\nAliases")
		for _, s := range e.Steps {
			fmt.Fprintln(w, "  "+printable(s))
		}
	}
	if e.Error != "" {
		fmt.Fprintf(w, "  error: %s\n", printable(e.Error))
	}
	for _, r := range e.Recipients {
		fmt.Fprintf(w, "\nTo %s\n", printable(r.To))
		if r.Transport != "" {
			fmt.Fprintf(w, "  goes by %s: %s\n", r.Transport, printable(r.Why))
		}
		if r.Level != "" {
			fmt.Fprintf(w, "  best TLS level reached so far: %s\n", r.Level)
		}
		for _, d := range r.Demands {
			fmt.Fprintf(w, "  demanded: %s\n", printable(d))
		}
		for _, s := range r.Servers {
			fmt.Fprintf(w, "  server %s (preference %d): %s\n", printable(s.Name), s.Pref, strings.Join(s.Addresses, ", "))
			for _, d := range s.Demands {
				fmt.Fprintf(w, "    demanded: %s\n", printable(d))
			}
			if s.Refused != "" {
				fmt.Fprintf(w, "    not used: %s\n", printable(s.Refused))
			}
		}
		if r.Refusal != "" {
			fmt.Fprintf(w, "  result: %s\n", printable(r.Refusal))
		}
	}
}
