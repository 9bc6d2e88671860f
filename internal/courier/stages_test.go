package courier

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
)

// stageLines are a whole session up to the answer that goes wrong, for servers with and without PIPELINING.
var stageLines = map[string][]struct{ name, before, limit string }{
	"lockstep": {
		{"greeting", "", "5m"},
		{"ehlo", "  > 220 mx\n  < EHLO me.test\n", "5m"},
		{"mail", "  > 220 mx\n  < EHLO me.test\n  > 250 mx\n  < MAIL FROM:<a@local.test>\n", "5m"},
		{"rcpt", "  > 220 mx\n  < EHLO me.test\n  > 250 mx\n  < MAIL FROM:<a@local.test>\n  > 250 ok\n  < RCPT TO:<x@example.org>\n", "5m"},
		{"data", "  > 220 mx\n  < EHLO me.test\n  > 250 mx\n  < MAIL FROM:<a@local.test>\n  > 250 ok\n  < RCPT TO:<x@example.org>\n  > 250 ok\n  < DATA\n", "2m"},
		{"end", "  > 220 mx\n  < EHLO me.test\n  > 250 mx\n  < MAIL FROM:<a@local.test>\n  > 250 ok\n  < RCPT TO:<x@example.org>\n  > 250 ok\n  < DATA\n  > 354 go\n  message\n", "10m"},
	},
	"pipelining": {
		{"mail", pipelinedEnvelope, "5m"},
		{"rcpt", pipelinedEnvelope + "  > 250 ok\n", "5m"},
		{"data", pipelinedEnvelope + "  > 250 ok\n  > 250 ok\n", "2m"},
		{"end", pipelinedEnvelope + "  > 250 ok\n  > 250 ok\n  > 354 go\n  message\n", "10m"},
	},
	"chunking": {
		{"mail", chunkedMessage, "5m"},
		{"rcpt", chunkedMessage + "  > 250 ok\n", "5m"},
		{"end", chunkedMessage + "  > 250 ok\n  > 250 ok\n", "10m"},
	},
}

const (
	pipelinedEnvelope = "  > 220 mx\n  < EHLO me.test\n  > 250-mx\n  > 250 PIPELINING\n  < MAIL FROM:<a@local.test>\n  < RCPT TO:<x@example.org>\n  < DATA\n"
	chunkedMessage    = "  > 220 mx\n  < EHLO me.test\n  > 250-mx\n  > 250-CHUNKING\n  > 250 PIPELINING\n  < MAIL FROM:<a@local.test>\n  < RCPT TO:<x@example.org>\n  < BDAT 22 LAST\n  read 22\n"
)

// TestIssue5EveryStage lets a server misbehave in every way at every stage: the recipient ends in the right disposition within
// the time limit of the stage, and a second server gets its turn where it may help.
func TestIssue5EveryStage(t *testing.T) {
	acts := []struct{ name, step, early, late string }{
		{"close", "close", "deferred network_error", "deferred network_error"},
		{"hang", "hang", "deferred network_error", "deferred network_error"},
		{"garbage", `raw "\xff\xfe\x00 hello there\r\n"`, "deferred remote_other", "deferred remote_other"},
		{"half a reply", `raw "250-almos"` + "\n  close", "deferred network_error", "deferred network_error"},
		{"endless", `endless 250-and\n`, "deferred remote_other", "deferred remote_other"},
		{"421", "> 421 4.3.2 going down\n  eof", "deferred remote_other 421 4.3.2 going down", "deferred remote_other 421 4.3.2 going down"},
		{"4xx", "> 451 4.3.0 trouble\n  eof", "deferred remote_other 451 4.3.0 trouble", "deferred remote_other 451 4.3.0 trouble"},
		{"5xx", "> 554 5.3.0 trouble\n  eof", "deferred remote_other 554 5.3.0 trouble", "bounced remote_other 554 5.3.0 trouble"},
		{"3xx", "> 399 what\n  eof", "deferred remote_other 399 what", "deferred remote_other 399 what"},
	}
	for kind, stages := range stageLines {
		for _, st := range stages {
			for _, act := range acts {
				want, step := act.late, act.step
				if st.name == "greeting" || st.name == "ehlo" {
					want = act.early
					if st.name == "ehlo" && act.name == "5xx" {
						step = "> 554 5.3.0 trouble\n  < HELO me.test\n  > 554 5.3.0 trouble\n  eof"
					}
				}
				if kind != "lockstep" && (st.name == "mail" || st.name == "rcpt") {
					step = strings.Replace(step, "\n  eof", "\n  close", 1) // the rest of the group gets no answer
				}
				t.Run(fmt.Sprintf("%s/%s/%s", kind, st.name, act.name), func(t *testing.T) {
					one := "zone example.org MX 10 mx1.example.org\nzone mx1.example.org A 192.0.2.1\nfrom a@local.test\nto x@example.org\n" +
						"peer 192.0.2.1:25\n" + st.before + "  " + step + "\ndeliver\nwant x@example.org " + want + "\n"
					if act.name == "hang" {
						one += "took " + st.limit + " " + st.limit + "\n"
					} else {
						one += "took 0s 3s\n"
					}
					synctest.Test(t, func(t *testing.T) { runScript(t, one) })
					if strings.HasPrefix(want, "bounced") {
						return
					}
					two := "zone example.org MX 10 mx1.example.org\nzone example.org MX 20 mx2.example.org\nzone mx1.example.org A 192.0.2.1\n" +
						"zone mx2.example.org A 192.0.2.2\nfrom a@local.test\nto x@example.org\npeer 192.0.2.1:25\n" + st.before + "  " + step +
						"\npeer 192.0.2.2:25\n  > 220 mx2\n  < EHLO me.test\n  > 250 mx2\n  < MAIL FROM:<a@local.test>\n  > 250 ok\n" +
						"  < RCPT TO:<x@example.org>\n  > 250 ok\n  < DATA\n  > 354 go\n  message\n  > 250 ok\ndeliver\n" +
						"want x@example.org delivered none 250 ok\n"
					synctest.Test(t, func(t *testing.T) { runScript(t, two) })
				})
			}
		}
	}
}

// TestIssue5SlowDrip: a server that keeps a reply alive with a byte now and then gets no more time than a silent one.
func TestIssue5SlowDrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runScript(t, "zone example.org MX 10 mx1.example.org\nzone mx1.example.org A 192.0.2.1\nfrom a@local.test\nto x@example.org\n"+
			"peer 192.0.2.1:25\n  raw \"220-\"\n  drip 50s\ndeliver\nwant x@example.org deferred network_error\ntook 5m 5m\n")
	})
}
