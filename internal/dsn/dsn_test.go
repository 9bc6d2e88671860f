package dsn

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/textproto"
	"github.com/google/go-cmp/cmp"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	arrived = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	a       = address.MustParse
)

const body = "Received: from x\r\nFrom: <sender@us.test>\r\nSubject: hi\r\n folded\r\n\r\nText\r\n"

func params(t testing.TB, s string) smtp.Params {
	ps, err := smtp.ParseParams(s)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func rcpt(to, orig string) Rcpt {
	return Rcpt{Recipient: mail.Recipient{To: a(to), Orig: a(orig)}}
}

func notice(k Kind, rs ...Rcpt) *Notice {
	return &Notice{Kind: k, ID: "1a2b3c4d5e6f7g8h9i0j", Orig: "0000000000000000orig", To: a("sender@us.test"), Domain: "us.test", Host: "mx.us.test",
		Env: &mail.Envelope{From: a("sender@us.test"), Arrived: arrived, MessageID: "m1@us.test", Trace: [16]byte{1, 2, 3}}, Rcpts: rs,
		Now: arrived.Add(5 * time.Minute)}
}

// cases are the golden notices: testdata/<name>.eml.
func cases(t testing.TB) map[string]*Notice {
	cs := map[string]*Notice{}

	r1 := rcpt("b@there.test", "b@there.test")
	r1.Reply, r1.MTA, r1.Reason = smtp.NewReply(550, "5.1.1", "No such user\nhere, sorry"), "mx.there.test [192.0.2.1]:25", mail.ReasonMailbox
	r2 := rcpt("alice@else.test", "alias@us.test")
	r2.Text, r2.Expired, r2.Reason = "dialing mx.else.test: i/o timeout", true, mail.ReasonConnectTimeout
	r3 := Rcpt{Recipient: mail.Recipient{Kind: mail.Pipe, Command: "/usr/local/bin/secret --x", Orig: a("cmd@us.test")}}
	r3.Text, r3.Reason = "exit status 1", mail.ReasonPipe
	cs["failure"] = notice(Failure, r1, r2, r3)

	n := notice(Failure, rcpt("ñaca@ñandú.test", "ñaca@ñandú.test"))
	n.To, n.Env.From, n.Env.UTF8 = a("ñaña@us.test"), a("ñaña@us.test"), true
	n.Rcpts[0].Reply, n.Rcpts[0].MTA = smtp.NewReply(553, "", "¿quién?"), "mx.test [::1]:25"
	cs["failure-utf8"] = n

	n = notice(Failure, rcpt("ñaca@ñandú.test", "ñaca@ñandú.test"), r1)
	n.Domain = "ñandú.test"
	n.Rcpts[0].Text, n.Rcpts[0].Reason = "the next host does not take UTF-8 addresses", mail.ReasonPolicy
	cs["failure-utf8-recipient-ascii-sender"] = n

	r := rcpt("b@there.test", "b@there.test")
	r.Params = params(t, "NOTIFY=FAILURE ORCPT=rfc822;B+2Bx@there.test")
	r.Reply, r.MTA = smtp.NewReply(552, "4.2.2", "full"), "mx.there.test"
	n = notice(Failure, r)
	n.Env.Params = params(t, "RET=HDRS ENVID=QQ+2B314")
	cs["failure-headers"] = n

	r = rcpt("b@there.test", "b@there.test")
	r.Reply, r.MTA, r.Reason, r.GiveUp = smtp.NewReply(451, "4.7.1", "greylisted"), "mx.there.test [192.0.2.1]:25", mail.ReasonGreylist, arrived.Add(120*time.Hour)
	cs["delay"] = notice(Delay, r)

	r = rcpt("c@us.test", "c@us.test")
	rr := rcpt("d@old.test", "d@old.test")
	rr.Relayed, rr.MTA, rr.Reply = true, "mx.old.test [192.0.2.9]:25", smtp.NewReply(250, "2.6.0", "ok")
	cs["success"] = notice(Success, r, rr)
	return cs
}

func write(t testing.TB, n *Notice, original string) (string, Form) {
	var b bytes.Buffer
	f, err := n.Write(&b, strings.NewReader(original))
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), f
}

// TestC58OriginalRecipient: what ORCPT said, in the form that the report can hold.
func TestC58OriginalRecipient(t *testing.T) {
	for _, c := range []struct {
		kind        Kind // a failure is told in UTF-8, a success to an ASCII address is not
		orcpt, want string
	}{
		{Success, "rfc822;B+2Bx@there.test", "rfc822; B+x@there.test"},
		{Success, "rfc822;+C3+B1@there.test", `utf-8; \x{F1}@there.test`},
		{Failure, "rfc822;+C3+B1@there.test", "utf-8; ñ@there.test"},
		{Success, "utf-8;ñ@there.test", `utf-8; \x{F1}@there.test`},
		{Failure, "utf-8;ñ@there.test", "utf-8; ñ@there.test"},
		{Success, `utf-8;\x{F1}@there.test`, `utf-8; \x{F1}@there.test`},
		{Success, "rfc822;+C3+B1+0A@there.test", `utf-8; \x{F1} @there.test`},
	} {
		r := rcpt("b@there.test", "b@there.test")
		r.Params = params(t, "ORCPT="+c.orcpt)
		got, _ := write(t, notice(c.kind, r), body)
		if want := "\r\nOriginal-Recipient: " + c.want + "\r\n"; !strings.Contains(got, want) {
			t.Errorf("%v about %s: no %q in\n%s", c.kind, c.orcpt, want, got)
		}
	}
}

func TestGolden(t *testing.T) {
	for name, n := range cases(t) {
		got, _ := write(t, n, body)
		if strings.Contains(strings.ReplaceAll(got, "\r\n", ""), "\n") || strings.Contains(strings.ReplaceAll(got, "\r\n", ""), "\r") {
			t.Errorf("%s: a bare CR or LF", name)
		}
		got = strings.ReplaceAll(got, "\r\n", "\n")
		file := filepath.Join("testdata", name+".eml")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// parsed is what an independent parser sees in a notice.
type parsed struct {
	header message.Header
	types  []string
	text   string
	msg    textproto.Header   // fields per message
	rcpts  []textproto.Header // fields per recipient
	third  string
}

func parse(t testing.TB, s string) parsed {
	t.Helper()
	e, err := message.Read(strings.NewReader(s))
	if err != nil {
		t.Fatalf("%v\n%s", err, s)
	}
	p := parsed{header: e.Header}
	ct, ps, err := e.Header.ContentType()
	if err != nil || ct != "multipart/report" || ps["report-type"] != "delivery-status" {
		t.Fatalf("type %q %v %v", ct, ps, err)
	}
	mr := e.MultipartReader()
	for {
		part, err := mr.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ct, _, _ := part.Header.ContentType()
		p.types = append(p.types, ct)
		b, err := io.ReadAll(part.Body)
		if err != nil {
			t.Fatal(err)
		}
		switch len(p.types) {
		case 1:
			p.text = string(b)
		case 2:
			p.fields(t, string(b))
		case 3:
			p.third = string(b)
		}
	}
	return p
}

func (p *parsed) fields(t testing.TB, s string) {
	for i, block := range strings.Split(strings.TrimRight(s, "\r\n"), "\r\n\r\n") {
		h, err := textproto.ReadHeader(newReader(block + "\r\n\r\n"))
		if err != nil {
			t.Fatalf("block %d: %v\n%s", i, err, block)
		}
		if i == 0 {
			p.msg = h
		} else {
			p.rcpts = append(p.rcpts, h)
		}
	}
}

// Every golden notice is read back by a parser that is not ours and says what went in (C62).
func TestC62ParseBack(t *testing.T) {
	for name, n := range cases(t) {
		t.Run(name, func(t *testing.T) {
			s, f := write(t, n, body)
			p := parse(t, s)
			if len(p.types) != 3 || p.types[0] != "text/plain" || len(p.rcpts) != len(n.Rcpts) {
				t.Fatalf("parts %v, %d recipients", p.types, len(p.rcpts))
			}
			if p.msg.Get("Reporting-Mta") == "" || p.header.Get("Auto-Submitted") != "auto-replied" || p.header.Get("Message-Id") == "" {
				t.Error("fields missing")
			}
			for i, h := range p.rcpts {
				final := n.Rcpts[i].To
				if n.Rcpts[i].Kind == mail.Pipe {
					final = n.Rcpts[i].Orig
				}
				_, got, _ := strings.Cut(h.Get("Final-Recipient"), "; ")
				if b, err := address.Parse(got); err != nil || b != final {
					t.Errorf("recipient %d is %q (%v), want %q", i, got, err, final)
				}
				class := map[Kind]string{Failure: "5", Delay: "4", Success: "2"}[n.Kind]
				if n.Rcpts[i].Expired {
					class = "4"
				}
				if st := h.Get("Status"); !strings.HasPrefix(st, class+".") {
					t.Errorf("recipient %d: status %q", i, st)
				}
				if h.Get("Action") == "" || (h.Get("Diagnostic-Code") == "") != (n.Kind == Success) {
					t.Errorf("recipient %d: %v", i, h)
				}
			}
			if want := body; p.types[2] == "message/rfc822" && p.third != want {
				t.Errorf("returned %q, want %q", p.third, want)
			}
			if strings.Contains(s, "/usr/local") {
				t.Error("the command of a pipe shows")
			}
			head, _, _ := strings.Cut(s, "\r\n\r\n")
			if !isASCII(head) != f.UTF8 || isASCII(s) == f.EightBit {
				t.Errorf("form %+v", f)
			}
			for l := range strings.SplitSeq(s, "\r\n") {
				if len(l) > 998 {
					t.Errorf("a line of %d bytes", len(l))
				}
			}
		})
	}
}

func TestFields(t *testing.T) {
	cs := cases(t)
	get := func(name string) parsed { s, _ := write(t, cs[name], body); return parse(t, s) }

	p := get("failure")
	for i, want := range []string{"5.1.1", "4.4.1", "5.0.0"} {
		if got := p.rcpts[i].Get("Status"); got != want {
			t.Errorf("status %d: %s, want %s", i, got, want)
		}
	}
	if got := p.rcpts[0].Get("Remote-Mta"); got != "dns; mx.there.test" {
		t.Errorf("Remote-MTA %q", got)
	}
	if got := p.rcpts[0].Get("Diagnostic-Code"); got != "smtp; 550 5.1.1 No such user here, sorry" {
		t.Errorf("Diagnostic-Code %q", got)
	}
	if p.rcpts[1].Has("Remote-Mta") {
		t.Error("a host that never answered is named")
	}
	if got := p.header.Get("X-Failed-Recipients"); strings.TrimSpace(got) != "alias@us.test, b@there.test, cmd@us.test," {
		t.Errorf("X-Failed-Recipients %q", got)
	}

	p = get("failure-headers") // C61, RFC 3461 section 4.3
	if p.types[2] != "text/rfc822-headers" || strings.Contains(p.third, "Text") || !strings.Contains(p.third, "folded") {
		t.Errorf("returned as %s: %q", p.types[2], p.third)
	}
	if got := p.msg.Get("Original-Envelope-Id"); got != "QQ+314" {
		t.Errorf("Original-Envelope-Id %q", got)
	}
	if got := p.rcpts[0].Get("Original-Recipient"); got != "rfc822; B+x@there.test" {
		t.Errorf("Original-Recipient %q", got)
	}
	if got := p.rcpts[0].Get("Status"); got != "5.2.2" {
		t.Errorf("Status %q of a 552 4.2.2", got)
	}

	p = get("failure-utf8") // C58
	if p.types[1] != "message/global-delivery-status" || p.types[2] != "message/global" || p.rcpts[0].Get("Final-Recipient") != "utf-8; ñaca@ñandú.test" {
		t.Errorf("%v %v", p.types, p.rcpts)
	}

	p = get("delay") // C63
	if p.rcpts[0].Get("Action") != "delayed" || p.rcpts[0].Get("Will-Retry-Until") == "" || p.types[1] != "message/delivery-status" || p.types[2] != "text/rfc822-headers" {
		t.Errorf("%v %v", p.types, p.rcpts)
	}

	p = get("success") // C60
	if p.rcpts[0].Get("Action") != "delivered" || p.rcpts[1].Get("Action") != "relayed" || p.types[2] != "text/rfc822-headers" {
		t.Errorf("%v %v", p.types, p.rcpts)
	}
}

func TestC59C60Wanted(t *testing.T) {
	for _, c := range []struct {
		from, notify            string
		failure, delay, success bool
	}{
		{"a@b.test", "", true, true, false},
		{"a@b.test", "NOTIFY=NEVER", false, false, false},
		{"a@b.test", "NOTIFY=FAILURE", true, false, false},
		{"a@b.test", "NOTIFY=SUCCESS,delay", false, true, true},
		{"a@b.test", "NOTIFY=SUCCESS,FAILURE,DELAY", true, true, true},
		{"<>", "", false, false, false},
		{"<>", "NOTIFY=SUCCESS,FAILURE,DELAY", false, false, false},
	} {
		env, r := &mail.Envelope{From: a(c.from)}, &mail.Recipient{Params: params(t, c.notify)}
		if f, d, s := Wanted(Failure, env, r), Wanted(Delay, env, r), Wanted(Success, env, r); f != c.failure || d != c.delay || s != c.success {
			t.Errorf("%s %s: failure %v, delay %v, success %v", c.from, c.notify, f, d, s)
		}
	}
}

// D45: the returned message is cut, wherever that falls, and the notice stays well-formed.
func TestD45BodyIsCut(t *testing.T) {
	head := "Subject: x\r\n\r\n"
	for _, line := range []string{"a\r\n", "ab\r\n", "abc\r\n", strings.Repeat("x", 100_000)} {
		big := head + strings.Repeat(line, 400_000/len(line))
		s, _ := write(t, notice(Failure, rcpt("b@x.test", "b@x.test")), big)
		p := parse(t, s)
		want := big[:MaxReturned]
		if got := strings.TrimRight(p.third, "\r\n"); got != strings.TrimRight(want, "\r\n") {
			t.Errorf("returned %d bytes, want %d", len(p.third), MaxReturned)
		}
		if strings.Contains(strings.ReplaceAll(s, "\r\n", ""), "\r") {
			t.Error("a bare CR where the message was cut")
		}
	}
	s, _ := write(t, notice(Failure, rcpt("b@x.test", "b@x.test")), "no header, no line end")
	if p := parse(t, s); strings.TrimRight(p.third, "\r\n") != "no header, no line end" {
		t.Errorf("returned %q", p.third)
	}
}

// A thousand failed recipients give one notice, with no line too long.
func TestManyRecipients(t *testing.T) {
	n := notice(Failure)
	for i := range 1000 {
		n.Rcpts = append(n.Rcpts, rcpt(strings.Repeat("r", 40)+string(rune('a'+i%26))+"@x.test", strings.Repeat("r", 40)+string(rune('a'+i%26))+"@x.test"))
	}
	s, _ := write(t, n, body)
	if p := parse(t, s); len(p.rcpts) != 1000 {
		t.Errorf("%d recipients", len(p.rcpts))
	}
	for l := range strings.SplitSeq(s, "\r\n") {
		if len(l) > 998 {
			t.Fatalf("a line of %d bytes", len(l))
		}
	}
}

func TestBinaryReturnsHeader(t *testing.T) {
	n := notice(Failure, rcpt("b@x.test", "b@x.test"))
	n.Env.Body = mail.BodyBinary
	s, _ := write(t, n, "Subject: x\r\n\r\n\x00\x01\n\n")
	if p := parse(t, s); p.types[2] != "text/rfc822-headers" || strings.Contains(s, "\x00") {
		t.Errorf("%v", p.types)
	}
}

// C37: a notice goes to another server, so it has no lines that are too long either.
func TestC37LongLinesReturnHeader(t *testing.T) {
	n := notice(Failure, rcpt("b@x.test", "b@x.test"))
	n.Env.LongLines = true
	for _, size := range []int{997, 998, 999, 2000, 16383, 16384, 40000} {
		field := "X-Long: " + strings.Repeat("z", size-8)
		s, _ := write(t, n, field+"\r\nSubject: x\r\n\r\n"+strings.Repeat("y", 2000)+"\r\n")
		if p := parse(t, s); p.types[2] != "text/rfc822-headers" || strings.Contains(s, "yyy") {
			t.Errorf("%d: %v", size, p.types)
		}
		if want := field[:min(size, 998)] + "\r\nSubject: x\r\n\r\n"; !strings.Contains(s, want) {
			t.Errorf("%d: the notice has not %q", size, want)
		}
	}
}

func TestWithoutOriginal(t *testing.T) {
	var b bytes.Buffer
	if _, err := notice(Failure, rcpt("b@x.test", "b@x.test")).Write(&b, nil); err != nil {
		t.Fatal(err)
	}
	if p := parse(t, b.String()); len(p.types) != 2 {
		t.Errorf("%v", p.types)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error)  { return 0, io.ErrUnexpectedEOF }
func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// a notice that was not written whole is an error, never a short notice.
func TestErrorsShow(t *testing.T) {
	n := notice(Failure, rcpt("b@x.test", "b@x.test"))
	if _, err := n.Write(io.Discard, io.MultiReader(strings.NewReader("Subject: x\r\n\r\nabc"), failing{})); err == nil {
		t.Error("a read error was lost")
	}
	if _, err := n.Write(failing{}, strings.NewReader(body)); err == nil {
		t.Error("a write error was lost")
	}
}

// Whatever remote hosts and senders put in, the notice stays well-formed and says the same.
func FuzzWrite(f *testing.F) {
	f.Add("b@x.test", "550", "5.1.1 no\nsuch", "mx.test [1]", "MessageID", "ORCPT=rfc822;a+40b", body)
	f.Fuzz(func(t *testing.T, to, text, reply, mta, msgid, ps, orig string) {
		r := Rcpt{Recipient: mail.Recipient{}, Text: text, MTA: mta, Reply: smtp.Reply{Code: 550, Text: reply}}
		var err error
		if r.To, err = address.Parse(to); err != nil {
			t.Skip()
		}
		r.Orig = r.To
		r.Params, _ = smtp.ParseParams(ps)
		n := notice(Failure, r)
		n.Env.Params, _ = smtp.ParseParams("ENVID=" + text)
		n.Env.MessageID = msgid
		var b bytes.Buffer
		form, err := n.Write(&b, strings.NewReader(strings.Map(func(r rune) rune {
			if r == '\r' || r == '\n' {
				return -1
			}
			return r
		}, orig)))
		if err != nil {
			t.Fatal(err)
		}
		p := parse(t, b.String())
		if len(p.rcpts) != 1 || len(p.types) != 3 {
			t.Fatalf("%d recipients, parts %v\n%q", len(p.rcpts), p.types, b.String())
		}
		if head, _, _ := strings.Cut(b.String(), "\r\n\r\n"); !form.UTF8 && !isASCII(head) {
			t.Errorf("UTF-8 in the header: %q", head)
		}
	})
}
