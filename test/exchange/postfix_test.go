package exchange

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// postfix is a Postfix on a host.
type postfix struct {
	h   *host
	log string
}

// startPostfix runs a Postfix that has the users in all of the domains, takes mail from the test for everybody, and demands of others what
// their TLSA records say. Mail for "later@" of its domains is accepted and returned afterwards.
func startPostfix(h *host, domains, users []string) *postfix {
	h.t.Helper()
	cert := h.n.ca.cert(h.name)
	mail := filepath.Join(h.dir, "mail")
	if err := os.Mkdir(mail, 0777); err != nil {
		h.t.Fatal(err)
	}
	os.Chmod(mail, 0777)
	var boxes, aliases strings.Builder
	for _, d := range domains { // it takes the two forms of an international domain for two domains
		if a := ascii(h.t, d); a != d {
			domains = append(domains, a)
		}
	}
	for _, d := range domains {
		for _, u := range users {
			fmt.Fprintf(&boxes, "%s@%s %s/\n", u, d, u)
		}
		fmt.Fprintf(&aliases, "later@%s later@fail.invalid\n", d)
	}
	main := fmt.Sprintf("myhostname = %s\ninet_interfaces = all\nmynetworks = %s/32\nsmtputf8_enable = yes\nvirtual_mailbox_domains = %s\nvirtual_mailbox_base = %s\n"+
		"virtual_mailbox_maps = texthash:%s\nvirtual_alias_maps = texthash:%s\nvirtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\n"+
		"transport_maps = inline:{fail.invalid=fail:}\nsmtpd_tls_chain_files = %s, %s\nsmtpd_tls_security_level = may\nsmtpd_tls_received_header = yes\nsmtpd_tls_loglevel = 1\n"+
		"smtp_dns_support_level = dnssec\nsmtp_tls_security_level = dane\nsmtp_tls_CAfile = %s\nsmtp_tls_loglevel = 1\nsmtp_host_lookup = dns\n"+
		"address_verify_map =\nfail_destination_recipient_limit = 1\n",
		h.name, h.n.addr(1), strings.Join(domains, ", "), mail, h.write("boxes", boxes.String()), h.write("aliases", aliases.String()),
		h.write("key.pem", string(cert.key)), h.write("chain.pem", string(cert.chain)), h.n.ca.file(h.n))
	conf := harness.PostfixFiles(h.t, filepath.Join(h.dir), "25", main, "fail unix - n n - - pipe flags= user=nobody argv=/bin/sh -c {exit 69}\n")
	p := &postfix{h, filepath.Join(h.dir, "maillog")}
	h.t.Cleanup(func() {
		if h.t.Failed() {
			b, _ := os.ReadFile(p.log)
			h.t.Logf("log of %s:\n%s", h.name, tail(b))
		}
	})
	h.waitFor(h.start(nil, harness.PostfixMaster, "-c", conf, "-d"), h.ip+":25")
	return p
}

func (p *postfix) submit(l letter) {
	p.h.t.Helper()
	s := dialSMTP(p.h.t, p.h.ip+":25", nil)
	s.do("EHLO client.example", "250")
	if r := s.send(l); !strings.HasPrefix(r, "250") {
		p.h.t.Fatalf("%s says %q", p.h.name, r)
	}
	s.quit()
}

func (p *postfix) mailbox(user string) []string {
	return readMaildir(p.h.t, filepath.Join(p.h.dir, "mail", user))
}
