package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/items"
	"blitiri.com.ar/go/chasquid/internal/queue/spool"
)

// TestO3Export writes the queue of a stopped server as files of earlier versions, and leaves that of a running one alone.
func TestO3Export(t *testing.T) {
	dir := configDir(t, "data_dir: \"data\"\n")
	out := filepath.Join(dir, "out")
	export := func(args ...string) result {
		return run(t, Env{Terminal: true}, append([]string{"chasquid", "queue", "export", "-C", dir}, args...)...)
	}
	if r := export(out); r.exit != 1 || !strings.Contains(r.errout, "there is no queue in ") {
		t.Errorf("no queue: exit %d, %s", r.exit, r.errout)
	}
	spoolDir := filepath.Join(dir, "data/queue")
	store, err := spool.Open(spool.Config{Dir: spoolDir, MinFree: -1, NoPrefill: true})
	if err != nil {
		t.Fatal(err)
	}
	in, err := store.Create()
	if err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("body\r\n"))
	rcpt := address.MustParse("to@example.org")
	e := &queue.Entry{ID: mail.NewID(), Status: make([]queue.RcptStatus, 1), Env: mail.Envelope{From: address.MustParse("a@example.com"),
		Rcpts: []mail.Recipient{{To: rcpt, Orig: rcpt}}, Arrived: time.Now()}}
	if err := in.Commit(e, []byte("Subject: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if r := export(out); r.exit != 1 || !strings.Contains(r.errout, "stop the server first") {
		t.Errorf("running server: exit %d, %s", r.exit, r.errout)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if r := export(spoolDir); r.exit != 1 {
		t.Errorf("into itself: exit %d", r.exit)
	}
	if r := export("-format=mbox", out); r.exit != 2 {
		t.Errorf("unknown format: exit %d", r.exit)
	}
	r := export(out)
	if r.exit != 0 || r.out != "Exported 1 message to "+out+"\n" || !strings.Contains(r.errout, "1 of 1 exported (100%)\n") {
		t.Errorf("exit %d, %q %q", r.exit, r.out, r.errout)
	}
	text, err := os.ReadFile(filepath.Join(out, "m:"+string(e.ID)))
	if err != nil {
		t.Fatal(err)
	}
	got, body, err := items.Parse(string(e.ID), text)
	if err != nil || got.Env.From != e.Env.From || !bytes.Contains(body, []byte("Subject: x\r\n\r\nbody\r\n")) {
		t.Errorf("%v: %+v %q", err, got, body)
	}
}

// TestUserAddAtOnce: users that are added at the same time are all there.
func TestUserAddAtOnce(t *testing.T) {
	dir := configDir(t, "")
	if err := os.MkdirAll(filepath.Join(dir, "domains/d"), 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if r := run(t, Env{}, "chasquid-util", "-C="+dir, "user-add", "--receive_only", string(rune('a'+i))+"@d"); r.exit != 0 {
				t.Errorf("exit %d: %s", r.exit, r.errout)
			}
		})
	}
	wg.Wait()
	if r := run(t, Env{}, "chasquid-util", "-C="+dir, "check-userdb", "d"); r.out != "Database loaded (8 users)\n" {
		t.Errorf("%s%s", r.out, r.errout)
	}
}
