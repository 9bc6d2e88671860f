package config

import (
	"bufio"
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/idna"
)

// checker parses the merged settings into the plain values of Config and collects everything that is wrong with them.
type checker struct {
	*Config
	file, overrides string // the texts, to find line numbers in
	errs            []error
}

// run does all checks, so that an administrator sees every mistake at once.
func (k *checker) run() error {
	k.identity()
	k.listeners()
	k.durations()
	k.receiving()
	k.logsAndUsers()
	k.localDelivery()
	k.sending()
	k.monitoring()
	k.acme()
	return errors.Join(k.errs...)
}

// bad records an error of a field, placed where the field was written.
func (k *checker) bad(field, value, msg, fix string) {
	e := invalid(field, value, msg, fix)
	name := field[strings.LastIndex(field, ".")+1:]
	if lineOf(k.overrides, name) > 0 {
		e.prefix = "overrides: " + e.prefix
	} else if n := lineOf(k.file, name); n > 0 {
		e.File, e.Line = k.File, n
	}
	k.errs = append(k.errs, e)
}

func (k *checker) warn(format string, a ...any) {
	k.Warnings = append(k.Warnings, fmt.Sprintf(format, a...))
}

func (k *checker) identity() {
	if !isHostName(k.Hostname) {
		k.bad("hostname", k.Hostname, "not a host name", `write the full name of this machine, such as "mail.example.org"`)
	} else if !strings.Contains(k.Hostname, ".") {
		k.warn("hostname: %q has no dot; many servers refuse mail from a name that is not fully qualified", k.Hostname)
	}
	for _, r := range k.GetSuffixSeparators() {
		if strings.ContainsRune(k.GetDropCharacters(), r) {
			k.warn("drop_characters: %q is a suffix separator too; it is taken as a separator", r)
		}
	}
	for _, f := range []struct{ name, v string }{{"suffix_separators", k.GetSuffixSeparators()}, {"drop_characters", k.GetDropCharacters()}} {
		if strings.ContainsRune(f.v, '@') {
			k.bad(f.name, f.v, "it contains @", "use characters that can stand in a user name")
		}
	}
}

func (k *checker) listeners() {
	for _, f := range []struct {
		name  string
		addrs []string
	}{
		{"smtp_address", k.SmtpAddress}, {"submission_address", k.SubmissionAddress},
		{"submission_over_tls_address", k.SubmissionOverTlsAddress},
	} {
		for _, a := range f.addrs {
			if a == "" || a == "systemd" {
				continue // an empty one is the listeners' error, under its traditional text
			}
			if err := checkHostPort(a); err != nil {
				k.bad(f.name, a, err.Error(), `write ":25", "192.0.2.1:25", "[2001:db8::1]:25" or "systemd"`)
			}
		}
	}
	if a := k.MonitoringAddress; a != "" {
		if err := checkHostPort(a); err != nil {
			k.bad("monitoring_address", a, err.Error(), `write "127.0.0.1:1099"`)
		}
	}
	for _, n := range k.HaproxyTrusted {
		p, err := parsePrefix(n)
		if err != nil {
			k.bad("haproxy_trusted", n, "not an address or a network", `write "192.0.2.7" or "192.0.2.0/24"`)
			continue
		}
		k.TrustedProxy = append(k.TrustedProxy, p)
	}
}

// duration parses a field, which must be at least min.
func (k *checker) duration(field, v string, dst *time.Duration, min time.Duration) {
	d, err := time.ParseDuration(v)
	switch {
	case err != nil:
		k.bad(field, v, strings.TrimPrefix(err.Error(), "time: "), `write a number with a unit, such as "30s", "5m" or "120h"`)
	case d < min:
		k.bad(field, v, "too short", fmt.Sprintf("use %v or more", min))
	default:
		*dst = d
	}
}

func (k *checker) durations() {
	d, err := time.ParseDuration(k.GiveUpSendAfter)
	if err != nil {
		k.bad("give_up_send_after", k.GiveUpSendAfter, err.Error(), `write a number with a unit, such as "120h"`)
	} else if d <= 0 {
		k.warn("give_up_send_after: %s is not positive and is ignored; the default stays", k.GiveUpSendAfter)
		k.GiveUpSendAfter = Default().GiveUpSendAfter
		d, _ = time.ParseDuration(k.GiveUpSendAfter)
	}
	k.GiveUp = d
	k.duration("delay_notice_after", k.DelayNoticeAfter, &k.DelayNotice, 0)
	if k.GiveUp > 0 && k.DelayNotice >= k.GiveUp {
		k.warn("delay_notice_after: %v is not before give_up_send_after (%v), so no delay notice is ever sent", k.DelayNotice, k.GiveUp)
	}
	t := k.Timeouts
	for _, f := range []struct {
		name, v string
		dst     *time.Duration
	}{
		{"timeouts.command", t.Command, &k.Time.Command}, {"timeouts.data", t.Data, &k.Time.Data},
		{"timeouts.session", t.Session, &k.Time.Session}, {"timeouts.post_data_hook", t.PostDataHook, &k.Time.PostDataHook},
		{"timeouts.alias_hook", t.AliasHook, &k.Time.AliasHook}, {"timeouts.local_delivery", t.LocalDelivery, &k.Time.LocalDelivery},
		{"timeouts.dial", t.Dial, &k.Time.Dial}, {"timeouts.drain", t.Drain, &k.Time.Drain},
	} {
		k.duration(f.name, f.v, f.dst, 100*time.Millisecond)
	}
}

// Bounds that keep products of settings within an int64 and memory within reason.
const (
	maxDataSizeMB  = 1 << 20 // 1 TiB
	maxRecipients  = 1_000_000
	maxHistoryDays = 3650
)

func (k *checker) receiving() {
	if k.MaxDataSizeMb > maxDataSizeMB {
		k.bad("max_data_size_mb", fmt.Sprint(k.MaxDataSizeMb), "the unit is MiB, not bytes", "use 1048576 (1 TiB) or less")
	}
	k.MaxDataSize = k.MaxDataSizeMb << 20
	if k.MaxRecipients > maxRecipients {
		k.bad("max_recipients", fmt.Sprint(k.MaxRecipients), "too many", "use 1000000 or less")
	} else if k.MaxRecipients < 100 {
		k.warn("max_recipients: servers must take at least 100 recipients (RFC 5321 section 4.5.3.1.8), not %d", k.MaxRecipients)
	}
	if k.MaxConnectionsPerIp > k.MaxConnections {
		k.warn("max_connections_per_ip: %d has no effect above max_connections (%d)", k.MaxConnectionsPerIp, k.MaxConnections)
	}
	k.oneOf("sender_login_match", k.SenderLoginMatch, "off", "envelope", "header")
	k.oneOf("selfcheck", k.Selfcheck, "on", "off")
	k.oneOf("long_lines", k.LongLines, "refuse", "send")
	if a := k.DoubleBounceTo; a != "" && !isMailbox(a) {
		k.bad("double_bounce_to", a, "not a mail address", `write "postmaster@example.org"`)
	}
	if k.MaxDeliveriesPerDestination > k.MaxDeliveries {
		k.warn("max_deliveries_per_destination: %d has no effect above max_deliveries (%d)", k.MaxDeliveriesPerDestination, k.MaxDeliveries)
	}
}

func (k *checker) oneOf(field, v string, allowed ...string) {
	for _, a := range allowed {
		if v == a {
			return
		}
	}
	k.bad(field, v, "not one of the possible values", `write one of "`+strings.Join(allowed, `", "`)+`"`)
}

func (k *checker) logsAndUsers() {
	if p := k.MailLogPath; strings.HasPrefix(p, "<") && p != "<syslog>" && p != "<stdout>" && p != "<stderr>" {
		k.warn("mail_log_path: %q is taken as a file name; the special ones are <syslog>, <stdout> and <stderr>", p)
	}
	if !k.DovecotAuth && (k.DovecotUserdbPath != "" || k.DovecotClientPath != "") {
		k.warn("dovecot_userdb_path, dovecot_client_path: they have no effect without dovecot_auth: true")
	}
	if strings.ContainsRune(k.DataDir, 0) {
		k.bad("data_dir", k.DataDir, "not a path", `write "/var/lib/chasquid"`)
	}
}

func (k *checker) monitoring() {
	if p := k.MonitoringWebConfig; p != "" {
		if _, err := os.Stat(k.Path(p)); err != nil {
			k.bad("monitoring_web_config", p, err.Error(), "make the file, correct its path, or remove the setting")
		}
	}
	for _, h := range k.MonitoringAllowedHosts {
		if !isHostName(h) {
			k.bad("monitoring_allowed_hosts", h, "not a host name", `write the name alone, such as "mail.example.org"`)
		}
	}
	if e := k.OtlpEndpoint; e != "" {
		if u, err := url.Parse(e); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			k.bad("otlp_endpoint", redact(e), "not an http or https URL", `write "http://127.0.0.1:4318/v1/traces"`)
		}
	}
	if k.HistoryDays > maxHistoryDays {
		k.bad("history_days", fmt.Sprint(k.HistoryDays), "too many", "use 3650 or less")
	}
}

func (k *checker) acme() {
	if k.Acme == nil {
		return
	}
	a := &ACMEConfig{Email: k.Acme.Email, DirectoryURL: cmp.Or(k.Acme.DirectoryUrl, "https://acme-v02.api.letsencrypt.org/directory"),
		Challenge: cmp.Or(k.Acme.Challenge, "http-01")}
	if u, err := url.Parse(a.DirectoryURL); err != nil || u.Scheme != "https" || u.Host == "" {
		k.bad("acme.directory_url", a.DirectoryURL, "not an https URL", "write the directory URL that the authority documents")
	}
	k.oneOf("acme.challenge", a.Challenge, "http-01", "tls-alpn-01")
	http, tls := cmp.Or(k.Acme.HttpAddress, ":80"), cmp.Or(k.Acme.TlsAlpnAddress, ":443")
	if err := checkHostPort(http); err != nil {
		k.bad("acme.http_address", http, err.Error(), `write ":80"`)
	}
	if err := checkHostPort(tls); err != nil {
		k.bad("acme.tls_alpn_address", tls, err.Error(), `write ":443"`)
	}
	if a.Address = http; a.Challenge == "tls-alpn-01" {
		a.Address = tls
	}
	k.acmeNames(a)
	if a.Email != "" && !isMailbox(a.Email) {
		k.bad("acme.email", a.Email, "not a mail address", `write "postmaster@example.org"`)
	}
	if k.Acme.CaFile != "" {
		a.Roots = k.acmeRoots()
	}
	k.acmeAccount(a)
	k.ACME = a
}

// acmeNames takes the names to get certificates for, in the form certificates have them.
func (k *checker) acmeNames(a *ACMEConfig) {
	names := k.Acme.Hostname
	if len(names) == 0 {
		names = []string{k.Hostname}
	}
	for _, h := range names {
		ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(h, "."))
		switch {
		case strings.HasPrefix(h, "*."):
			k.bad("acme.hostname", h, "wildcards need a challenge by DNS, which is not there", "write the names one by one")
		case err != nil || !isHostName(ascii) || !strings.Contains(ascii, ".") || net.ParseIP(ascii) != nil:
			k.bad("acme.hostname", h, "no authority certifies such a name", `write full public names, such as "mail.example.org"`)
		case !slices.Contains(a.Hostnames, ascii):
			a.Hostnames = append(a.Hostnames, ascii)
		}
	}
}

// acmeRoots reads whom to trust as the authority's server, besides those that the system trusts.
func (k *checker) acmeRoots() *x509.CertPool {
	pem, err := os.ReadFile(k.Path(k.Acme.CaFile))
	if err != nil {
		k.bad("acme.ca_file", k.Acme.CaFile, err.Error(), "make the file, correct its path, or remove the setting")
		return nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		k.bad("acme.ca_file", k.Acme.CaFile, "there is no certificate in it", "name a file with certificates in PEM format, or remove the setting")
	}
	return pool
}

// acmeAccount reads the key of an external account (RFC 8555 section 7.3.4).
func (k *checker) acmeAccount(a *ACMEConfig) {
	a.KeyID = k.Acme.EabKeyId
	switch {
	case a.KeyID == "" && k.Acme.EabKeyFile == "":
	case a.KeyID == "":
		k.bad("acme.eab_key_id", "", "a key without its id", "write the id that the authority gave with the key")
	case k.Acme.EabKeyFile == "":
		k.bad("acme.eab_key_file", "", "an id without its key", "write the key into a file and name the file here")
	default:
		text := k.readPassword("acme.eab_key_file", k.Acme.EabKeyFile)
		key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(text), "="))
		if text != "" && (err != nil || len(key) == 0) {
			k.bad("acme.eab_key_file", k.Acme.EabKeyFile, "its first line is not a key in base64url form", "copy the HMAC key from the authority's pages")
		}
		a.MACKey = key
	}
}

// readPassword reads the first line of a password file.
func (k *checker) readPassword(field, path string) string {
	f, err := os.Open(k.Path(path))
	if err != nil {
		k.bad(field, path, err.Error(), "make the file, readable for the server's user alone, or correct its path")
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().Perm()&0o007 != 0 {
		k.warn("%s: %s can be read by everybody; run chmod o= on it", field, path)
	}
	sc := bufio.NewScanner(f)
	sc.Scan()
	if sc.Err() != nil || sc.Text() == "" {
		k.bad(field, path, "no password on its first line", "write the password on the first line of the file")
	}
	return strings.TrimSuffix(sc.Text(), "\r")
}

// checkHostPort reports an address that cannot be listened on or connected to because of how it is written.
func checkHostPort(a string) error {
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		var ae *net.AddrError
		if errors.As(err, &ae) {
			return errors.New(ae.Err)
		}
		return err
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return fmt.Errorf("bad port %q", port)
	}
	return nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("bad network %q", s)
	}
	return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
}

// parseResolver parses an address with an optional port.
func parseResolver(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}

// isHostName reports a name without spaces, control characters and path or address syntax. Underscores and single labels pass.
func isHostName(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	for _, r := range h {
		if unicode.IsSpace(r) || unicode.IsControl(r) || r == unicode.ReplacementChar || strings.ContainsRune(`/\@:;,()<>[]"'`, r) {
			return false
		}
	}
	return true
}

// isMailbox reports something@host, or a bare user name; the address package has the last word when it is used.
func isMailbox(a string) bool {
	i := strings.LastIndexByte(a, '@')
	if i < 0 {
		return isHostName(a)
	}
	return i > 0 && isHostName(a[i+1:]) && !strings.ContainsFunc(a[:i], func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// lowerDomain returns a domain in lower-case Unicode form, as it is compared.
func lowerDomain(d string) (string, error) {
	if !isHostName(d) {
		return "", errors.New("not a domain name")
	}
	u, err := idna.ToUnicode(strings.ToLower(d))
	return strings.ToLower(u), err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("bad port %q", s)
	}
	return uint16(n), nil
}
