package exchange

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stsCase is a domain with an MTA-STS policy, or what it takes for one.
type stsCase struct {
	name   string
	record string           // TXT records of _mta-sts, one a line; "-": none; "bogus": its signature is broken
	serve  http.HandlerFunc // of its policy host; nil: there is nobody
	cert   *certificate     // of that host, if not the right one
	host   string           // address of that host, if not the test's
	mx     string           // its mail server, if not the good one

	fetched string // how the fetch is counted
	demands string // the mode of the policy that is found, "" if there is none
	fails   bool   // the session does not satisfy it
}

const goodRecord = "v=STSv1; id=1;"

func policyText(mode, mx string) string {
	return "version: STSv1\r\nmode: " + mode + "\r\nmx: " + mx + "\r\nmax_age: 86400\r\n"
}

// answers serves a policy with a status and a media type.
func answers(status int, ctype, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/mta-sts.txt" {
			http.NotFound(w, r)
			return
		}
		if r.Header.Get("Accept-Encoding") != "" {
			status = http.StatusTeapot
		}
		w.Header().Set("Content-Type", ctype)
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func text200(body string) http.HandlerFunc { return answers(200, "text/plain; charset=utf-8", body) }

// stsCases is every failure of RFC 8461, and what is in order.
func stsCases(n *network, other *authority) []stsCase {
	const good = "mx.bravo.example"
	enforce := policyText("enforce", good)
	now := time.Now()
	return []stsCase{
		{name: "enforce", serve: text200(enforce), fetched: "ok", demands: "enforce"},
		{name: "wildcard", serve: text200(policyText("enforce", "*.bravo.example")), fetched: "ok", demands: "enforce"},
		{name: "ñandú", serve: text200(enforce), fetched: "ok", demands: "enforce"},
		{name: "testing", serve: text200(policyText("testing", "mx.elsewhere.example")), fetched: "ok", demands: "testing", fails: true},
		{name: "none", serve: text200(policyText("none", "mx.elsewhere.example")), fetched: "ok", demands: "none"},

		// The policy is there and not satisfied: nothing is delivered.
		{name: "nomatch", serve: text200(policyText("enforce", "mx.elsewhere.example")), fetched: "ok", demands: "enforce", fails: true},
		{name: "deep", serve: text200(policyText("enforce", "*.example")), fetched: "ok", demands: "enforce", fails: true}, // one label only
		{name: "badcert", serve: text200(policyText("enforce", "mx.badcert.example")), mx: "mx.badcert.example", fetched: "ok", demands: "enforce", fails: true},
		{name: "notls", serve: text200(policyText("enforce", "mx.notls.example")), mx: "mx.notls.example", fetched: "ok", demands: "enforce", fails: true},

		// There is no policy (section 3.1).
		{name: "norecord", record: "-", serve: text200(policyText("enforce", "x")), fetched: "notfound"},
		{name: "version", record: "v=STSv2; id=1;", serve: text200(policyText("enforce", "x")), fetched: "notfound"},
		{name: "several", record: goodRecord + "\nv=STSv1; id=2;", serve: text200(policyText("enforce", "x")), fetched: "notfound"},

		{name: "dnsfails", record: "bogus", serve: text200(policyText("enforce", "x")), fetched: "http_error"},

		// The policy cannot be had (section 3.3).
		{name: "gone", serve: answers(404, "text/plain", policyText("enforce", "x")), fetched: "http_error"},
		{name: "broken", serve: answers(500, "text/plain", policyText("enforce", "x")), fetched: "http_error"},
		{name: "redirect", serve: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://mta-sts.nomatch.example/.well-known/mta-sts.txt", http.StatusMovedPermanently)
		}, fetched: "http_error"},
		{name: "cutoff", serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Length", "5000")
			io.WriteString(w, policyText("enforce", "x"))
		}, fetched: "http_error"},
		{name: "nobody", host: "ns", fetched: "http_error"},
		{name: "nohost", host: "-", fetched: "notfound"},
		{name: "inside", host: "127.0.0.1", fetched: "http_error"},
		{name: "wrongname", serve: text200(policyText("enforce", "x")), cert: n.ca.cert("www.wrongname.example"), fetched: "tls_error"},
		{name: "expired", serve: text200(policyText("enforce", "x")), cert: n.ca.leaf(now.Add(-time.Hour), "mta-sts.expired.example"), fetched: "tls_error"},
		{name: "unknown", serve: text200(policyText("enforce", "x")), cert: other.cert("mta-sts.unknown.example"), fetched: "tls_error"},

		// What is there is no policy (section 3.2).
		{name: "html", serve: answers(200, "text/html", policyText("enforce", "x")), fetched: "bad_policy"},
		{name: "garbage", serve: text200("hello"), fetched: "bad_policy"},
		{name: "badversion", serve: text200(strings.Replace(policyText("enforce", "x"), "STSv1", "STSv2", 1)), fetched: "bad_policy"},
		{name: "badmode", serve: text200(policyText("Enforce", "x")), fetched: "bad_policy"},
		{name: "nomx", serve: text200("version: STSv1\nmode: enforce\nmax_age: 86400\n"), fetched: "bad_policy"},
		{name: "noage", serve: text200("version: STSv1\nmode: enforce\nmx: x\n"), fetched: "bad_policy"},
		{name: "longage", serve: text200("version: STSv1\nmode: enforce\nmx: x\nmax_age: 31557601\n"), fetched: "bad_policy"},
		{name: "large", serve: text200(strings.Repeat("x: y\r\n", 4000) + policyText("enforce", "x")), fetched: "bad_policy"},
	}
}

// policyHosts serves the policies of all cases at the test's own address.
func policyHosts(n *network, cases []stsCase) {
	n.t.Helper()
	pages, certs := map[string]http.HandlerFunc{}, map[string]*tls.Certificate{}
	for _, c := range cases {
		host := "mta-sts." + ascii(n.t, c.name+".example")
		if c.cert == nil {
			c.cert = n.ca.cert(host)
		}
		pair := c.cert.pair(n.t)
		pages[host], certs[host] = c.serve, &pair
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { pages[r.Host](w, r) }),
		ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return certs[h.ServerName], nil }}}
	l, err := net.Listen("tcp", n.addr(1)+":443")
	if err != nil {
		n.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); srv.ServeTLS(l, "", "") }()
	n.t.Cleanup(func() { srv.Close(); <-done })
}

// plainServer is a mail server at the test's own address that knows no STARTTLS.
func plainServer(n *network) {
	n.t.Helper()
	l, err := net.Listen("tcp", n.addr(1)+":25")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				io.WriteString(c, "220 mx.notls.example\r\n")
				for s := bufio.NewScanner(c); s.Scan(); {
					io.WriteString(c, "250 mx.notls.example\r\n")
				}
			}()
		}
	}()
}

// stsVars are the variables of MTA-STS, by the names of existing installations.
type stsVars struct {
	Fetches       int            `json:"chasquid/sts/cache/fetches"`
	Hits          int            `json:"chasquid/sts/cache/hits"`
	Expired       int            `json:"chasquid/sts/cache/expired"`
	IOErrors      int            `json:"chasquid/sts/cache/ioErrors"`
	FailedFetch   int            `json:"chasquid/sts/cache/failedFetch"`
	Invalid       int            `json:"chasquid/sts/cache/invalid"`
	Marshal       int            `json:"chasquid/sts/cache/marshalErrors"`
	Unmarshal     int            `json:"chasquid/sts/cache/unmarshalErrors"`
	RefreshCycles int            `json:"chasquid/sts/cache/refreshCycles"`
	Refreshes     int            `json:"chasquid/sts/cache/refreshes"`
	RefreshErrors int            `json:"chasquid/sts/cache/refreshErrors"`
	Mode          map[string]int `json:"chasquid/smtpOut/sts/mode"`
	Security      map[string]int `json:"chasquid/smtpOut/sts/security"`
}

func (c *chasquid) stsVars() string {
	c.h.t.Helper()
	var v stsVars
	c.vars(&v)
	return fmt.Sprintf("%+v", v)
}

// TestSTS: C101, C102, C103, D50: policies from a real HTTPS server, with every failure of RFC 8461, and each variable of MTA-STS.
func TestSTS(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	w := &world{t: t, n: n}
	cases := stsCases(n, newAuthority(t))
	ours, theirs := n.newHost(10, "mx.alfa.example"), n.newHost(11, "mx.bravo.example")
	domains := map[string]domain{"bravo.example": {users, ""}}
	records := fmt.Sprintf("mx.bravo A %s\nmx.badcert A %s\nmx.notls A %s\n", theirs.ip, theirs.ip, n.addr(1))
	for _, c := range cases {
		label := ascii(t, c.name)
		domains[c.name+".example"] = domain{nil, "*: ana@bravo.example\n"}
		if c.mx == "" {
			c.mx = "mx.bravo.example"
		}
		records += fmt.Sprintf("%s MX 10 %s.\n", label, c.mx)
		switch c.host {
		case "":
			records += fmt.Sprintf("mta-sts.%s A %s\n", label, n.addr(1))
		case "-":
		case "ns":
			records += fmt.Sprintf("mta-sts.%s A %s\n", label, n.addr(2))
		default:
			records += fmt.Sprintf("mta-sts.%s A %s\n", label, c.host)
		}
		if c.record == "" {
			c.record = goodRecord
		}
		switch c.record {
		case "-":
		case "bogus":
			records += fmt.Sprintf("_mta-sts.%s CNAME sts.bogus\n", label)
		default:
			for line := range strings.Lines(c.record) {
				records += fmt.Sprintf("_mta-sts.%s TXT %q\n", label, strings.TrimSuffix(line, "\n"))
			}
		}
	}
	n.serveDNS(records, fmt.Sprintf("sts TXT %q\n", goodRecord))
	ours.resolve()
	policyHosts(n, cases)
	plainServer(n)
	w.alfa = newOurs(ours, "", map[string]domain{"alfa.example": {users, ""}})
	w.bravo = newOurs(theirs, "", domains)
	w.bravo.start()
	w.alfa.start()

	want := stsVars{RefreshCycles: 1}
	fetched := map[string]int{}
	for _, c := range cases {
		w.alfa.submit(letter{from: "<ana@alfa.example> SMTPUTF8", to: []string{"<ana@" + c.name + ".example>"}, text: text("sts-"+ascii(t, c.name), "ana@alfa.example", "x@x.example")})
		fetched[c.fetched]++
		if c.demands == "" {
			want.FailedFetch++
		}
	}
	for _, c := range cases {
		m := w.alfa.settled("sts-" + ascii(t, c.name) + "@exchange.example")
		a := m.attempts()[0]
		switch {
		case c.demands == "enforce" && c.fails:
			if a.Disposition != "deferred" || a.Reason != "sts_policy" {
				t.Errorf("%s: %+v", c.name, a)
			}
		case c.demands == "enforce":
			if a.Disposition != "delivered" || a.TLS != "secure TLS1.3 (MTA-STS)" {
				t.Errorf("%s: %+v", c.name, a)
			}
		case a.Disposition != "delivered" || c.demands != "testing" && a.TLS != "secure TLS1.3":
			t.Errorf("%s: %+v", c.name, a)
		}
	}
	for result, count := range fetched {
		if got := w.alfa.metric(`chasquid_sts_fetch_duration_seconds_count{result="` + result + `"}`); int(got) < count {
			t.Errorf("%v fetches with the result %s, want %d", got, result, count)
		}
	}
	// What is remembered is used again: a policy, and that there is none.
	for _, name := range []string{"enforce", "gone"} {
		w.alfa.submit(letter{from: "<ana@alfa.example>", to: []string{"<ana@" + name + ".example>"}, text: text("again-"+name, "ana@alfa.example", "x@x.example")})
		w.alfa.settled("again-" + name + "@exchange.example")
	}
	waitFor(t, "the variables", func() bool {
		v := want // each attempt asks, also those that were made again meanwhile
		v.Mode, v.Security = map[string]int{}, map[string]int{}
		for _, c := range cases {
			m := w.alfa.settled("sts-" + ascii(t, c.name) + "@exchange.example")
			tries := len(m.attempts())
			v.Fetches += tries
			if c.demands != "" {
				v.Mode[c.demands] += tries
			}
			if c.fails {
				v.Security["fail"] += tries
			}
			if tries > 1 {
				v.Hits += tries - 1
			}
		}
		v.Fetches, v.Hits, v.Mode["enforce"] = v.Fetches+2, v.Hits+1, v.Mode["enforce"]+1
		var got stsVars
		w.alfa.vars(&got)
		v.Security["pass"] = got.Security["pass"] // one for each session, and domains share those
		wanted, have := fmt.Sprintf("%+v", v), fmt.Sprintf("%+v", got)
		if wanted != have {
			t.Logf("the variables are\n%s\nwant\n%s", have, wanted)
		}
		return wanted == have && got.Security["pass"] >= 3
	})

	// Files of the cache in every state, found at the next start.
	w.alfa.stop()
	dir := filepath.Join(w.alfa.dir, "data", "sts-cache")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0770); err != nil {
		t.Fatal(err)
	}
	const policy = `{"version":"STSv1","mode":"enforce","mx":["mx.bravo.example"],"max_age":86400000000000}`
	for name, f := range map[string]struct {
		content string
		expires time.Duration
	}{
		"enforce": {policy, time.Hour}, // is refreshed
		"gone":    {policy, -time.Hour},
		"broken":  {policy, time.Hour}, // cannot be refreshed, and is used nevertheless
		"garbage": {"{not JSON", time.Hour},
		"badmode": {strings.Replace(policy, "enforce", "surprise", 1), time.Hour},
	} {
		path := filepath.Join(dir, "pol:"+name+".example")
		if err := os.WriteFile(path, []byte(f.content), 0640); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(f.expires)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	loop := filepath.Join(dir, "pol:nomx.example")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.alfa.dir, "data", "queue")); err != nil { // what waits there would ask as well
		t.Fatal(err)
	}
	w.alfa.start()
	waitFor(t, "the first refresh", func() bool { return w.alfa.metric("chasquid_sts_cache_last_refresh_timestamp_seconds") > 0 })
	w.alfa.submit(letter{from: "<ana@alfa.example>", to: []string{"<ana@broken.example>"}, text: text("kept", "ana@alfa.example", "x@x.example")})
	if a := w.alfa.settled("kept@exchange.example").attempts()[0]; a.TLS != "secure TLS1.3 (MTA-STS)" {
		t.Errorf("the policy that was kept: %+v", a)
	}
	after := fmt.Sprintf("%+v", stsVars{Fetches: 1, Hits: 1, Expired: 1, IOErrors: 1, FailedFetch: 2, Invalid: 1, Marshal: 0, Unmarshal: 1, RefreshCycles: 1,
		Refreshes: 3, RefreshErrors: 2, Mode: map[string]int{"enforce": 1, "testing": 0, "none": 0}, Security: map[string]int{"pass": 1, "fail": 0}})
	if got := w.alfa.stsVars(); got != after {
		t.Errorf("after the restart the variables are\n%s\nwant\n%s", got, after)
	}
}
