package exchange

import (
	"fmt"
	"net"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"

	miekg "github.com/miekg/dns"
)

// zoneHead begins each zone.
const zoneHead = "$TTL 300\n@ SOA ns root 1 3600 600 86400 60\n@ NS ns\nns A %s\n"

// serveDNS makes the host .2 the authority of the signed zone "example" with these records, and of "bogus.example" with the others, whose
// signatures prove nothing: its parent has the hash of another key.
func (n *network) serveDNS(records, bogus string) {
	n.t.Helper()
	knotd, keymgr := harness.Need(n.t, "knotd", "knot"), harness.Need(n.t, "keymgr", "knot")
	h := n.newHost(2, "ns.example")
	n.dns = h
	head := fmt.Sprintf(zoneHead, h.ip)
	parent := "bogus NS ns\nbogus DS 4711 13 2 " + strings.Repeat("ab", 32) + "\n"
	conf := fmt.Sprintf("server:\n  listen: %s@53\n  rundir: %s\n  user: root\ndatabase:\n  storage: %s\nlog:\n  - target: stderr\n    any: warning\n"+
		"policy:\n  - id: p\n    algorithm: ecdsap256sha256\n    single-type-signing: on\nzone:\n", h.ip, h.dir, h.dir)
	for zone, text := range map[string]string{"example": head + parent + records, "bogus.example": head + bogus} {
		conf += fmt.Sprintf("  - domain: %s\n    file: %s\n    zonefile-sync: -1\n    journal-content: none\n    dnssec-signing: on\n    dnssec-policy: p\n",
			zone, h.write("zone-"+zone, text))
	}
	conf = h.write("knot.conf", conf)
	p := h.start(nil, knotd, "-c", conf)
	h.waitForDNS(p, h.ip)
	ds := h.run(keymgr, "-c", conf, "example.", "ds")
	n.anchor, _, _ = strings.Cut(ds, "\n")
}

// waitForDNS waits until the server knows the zone.
func (h *host) waitForDNS(p *process, ip string) {
	h.t.Helper()
	c := &miekg.Client{Timeout: time.Second}
	q := new(miekg.Msg).SetQuestion("example.", miekg.TypeSOA)
	waitFor(h.t, "DNS on "+h.name, func() bool {
		select {
		case <-p.exited:
			h.t.Fatalf("the DNS server of %s has ended", h.name)
		default:
		}
		r, _, err := c.Exchange(q, net.JoinHostPort(ip, "53"))
		return err == nil && len(r.Answer) > 0
	})
}

// resolve runs a validating resolver on the host's loopback.
func (h *host) resolve() {
	h.t.Helper()
	unbound := harness.Need(h.t, "unbound", "unbound")
	conf := h.write("unbound.conf", fmt.Sprintf("server:\n interface: 127.0.0.1\n interface: %s\n access-control: %s0/24 allow\n port: 53\n do-ip6: no\n username: \"\"\n chroot: \"\"\n"+
		" directory: %q\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n num-threads: 1\n do-not-query-localhost: no\n module-config: \"validator iterator\"\n"+
		" root-hints: \"\"\n qname-minimisation: no\n local-zone: \".\" static\n local-zone: \"example.\" transparent\n trust-anchor: %q\n"+
		"stub-zone:\n name: \"example.\"\n stub-addr: %s\nstub-zone:\n name: \"bogus.example.\"\n stub-addr: %s\nremote-control:\n control-enable: no\n",
		h.ip, h.n.prefix, h.dir, h.n.anchor, h.n.dns.ip, h.n.dns.ip))
	h.waitForDNS(h.start(nil, unbound, "-d", "-c", conf), h.ip)
}
