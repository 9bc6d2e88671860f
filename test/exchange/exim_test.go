package exchange

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// eximConfig takes mail for everybody, has a Maildir for its own domains, and sends with CHUNKING where that is offered.
const eximConfig = `exim_path = %[7]s
primary_hostname = %[1]s
spool_directory = %[2]s/spool
log_file_path = %[2]s/log/%%slog
daemon_smtp_ports = 25
local_interfaces = <; 0.0.0.0
disable_ipv6 = true
tls_advertise_hosts = *
tls_certificate = %[3]s
tls_privatekey = %[4]s
smtputf8_advertise_hosts = *
chunking_advertise_hosts = *
dsn_advertise_hosts = *
dns_dnssec_ok = 1
host_lookup =
rfc1413_hosts =
acl_smtp_rcpt = take
acl_smtp_data = take
keep_environment =
domainlist local_domains = %[5]s
begin acl
take:
  accept
begin routers
here:
  driver = accept
  domains = +local_domains
  transport = maildir
elsewhere:
  driver = dnslookup
  transport = smtp
begin transports
maildir:
  driver = appendfile
  directory = %[2]s/mail
  maildir_format
  create_directory
  return_path_add
  user = Debian-exim
  group = Debian-exim
smtp:
  driver = smtp
  hosts_try_chunking = *
  hosts_try_dane =
  hosts_require_tls = *
  tls_verify_certificates = %[6]s
begin retry
* * F,1h,1m
`

// exim is an Exim on a host.
type exim struct {
	h *host
}

// startExim runs Debian's Exim, unpacked: it cannot be installed beside a Postfix. Its user exists for the host only.
func startExim(h *host, domains []string) *exim {
	h.t.Helper()
	for _, f := range []struct{ name, entry string }{{"passwd", "Debian-exim:x:4711:4711::/nonexistent:/bin/false\n"}, {"group", "Debian-exim:x:4711:\n"}} {
		b, err := os.ReadFile("/etc/" + f.name)
		if err != nil {
			h.t.Fatal(err)
		}
		h.mount(f.name, strings.TrimRight(string(b), "\n")+"\n"+f.entry, "/etc/"+f.name)
	}
	cert := h.n.ca.cert(h.name)
	chain, key := h.write("chain.pem", string(cert.chain)), h.write("key.pem", string(cert.key))
	for _, dir := range []string{"spool", "log", "mail"} {
		if err := os.Mkdir(filepath.Join(h.dir, dir), 0755); err != nil {
			h.t.Fatal(err)
		}
		os.Chown(filepath.Join(h.dir, dir), 4711, 4711)
	}
	bin := filepath.Join(unpacked(h.t, "exim4-daemon-light"), "usr/sbin/exim4")
	conf := h.write("exim.conf", fmt.Sprintf(eximConfig, h.name, h.dir, chain, key, strings.Join(domains, " : "), h.n.ca.file(h.n), bin))
	h.t.Cleanup(func() {
		if h.t.Failed() {
			b, _ := os.ReadFile(filepath.Join(h.dir, "log", "mainlog"))
			h.t.Logf("log of %s:\n%s", h.name, tail(b))
		}
	})
	h.waitFor(h.start(nil, bin, "-C", conf, "-bdf"), h.ip+":25")
	return &exim{h}
}

func (e *exim) submit(l letter) {
	e.h.t.Helper()
	s := dialSMTP(e.h.t, e.h.ip+":25", nil)
	s.do("EHLO client.example", "250")
	if r := s.send(l); !strings.HasPrefix(r, "250") {
		e.h.t.Fatalf("%s says %q", e.h.name, r)
	}
	s.quit()
}

// mailbox is the same for all users: Exim wants to be sure of the names it writes to.
func (e *exim) mailbox(string) []string {
	return readMaildir(e.h.t, filepath.Join(e.h.dir, "mail"))
}

// TestExim exchanges mail with an Exim, whose client uses CHUNKING (C51) and SMTPUTF8 (C54); that of Postfix knows no BDAT.
func TestExim(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	w := &world{t: t, n: n}
	ours, theirs := n.newHost(10, "mx.alfa.example"), n.newHost(11, "mx.exim.example")
	w.alfa = newOurs(ours, "", map[string]domain{"alfa.example": {users, ""}, "ñandú.example": {users, ""}})
	n.serveDNS(fmt.Sprintf("alfa MX 10 mx.alfa\nxn--and-6ma2c MX 10 mx.alfa\nmx.alfa A %s\nexim MX 10 mx.exim\n%s. MX 10 mx.exim\nmx.exim A %s\n",
		ours.ip, ascii(t, "пень.example"), theirs.ip), "")
	ours.resolve()
	theirs.resolve()
	w.alfa.start()
	e := startExim(theirs, []string{"exim.example", "пень.example", ascii(t, "пень.example")})

	big := text("big", "ana@exim.example", "ana@alfa.example") + strings.Repeat(".\n..x\n"+strings.Repeat("ñ", 400)+"\n", 400)
	letters := []letter{
		{from: "<ana@exim.example>", to: []string{"<ana@alfa.example>"}, text: text("small", "ana@exim.example", "ana@alfa.example")},
		{from: "<ana@exim.example>", to: []string{"<ana@" + ascii(t, "ñandú.example") + ">"}, text: text("alabel", "ana@exim.example", "ana@"+ascii(t, "ñandú.example"))},
		{from: "<ñu@пень.example> SMTPUTF8", to: []string{"<ñu@ñandú.example>"}, text: text("utf8", "ñu@пень.example", "ñu@ñandú.example")},
		{from: "<ana@exim.example> BODY=8BITMIME", to: []string{"<ana@alfa.example>"}, text: big},
		{from: "<ana@exim.example> RET=HDRS ENVID=notify", to: []string{"<ana@alfa.example> NOTIFY=SUCCESS"}, text: text("notify", "ana@exim.example", "ana@alfa.example")},
	}
	for _, l := range letters {
		e.submit(l)
	}
	for _, l := range letters {
		id, user := strings.Fields(l.text)[1], "ana"
		if strings.HasPrefix(l.from, "<ñu") {
			user = "ñu"
		}
		got := w.arrived(w.alfa, user, id)
		w.same(got, l.text)
		w.has(id, strings.ReplaceAll(got, "\n\t", " "), "Received: from mx.exim.example .* by mx.alfa.example .*with (UTF8SMTPS|ESMTPS) ")
	}
	bdat, data := w.alfa.metric(`chasquid_smtpIn_commandCount{command="BDAT"}`), w.alfa.metric(`chasquid_smtpIn_commandCount{command="DATA"}`)
	if int(bdat) <= len(letters) || data != 0 { // the big one has many chunks
		t.Errorf("Exim sent %d messages with %v BDAT and %v DATA", len(letters), bdat, data)
	}
	w.has("notify", w.notice(e, "ana", "notify", "delivered"), "Original-Envelope-Id: notify$", "Final-Recipient: rfc822; ana@alfa.example$")

	// And back: ours speaks CHUNKING to Exim.
	for _, l := range []letter{
		{from: "<ana@alfa.example>", to: []string{"<ana@exim.example>"}, text: text("back", "ana@alfa.example", "ana@exim.example")},
		{from: "<ñu@ñandú.example> SMTPUTF8", to: []string{"<ñu@пень.example>"}, text: text("back-utf8", "ñu@ñandú.example", "ñu@пень.example")},
		{from: "<ana@alfa.example>", to: []string{"<ana@" + ascii(t, "пень.example") + ">"}, text: strings.Replace(big, "X-Exchange: big", "X-Exchange: back-big", 1)},
	} {
		w.alfa.submit(l)
		id, user := strings.Fields(l.text)[1], "ana"
		if strings.HasPrefix(l.from, "<ñu") {
			user = "ñu"
		}
		w.same(w.arrived(e, user, id), l.text)
	}
	log, err := os.ReadFile(filepath.Join(theirs.dir, "log", "mainlog"))
	if err != nil {
		t.Fatal(err)
	}
	chunked := 0
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, " <= ") && strings.Contains(line, "alfa.example") && strings.Contains(line, " K ") {
			chunked++
		}
	}
	if chunked == 0 {
		t.Error("Exim has received nothing with CHUNKING from us")
	}
}
