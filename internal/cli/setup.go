package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/dkim"
)

func setupCommand() *command {
	return &command{name: "setup", args: "[options] <domain>", short: "Make a working configuration for a domain",
		long: "Makes what a domain needs: settings, a first user, a DKIM key and a certificate, and shows the DNS records to publish. " +
			"What is there already is left alone, so it can be run again, and for further domains. For the first domain, settings that " +
			"an existing chasquid.conf does not have are added to it.\n\n" +
			"With -acme_email the server gets its certificate from Let's Encrypt by itself, whose terms you agree to. Without, a self-signed certificate " +
			"is made if there is none: good for trying, but put a real one in its place.",
		prepare: setupPrepare}
}

// setup is one run of the command.
type setup struct {
	*call
	domain                                                string
	user, password, hostname, dataDir, acmeEmail, ip, own string

	made []string // what was made, for the report
}

func setupPrepare(fs *flag.FlagSet) func(*call) error {
	s := &setup{}
	fs.StringVar(&s.user, "user", "postmaster", "`name` of the first user")
	fs.StringVar(&s.password, "password", "", "its `password`; asked for on a terminal, otherwise a random one is made and shown")
	fs.StringVar(&s.hostname, "hostname", "", "`name` of this server; mail.<domain> unless given")
	fs.StringVar(&s.dataDir, "data_dir", "/var/lib/chasquid", "`directory` for the queue and mailboxes")
	fs.StringVar(&s.acmeEmail, "acme_email", "", "get certificates from Let's Encrypt, with this contact `address`")
	fs.StringVar(&s.ip, "ip", "", "public `addresses` of this server, separated by commas, for the DNS records")
	fs.StringVar(&s.own, "owner", "", "`user` the server runs as, who gets the files; the owner of the data directory unless given")
	return func(c *call) error {
		if err := c.wantArgs(1, 1); err != nil {
			return err
		}
		s.call = c
		return s.run(c.args[0])
	}
}

func (s *setup) run(domain string) error {
	var err error
	if s.domain, err = address.NormalizeDomain(domain); err != nil {
		return usageError(err.Error())
	}
	if s.hostname == "" {
		s.hostname = "mail." + s.domain
	}
	if s.hostname, err = asciiDomain(s.hostname); err != nil {
		return usageError(err.Error())
	}
	ips, err := parseIPs(s.ip)
	if err != nil {
		return err
	}
	for _, step := range []func() error{s.writeConfig, s.addDomain, s.addUser, s.addCertificate} {
		if err := step(); err != nil {
			return err
		}
	}
	keys, err := s.addKey()
	if err != nil {
		return err
	}
	if err := s.giveAway(); err != nil {
		return err
	}
	for _, m := range s.made {
		fmt.Fprintln(s.Stdout, m)
	}
	fmt.Fprintf(s.Stdout, "\nDNS records to publish for %s:\n\n", s.domain)
	for _, r := range dnsRecords(s.domain, s.hostname, ips, keys) {
		fmt.Fprintln(s.Stdout, r)
	}
	fmt.Fprintf(s.Stdout, "\nThe reverse name (PTR) of each address should be %s: ask whoever gave you the address.\n", s.hostname)
	fmt.Fprintf(s.Stdout, "\nNext: publish the records, start the server, and run \"chasquid check -config_dir=%s\".\n", s.configDir)
	return nil
}

func parseIPs(list string) (ips []netip.Addr, err error) {
	for _, t := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		ip, err := netip.ParseAddr(t)
		if err != nil {
			return nil, usageError(err.Error())
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

// path is a path in the configuration directory.
func (s *setup) path(elem ...string) string {
	return filepath.Join(append([]string{s.configDir}, elem...)...)
}

func (s *setup) note(format string, args ...any) {
	s.made = append(s.made, fmt.Sprintf(format, args...))
}

// writeConfig makes the settings, or takes host name and data directory from those that are there.
func (s *setup) writeConfig() error {
	if err := s.makeDirectories(); err != nil {
		return err
	}
	file := s.path(config.FileName)
	if _, err := os.Stat(file); err == nil {
		return s.completeConfig(file)
	}
	text := fmt.Sprintf("# Made by \"chasquid setup\". The settings are described in chasquid.conf(5).\nhostname: %q\n"+
		"smtp_address: \":25\"\nsubmission_address: \":587\"\nsubmission_over_tls_address: \":465\"\n\n"+
		"# Pages about what the server does, for this machine only.\nmonitoring_address: \"127.0.0.1:1099\"\n\n"+
		"data_dir: %q\nlocal_delivery: %q\n", s.hostname, s.dataDir, s.maildirs())
	if s.acmeEmail != "" {
		text += fmt.Sprintf("\n# Certificates are fetched from Let's Encrypt. Port 80 has to be reachable.\nacme {\n  email: %q\n}\n", s.acmeEmail)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	s.note("Made the settings: %s", file)
	if _, err := config.Load(file, ""); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

// makeDirectories makes the configuration directory. The skeleton's certs is a link to where certbot keeps its certificates: as long as
// it leads nowhere, a directory takes its place.
func (s *setup) makeDirectories() error {
	for _, d := range []string{"", "certs", "domains", "hooks"} {
		path := s.path(d)
		_, err := os.Stat(path)
		if target, linkErr := os.Readlink(path); errors.Is(err, fs.ErrNotExist) && linkErr == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
			s.note("%s was a link to %s, which is not there: a directory took its place", path, target)
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// completeConfig takes the settings that are there. Before the first domain, nobody relies on defaults yet, and what a working server
// needs is added to a file that does not set it, such as the skeleton.
func (s *setup) completeConfig(file string) error {
	conf, err := config.Load(file, "")
	if err != nil {
		return err
	}
	missing, err := s.missingSettings(conf)
	if err != nil {
		return err
	}
	if missing == "" {
		s.note("%s is there already and was left alone", file)
	} else {
		old, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := replaceFile(file, string(old)+"\n# Added by \"chasquid setup\".\n"+missing); err != nil {
			return err
		}
		if conf, err = config.Load(file, ""); err != nil {
			return errors.Join(err, replaceFile(file, string(old)))
		}
		s.note("Added settings to %s", file)
	}
	s.hostname, s.dataDir = conf.GetHostname(), conf.Path(conf.GetDataDir())
	return nil
}

// missingSettings are those that setup would write and the file does not set; none once there is a domain.
func (s *setup) missingSettings(conf *config.Config) (string, error) {
	entries, err := os.ReadDir(s.path("domains"))
	if err != nil || slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
		return "", err
	}
	set := map[string]bool{}
	for _, l := range conf.List() {
		set[l.Name] = l.Origin != "default" && l.Origin != "system"
	}
	if !set["data_dir"] && s.dataDir == config.Default().GetDataDir() {
		set["data_dir"] = true
	} else if set["data_dir"] {
		s.dataDir = conf.Path(conf.GetDataDir())
	}
	var b strings.Builder
	add := func(already bool, format string, args ...any) {
		if !already {
			fmt.Fprintf(&b, format, args...)
		}
	}
	add(set["hostname"], "hostname: %q\n", s.hostname)
	add(set["monitoring_address"], "monitoring_address: \"127.0.0.1:1099\"\n")
	add(set["data_dir"], "data_dir: %q\n", s.dataDir)
	add(set["local_delivery"] || set["mail_delivery_agent_bin"], "local_delivery: %q\n", s.maildirs())
	add(set["acme"] || s.acmeEmail == "", "acme { email: %q }\n", s.acmeEmail)
	return b.String(), nil
}

// maildirs is the setting for mailboxes below the data directory.
func (s *setup) maildirs() string {
	return "maildir:" + filepath.Join(s.dataDir, "mail", "%to_domain%", "%to_user%")
}

// replaceFile writes a file anew, so that nobody ever reads a half of it. Owner and mode stay.
func replaceFile(file, text string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	uid, gid, err := fileOwner(info)
	if err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, []byte(text), info.Mode().Perm()); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(tmp, uid, gid); err != nil {
			return err
		}
	}
	return os.Rename(tmp, file)
}

// addDomain makes the directory that makes the domain local.
func (s *setup) addDomain() error { return os.MkdirAll(s.path("domains", s.domain), 0o755) }

// addUser makes the first user of the domain.
func (s *setup) addUser() error {
	a, err := newAccount(s.configDir, s.user, s.domain)
	if err != nil {
		return err
	}
	db, err := loadUsers(a.file)
	if err != nil {
		return err
	}
	if db.Has(a.user) {
		s.note("User %s@%s is there already and was left alone", a.user, a.domain)
		return nil
	}
	password, shown := s.password, ""
	if password == "" {
		if s.Terminal {
			password, err = s.newPassword()
		} else {
			password = rand.Text()
			shown = ", with the password " + password
		}
		if err != nil {
			return err
		}
	}
	pass, err := userdb.NewScrypt(password)
	if err != nil {
		return err
	}
	if err := a.change(func(db *userdb.DB) error { return db.Set(a.user, pass) }); err != nil {
		return err
	}
	s.note("Added user %s@%s%s", a.user, a.domain, shown)
	return nil
}

// addKey makes a DKIM key unless there is one, and returns the zone lines of all.
func (s *setup) addKey() ([]string, error) {
	selectors, err := dkim.Selectors(s.configDir, s.domain)
	if err != nil {
		key, err := dkim.Generate("")
		if err != nil {
			return nil, err
		}
		selectors = []string{dkim.DefaultSelector(time.Now())}
		file := dkim.KeyFile(s.configDir, s.domain, selectors[0])
		if err := dkim.WriteKey(file, key); err != nil {
			return nil, err
		}
		s.note("Made a DKIM key: %s", file)
	}
	ascii, err := address.DomainToASCII(s.domain)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, sel := range selectors {
		key, err := readKey(dkim.KeyFile(s.configDir, s.domain, sel))
		if err != nil {
			return nil, err
		}
		text, err := dkim.Record(key.Public())
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("%s._domainkey.%s.\tTXT\t%s", sel, ascii, dkim.QuoteTXT(text)))
	}
	return lines, nil
}

// addCertificate makes a self-signed certificate if there is none and none will be fetched.
func (s *setup) addCertificate() error {
	conf, err := config.Load(s.path(config.FileName), "")
	if err != nil {
		return err
	}
	if conf.ACME != nil {
		s.note("The certificate for %s is fetched when the server starts", s.hostname)
		return nil
	}
	found, err := filepath.Glob(s.path("certs", "*", "fullchain.pem"))
	if err != nil || len(found) > 0 {
		return err
	}
	dir := s.path("certs", s.hostname)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cert, key, err := selfSigned(s.hostname, time.Now())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "privkey.pem"), key, 0o640); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "fullchain.pem"), cert, 0o644); err != nil {
		return err
	}
	s.note("Made a self-signed certificate: %s (put a real one in its place)", dir)
	return nil
}

// selfSigned makes a certificate for a year, and its key, in PEM.
func selfSigned(host string, now time.Time) (cert, key []byte, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, t, t, priv.Public(), priv)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

// giveAway gives the files that the server reads to the user it runs as, if we are root and it is somebody else.
func (s *setup) giveAway() error {
	uid, gid, err := s.owner()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dataDir, 0o700); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	if uid == 0 {
		s.note("The files belong to root: if the server is to run as another user, run this again with -owner=<user>")
		return nil
	}
	chown := func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	}
	if err := os.Chown(s.dataDir, uid, gid); err != nil {
		return err
	}
	for _, dir := range []string{s.path("domains", s.domain), s.path("certs", s.hostname)} {
		if err := filepath.WalkDir(dir, chown); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// owner finds the user the server runs as; root if there is nothing to go by.
func (s *setup) owner() (uid, gid int, err error) {
	if s.own == "" {
		uid, gid, err = ownerOf(s.dataDir)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, 0, nil
		}
		return uid, gid, err
	}
	u, err := user.Lookup(s.own)
	if err != nil {
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

// dnsRecords are the lines of a zone file that a mail domain needs.
func dnsRecords(domain, hostname string, ips []netip.Addr, keys []string) []string {
	ascii, err := address.DomainToASCII(domain)
	if err != nil {
		ascii = domain
	}
	var l []string
	if len(ips) == 0 {
		l = append(l, hostname+".\tA\t<IPv4 address of this server>", hostname+".\tAAAA\t<IPv6 address of this server>")
	}
	for _, ip := range ips {
		kind := "A"
		if ip.Is6() {
			kind = "AAAA"
		}
		l = append(l, fmt.Sprintf("%s.\t%s\t%s", hostname, kind, ip))
	}
	l = append(l,
		fmt.Sprintf("%s.\tMX\t10 %s.", ascii, hostname),
		fmt.Sprintf("%s.\tTXT\t\"v=spf1 mx -all\"", ascii),
		fmt.Sprintf("_dmarc.%s.\tTXT\t\"v=DMARC1; p=quarantine\"", ascii),
		fmt.Sprintf("_smtp._tls.%s.\tTXT\t\"v=TLSRPTv1; rua=mailto:postmaster@%s\"", ascii, ascii))
	return slices.Concat(l, keys)
}
