package smtpsrv

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

// LOG-4: the process log has the lines that fail2ban filters look for. A span's error is logged as "<family> <title>: error: <text>".
func TestLOG4Fail2ban(t *testing.T) {
	filter := regexp.MustCompile(`^SMTP.Conn 192\.0\.2\.66:\d+: error:.*((AUTH|MAIL|RCPT|DATA) failed|Unknown command|too many errors|http command)`)
	cases := []struct {
		mode  Mode
		cmds  []string
		lines []string // in the log, in this order
	}{
		{SMTP, []string{"EHLO c", "MAIL FROM:<a@spf.test>"}, []string{"MAIL failed: 550  5.7.23 SPF check failed: matched all"}},
		{SMTP, []string{"EHLO c", "MAIL FROM:<a@b>", "RCPT TO:<nobody@example.test>"}, []string{"RCPT failed: 550  5.1.1 *"}},
		{SMTP, []string{"EHLO c", "MAIL FROM:<a@b>", "DATA"}, []string{"DATA failed: 503  5.5.1 *"}},
		{SMTP, []string{"FOO", "BAR", "BAZ"}, []string{"*Unknown command", "*Unknown command", "*Unknown command", "too many errors, *"}},
		{SMTP, []string{"GET / HTTP/1.1"}, []string{"http command, *"}},
		{Submission, []string{"EHLO c", "MAIL FROM:<a@b>"}, []string{"MAIL failed: 530  5.7.0 *"}},
		{SubmissionTLS, []string{"AUTH PLAIN AHVzZXJAZXhhbXBsZS50ZXN0AHdyb25n"}, []string{"AUTH failed: 535  5.7.8 Incorrect user or password"}},
		// what is not the client's fault is not to be held against it
		{SMTP, []string{"EHLO c", "MAIL FROM:<a@b>", "RCPT TO:<later@example.test>", "NOOP", "QUIT"}, nil},
	}
	for _, c := range cases {
		synctest.Test(t, func(t *testing.T) {
			rec := trace.New(trace.Config{})
			ts := newTestServer(t, nil)
			defer ts.close()
			l := newQueueListener()
			ctx, cancel := context.WithCancel(trace.WithRecorder(t.Context(), rec))
			defer cancel()
			ts.l[c.mode] = l
			ts.wg.Go(func() { ts.srv.Serve(ctx, l, c.mode) })
			cl := ts.dial(c.mode, "192.0.2.66")
			if c.mode == SubmissionTLS {
				if err := cl.startTLS(clientTLS("")); err != nil {
					t.Fatal(err)
				}
			}
			cl.reply()
			for _, cmd := range c.cmds {
				cl.cmd(cmd)
			}
			cl.nc.Close()
			synctest.Wait()
			cancel()
			var got []string
			for _, s := range rec.Search(trace.Query{}) {
				tr, _ := rec.Trace(s.Trace)
				for _, sp := range tr.Spans {
					for _, e := range sp.Events {
						if line := sp.Family.String() + " " + sp.Title + ": error: " + e.Text; e.Kind == trace.Error && filter.MatchString(line) {
							got = append(got, e.Text)
						}
						for _, secret := range []string{"AHVzZXJA", "wrong"} {
							if strings.Contains(e.Text, secret) && !strings.Contains(e.Text, "wrong user") {
								t.Errorf("D22: the trace holds %q", e.Text)
							}
						}
					}
				}
			}
			if len(got) != len(c.lines) {
				t.Fatalf("%q: %q", c.cmds, got)
			}
			for i := range got {
				if !match(c.lines[i], got[i]) {
					t.Errorf("%q: %q, want %q", c.cmds, got[i], c.lines[i])
				}
			}
		})
	}
}
