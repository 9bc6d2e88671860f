package policy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// hookFile makes the hook's file, so that it is run.
func hookFile(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "post-data")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func hookTx() *Transaction {
	return &Transaction{
		Session: &Session{Remote: netip.MustParseAddrPort("[2001:db8::1]:1234"), EHLO: "cli;ent.test", TLS: &tls.ConnectionState{}},
		Env: &mail.Envelope{Trace: trace.ID{1, 15: 2}, From: address.MustParse("from@far.test"), Rcpts: []mail.Recipient{
			{To: address.MustParse("list@d.test")}, {To: address.MustParse(`"a b"@far.test`)},
		}},
		Results: Results{SPF: "pass"},
		ID:      "id1",
		Prefix:  func() []byte { return []byte("Received: from x\r\n\tby y\r\n") },
		Added:   []byte("Date: now\r\n"),
	}
}

func ran(exit int, out string) command.Result {
	res := command.Result{Started: true, Exit: exit, Stdout: []byte(out)}
	if exit != 0 {
		res.Err = errors.New("exit status")
	}
	return res
}

func TestHookVerdicts(t *testing.T) { // ALI-21, ALI-22, X-2
	long := strings.Repeat("x", 500)
	timedOut := command.Result{Started: true, TimedOut: true, Exit: -1, Err: command.ErrTimeout}
	for _, c := range []struct {
		name   string
		res    command.Result
		reply  string
		header string
		result hookResult
	}{
		{"silent", ran(0, ""), "", "", hookSuccess},
		{"header", ran(0, "X-A: b\n"), "", "X-A: b\r\n", hookSuccess},
		{"folded", ran(0, "X-A: b\n\tc\n d\nX-E: f\n"), "", "X-A: b\r\n\tc\r\n d\r\nX-E: f\r\n", hookSuccess},
		{"CRLF", ran(0, "X-A: b\r\nX-C:d\r\n"), "", "X-A: b\r\nX-C:d\r\n", hookSuccess},
		{"UTF-8", ran(0, "X-A: ñ\n"), "", "X-A: ñ\r\n", hookSuccess},
		{"no end", ran(0, "X-A: b"), "", "", hookBadOutput},
		{"just LF", ran(0, "\n"), "", "", hookBadOutput},
		{"just CRLF", ran(0, "\r\n"), "", "", hookBadOutput},
		{"empty line", ran(0, "X-A: b\n\nX-C: d\n"), "", "", hookBadOutput},
		{"blank line", ran(0, "X-A: b\n \nX-C: d\n"), "", "", hookBadOutput},
		{"empty at end", ran(0, "X-A: b\n\n"), "", "", hookBadOutput},
		{"no colon", ran(0, "X-A b\n"), "", "", hookBadOutput},
		{"no name", ran(0, ": b\n"), "", "", hookBadOutput},
		{"sentence", ran(0, "Hello world: b\n"), "", "", hookBadOutput},
		{"continuation first", ran(0, " X-A: b\n"), "", "", hookBadOutput},
		{"bare CR", ran(0, "X-A: b\rX: c\n"), "", "", hookBadOutput}, // D2
		{"NUL", ran(0, "X-A: b\x00\n"), "", "", hookBadOutput},
		{"ESC", ran(0, "X-A: \x1b[2J\n"), "", "", hookBadOutput},
		{"not UTF-8", ran(0, "X-A: \xff\n"), "", "", hookBadOutput},
		{"long line", ran(0, "X-A: "+long+long+"\n"), "", "", hookBadOutput},
		{"cut", command.Result{Started: true, Cut: true, Stdout: []byte("X-A: b\n")}, "", "", hookBadOutput},
		{"reject", ran(20, "checking\nno spam please\n"), "554 no spam please", "", hookPermanent},
		{"reject, incomplete line", ran(20, "no spam\nplease"), "554 no spam", "", hookPermanent},
		{"reject, silent", ran(20, ""), "554 5.7.1 The message was refused by a filter", "", hookPermanent},
		{"reject, hostile", ran(20, "a\rb\x00c\x1b[1mñ\xff\x7f\n"), "554 a b?c?[1m???", "", hookPermanent},
		{"reject, long", ran(20, long+"\n"), "554 " + long[:maxHookText], "", hookPermanent},
		{"reject, enhanced", ran(20, "5.7.1 spam\n"), "554 5.7.1 spam", "", hookPermanent},
		{"reject, wrong class", ran(20, "4.7.1 later\n"), "554 later", "", hookPermanent},
		{"defer", ran(75, "greylisted\n"), "451 greylisted", "", hookTemporary},
		{"defer, wrong class", ran(1, "5.7.1 spam\n"), "451 spam", "", hookTemporary},
		{"defer, silent", ran(1, ""), "451 4.7.1 The message was put off by a filter, please try again later", "", hookTemporary},
		{"signal", command.Result{Started: true, Exit: -1, Err: errors.New("signal: killed")}, "451 4.7.1 The message was put off by a filter, please try again later", "", hookTemporary},
		{"timeout", timedOut, "451 4.3.0 Temporary problem with a filter, please try again later", "", hookTimeout},
		{"not started", command.Result{Exit: -1, Err: os.ErrPermission}, "451 4.3.0 Temporary problem with a filter, please try again later", "", hookExecError},
		{"input failed", command.Result{Started: true, Err: errors.New("disk")}, "451 4.3.0 Temporary problem with a filter, please try again later", "", hookTemporary},
	} {
		reg := expvarom.New()
		h := NewHook(HookConfig{Path: hookFile(t, ""), Metrics: reg, Runner: command.RunnerFunc(func(context.Context, command.Spec) command.Result { return c.res })})
		v := h.Body(t.Context(), hookTx(), text("x"))
		reply := ""
		if v.Refuse != nil {
			reply = v.Refuse.String()
			if v.Reason == "" || v.Label == "" || strings.ContainsAny(reply, "\r\n\t\x00\x1b") {
				t.Errorf("%s: %+v", c.name, v)
			}
		}
		if reply != c.reply || string(v.Header) != c.header || v.Note == "" {
			t.Errorf("%s: %q, header %q, note %q; want %q, %q", c.name, reply, v.Header, v.Note, c.reply, c.header)
		}
		if h.metrics.runs[c.result].Value() != 1 || reg.Map("chasquid/smtpIn/hookResults", "result", "").Value(hookLegacy[c.result]) != 1 {
			t.Errorf("%s: not counted as %s", c.name, hookLabels[c.result])
		}
	}
}

func TestHookEnvironment(t *testing.T) { // ALI-20
	var spec command.Spec
	var input string
	h := NewHook(HookConfig{
		Path: hookFile(t, ""), Dir: "/etc", Environ: []string{"PATH=/bin", "HOME=/root", "USER=mail", "SECRET=x"}, Local: localTest,
		Expand: func(_ context.Context, rcpts []mail.Recipient) ([]mail.Recipient, error) {
			return []mail.Recipient{{To: address.MustParse("one@d.test")}, {Kind: mail.Pipe, Command: "prog arg"}, {Kind: mail.Forward, To: address.MustParse("two@far.test")}}, nil
		},
		Runner: command.RunnerFunc(func(_ context.Context, s command.Spec) command.Result {
			data, err := io.ReadAll(s.Stdin)
			if err != nil {
				t.Error(err)
			}
			spec, input = s, string(data)
			return command.Result{Started: true}
		}),
	})
	run := func(change func(*Transaction)) map[string]string {
		tx := hookTx()
		change(tx)
		h.Body(t.Context(), tx, text("Subject: s\r\n\r\nline\r\n.\r\n"))
		env := map[string]string{}
		for _, e := range spec.Env {
			k, v, _ := strings.Cut(e, "=")
			if _, dup := env[k]; dup {
				t.Errorf("%s is there twice", k)
			}
			env[k] = v
		}
		return env
	}
	env := run(func(*Transaction) {})
	want := map[string]string{
		"USER": "mail", "PWD": "", "SHELL": "", "PATH": "/bin", "REMOTE_ADDR": "[2001:db8::1]:1234", "EHLO_DOMAIN": "client.test",
		"EHLO_DOMAIN_RAW": "cli;ent.test", "MAIL_FROM": "from@far.test", "RCPT_TO": `list@d.test "a b"@far.test`, "AUTH_AS": "", "ON_TLS": "1",
		"FROM_LOCAL_DOMAIN": "0", "SPF_PASS": "1", "QUEUE_ID": "id1", "EXPANDED_RCPT_TO": "one@d.test two@far.test",
	}
	for k, v := range want {
		if got, ok := env[k]; !ok || got != v {
			t.Errorf("%s is %q, want %q", k, got, v)
		}
	}
	if tp := env["TRACEPARENT"]; len(env) != len(want)+1 || len(tp) != 55 || !strings.HasPrefix(tp, "00-01000000000000000000000000000002-") {
		t.Errorf("TRACEPARENT is %q; all: %q", tp, env)
	}
	if wantIn := "Received: from x\n\tby y\nDate: now\nSubject: s\n\nline\n.\n"; input != wantIn { // ALI-19
		t.Errorf("stdin is %q", input)
	}
	if spec.Dir != "/etc" || spec.Timeout != time.Minute || len(spec.Args) != 0 {
		t.Errorf("run as %+v", spec)
	}
	env = run(func(tx *Transaction) {
		tx.Env.From, tx.Session.TLS, tx.Session.User, tx.Results.SPF, tx.Session.EHLO = address.Address{}, nil, "u@d.test", "fail", "a\x00$(id)\n"
	})
	for k, v := range map[string]string{"MAIL_FROM": "<>", "FROM_LOCAL_DOMAIN": "1", "ON_TLS": "0", "AUTH_AS": "u@d.test", "SPF_PASS": "0", "EHLO_DOMAIN": "aid", "EHLO_DOMAIN_RAW": "a$(id)\n"} {
		if env[k] != v {
			t.Errorf("%s is %q, want %q", k, env[k], v)
		}
	}
	env = run(func(tx *Transaction) { tx.Env.From = address.MustParse("x@ñ.test") })
	if env["FROM_LOCAL_DOMAIN"] != "1" {
		t.Error("a local domain is not local")
	}
	env = run(func(tx *Transaction) {
		tx.Env.Rcpts = slices.Repeat([]mail.Recipient{{To: address.Address{Local: strings.Repeat("a", 60), Domain: strings.Repeat("b.", 90) + "test"}}}, 1000)
	})
	if n := len(env["RCPT_TO"]); n > maxEnv || n < maxEnv-300 || strings.HasSuffix(env["RCPT_TO"], " ") {
		t.Errorf("RCPT_TO has %d bytes: the kernel would not start the program", n)
	}
}

// A real script sees the message and its environment; without the file there is nothing to run (CFG-23).
func TestRealPostDataHook(t *testing.T) {
	path := hookFile(t, "#!/bin/sh\ngrep -q EICAR && { echo \"550 no $AUTH_AS viruses\"; exit 20; }\necho \"X-Checked: $MAIL_FROM\"\n")
	h := NewHook(HookConfig{Path: path, Environ: os.Environ()})
	if v := h.Body(t.Context(), hookTx(), text("clean\r\n")); v.Refuse != nil || string(v.Header) != "X-Checked: from@far.test\r\n" {
		t.Errorf("clean: %+v", v)
	}
	if v := h.Body(t.Context(), hookTx(), text("has EICAR in it\r\n")); v.Refuse == nil || v.Refuse.String() != "554 550 no  viruses" {
		t.Errorf("virus: %+v", v)
	}
	big := text(strings.Repeat("no virus in this line\r\n", 1<<17))
	if v := h.Body(t.Context(), hookTx(), big); v.Refuse != nil {
		t.Errorf("big: %+v", v)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := h.Body(t.Context(), hookTx(), text("x")); v.Refuse == nil || v.Refuse.Code != 451 {
		t.Errorf("not executable: %+v", v)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if v := h.Body(t.Context(), hookTx(), text("x")); v.Refuse != nil || v.Note != "" {
		t.Errorf("gone: %+v", v)
	}
	if h.metrics.runs[hookSkip].Value() != 1 || h.metrics.running.Value() != 0 {
		t.Error("counted wrong")
	}
}

// A full house of hung hooks delays mail, and no more than its time.
func TestHookSlots(t *testing.T) {
	h := NewHook(HookConfig{Path: hookFile(t, ""), Max: 1, Runner: command.RunnerFunc(func(context.Context, command.Spec) command.Result {
		return command.Result{Started: true}
	})})
	h.slots <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v := h.Body(ctx, hookTx(), text("x")); v.Refuse == nil || v.Refuse.Code != 451 {
		t.Errorf("%+v", v)
	}
	<-h.slots
	if v := h.Body(t.Context(), hookTx(), text("x")); v.Refuse != nil || len(h.slots) != 0 {
		t.Errorf("%+v, %d slots taken", v, len(h.slots))
	}
}

func FuzzHookOutput(f *testing.F) {
	f.Add("X-A: b\n\tc\n", 0)
	f.Add("no\r\n5.7.1 spam\n", 20)
	f.Fuzz(func(t *testing.T, out string, exit int) {
		v, _ := judgeHook(ran(exit, out))
		if h := string(v.Header); h != "" {
			if !strings.HasSuffix(h, "\r\n") || strings.Contains(h, "\r\n\r\n") || strings.Contains(strings.ReplaceAll(h, "\r\n", ""), "\r") ||
				strings.Contains(strings.ReplaceAll(h, "\r\n", ""), "\n") {
				t.Fatalf("%q: header %q", out, h)
			}
		}
		if (v.Refuse != nil) != (exit != 0) {
			t.Fatalf("exit %d: %+v", exit, v.Refuse)
		}
		if v.Refuse != nil {
			wire := string(v.Refuse.AppendTo(nil))
			if len(wire) > 512 || strings.Count(wire, "\n") != 1 || strings.ContainsFunc(wire, func(c rune) bool { return c > '~' || c < ' ' && c != '\r' && c != '\n' }) {
				t.Fatalf("%q: reply %q", out, wire)
			}
		}
	})
}
