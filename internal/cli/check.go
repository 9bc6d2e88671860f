package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/acmecert"
	"blitiri.com.ar/go/chasquid/internal/aliases"
	"blitiri.com.ar/go/chasquid/internal/auth"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/courier"
	"blitiri.com.ar/go/chasquid/internal/domains"
	"blitiri.com.ar/go/chasquid/internal/remedy"
)

func checkCommand() *command {
	return &command{name: "check", args: "[options]", short: "Check a configuration directory, and the DNS of its domains",
		long: "Reads everything as the server does when it starts, and looks at what goes wrong later: permissions, certificates that end soon or are for " +
			"other names, programs that are missing, and the DNS records of every domain. Every line is ok, warn or fail; what to do stands behind it.\n\n" +
			"Exit status is 1 if something fails, and 0 if there are only warnings. Run it as the user that the server runs as, or as root.",
		prepare: func(fs *flag.FlagSet) func(*call) error {
			asJSON := fs.Bool("json", false, "write JSON")
			noDNS := fs.Bool("no_dns", false, "do not look at the DNS")
			overrides := fs.String("config_overrides", "", "`settings` that override those of the file")
			return func(c *call) error {
				if err := c.wantArgs(0, 0); err != nil {
					return err
				}
				k := &checker{call: c, dir: c.configDir, now: time.Now()}
				k.run(*overrides, !*noDNS)
				return k.report(*asJSON)
			}
		}}
}

// finding is one line of the report.
type finding struct {
	Result string `json:"result"` // ok, warn, fail
	About  string `json:"about"`
	Text   string `json:"text"`
	Fix    string `json:"fix,omitempty"`
}

// checker is one check of a configuration directory.
type checker struct {
	*call
	dir     string
	now     time.Time
	conf    *config.Config
	snap    *domains.Snapshot
	aliases *aliases.Resolver
	found   []finding
}

func (k *checker) ok(about, format string, args ...any) {
	k.found = append(k.found, finding{"ok", about, fmt.Sprintf(format, args...), ""})
}
func (k *checker) warn(about, fix, format string, args ...any) {
	k.found = append(k.found, finding{"warn", about, fmt.Sprintf(format, args...), fix})
}
func (k *checker) fail(about, fix, format string, args ...any) {
	k.found = append(k.found, finding{"fail", about, fmt.Sprintf(format, args...), fix})
}

// failWith tells an error, or each of those joined in it, with the remedies they know.
func (k *checker) failWith(about string, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			k.failWith(about, e)
		}
		return
	}
	k.fail(about, remedy.Of(err), "%v", err)
}

func (k *checker) report(asJSON bool) error {
	failed, warned := 0, 0
	for _, f := range k.found {
		switch f.Result {
		case "fail":
			failed++
		case "warn":
			warned++
		}
	}
	if asJSON {
		if err := printJSON(k.Stdout, struct {
			Failed   int       `json:"failed"`
			Warnings int       `json:"warnings"`
			Findings []finding `json:"findings"`
		}{failed, warned, k.found}); err != nil {
			return err
		}
	} else {
		for _, f := range k.found {
			line := fmt.Sprintf("%-5s %s: %s", f.Result, f.About, f.Text)
			if f.Fix != "" {
				line += " (" + f.Fix + ")"
			}
			fmt.Fprintln(k.Stdout, printable(line))
		}
		fmt.Fprintf(k.Stdout, "\n%s, %s\n", plural(failed, "failure"), plural(warned, "warning"))
	}
	if failed > 0 {
		return quiet{exitError}
	}
	return nil
}

func (k *checker) run(overrides string, withDNS bool) {
	var err error
	if k.conf, err = config.Load(filepath.Join(k.dir, config.FileName), overrides); err != nil {
		k.failWith("settings", err)
		return
	}
	k.ok("settings", "%s is valid", k.conf.File)
	for _, w := range k.conf.Warnings {
		k.warn("settings", "", "%s", w)
	}
	k.checkMailLog()
	k.checkListeners()
	k.checkData()
	k.checkDelivery()
	k.checkHooks()
	table, warnings, err := domains.Load(k.ctx, domains.Config{Dir: k.dir, Hostname: k.conf.GetHostname(), CertsOptional: k.conf.ACME != nil})
	for _, w := range warnings {
		k.warn("certificates", "", "%s", w)
	}
	if err != nil {
		k.failWith("domains and certificates", err)
		return
	}
	k.snap = table.Current()
	k.checkCerts()
	k.checkDomains()
	if withDNS {
		k.checkDNS()
	}
}

// checkDelivery looks at where local mail goes, and at the routes.
func (k *checker) checkDelivery() {
	switch {
	case k.conf.LocalMaildir != "":
		k.ok("local delivery", "into Maildirs, %s", k.conf.LocalMaildir)
	case k.conf.LocalLMTP != "":
		k.checkLMTP()
	default:
		k.checkMDA()
	}
	if _, err := courier.NewRouter(courier.RouterConfig{LocalTarget: k.conf.LocalTarget(), RelayVia: k.conf.RelayURL(), Routes: k.conf.RouteTable()}); err != nil {
		k.failWith("routes", err)
	}
}

func (k *checker) checkLMTP() {
	addr, network := k.conf.LocalLMTP, "tcp"
	if !strings.Contains(addr, ":") || strings.HasPrefix(addr, "/") {
		addr, network = k.conf.Path(addr), "unix"
	}
	ctx, cancel := context.WithTimeout(k.ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		k.warn("local delivery", "start the LMTP server, or correct local_delivery; mail waits until then", "%v", err)
		return
	}
	conn.Close()
	k.ok("local delivery", "the LMTP server at %s answers", k.conf.LocalLMTP)
}

func (k *checker) checkMDA() {
	found, err := lookMDA(k.conf)
	if err != nil {
		k.warn("local delivery", remedy.Of(err), "%v", err)
		return
	}
	k.ok("local delivery", "by the program %s", found)
}

// lookMDA finds the program that delivers local mail.
func lookMDA(conf *config.Config) (string, error) {
	bin := conf.GetMailDeliveryAgentBin()
	path := bin
	if strings.Contains(bin, "/") {
		path = conf.Path(bin)
	}
	found, err := exec.LookPath(path)
	if err != nil {
		err = remedy.With(fmt.Errorf("the program %s cannot be run: %w", bin, err), "install it, or set mail_delivery_agent_bin or local_delivery; local mail waits until then")
	}
	return found, err
}

func (k *checker) checkHooks() {
	for _, name := range hookNames {
		switch there, err := lookHook(k.dir, name); {
		case err != nil:
			k.failWith("hooks", err)
		case there:
			k.ok("hooks", "%s is there", filepath.Join(k.dir, name))
		}
	}
}

var hookNames = []string{"hooks/post-data", "hooks/alias-resolve"}

// lookHook reports whether there is a hook, and why it cannot be run.
func lookHook(dir, name string) (there bool, err error) {
	info, err := os.Stat(filepath.Join(dir, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return true, err
	case info.IsDir() || info.Mode().Perm()&0o111 == 0:
		return true, remedy.With(fmt.Errorf("%s cannot be executed; mail is refused for now because of it", name), "chmod +x "+name+", or remove it")
	}
	return true, nil
}

// Warnings are what a server that starts in its configuration directory should say of it, although it starts.
func Warnings(conf *config.Config) (list []error) {
	if conf.LocalMaildir == "" && conf.LocalLMTP == "" {
		if _, err := lookMDA(conf); err != nil {
			list = append(list, err)
		}
	}
	for _, name := range hookNames {
		if _, err := lookHook(".", name); err != nil {
			list = append(list, err)
		}
	}
	return list
}

// soon is how long before its end a certificate is worth a warning.
const soon = 14 * 24 * time.Hour

func (k *checker) checkCerts() {
	for _, c := range k.snap.Certs {
		about := "certificate " + c.Name
		switch {
		case k.now.After(c.NotAfter):
			k.fail(about, "renew it", "it ended on %s", c.NotAfter.UTC().Format(time.DateOnly))
		case k.now.Before(c.NotBefore):
			k.fail(about, "check the clock of this machine", "it is not valid before %s", c.NotBefore.UTC().Format(time.DateOnly))
		case c.NotAfter.Sub(k.now) < soon:
			k.warn(about, "renew it", "it ends on %s", c.NotAfter.UTC().Format(time.DateOnly))
		default:
			k.ok(about, "for %s, until %s", strings.Join(c.Names, " "), c.NotAfter.UTC().Format(time.DateOnly))
		}
		if c.Leaf != nil && c.Leaf.CheckSignature(c.Leaf.SignatureAlgorithm, c.Leaf.RawTBSCertificate, c.Leaf.Signature) == nil {
			k.warn(about, "get one from an authority; \"acme\" in the settings does", "it is self-signed: other servers and mail programs do not trust it")
		}
		k.private(about, filepath.Join(c.Dir, "privkey.pem"))
	}
	k.checkACME()
	if k.conf.ACME == nil && !k.snap.HasCert(k.conf.GetHostname(), k.now) {
		k.warn("certificates", "get a certificate for it", "none is for the host name %q", k.conf.GetHostname())
	}
}

// checkACME looks at what the server got by ACME, and whether it can get more.
func (k *checker) checkACME() {
	conf := k.conf.ACME
	if conf == nil {
		return
	}
	for _, c := range acmecert.Inspect(acmecert.Config{Dir: filepath.Join(k.conf.Path(k.conf.GetDataDir()), "acme"), Names: conf.Hostnames, DirectoryURL: conf.DirectoryURL}) {
		about := "ACME " + c.Name
		switch {
		case k.snap.HasCert(c.Name, k.now):
			k.ok(about, "not needed: certs/ has a valid certificate for it")
		case c.Err != nil:
			k.warn(about, "the log and the page of certificates say what to do", "the last attempt failed: %v", c.Err)
		case c.NotAfter.IsZero():
			k.warn(about, "start the server: it asks for one", "there is no certificate yet")
		case c.NotAfter.Before(k.now):
			k.fail(about, "start the server: it asks for a new one", "the certificate ended on %s", c.NotAfter.UTC().Format(time.DateOnly))
		default:
			k.ok(about, "a certificate until %s", c.NotAfter.UTC().Format(time.DateOnly))
		}
	}
	if k.NoPorts {
		return
	}
	if err := acmecert.CheckAddress(acmecert.Challenge(conf.Challenge), conf.Address); err != nil {
		var r interface{ Remedy() string }
		errors.As(err, &r)
		k.warn("ACME challenges", r.Remedy(), "they cannot be answered now: %v", err)
	}
}

// private warns of secrets that everybody on the machine can read.
func (k *checker) private(about, path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o004 != 0 {
		k.warn(about, "chmod o-r "+path, "%s can be read by everybody on this machine", path)
	}
}

func (k *checker) checkDomains() {
	k.aliases = aliases.New(aliases.Config{Settings: aliases.Settings{SuffixSeparators: k.conf.GetSuffixSeparators(), DropCharacters: k.conf.GetDropCharacters()}, FS: os.DirFS(k.dir),
		Local: k.snap.IsLocal})
	var files []aliases.File
	for _, d := range k.snap.Domains {
		if d.Dir != "" {
			files = append(files, aliasFile(k.dir, d))
			k.checkDomain(d)
		}
	}
	// All of them at once, as an alias may lead through several domains. What cannot be read was told above.
	_ = k.aliases.Load(k.ctx, files)
	for _, err := range k.aliases.Broken(k.ctx) {
		k.warn("aliases", remedy.Of(err), "%v", err)
	}
	if len(files) == 0 {
		k.warn("domains", "make a directory in domains/, or run \"chasquid setup\"", "no domain is local but localhost")
	}
}

func (k *checker) checkDomain(d *domains.Domain) {
	about := "domain " + d.Name
	u := auth.New(auth.Config{FS: os.DirFS(k.dir)})
	if err := u.Load(k.ctx, []auth.File{{Domain: d.Name, Path: k.inDir(d.Users)}}); err != nil {
		k.failWith(about, err)
	}
	k.private(about, d.Users)
	// The resolver's own parser.
	if err := k.aliases.Load(k.ctx, []aliases.File{aliasFile(k.dir, d)}); err != nil {
		k.failWith(about, err)
	}
	users, n := u.Count(d.Name), k.aliases.Count(d.Name)
	for _, key := range d.Keys {
		k.private(about, key.File)
	}
	k.ok(about, "%s, %s, %s", plural(users, "user"), count(n, "alias", "aliases"), plural(len(d.Keys), "DKIM key"))
	if users == 0 && n == 0 && !k.conf.GetDovecotAuth() {
		k.warn(about, "add one with chasquid-util user-add", "it has no users and no aliases: all mail for it is refused")
	}
	if len(d.Keys) == 0 {
		k.warn(about, "make a key with chasquid-util dkim-keygen", "its mail is not signed: there is no DKIM key")
	}
}

// inDir is a path as seen from the configuration directory, where the server's working directory is.
func (k *checker) inDir(path string) string {
	if rel, err := filepath.Rel(k.dir, path); err == nil {
		return rel
	}
	return path
}

// count is a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
