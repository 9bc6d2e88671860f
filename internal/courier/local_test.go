package courier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// recorder is a command.Runner that notes what it is asked to run and answers with res.
type recorder struct {
	mu    sync.Mutex
	specs []command.Spec
	input []string
	res   command.Result
}

func (r *recorder) Run(_ context.Context, s command.Spec) command.Result {
	b, err := io.ReadAll(s.Stdin)
	if err != nil {
		return command.Result{Started: true, Exit: 0, Err: err}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.specs, r.input = append(r.specs, s), append(r.input, string(b))
	return r.res
}

// COU-1 to COU-3, S-9: arguments, environment, input of the MDA.
func TestMDA(t *testing.T) {
	run := &recorder{res: command.Result{Started: true}}
	reg := expvarom.New()
	l := NewLocal(LocalConfig{MDA: "maildrop", Args: []string{"-f", "%from%", "-d", "%to_user%", "x%from_user%/%from_domain%:%to%:%to_domain%:%to_detail%:%to_original%"},
		Env: []string{"MDA_DIR=/x"}, Dir: "/etc/chasquid", Timeout: time.Minute, Runner: run, SuffixSeparators: "+", DropCharacters: ".", Metrics: reg})
	job := testJob(testMessage, "a@remote.test", "joe@local.test")
	job.Rcpts[0].Orig = address.MustParse("J.oe+lists@local.test")
	job.Env.Trace = trace.NewID()
	if o := l.Deliver(t.Context(), job)[0]; o.Disposition != mail.Delivered || o.Err != nil {
		t.Fatalf("%+v", o)
	}
	job.From = address.Address{}
	l.Deliver(t.Context(), job)
	s := run.specs[0]
	want := []string{"-f", "a@remote.test", "-d", "joe", "xa/remote.test:joe@local.test:local.test:lists:J.oe+lists@local.test"}
	if s.Path != "maildrop" || !slices.Equal(s.Args, want) || s.Dir != "/etc/chasquid" || s.Timeout != time.Minute {
		t.Errorf("ran %+v", s)
	}
	if len(s.Env) != 2 || s.Env[0] != "MDA_DIR=/x" || !strings.HasPrefix(s.Env[1], "TRACEPARENT=00-"+job.Env.Trace.String()) {
		t.Errorf("environment %q", s.Env)
	}
	if want := strings.Replace(testMessage, "Return-path: <forged@x>\r\n (folded)\r\n", "", 1); run.input[0] != want {
		t.Errorf("input %q\nwant  %q", run.input[0], want)
	}
	if a := run.specs[1].Args; a[1] != "<>" || !strings.HasPrefix(a[4], "x<>/:") {
		t.Errorf("null sender: %q", a)
	}
	// An alias to joe+shop: the detail of the address it names, unless its own name led here.
	job.Rcpts[0].Orig, job.Rcpts[0].Detail = address.MustParse("sales+x@other.test"), "shop"
	l.Deliver(t.Context(), job)
	if a := run.specs[2].Args; !strings.HasSuffix(a[4], ":shop:sales+x@other.test") {
		t.Errorf("alias to a detail: %q", a)
	}
	job.Rcpts[0].Orig, job.Rcpts[0].Detail = address.MustParse("joe+Lists@local.test"), "lists"
	l.Deliver(t.Context(), job)
	if a := run.specs[3].Args; !strings.HasSuffix(a[4], ":Lists:joe+Lists@local.test") {
		t.Errorf("detail as it was given: %q", a)
	}
	if n := newMetrics(reg).sent[mail.Local].Value(); n != float64(4*job.Size) {
		t.Errorf("sent bytes: %v", n)
	}
}

// COU-2, D10, D11: what an address may do to the program's arguments.
func TestD11MDAArguments(t *testing.T) {
	const danger = "/;\"'\\|*&$%()[]{}`! \t\r\n\x00"
	for _, c := range []struct {
		from, to string
		tmpl     string
		want     string // "refused" for a bounce
	}{
		{"a" + danger + "b", "joe", "%from_user%", "ab"},
		{"a", "j" + danger + "oe", "%to_user%", "joe"},
		{"-oQ/tmp", "joe", "%from%", "oQtmp@remote.test"},
		{"--x", "joe", "%from_user%", "x"},
		{"-x", "joe", "-f%from_user%", "-f-x"},
		{"a", "-oQ", "%to_user%", "refused"},
		{"a", "-oQ", "%to%", "refused"},
		{"a", "!-oQ", "%to_user%", "refused"},
		{"a", "-oQ", "--user=%to_user%", "--user=-oQ"},
		{"a", "joe+-x", "%to_detail%", "x"},
		{"%to%", "joe", "%from_user%", "to"},
	} {
		cfg := LocalConfig{Args: []string{c.tmpl}, SuffixSeparators: "+"}
		user, _, _ := strings.Cut(c.to, "+")
		job := mail.Job{From: address.Address{Local: c.from, Domain: "remote.test"}}
		r := mail.Recipient{To: address.Address{Local: user, Domain: "local.test"}, Orig: address.Address{Local: c.to, Domain: "local.test"}}
		got, err := cfg.mdaArgs(&job, &r)
		if err != nil {
			got = []string{"refused"}
		}
		if got[0] != c.want {
			t.Errorf("%q from %q to %q: %q, want %q", c.tmpl, c.from, c.to, got[0], c.want)
		}
	}
}

// COU-4, X-2: only the program's own word, an exit code other than 75, is for good.
func TestMDAResults(t *testing.T) {
	for _, c := range []struct {
		name string
		res  command.Result
		want mail.Disposition
		err  string
	}{
		{"ok", command.Result{Started: true}, mail.Delivered, ""},
		{"1", command.Result{Started: true, Exit: 1, Err: errors.New("exit status 1"), Stdout: []byte("no such\n"), Stderr: []byte("user")}, mail.Failed,
			`MDA delivery failed: exit status 1 - "no such\nuser"`},
		{"67", command.Result{Started: true, Exit: 67}, mail.Failed, `MDA delivery failed: exit status 67 - ""`},
		{"75", command.Result{Started: true, Exit: 75, Err: errors.New("exit status 75")}, mail.Deferred, `MDA delivery failed: exit status 75 - ""`},
		{"missing", command.Result{Exit: -1, Err: exec.ErrNotFound}, mail.Deferred, "executable file not found"},
		{"signal", command.Result{Started: true, Exit: -1, Err: errors.New("signal: killed")}, mail.Deferred, "signal: killed"},
		{"time-out", command.Result{Started: true, Exit: -1, TimedOut: true, Err: command.ErrTimeout}, mail.Deferred, "operation timed out"},
		{"input", command.Result{Started: true, Exit: 0, Err: errors.New("reading the program's input: EIO")}, mail.Deferred, "EIO"},
	} {
		l := NewLocal(LocalConfig{MDA: "mda", Runner: &recorder{res: c.res}})
		o := l.Deliver(t.Context(), testJob("x\r\n", "a@remote.test", "joe@local.test"))[0]
		if o.Disposition != c.want || o.Disposition != mail.Delivered && (o.Reason != mail.ReasonMDA || !strings.Contains(o.Err.Error(), c.err)) {
			t.Errorf("%s: %+v", c.name, o)
		}
		p := NewPipe(LocalConfig{Runner: &recorder{res: c.res}})
		job := testJob("x\r\n", "a@remote.test")
		job.Rcpts = []mail.Recipient{{Kind: mail.Pipe, Command: "prog", Orig: address.MustParse("alias@local.test")}}
		if o := p.Deliver(t.Context(), job)[0]; o.Disposition != c.want || o.Disposition != mail.Delivered && o.Reason != mail.ReasonPipe {
			t.Errorf("pipe, %s: %+v", c.name, o)
		}
	}
}

// Q-10, S-9: a pipe gets LF line ends and the envelope in its environment; there is no shell.
func TestPipe(t *testing.T) {
	run := &recorder{res: command.Result{Started: true}}
	p := NewPipe(LocalConfig{Env: []string{"PATH=/bin"}, Dir: "/d", Runner: run, SuffixSeparators: "+-"})
	job := testJob("Subject: hi\r\n\r\n$(id)\r\n", "a@remote.test")
	job.Rcpts = []mail.Recipient{{Kind: mail.Pipe, Command: "  /bin/prog  -x $HOME;id ", Orig: address.MustParse(`list-a+b@local.test`)}}
	if o := p.Deliver(t.Context(), job)[0]; o.Disposition != mail.Delivered {
		t.Fatalf("%+v", o)
	}
	s := run.specs[0]
	if s.Path != "/bin/prog" || !slices.Equal(s.Args, []string{"-x", "$HOME;id"}) || s.Dir != "/d" || s.Timeout != 30*time.Second {
		t.Errorf("ran %+v", s)
	}
	want := []string{"PATH=/bin", "SENDER=a@remote.test", "RECIPIENT=list-a+b@local.test", "ORIGINAL_RECIPIENT=list-a+b@local.test", "DETAIL=a+b", "QUEUE_ID=1abc"}
	if !slices.Equal(s.Env, want) {
		t.Errorf("environment %q, want %q", s.Env, want)
	}
	if run.input[0] != "Subject: hi\n\n$(id)\n" {
		t.Errorf("input %q", run.input[0])
	}
	job.Rcpts[0].Command = " "
	if o := p.Deliver(t.Context(), job)[0]; o.Disposition != mail.Deferred {
		t.Errorf("no command: %+v", o)
	}
}

// A real program, by name and by path.
func TestMDAReal(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "mda")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat > \"$1\"; printf '%s' \"$QUEUE_ID$2\" >> \"$1\"; exit ${3:-0}\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := NewLocal(LocalConfig{MDA: script, Args: []string{dir + "/out-%to_user%", "%from%"}, Env: os.Environ()})
	if o := l.Deliver(t.Context(), testJob("Subject: hi\r\n\r\nbody", "a@remote.test", "joe@local.test"))[0]; o.Disposition != mail.Delivered {
		t.Fatalf("%+v", o)
	}
	if b, err := os.ReadFile(dir + "/out-joe"); err != nil || string(b) != "Subject: hi\r\n\r\nbodya@remote.test" {
		t.Errorf("%q %v", b, err)
	}
	l = NewLocal(LocalConfig{MDA: filepath.Join(dir, "none")})
	if o := l.Deliver(t.Context(), testJob("x\r\n", "a@remote.test", "joe@local.test"))[0]; o.Disposition != mail.Deferred || o.Reason != mail.ReasonMDA {
		t.Errorf("missing program: %+v", o)
	}
	p := NewPipe(LocalConfig{Env: os.Environ()})
	job := testJob("Subject: hi\r\n\r\nbody\r\n", "a@remote.test")
	job.Rcpts = []mail.Recipient{{Kind: mail.Pipe, Command: script + " " + dir + "/piped x 3", Orig: address.MustParse("l@local.test")}}
	if o := p.Deliver(t.Context(), job)[0]; o.Disposition != mail.Failed || o.Err.Error() != "exit status 3" {
		t.Errorf("%+v", o)
	}
	if b, err := os.ReadFile(dir + "/piped"); err != nil || string(b) != "Subject: hi\n\nbody\n1abcx" {
		t.Errorf("%q %v", b, err)
	}
}

// Many recipients: some at a time, each with its own outcome in its place; a panic is one recipient's.
func TestLocalManyRecipients(t *testing.T) {
	var now, most atomic.Int32
	var panics atomic.Int32
	run := command.RunnerFunc(func(_ context.Context, s command.Spec) command.Result {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		time.Sleep(time.Millisecond)
		switch s.Args[0] {
		case "u7":
			panic("seven")
		case "u8":
			return command.Result{Started: true, Exit: 1}
		}
		return command.Result{Started: true}
	})
	var to []string
	for i := range 30 {
		to = append(to, fmt.Sprintf("u%d@local.test", i))
	}
	l := NewLocal(LocalConfig{Runner: run, Args: []string{"%to_user%"}, OnPanic: func() { panics.Add(1) }})
	for i, o := range l.Deliver(t.Context(), testJob("x\r\n", "<>", to...)) {
		want := mail.Delivered
		switch i {
		case 7:
			want = mail.Deferred
		case 8:
			want = mail.Failed
		}
		if o.Disposition != want {
			t.Errorf("recipient %d: %+v", i, o)
		}
	}
	if panics.Load() != 1 || most.Load() > localWorkers {
		t.Errorf("%d panics, %d at a time", panics.Load(), most.Load())
	}
}

func TestMux(t *testing.T) {
	var panics int
	m := &Mux{OnPanic: func() { panics++ }, SMTP: courierFunc(func(mail.Job) []mail.Outcome { panic("x") })}
	job := testJob("x\r\n", "<>", "a@x.test", "b@x.test")
	job.Route.Transport = mail.SMTP
	for _, tr := range []mail.Transport{mail.SMTP, mail.Relay, mail.Local, mail.Command, 77} {
		job.Route.Transport = tr
		out := m.Deliver(t.Context(), job)
		if len(out) != 2 || out[1].Disposition != mail.Deferred || out[1].Reason != mail.ReasonInternal {
			t.Errorf("%d: %+v", tr, out)
		}
	}
	if panics != 2 {
		t.Errorf("%d panics", panics)
	}
}

type courierFunc func(mail.Job) []mail.Outcome

func (f courierFunc) Deliver(_ context.Context, job mail.Job) []mail.Outcome { return f(job) }
