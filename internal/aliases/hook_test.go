package aliases

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// fakeHook answers by address and notes what it was asked.
type fakeHook struct {
	answers map[string]command.Result
	asked   []string
	spec    command.Spec
}

func (h *fakeHook) Run(_ context.Context, s command.Spec) command.Result {
	h.asked = append(h.asked, s.Args[0])
	h.spec = s
	res, ok := h.answers[s.Args[0]]
	if !ok {
		res = command.Result{Started: true}
	}
	return res
}

func (h *fakeHook) take() string {
	s := strings.Join(h.asked, " ")
	h.asked = nil
	return s
}

func says(out string) command.Result { return command.Result{Started: true, Stdout: []byte(out)} }

func failed(exit int, err error) command.Result {
	return command.Result{Started: true, Exit: exit, Err: err, Stdout: []byte("user@remote.test\n")}
}

func hookWorld(t *testing.T) (*fakeHook, *world, *expvarom.Registry) {
	path := filepath.Join(t.TempDir(), "alias-resolve")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := &fakeHook{answers: map[string]command.Result{
		"hooked@d.test":  says("  user, other@remote.test\n"),
		"both@d.test":    says("user"),
		"pipe@d.test":    says("| prog -x\n"),
		"*@e.test":       says("* via mx1"),
		"exit@d.test":    failed(1, errors.New("exit status 1")),
		"user2@d.test":   failed(1, errors.New("exit status 1")),
		"signal@d.test":  failed(-1, errors.New("signal: killed")),
		"slow@d.test":    {Started: true, TimedOut: true, Exit: -1, Err: command.ErrTimeout},
		"noexec@d.test":  {Exit: -1, Err: os.ErrPermission},
		"garbage@d.test": says("a b c"),
		"lines@d.test":   says("a@x.test\nb@x.test"),
		"pipes@d.test":   says("| prog\nrm -rf /"),
		"endless@d.test": {Started: true, Cut: true, Stdout: []byte("a@x.test")},
	}}
	reg := expvarom.New()
	w := &world{
		users: []string{"user@d.test", "user2@d.test", "solo@e.test"},
		files: map[string]string{"d.test": "both: x@remote.test", "e.test": ""},
		cfg: Config{
			Settings: Settings{SuffixSeparators: "+", DropCharacters: "."}, Hook: path, HookEnv: []string{"A=b"}, HookDir: "/", Runner: h, Metrics: reg,
		},
	}
	return h, w, reg
}

func TestHook(t *testing.T) {
	h, w, _ := hookWorld(t)
	r := w.resolver(t)
	for _, c := range []struct{ addr, want, asked, exists string }{
		{"x@remote.test", "x@remote.test", "", "yes"},
		{"hooked@d.test", "user@d.test, other@remote.test", "hooked@d.test user@d.test", "yes"},
		{"ho.oked+t.ag@d.test", "user@d.test, other@remote.test", "hooked+t.ag@d.test hooked@d.test user@d.test", "yes"}, // ALI-9
		{"both@d.test", "x@remote.test, user@d.test", "both@d.test user@d.test", "yes"},                                  // ALI-9: table, then hook
		{"pipe@d.test", "|prog -x", "pipe@d.test", "yes"},
		{"solo+x@e.test", "solo@e.test [x]", "solo+x@e.test solo@e.test", "yes"},
		{"any.one+x@e.test", "any.one+x@e.test via mx1", "anyone+x@e.test anyone@e.test *@e.test", "yes"}, // ALI-16
		{"nobody@d.test", "nobody@d.test", "nobody@d.test *@d.test", "no"},
		{"exit@d.test", "exit status 1", "exit@d.test", "no"},    // ALI-17: the user database decides …
		{"user2@d.test", "exit status 1", "user2@d.test", "yes"}, // … either way
		{"garbage@d.test", `normalizing address "a b c": not a mailbox address: unexpected ' ' after the local part`, "garbage@d.test", "no"},
		{"lines@d.test", "the alias-resolve hook writes more than one line", "lines@d.test", "no"},
		{"pipes@d.test", "the alias-resolve hook writes more than one line", "pipes@d.test", "no"},
		{"endless@d.test", "the alias-resolve hook writes too much", "endless@d.test", "no"},
		{"signal@d.test", "signal: killed", "signal@d.test", "signal: killed"},
		{"slow@d.test", "operation timed out", "slow@d.test", "operation timed out"},
		{"noexec@d.test", "permission denied", "noexec@d.test", "permission denied"},
	} {
		got, err := r.Resolve(t.Context(), address.MustParse(c.addr))
		text := render(got)
		if err != nil {
			text = err.Error()
			if Reply(err).Code != 451 {
				t.Errorf("%s: reply %v", c.addr, Reply(err))
			}
		}
		if asked := h.take(); text != c.want || asked != c.asked {
			t.Errorf("Resolve(%s) = %s, asked %s; want %s, asked %s", c.addr, text, asked, c.want, c.asked)
		}
		if got := exists(t, r, c.addr); got != c.exists {
			t.Errorf("Exists(%s) = %s; want %s", c.addr, got, c.exists)
		}
		h.take()
	}
	if s := h.spec; s.Path != w.cfg.Hook || s.Timeout != 5*time.Second || s.Dir != "/" || len(s.Env) != 1 || s.Stdin != nil {
		t.Errorf("run as %+v", s)
	}
}

// one run for a look-up, the answer counts for the whole transaction.
func TestHookAskedOncePerTransaction(t *testing.T) {
	h, w, _ := hookWorld(t)
	r := w.resolver(t)
	ctx := Pin(t.Context())
	addr := address.MustParse("any.one+x@e.test")
	ok, err := r.Exists(ctx, addr)
	if asked := h.take(); !ok || err != nil || asked != "anyone+x@e.test anyone@e.test *@e.test" {
		t.Fatalf("%v, %v, asked %s", ok, err, asked)
	}
	h.answers["*@e.test"] = failed(1, errors.New("exit status 1"))
	got, err := r.Resolve(ctx, addr)
	if asked := h.take(); render(got) != "any.one+x@e.test via mx1" || err != nil || asked != "" {
		t.Errorf("%s, %v, asked %s", render(got), err, asked)
	}
	bad := address.MustParse("exit@d.test")
	if ok, err := r.Exists(ctx, bad); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	h.take()
	if _, err := r.Resolve(ctx, bad); err == nil || h.take() != "" {
		t.Errorf("the failure was not remembered: %v", err)
	}
	r.Exists(Pin(t.Context()), addr)
	if h.take() == "" {
		t.Error("another transaction was answered from the cache of the first")
	}
}

// What Exists forgives a hook, Expand does not; and a hook that came since RCPT is asked.
func TestHookAndExpand(t *testing.T) {
	h, w, _ := hookWorld(t)
	r := w.resolver(t)
	for _, addr := range []string{"hooked@d.test", "both@d.test", "pipe@d.test", "any@e.test", "user2@d.test", "user@d.test", "signal@d.test"} {
		sameMeaning(t, r, addr)
	}
	in := []mail.Recipient{{To: address.MustParse("user2@d.test")}}
	ctx := Pin(t.Context())
	if ok, err := r.Exists(ctx, in[0].To); !ok || err != nil {
		t.Fatalf("%v, %v", ok, err)
	}
	if _, err := r.Expand(ctx, in); err == nil {
		t.Error("the hook's failure was forgotten")
	}

	os.Remove(w.cfg.Hook)
	in[0].To = address.MustParse("both@d.test")
	ctx = Pin(t.Context())
	r.Exists(ctx, in[0].To)
	if err := os.WriteFile(w.cfg.Hook, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond)
	h.take()
	if l, err := r.Expand(ctx, in); render(l) != "x@remote.test, user@d.test" || err != nil || h.take() == "" {
		t.Errorf("%s, %v", render(l), err)
	}
}

func TestHookComesAndGoes(t *testing.T) { // CFG-23
	h, w, reg := hookWorld(t)
	r := w.resolver(t)
	if err := os.Remove(w.cfg.Hook); err != nil {
		t.Fatal(err)
	}
	if got := exists(t, r, "hooked@d.test"); got != "no" || h.take() != "" {
		t.Errorf("without the file: %s", got)
	}
	if err := os.WriteFile(w.cfg.Hook, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // nobody is faster; see command.Program
	if got := exists(t, r, "hooked@d.test"); got != "yes" {
		t.Errorf("with the file: %s", got)
	}
	legacy := reg.Map("chasquid/aliases/hookResults", "result", "")
	if legacy.Value("resolve:skip") != 2 || legacy.Value("resolve:success") != 2 {
		t.Errorf("counted %s", legacy)
	}
}

func TestHookMetrics(t *testing.T) {
	_, w, reg := hookWorld(t)
	r := w.resolver(t)
	for _, a := range []string{"pipe@d.test", "exit@d.test", "slow@d.test", "noexec@d.test", "garbage@d.test"} {
		r.Resolve(t.Context(), address.MustParse(a))
	}
	r.Exists(t.Context(), address.MustParse("pipe@d.test"))
	runs := reg.CounterVec("chasquid_hook_runs_total", "", []string{"hook", "result"})
	for _, result := range []string{"success", "temporary", "timeout", "exec_error", "bad_output"} {
		if v := runs.With("alias_resolve", result).Value(); v != 1 {
			t.Errorf("%s: %v", result, v)
		}
	}
	if v := runs.With("alias_exists", "success").Value(); v != 1 {
		t.Errorf("asked: %v", v)
	}
	legacy := reg.Map("chasquid/aliases/hookResults", "result", "")
	if legacy.Value("resolve:fail") != 3 || legacy.Value("resolve:parse_err") != 1 || legacy.Value("resolve:success") != 2 {
		t.Errorf("legacy: %s", legacy)
	}
	if n := reg.GaugeVec("chasquid_hooks_running", "", []string{"hook"}).With("alias_resolve").Value(); n != 0 {
		t.Errorf("%v hooks still running", n)
	}
	New(Config{}).Exists(t.Context(), address.Address{Local: "x"}) // metrics without a registry
}

// The contract with a real script: one argument, the given environment, one line back.
func TestRealHook(t *testing.T) {
	_, w, _ := hookWorld(t)
	script := "#!/bin/sh\n[ $# = 1 ] || exit 9\ncase \"$1\" in\nasked@d.test) echo \"$WHO@remote.test\" ;;\nbad@d.test) exit 1 ;;\nesac\n"
	if err := os.WriteFile(w.cfg.Hook, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	w.cfg.Runner, w.cfg.HookEnv = nil, []string{"WHO=they", "PATH=/usr/bin:/bin"}
	if err := os.Chmod(w.cfg.Hook, 0o700); err != nil {
		t.Fatal(err)
	}
	r := w.resolver(t)
	if got, err := r.Resolve(t.Context(), address.MustParse("asked@d.test")); render(got) != "they@remote.test" || err != nil {
		t.Errorf("%s, %v", render(got), err)
	}
	if _, err := r.Resolve(t.Context(), address.MustParse("bad@d.test")); err == nil || err.Error() != "exit status 1" {
		t.Errorf("%v", err)
	}
}
