package exchange

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// site is one of the servers that exchange mail.
type site struct {
	server
	name   string // as in name.example
	idn    string // its other domain
	dane   bool   // TLSA records prove its mail server
	domain string
	mx     string
}

// world is the four servers. Each has the users "ana" and "ñu" in two domains.
type world struct {
	t           testing.TB
	n           *network
	alfa, bravo *chasquid
	post        *postfix
	deb         *chasquid
	sites       []site
}

var users = []string{"ana", "ñu"}

func newWorld(t testing.TB) *world {
	t.Helper()
	n := newNetwork(t)
	w := &world{t: t, n: n}
	w.sites = []site{{name: "alfa", idn: "ñandú.example", dane: true}, {name: "bravo", idn: "bücher.example"},
		{name: "post", idn: "перо.example"}, {name: "deb", idn: "ёж.example"}}
	hosts := make([]*host, len(w.sites))
	var records strings.Builder
	for i := range w.sites {
		s := &w.sites[i]
		s.domain, s.mx = s.name+".example", "mx."+s.name+".example"
		hosts[i] = n.newHost(10+i, s.mx)
		for _, d := range []string{s.domain, s.idn} {
			fmt.Fprintf(&records, "%s. MX 10 %s.\n%s. TXT \"v=spf1 mx -all\"\n", ascii(t, d), s.mx, ascii(t, d))
		}
		fmt.Fprintf(&records, "%s. A %s\n", s.mx, hosts[i].ip)
	}
	w.alfa = newOurs(hosts[0], "max_received_headers: 20\n", map[string]domain{
		"alfa.example": {users, "via: ana@hidden.example via mx.bravo.example\nchain: chain@bravo.example\nlost: lost@bravo.example\n" +
			"late: late@bravo.example\nring: ring@bravo.example\nпетля: ana@перо.example\n"},
		"ñandú.example": {users, ""}})
	w.bravo = newOurs(hosts[1], "max_received_headers: 20\n", map[string]domain{
		"bravo.example":  {users, "chain: ana@deb.example\nlost: nobody@deb.example\nlate: later@post.example\nring: ring@alfa.example\n"},
		"bücher.example": {users, ""}, "hidden.example": {users, ""}, "mismatch.example": {users, ""}, "bogus.example": {users, ""}, "half.example": {users, ""}})
	fmt.Fprintf(&records, "_25._tcp.mx.alfa %s\n", w.alfa.cert.tlsa())
	// A mail server that its TLSA record does not prove, and one whose signatures are broken.
	fmt.Fprintf(&records, "mismatch MX 10 mx.mismatch\nmx.mismatch A %s\n_25._tcp.mx.mismatch TLSA 3 1 1 %s\nhalf MX 10 mx.bogus\n",
		hosts[1].ip, strings.Repeat("0f", 32))
	n.serveDNS(records.String(), fmt.Sprintf("@ MX 10 mx\nmx A %s\n_25._tcp.mx %s\n", hosts[1].ip, w.bravo.cert.tlsa()))
	for _, h := range hosts {
		h.resolve()
	}
	w.alfa.start()
	w.bravo.start()
	w.post = startPostfix(hosts[2], []string{"post.example", "перо.example"}, users)
	w.deb = newPackaged(hosts[3], map[string]domain{"deb.example": {users, ""}, "ёж.example": {users, ""}})
	w.deb.start()
	for i, s := range []server{w.alfa, w.bravo, w.post, w.deb} {
		w.sites[i].server = s
	}
	return w
}

func ascii(t testing.TB, domain string) string {
	t.Helper()
	a, err := address.DomainToASCII(domain)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// text is a message whose body tries the transport: dots, trailing space, 8 bits, a long line, no end of line before the end but the last.
func text(id, from, to string) string {
	return fmt.Sprintf("X-Exchange: %s\nSubject: t\nFrom: <%s>\nTo: <%s>\nDate: Mon, 2 Jan 2006 15:04:05 +0000\nMessage-ID: <%s@exchange.example>\nMIME-Version: 1.0\n"+
		"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n.\n..\n.dot\ntrailing \t\n\nñandú ёж 鸵鸟\n%s\nFrom here\n\n\n",
		id, from, to, id, long)
}

// long is a long line.
var long = strings.Repeat("0123456789", 90)

// arrived waits for one message in the mailbox with the id, and returns it.
func (w *world) arrived(s server, user, id string) string {
	w.t.Helper()
	var found []string
	waitFor(w.t, "message "+id+" in the mailbox of "+user, func() bool {
		found = found[:0]
		for _, m := range s.mailbox(user) {
			if strings.Contains(m, "\nX-Exchange: "+id+"\n") && !strings.Contains(m, "multipart/report") {
				found = append(found, m)
			}
		}
		return len(found) > 0
	})
	if len(found) > 1 {
		w.t.Errorf("%d copies of %s", len(found), id)
	}
	return found[0]
}

// same compares what arrived with what was sent, octet by octet from the first header field of the sender.
func (w *world) same(got, sent string) {
	w.t.Helper()
	first, _, _ := strings.Cut(sent, "\n")
	i := strings.Index(got, first+"\n")
	if i < 0 || got[i:] != sent {
		w.t.Errorf("arrived:\n%q\nsent:\n%q", got[max(0, i):], sent)
	}
}

// notice waits for a notice about the message in the mailbox, and returns it.
func (w *world) notice(s server, user, id, action string) string {
	w.t.Helper()
	var found string
	about := regexp.MustCompile(`(?mi)^(X-Exchange|Message-ID): <?` + regexp.QuoteMeta(id) + `\b`)
	waitFor(w.t, "a notice "+action+" about "+id+" for "+user, func() bool {
		for _, m := range s.mailbox(user) {
			if strings.Contains(m, "multipart/report") && strings.Contains(m, "\nAction: "+action) && about.MatchString(m) {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// has checks that a message has all of these lines.
func (w *world) has(what, msg string, patterns ...string) {
	w.t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(`(?m)^` + p).MatchString(msg) {
			w.t.Errorf("%s has no line %q:\n%s", what, p, strings.ReplaceAll(msg, long, "long"))
		}
	}
}
