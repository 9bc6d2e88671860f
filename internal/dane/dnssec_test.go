package dane

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
)

const zoneFile = `ZONE. 3600 SOA ns.ZONE. root.ZONE. 1 3600 600 86400 60
ZONE. 3600 NS ns.ZONE.
ns.ZONE. 3600 A 127.0.0.1
ZONE. 300 MX 10 mx.ZONE.
mx.ZONE. 300 A 192.0.2.1
_25._tcp.mx.ZONE. 300 TLSA 3 1 1 0102030405060708090a0b0c0d0e0f100102030405060708090a0b0c0d0e0f10
plain.ZONE. 300 MX 10 mx2.ZONE.
mx2.ZONE. 300 A 192.0.2.2
`

// server starts a program that ends with the test.
func server(t *testing.T, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, out.Bytes())
		}
	})
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// answers waits until a server answers for the name.
func answers(t *testing.T, port int, name string) {
	t.Helper()
	for range 100 {
		c := dns.New(dns.Config{Servers: []string{fmt.Sprint("127.0.0.1:", port)}, Timeout: 500 * time.Millisecond, Hosts: "-"})
		if _, _, err := c.MX(bg, dns.Other, name); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no answer for %s at port %d", name, port)
}

// TestC98DNSSEC: signed zones on a real server, behind a real validating resolver; one of them does not validate.
func TestC98DNSSEC(t *testing.T) {
	for _, p := range []string{"knotd", "keymgr", "unbound"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(p + " is not installed")
		}
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	authority, resolver := freePort(t), freePort(t)
	conf := fmt.Sprintf("server:\n  listen: 127.0.0.1@%d\n  rundir: %s\ndatabase:\n  storage: %s\nlog:\n  - target: stderr\n    any: warning\n"+
		"policy:\n  - id: p\n    algorithm: ecdsap256sha256\n    single-type-signing: on\nzone:\n", authority, dir, dir)
	ub := fmt.Sprintf("server:\n interface: 127.0.0.1\n port: %d\n do-ip6: no\n username: \"\"\n chroot: \"\"\n directory: \"%s\"\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n"+
		" do-not-query-localhost: no\n module-config: \"validator iterator\"\n root-hints: \"\"\n local-zone: \"test.\" nodefault\n qname-minimisation: no\n", resolver, dir)
	for _, z := range []string{"signed", "bogus", "unsigned"} {
		conf += fmt.Sprintf("  - domain: %s.test\n    file: %s\n    zonefile-sync: -1\n    journal-content: none\n", z, write("zones/"+z, strings.ReplaceAll(zoneFile, "ZONE", z+".test")))
		if z != "unsigned" {
			conf += "    dnssec-signing: on\n    dnssec-policy: p\n"
		}
	}
	knotConf := write("knot.conf", conf)
	server(t, "knotd", "-c", knotConf)
	answers(t, authority, "signed.test")
	ds, err := exec.Command("keymgr", "-c", knotConf, "signed.test.", "ds").Output()
	if err != nil {
		t.Fatalf("keymgr: %v", err)
	}
	anchor, _, _ := strings.Cut(string(ds), "\n")
	ub += " trust-anchor: \"" + anchor + "\"\n"
	ub += " trust-anchor: \"" + strings.Replace(anchor, "signed.test.", "bogus.test.", 1) + "\"\n" // of another key
	for _, z := range []string{"signed", "bogus", "unsigned"} {
		ub += fmt.Sprintf("stub-zone:\n name: \"%s.test.\"\n stub-addr: 127.0.0.1@%d\n", z, authority)
	}
	server(t, "unbound", "-d", "-c", write("unbound.conf", ub))
	answers(t, resolver, "signed.test")

	addr := fmt.Sprint("127.0.0.1:", resolver)
	s := New(Config{Resolver: dns.New(dns.Config{Servers: []string{addr}, Hosts: "-"})})
	for _, c := range []struct{ domain, host, want string }{
		{"signed.test", "mx.signed.test", "verify"},
		{"plain.signed.test", "mx2.signed.test", "nothing"}, // absence is proven too
		{"unsigned.test", "mx.unsigned.test", "nothing"},
		{"bogus.test", "mx.bogus.test", "error"},
	} {
		rule, err := s.HostRule(bg, c.domain, c.host)
		got := "nothing"
		if err != nil {
			got = "error"
		} else if rule.Verify != nil {
			got = "verify"
		}
		if got != c.want {
			t.Errorf("%s: %s (%v), want %s", c.domain, got, err, c.want)
		}
	}
	// D30: asking the authority itself, which validates nothing, proves nothing.
	direct := New(Config{Resolver: dns.New(dns.Config{Servers: []string{fmt.Sprint("127.0.0.1:", authority)}, Hosts: "-"})})
	if rule, err := direct.HostRule(bg, "signed.test", "mx.signed.test"); err != nil || rule.Source != "" {
		t.Errorf("not validated: %+v, %v", rule, err)
	}
	_, meta, err := dns.New(dns.Config{Servers: []string{addr}, Hosts: "-"}).MX(bg, dns.Other, "absent.signed.test")
	if !errors.Is(err, dns.ErrNXDomain) || !meta.Secure {
		t.Errorf("denial of existence: %v, secure %t", err, meta.Secure)
	}
}
