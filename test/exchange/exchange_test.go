package exchange

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestExchange lets two of our servers, a Postfix and Debian's chasquid exchange mail over TLS in every direction: nothing is altered on the
// way (C39), international addresses and domains (C54, C57), notices (C58, C60, C61), REQUIRETLS (C64), loops (C43, D43), DANE (C98, C99).
func TestExchange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, part := range []func(*world){directions, severals, notices, forwarding, daneVerdicts} {
		begin := time.Now()
		part(w)
		t.Logf("part %d took %v", i+1, time.Since(begin).Round(10*time.Millisecond))
	}
}

// directions sends two messages in each direction: an ASCII address in an international domain, and an address that is not ASCII.
func directions(w *world) {
	type delivery struct {
		from, to *site
		user, id string
		utf8     bool
		sent     string
	}
	var all []delivery
	for i := range w.sites {
		for j := range w.sites {
			if from, to := &w.sites[i], &w.sites[j]; i != j {
				id := from.name + "-" + to.name
				plain := letter{from: "<ana@" + from.domain + ">", to: []string{"<ana@" + ascii(w.t, to.idn) + ">"},
					text: text(id, "ana@"+from.domain, "ana@"+ascii(w.t, to.idn))}
				from.submit(plain)
				utf8 := letter{from: "<ñu@" + from.idn + "> BODY=8BITMIME SMTPUTF8", to: []string{"<ñu@" + to.idn + ">"}, text: text(id+"-utf8", "ñu@"+from.idn, "ñu@"+to.idn)}
				from.submit(utf8)
				all = append(all, delivery{from, to, "ana", id, false, plain.text}, delivery{from, to, "ñu", id + "-utf8", true, utf8.text})
			}
		}
	}
	for _, d := range all {
		got := w.arrived(d.to, d.user, d.id)
		w.same(got, d.sent)
		with := "ESMTPS"
		if d.utf8 || d.from.server == w.deb { // which asks for SMTPUTF8 where the domain alone is international
			with = "(UTF8SMTPS|ESMTPS)" // and does not know the other keyword
		}
		w.has(d.id, strings.ReplaceAll(got, "\n\t", " "), "Received: from .*"+d.from.mx+".* by "+d.to.mx+" .*with "+with+" ")
		want := "secure TLS1.3"
		if d.to.dane {
			want += " (DANE)"
		}
		if c, ours := d.from.server.(*chasquid); ours && c != w.deb {
			m := c.settled(d.id + "@exchange.example")
			a := m.attempts()
			if len(a) != 1 || a[0].Disposition != "delivered" || a[0].TLS != want || a[0].MTA == "" {
				w.t.Errorf("%s: the history of %s says %+v", d.id, c.h.name, m)
			}
			if page := c.get("/debug/messages/" + m.ID); !strings.Contains(page, want) {
				w.t.Errorf("%s: the page of the message does not say %q:\n%s", d.id, want, page)
			}
		}
	}
	for _, c := range []*chasquid{w.alfa, w.bravo, w.deb} {
		if plain, insecure := c.metric(`chasquid_smtpOut_tlsCount{result="plain"}`), c.metric(`chasquid_smtpOut_tlsCount{result="tls:insecure"}`); plain+insecure > 0 {
			w.t.Errorf("%s: %v connections without TLS, %v insecure ones", c.h.name, plain, insecure)
		}
		if secure := c.metric(`chasquid_smtpOut_tlsCount{result="tls:secure"}`); secure < 3 {
			w.t.Errorf("%s: %v secure connections", c.h.name, secure)
		}
	}
	log, err := os.ReadFile(w.post.log)
	if err != nil {
		w.t.Fatal(err)
	}
	for host, kind := range map[string]string{"mx.alfa.example": "Verified", "mx.bravo.example": "Trusted", "mx.deb.example": "Trusted"} {
		if want := kind + " TLS connection established to " + host; !strings.Contains(string(log), want) {
			w.t.Errorf("Postfix does not say %q", want)
		}
	}
}

// severals sends one message to many, some of whom do not exist, and two that demand TLS all the way.
func severals(w *world) {
	many := letter{from: "<ana@alfa.example>", text: text("many", "ana@alfa.example", "many@x.example")}
	for _, d := range []string{"bravo.example", "post.example", "deb.example", "alfa.example"} {
		many.to = append(many.to, "<nobody@"+d+">", "<noone@"+d+">", "<ana@"+d+">", "<nemo@"+d+">")
	}
	many.to = slices.DeleteFunc(many.to, func(to string) bool { // unknown ones of its own are refused at once
		return strings.Contains(to, "@alfa") && to != "<ana@alfa.example>"
	})
	w.alfa.submit(many)
	// REQUIRETLS (RFC 8689): ours knows it, and its name comes from a signed zone. Postfix does not.
	for _, d := range []string{"bravo", "post"} {
		w.alfa.submit(letter{from: "<ana@alfa.example> REQUIRETLS", to: []string{"<ana@" + d + ".example>"}, text: text("requiretls-"+d, "ana@alfa.example", "x@x.example")})
	}
	for _, s := range []server{w.bravo, w.post, w.deb, w.alfa} {
		w.same(w.arrived(s, "ana", "many"), many.text)
	}
	var told string
	waitFor(w.t, "the end of the message to many", func() bool {
		m := w.alfa.settled("many@exchange.example")
		told = fmt.Sprintf("%+v", m)
		return m.State == "partly delivered"
	})
	failed := map[string]bool{}
	for _, m := range w.alfa.mailbox("ana") {
		if strings.Contains(m, "multipart/report") && strings.Contains(m, "Message-ID: <many@") {
			for _, d := range []string{"bravo", "post", "deb"} {
				if strings.Contains(m, "\nFinal-Recipient: utf-8; nobody@"+d+".example\n") {
					failed[d] = true
				}
			}
			if strings.Contains(m, "Final-Recipient: utf-8; ana@") {
				w.t.Errorf("a notice about somebody who has the message:\n%s", m)
			}
		}
	}
	if len(failed) != 3 {
		w.t.Errorf("told of the failures at %v; the history says %s", failed, told)
	}
	w.arrived(w.bravo, "ana", "requiretls-bravo")
	if a := w.alfa.settled("requiretls-bravo@exchange.example").attempts()[0]; a.TLS != "secure TLS1.3 (REQUIRETLS)" {
		w.t.Errorf("REQUIRETLS: %+v", a)
	}
	w.has("requiretls-post", w.notice(w.alfa, "ana", "requiretls-post", "failed"), "Status: 5.7.30$")
}

// notices asks for delivery notices, and gets some without asking.
func notices(w *world) {
	type test struct {
		id         string
		from       server
		sender, to string
		rcpt       string // parameters of RCPT
		user       string // who gets the notice
		action     string
		lines      []string
	}
	mailbox := func(a string) string { u, _, _ := strings.Cut(a, "@"); return u }
	tests := []test{
		{"delivered-ours", w.alfa, "ana@alfa.example", "ana@bravo.example", "NOTIFY=SUCCESS ORCPT=rfc822;first@elsewhere.example", "", "delivered",
			[]string{"Original-Recipient: rfc822; ?first@elsewhere.example$", "Final-Recipient: rfc822; ?ana@bravo.example$", "Status: 2\\.",
				"Original-Envelope-Id: delivered-ours$", "Reporting-MTA: dns; ?bravo.example$", "Auto-Submitted: auto-replied"}},
		{"delivered-postfix", w.alfa, "ana@alfa.example", "ana@post.example", "NOTIFY=SUCCESS,FAILURE", "", "delivered",
			[]string{"Reporting-MTA: dns; ?mx.post.example$", "Original-Envelope-Id: delivered-postfix$"}},
		{"relayed", w.alfa, "ana@alfa.example", "ana@deb.example", "NOTIFY=SUCCESS ORCPT=rfc822;ana@deb.example", "", "relayed",
			[]string{"Reporting-MTA: dns; ?alfa.example$", "Final-Recipient: rfc822; ?ana@deb.example$", "Status: 2\\.", "Remote-MTA: dns; ?mx.deb.example"}},
		{"from-postfix", w.post, "ana@post.example", "ana@alfa.example", "NOTIFY=SUCCESS", "", "delivered",
			[]string{"Reporting-MTA: dns; ?alfa.example$", "Final-Recipient: rfc822; ?ana@alfa.example$", "Original-Envelope-Id: from-postfix$"}},
		{"from-postfix-idn", w.post, "ñu@перо.example", "ñu@ñandú.example", "NOTIFY=SUCCESS", "", "delivered",
			[]string{"Reporting-MTA: dns; ?ñandú.example$", "Final-Recipient: utf-8; ?ñu@ñandú.example$"}},
		{"failed-ours", w.alfa, "ana@alfa.example", "nobody@bravo.example", "", "", "failed",
			[]string{"Status: 5.1.1$", "Diagnostic-Code: smtp; ?550 5.1.1 ", "Remote-MTA: dns; ?mx.bravo.example", "Final-Recipient: utf-8; ?nobody@bravo.example$"}},
		{"failed-postfix", w.alfa, "ana@alfa.example", "nobody@post.example", "NOTIFY=FAILURE", "", "failed", []string{"Status: 5.1.1$", "Remote-MTA: dns; ?mx.post.example"}},
		{"failed-packaged", w.bravo, "ana@bravo.example", "nobody@deb.example", "", "", "failed", []string{"Status: 5.1.1$", "Remote-MTA: dns; ?mx.deb.example"}},
		{"failed-idn", w.alfa, "ñu@ñandú.example", "никто@перо.example", "", "", "failed",
			[]string{"Status: 5.1.1$", "Final-Recipient: utf-8; ?никто@перо.example$", "Content-Type: message/global-delivery-status"}},
		{"postfix-failed", w.post, "ana@post.example", "nobody@alfa.example", "", "", "failed", []string{"Status: 5.1.1$", "Reporting-MTA: dns; mx.post.example"}},
		{"packaged-failed", w.deb, "ana@deb.example", "nobody@alfa.example", "", "", "failed", []string{"Reporting-MTA: dns; ?deb.example"}},
	}
	send := func(tc test) {
		l := letter{from: "<" + tc.sender + ">", to: []string{"<" + tc.to + ">"}, text: text(tc.id, tc.sender, tc.to)}
		if strings.Contains(tc.id, "idn") {
			l.from += " SMTPUTF8 BODY=8BITMIME"
		}
		if tc.rcpt != "" {
			l.from += " RET=HDRS ENVID=" + tc.id
			l.to[0] += " " + tc.rcpt
		}
		tc.from.submit(l)
	}
	never := test{id: "never", from: w.alfa, sender: "ana@alfa.example", to: "nobody@bravo.example", rcpt: "NOTIFY=NEVER"}
	send(never)
	for _, tc := range tests {
		send(tc)
	}
	for _, tc := range tests {
		n := w.notice(tc.from, mailbox(tc.sender), tc.id, tc.action)
		w.has(tc.id, n, tc.lines...)
		if full := tc.rcpt == ""; strings.Contains(n, "鸵鸟") != full {
			w.t.Errorf("%s: RET=HDRS was asked for: %t, the notice has the body: %t", tc.id, !full, !full)
		}
	}
	if m := w.alfa.settled("never@exchange.example"); m.attempts()[0].Disposition != "bounced" {
		w.t.Errorf("never: %+v", m)
	}
	for _, m := range w.alfa.mailbox("ana") {
		if strings.Contains(m, "never@exchange.example") {
			w.t.Errorf("a notice that nobody wants:\n%s", m)
		}
	}
	// The timeline of a message that was told about names the notice, and the notice is a message of its own.
	m := w.alfa.settled("failed-ours@exchange.example")
	other := ""
	for _, e := range m.Events {
		if e.Kind == "notice" {
			other = e.Other
		}
	}
	waitFor(w.t, "the notice in the history", func() bool {
		n := w.alfa.message(other)
		return n.State == "delivered" && n.From == "" || n.From == "<>" && n.State == "delivered"
	})
	if m = w.alfa.message(m.ID); m.State != "bounced" || m.attempts()[0].Reason != "remote_mailbox" {
		w.t.Errorf("the failed one: %+v", m)
	}
}

// forwarding is about aliases that lead elsewhere, and back.
func forwarding(w *world) {
	send := func(id, to string) string {
		l := letter{from: "<ana@post.example>", to: []string{"<" + to + ">"}, text: text(id, "ana@post.example", to)}
		w.post.submit(l)
		return l.text
	}
	via := send("via", "via@alfa.example")
	chain := send("chain", "chain@alfa.example")
	send("lost", "lost@alfa.example")
	send("late", "late@alfa.example")
	send("ring", "ring@alfa.example")

	got := w.arrived(w.bravo, "ana", "via") // its domain has no MX record: only the alias leads here
	w.same(got, via)
	w.has("via", got, "Return-Path: <SRS0=[^@]*=post.example=ana@alfa.example>$", "Delivered-To: ana@hidden.example$")

	got = w.arrived(w.deb, "ana", "chain")
	w.same(got, chain)
	w.has("chain", got, "Return-Path: <SRS1=[^@]*=alfa.example==[^@]*=post.example=ana@bravo.example>$")
	w.has("chain at bravo", strings.Join(w.bravoHeaders(got), "\n"), "Received-SPF: pass \\(matched mx\\)")

	// A refusal at the end of the chain, and a return by somebody who took it: both find the true sender.
	w.has("lost", w.notice(w.post, "ana", "lost", "failed"), "Reporting-MTA: dns; ?bravo.example$", "Status: 5.1.1$", "Final-Recipient: utf-8; ?nobody@deb.example$")
	w.has("late", w.notice(w.post, "ana", "late", "failed"), "Reporting-MTA: dns; ?mx.post.example$")
	w.has("ring", w.notice(w.post, "ana", "ring", "failed"), "Status: 5.4.6$", "Diagnostic-Code: smtp; ?554 5.4.6 ")
	if loops := w.alfa.metric("chasquid_smtpIn_loopsDetected") + w.bravo.metric("chasquid_smtpIn_loopsDetected"); loops != 1 {
		w.t.Errorf("%v loops were detected", loops)
	}
	for _, c := range []*chasquid{w.alfa, w.bravo} {
		waitFor(w.t, "an empty queue on "+c.h.name, func() bool {
			return c.metric("chasquid_queue_size") == 0 || strings.Contains(c.get("/debug/queue?format=text"), "length: 0")
		})
	}
}

// bravoHeaders are the header fields of a message that bravo added.
func (w *world) bravoHeaders(msg string) []string {
	lines := strings.Split(strings.ReplaceAll(msg, "\n\t", " "), "\n")
	var found []string
	for i, l := range lines {
		if strings.HasPrefix(l, "Received: ") && strings.Contains(l, "by mx.bravo.example") && i > 0 {
			found = append(found, lines[i-1])
		}
	}
	return found
}

// daneVerdicts: a certificate that its record proves is recorded as that (see directions); of what cannot be proven nothing is delivered.
func daneVerdicts(w *world) {
	if n := w.bravo.metric(`chasquid_dane_checks_total{result="pass"}`); n == 0 {
		w.t.Error("bravo has checked no certificate of alfa")
	}
	for id, want := range map[string]struct{ reason, text string }{
		"mismatch": {"tls_error", "TLSA"},
		"bogus":    {"dns_error", ""},
		"half":     {"tls_error", "DANE"},
	} {
		id = "dane-" + id
		w.alfa.submit(letter{from: "<ana@alfa.example>", to: []string{"<ana@" + strings.TrimPrefix(id, "dane-") + ".example>"},
			text: text(id, "ana@alfa.example", "x@x")})
		m := w.alfa.settled(id + "@exchange.example")
		a := m.attempts()[0]
		if a.Disposition != "deferred" || a.Reason != want.reason || !strings.Contains(a.Error, want.text) {
			w.t.Errorf("%s: %+v", id, a)
		}
		if m.State != "queued" {
			w.t.Errorf("%s is %s", id, m.State)
		}
	}
	for _, m := range w.bravo.mailbox("ana") {
		if strings.Contains(m, "dane-") {
			w.t.Errorf("delivered without proof:\n%s", m)
		}
	}
}
