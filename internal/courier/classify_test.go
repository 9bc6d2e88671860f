package courier

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

var stageByName = map[string]Stage{"greeting": StageGreeting, "hello": StageHello, "tls": StageTLS, "mail": StageMail,
	"rcpt": StageRcpt, "data": StageData, "body": StageBody}

func TestClassifyReplies(t *testing.T) {
	text, err := os.ReadFile("testdata/replies.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	seen := map[string]int{}
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		want, ok := mail.ParseReason(f[0])
		stage, ok2 := stageByName[f[1]]
		if !ok || !ok2 {
			t.Fatalf("line %d: %s", i+1, line)
		}
		reply := line[strings.Index(line, f[1]+" ")+len(f[1])+1:]
		r := replyFrom(t, strings.TrimSpace(reply))
		if got := Classify(r, nil, stage); got != want {
			t.Errorf("line %d: %v, want %v: %s", i+1, got, want, r)
		}
		n++
		seen[f[0]]++
	}
	if n < 150 {
		t.Errorf("only %d replies", n)
	}
	t.Logf("%d replies: %v", n, seen)
}

// replyFrom reads the reply as the client does; its lines are separated by \n and may repeat the code.
func replyFrom(t *testing.T, text string) smtp.Reply {
	lines := strings.Split(text, `\n`)
	code := lines[0][:3]
	var wire strings.Builder
	for i, l := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		if len(l) > 3 && l[:3] == code {
			l = l[4:]
		}
		fmt.Fprintf(&wire, "%s%s%s\r\n", code, sep, l)
	}
	rr := smtp.NewReplyReader(strings.NewReader(wire.String()))
	if _, err := rr.Next(); err != nil {
		t.Fatalf("%q: %v", wire.String(), err)
	}
	return rr.Reply()
}

func TestClassifyErrors(t *testing.T) {
	timeout := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	for _, c := range []struct {
		err   error
		stage Stage
		want  mail.Reason
	}{
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, StageConnect, mail.ReasonConnectRefused},
		{timeout, StageConnect, mail.ReasonConnectTimeout},
		{errTimeout, StageConnect, mail.ReasonConnectTimeout},
		{os.NewSyscallError("connect", syscall.EHOSTUNREACH), StageConnect, mail.ReasonNetwork},
		{io.EOF, StageGreeting, mail.ReasonNetwork},
		{timeout, StageMail, mail.ReasonNetwork},
		{smtp.ErrReplySyntax, StageMail, mail.ReasonRemoteOther},
		{fmt.Errorf("x: %w", smtp.ErrReplyTooBig), StageGreeting, mail.ReasonRemoteOther},
		{errors.New("bad certificate"), StageTLS, mail.ReasonTLS},
		{errors.New("x"), StageDNS, mail.ReasonDNS},
		{errors.New("x"), StageAuth, mail.ReasonInternal},
		{errors.New("x"), StageLocal, mail.ReasonMDA},
	} {
		if got := Classify(smtp.Reply{}, c.err, c.stage); got != c.want {
			t.Errorf("%v at %d: %v, want %v", c.err, c.stage, got, c.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		reason mail.Reason
		text   string
		want   time.Duration
	}{
		{mail.ReasonGreylist, "greylisted", greylistWait},
		{mail.ReasonGreylist, "try again in 300 seconds", 300 * time.Second},
		{mail.ReasonGreylist, "Greylisted for 5 minutes, host 192.0.2.1", 5 * time.Minute},
		{mail.ReasonGreylist, "come back after 60s", time.Minute},
		{mail.ReasonGreylist, "wait 1 hour", time.Hour},
		{mail.ReasonGreylist, "wait 12 hours", time.Hour},
		{mail.ReasonGreylist, "wait 99999999999999999999 seconds", greylistWait},
		{mail.ReasonRateLimit, "too many, limit is 20 per day", rateLimitWait},
		{mail.ReasonMailbox, "try in 300 seconds", 0},
	} {
		if got := RetryAfter(c.reason, smtp.Reply{Code: 451, Text: c.text}); got != c.want {
			t.Errorf("%v %q: %v, want %v", c.reason, c.text, got, c.want)
		}
	}
}

// Whatever a server says, a class comes out, and failures have one that is not "none".
func FuzzClassify(f *testing.F) {
	f.Add(450, "4.2.1 greylisted 300 seconds", uint8(StageRcpt))
	f.Add(550, "5.1.1 x", uint8(StageMail))
	f.Fuzz(func(t *testing.T, code int, text string, stage uint8) {
		if code < 200 || code > 599 {
			return
		}
		rr := smtp.NewReplyReader(strings.NewReader(strconv.Itoa(code) + " " + text + "\r\n"))
		if _, err := rr.Next(); err != nil {
			return
		}
		r := rr.Reply()
		reason := Classify(r, nil, Stage(stage%11))
		if reason == mail.ReasonNone || reason >= mail.NumReasons {
			t.Fatalf("%v: class %v", r, reason)
		}
		if d := RetryAfter(reason, r); d < 0 || d > maxRetryAfter {
			t.Fatalf("%v: wait %v", r, d)
		}
	})
}

// TestDeliveryPage: the examples of docs/delivery.md have the reasons that it gives them, and every reason of a reply has one.
func TestDeliveryPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/delivery.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "## Reasons of a refusal\n")
	if !ok {
		t.Fatal("the page has no table of reasons")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	seen := map[string]bool{}
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		if len(cells) != 5 {
			continue
		}
		want := strings.TrimSpace(cells[1])
		for example := range strings.SplitSeq(cells[2], ";") {
			code, rest, _ := strings.Cut(strings.TrimSpace(example), " ")
			n, err := strconv.Atoi(code)
			if err != nil {
				continue
			}
			r := smtp.Reply{Code: n, Text: rest}
			if first, text, ok := strings.Cut(rest, " "); ok {
				if enh, ok := smtp.ParseEnhancedCode(first); ok {
					r.Enh, r.Text = enh, text
				}
			}
			if got := Classify(r, nil, StageRcpt).String(); got != want {
				t.Errorf("%s is %s, the page says %s", strings.TrimSpace(example), got, want)
			}
			seen[want] = true
		}
	}
	for _, want := range []mail.Reason{mail.ReasonGreylist, mail.ReasonRateLimit, mail.ReasonMailbox, mail.ReasonPolicy, mail.ReasonTLS, mail.ReasonRemoteOther} {
		if !seen[want.String()] {
			t.Errorf("the page has no example of %s", want)
		}
	}
}
