package exchange

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

const (
	gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\n"
	// In two parts, lest a scanner takes this file for the virus that it is not.
	eicar = `X5O!P%@AP[4\PZX54(P^)7CC)7}$` + "EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*\n"
)

// startSpamd runs SpamAssassin's daemon at its usual place, without asking the network.
func startSpamd(h *host) *process {
	h.t.Helper()
	home := filepath.Join(h.dir, "spamd")
	if err := os.Mkdir(home, 0777); err != nil {
		h.t.Fatal(err)
	}
	os.Chmod(home, 0777)
	p := h.start(nil, harness.Need(h.t, "spamd", "spamd"), "--local", "--nouser-config", "--helper-home-dir="+home, "--username=nobody",
		"--listen=127.0.0.1:783", "--max-children=1", "--syslog=stderr")
	h.waitFor(p, "127.0.0.1:783")
	return p
}

// startRspamd runs rspamd with Debian's configuration at its usual place.
func startRspamd(h *host) *process {
	h.t.Helper()
	bin := harness.Need(h.t, "rspamd", "rspamd")
	// Without Hyperscan the list of all top-level domains takes it long to load.
	h.write("rspamd/conf/override.d/options.inc", fmt.Sprintf("dns { nameserver = [\"127.0.0.1\"]; }\ndisable_hyperscan = true;\nfilters = \"chartable,dkim,regexp\";\nurl_tld = %q;\n",
		h.write("rspamd/tld", "com\nexample\n")))
	h.write("rspamd/conf/override.d/logging.inc", "type = \"console\";\nlevel = \"error\";\n")
	h.write("rspamd/conf/override.d/worker-proxy.inc", "enabled = false;\n")
	h.write("rspamd/conf/override.d/worker-normal.inc", "count = 1;\n")
	dir := filepath.Join(h.dir, "rspamd")
	h.run("chown", "-R", "_rspamd:_rspamd", dir)
	p := h.start(nil, bin, "-f", "-u", "_rspamd", "-g", "_rspamd", "--var=DBDIR="+dir, "--var=RUNDIR="+dir, "--var=LOGDIR="+dir, "--var=LOCAL_CONFDIR="+dir+"/conf")
	h.waitFor(p, "127.0.0.1:11334")
	h.waitFor(p, "127.0.0.1:11333")
	return p
}

// startClamd runs ClamAV's daemon with a database of one virus.
func startClamd(h *host) *process {
	h.t.Helper()
	bin := harness.Need(h.t, "clamd", "clamav-daemon")
	harness.Need(h.t, "clamdscan", "clamdscan")
	h.write("clamav/db/test.ndb", "Eicar-Test:0:*:"+hex.EncodeToString([]byte(strings.TrimSpace(eicar)))+"\n")
	dir := filepath.Join(h.dir, "clamav")
	h.run("chown", "-R", "clamav:clamav", dir)
	h.mount("clamd.conf", fmt.Sprintf("LocalSocket %s/socket\nLocalSocketMode 666\nDatabaseDirectory %s/db\nUser clamav\nForeground yes\nLogFile %s/log\nMaxThreads 2\n", dir, dir, dir),
		"/etc/clamav/clamd.conf")
	p := h.start(nil, bin)
	waitFor(h.t, "clamd", func() bool {
		select {
		case <-p.exited:
			h.t.Fatal("clamd has ended")
		default:
		}
		_, err := os.Stat(dir + "/socket")
		return err == nil
	})
	return p
}

// TestFilters: the example hook with the real SpamAssassin, rspamd and ClamAV, each at the place where Debian has it; then one after the
// other goes away, which must not stop mail.
func TestFilters(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	w := &world{t: t, n: n}
	h := n.newHost(10, "mx.alfa.example")
	n.serveDNS(fmt.Sprintf("alfa MX 10 mx.alfa\nmx.alfa A %s\nelsewhere MX 10 mx.alfa\nelsewhere TXT \"v=spf1 ip4:%s -all\"\n", h.ip, n.addr(1)), "")
	h.resolve()
	spamd, rspamd, clamd := startSpamd(h), startRspamd(h), startClamd(h)
	w.alfa = newOurs(h, "", map[string]domain{"alfa.example": {users, ""}})
	hook, err := os.ReadFile("../../etc/chasquid/hooks/post-data")
	if err != nil {
		t.Fatal(err)
	}
	w.alfa.write("hooks/post-data", string(hook))
	if err := os.Chmod(filepath.Join(w.alfa.dir, "hooks/post-data"), 0755); err != nil {
		t.Fatal(err)
	}
	w.alfa.start()

	message := func(id, body string) letter {
		return letter{from: "<bob@elsewhere.example>", to: []string{"<ana@alfa.example>"}, text: fmt.Sprintf("X-Exchange: %s\nSubject: Minutes of the meeting\n"+
			"From: Bob <bob@elsewhere.example>\nTo: Ana <ana@alfa.example>\nDate: %s\nMessage-ID: <%s@elsewhere.example>\nMIME-Version: 1.0\n"+
			"Content-Type: text/plain; charset=us-ascii\n\nDear Ana,\n\nplease find the minutes of our meeting below.\n\n%s\nRegards, Bob\n", id, now(), id, body)}
	}
	stranger := func(l letter, code string) {
		t.Helper()
		c := dialSMTP(t, h.ip+":25", nil)
		c.do("EHLO mx.elsewhere.example", "250")
		if r := c.send(l); !strings.HasPrefix(r, code) {
			t.Errorf("%s: the server says %q, want %s", strings.Fields(l.text)[1], r, code)
		}
		c.quit()
	}
	refused := func(id, body, reply string) { t.Helper(); stranger(message(id, body), reply) }
	taken := func(id, body string, headers ...string) {
		t.Helper()
		l := message(id, body)
		stranger(l, "250")
		got := w.arrived(w.alfa, "ana", id)
		w.same(got, l.text)
		w.has(id, got, headers...)
	}
	const spam, virus = "554 5.7.1 The message looks like spam", "554 5.7.1 The message contains a virus"
	const score, action, clean = `X-Spam-Score: -?\d+\.\d+/5\.0$`, `X-Spam-Action: (no action|greylist|add header)$`, `X-Virus-Scanned: pass$`
	const noScore, noAction, noScan = `X-Spam-Score: unknown `, `X-Spam-Action: unknown `, `X-Virus-Scanned: unknown `
	taken("clean", "", score, action, clean)
	refused("spam", gtube, spam)
	refused("virus", eicar, virus)
	own := message("own-spam", gtube)
	w.alfa.submit(own) // our own users send what they like …
	w.has("own-spam", w.arrived(w.alfa, "ana", "own-spam"), clean)
	c := dialSMTP(t, h.ip+":25", nil)
	c.do("EHLO mx.elsewhere.example", "250")
	for i, l := range []letter{message("one", eicar), message("two", "")} { // … and a refusal is over with its message
		if r, want := c.send(l), []string{virus, "250"}[i]; !strings.HasPrefix(r, want) {
			t.Errorf("%d in one session: %q", i, r)
		}
	}
	c.quit()

	spamd.stop(syscall.SIGTERM)
	taken("without-spamd", "", noScore, action, clean)
	refused("spam-for-rspamd", gtube, spam)
	rspamd.stop(syscall.SIGTERM)
	taken("without-rspamd", gtube, noScore, noAction, clean)
	refused("virus-for-clamd", eicar, virus)
	clamd.stop(syscall.SIGTERM)
	taken("without-any", eicar, noScore, noAction, noScan)
	for result, want := range map[string]float64{"post-data:success": 6, "post-data:fail": 5} {
		if got := w.alfa.metric(`chasquid_smtpIn_hookResults{result="` + result + `"}`); got != want {
			t.Errorf("%v hooks with %s, want %v", got, result, want)
		}
	}
}
