package courier

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

func testJob(content, from string, to ...string) mail.Job {
	env := &mail.Envelope{From: address.MustParse(from)}
	job := mail.Job{ID: "1abc", Env: env, From: env.From, Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
	for _, t := range to {
		a := address.MustParse(t)
		job.Rcpts = append(job.Rcpts, mail.Recipient{To: a, Orig: a})
	}
	return job
}

const testMessage = "Received: x\r\nReturn-path: <forged@x>\r\n (folded)\r\nSubject: hi\r\n\r\n.dot\r\nReturn-Path: in the body\r\nlast"

const testDelivered = "Return-Path: <a@remote.test>\nDelivered-To: joe@local.test\nReceived: x\nSubject: hi\n\n.dot\nReturn-Path: in the body\nlast"

func inMaildir(t *testing.T, fsys vfs.FS, dir string) []string {
	infos, err := fsys.ReadDir(filepath.Join(dir, "new"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var all []string
	for _, i := range infos {
		b, err := vfs.ReadFile(fsys, filepath.Join(dir, "new", i.Name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return all
}

// Real files: LF line ends, one Return-Path (X-7, C42), private modes, nothing left in tmp.
func TestMaildirFiles(t *testing.T) {
	dir := t.TempDir()
	l := NewLocal(LocalConfig{Hostname: "mx.local.test"})
	job := testJob(testMessage, "a@remote.test", "joe@local.test", "ann@local.test")
	job.Route.Target = "maildir:" + dir + "/%domain%/%to_user%/Maildir"
	for i, o := range l.Deliver(t.Context(), job) {
		if o.Disposition != mail.Delivered {
			t.Fatalf("recipient %d: %+v", i, o)
		}
	}
	box := filepath.Join(dir, "local.test/joe/Maildir")
	got := inMaildir(t, vfs.OS, box)
	if len(got) != 1 || got[0] != testDelivered {
		t.Errorf("got %q\nwant %q", got, testDelivered)
	}
	for sub, mode := range map[string]os.FileMode{"": 0o700, "tmp": 0o700, "new": 0o700, "cur": 0o700} {
		fi, err := os.Stat(filepath.Join(box, sub))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", sub, fi, err)
		}
	}
	files, _ := filepath.Glob(box + "/new/*")
	if fi, err := os.Stat(files[0]); err != nil || fi.Mode().Perm() != 0o600 || !regexp.MustCompile(`^\d+\.M\d+P\d+Q\d+\.mx\.local\.test$`).MatchString(fi.Name()) {
		t.Errorf("%v %v", fi, err)
	}
	if left, _ := filepath.Glob(dir + "/*/*/Maildir/tmp/*"); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// The order that durability rests on: content flushed before the name appears, the name flushed before success is reported.
func TestMaildirOrder(t *testing.T) {
	mem := vfs.NewMem()
	var ops vfs.Log
	fsys := vfs.Hook(mem, ops.Add)
	if err := deliverMaildir(fsys, "/m", "1.host", "Top: x\n", strings.NewReader("Subject: hi\n\nbody\n")); err != nil {
		t.Fatal(err)
	}
	ops.Take()
	if err := deliverMaildir(fsys, "/m", "2.host", "Top: x\n", strings.NewReader("Subject: hi\n\nbody\n")); err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for line := range strings.Lines(ops.Take()) {
		if f := strings.Fields(line); f[0] != "mkdir" {
			verbs = append(verbs, strings.Join(f[:2], " "))
		}
	}
	want := "create /m/tmp/2.host; write /m/tmp/2.host; sync /m/tmp/2.host; rename /m/tmp/2.host; syncdir /m/new"
	if got := strings.Join(verbs, "; "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Every operation fails in turn, and power goes after every one: a delivery that reports success survives the cut whole, one that
// reports failure left nothing torn in new, and nothing in tmp when the process goes on.
func TestMaildirFaultsAndPowerCuts(t *testing.T) {
	const message = "Subject: hi\n\nbody\n"
	for k := int64(1); ; k++ {
		for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
			mem := vfs.NewMem()
			hit := false
			fsys := vfs.Hook(mem, func(op vfs.Op) error {
				if op.N == k {
					hit = true
					return fault
				}
				return nil
			})
			err := deliverMaildir(fsys, "/m", "1.host", "", strings.NewReader(message))
			if !hit {
				if k < 10 {
					t.Fatalf("only %d operations", k)
				}
				return
			}
			for seed := range uint64(20) {
				after := mem.PowerCut(rand.New(rand.NewPCG(seed, 1)))
				got := inMaildir(t, after, "/m")
				if err == nil && (len(got) != 1 || got[0] != message) {
					t.Fatalf("operation %d %v: delivered, but after a power cut there is %q", k, fault, got)
				}
				if len(got) > 1 || len(got) == 1 && got[0] != message {
					t.Fatalf("operation %d %v: torn message %q", k, fault, got)
				}
			}
		}
	}
}

// a disk that is full, a message that cannot be read: the mail waits.
func TestMaildirTemporary(t *testing.T) {
	mem := vfs.NewMem()
	mem.SetCapacity(10)
	l := NewLocal(LocalConfig{Hostname: "h", FS: mem})
	job := testJob(testMessage, "a@remote.test", "joe@local.test")
	job.Route.Target = "maildir:/m/%user%"
	o := l.Deliver(t.Context(), job)[0]
	if o.Disposition != mail.Deferred || o.Reason != mail.ReasonMDA || !errors.Is(o.Err, syscall.ENOSPC) {
		t.Errorf("full disk: %+v", o)
	}
	mem.SetCapacity(0)
	job.Open = func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("Subject: x\r\n\r\nhalf"), brokenReader{})), nil
	}
	if o := l.Deliver(t.Context(), job)[0]; o.Disposition != mail.Deferred || len(inMaildir(t, mem, "/m/joe")) != 0 {
		t.Errorf("unreadable message: %+v, %q", o, inMaildir(t, mem, "/m/joe"))
	}
	if infos, err := mem.ReadDir("/m/joe/tmp"); err != nil || len(infos) != 0 {
		t.Errorf("left in tmp: %v %v", infos, err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, syscall.EIO }

// D16: an address never leads out of its place in the path.
func TestD16MaildirPath(t *testing.T) {
	for _, c := range []struct{ template, user, domain, want string }{
		{"/m/%domain%/%user%", "joe", "local.test", "/m/local.test/joe"},
		{"/m/%to_domain%/u-%to_user%/Mail", "joe", "local.test", "/m/local.test/u-joe/Mail"},
		{"mail/%user%", "joe", "x", "mail/joe"},
		{"/m/%user%", "..", "x", ""},
		{"/m/%user%", ".", "x", ""},
		{"/m/%user%", ".hidden", "x", ""},
		{"/m/%user%", "a/b", "x", ""},
		{"/m/%user%", "../../etc", "x", ""},
		{"/m/%user%", "a\x00b", "x", ""},
		{"/m/%user%", "a\nb", "x", ""},
		{"/m/%user%", "", "x", ""},
		{"/m/%domain%/x", "joe", "..", ""},
		{"/m/%user%", strings.Repeat("x", 256), "x", ""},
		{"/m/%user%%domain%", strings.Repeat("x", 200), strings.Repeat("y", 200), ""},
		{"/m/%user%", "%domain%", "x", "/m/%domain%"},
		{"/m/%user%", "jöe", "x", "/m/jöe"},
		{"/m/%user%", "j\u202ee", "x", ""},
	} {
		got, err := maildirPath(c.template, &mail.Recipient{To: address.Address{Local: c.user, Domain: c.domain}})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s for %q@%q: %q, %v; want %q", c.template, c.user, c.domain, got, err, c.want)
		}
	}
	l := NewLocal(LocalConfig{FS: vfs.NewMem()})
	job := testJob(testMessage, "<>", `"../x"@local.test`)
	job.Route.Target = "maildir:/m/%user%"
	if o := l.Deliver(t.Context(), job)[0]; o.Disposition != mail.Failed || o.Reply.Code != 553 {
		t.Errorf("%+v", o)
	}
}

func TestMaildirNamesDiffer(t *testing.T) {
	var m nameMaker
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	now := time.Now()
	for range 8 {
		wg.Go(func() {
			for range 500 {
				n := m.next(now, "a/b:c")
				mu.Lock()
				if seen[n] || strings.ContainsAny(n, "/:") {
					t.Errorf("bad or repeated name %q", n)
				}
				seen[n] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
