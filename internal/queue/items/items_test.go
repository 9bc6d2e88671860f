package items

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/memstore"
	"blitiri.com.ar/go/chasquid/internal/queue/spool"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

func TestMain(m *testing.M) {
	log.Default.Level = log.Fatal // of items that are damaged on purpose
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// describe is what an item says, in the words of testdata/*.want.
func describe(e queue.Entry, data []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "id %s\nfrom %s\narrived %s\nmessage-id %s\nsource %s utf8 %v body %d\n", e.ID, e.Env.From.LogString(),
		e.Env.Arrived.Format(time.RFC3339Nano), e.Env.MessageID, e.Env.Source, e.Env.UTF8, e.Env.Body)
	for i, r := range e.Env.Rcpts {
		fmt.Fprintf(&b, "%s %s orig %s via %v %s %q\n", r.Kind, r.Target(), r.Orig, r.Via, e.Status[i].Status, e.Status[i].Text)
	}
	fmt.Fprintf(&b, "%q\n", data)
	return b.String()
}

// TestDAT2Parse: items as written by existing installations and by other programs (DAT-2 to DAT-8).
func TestDAT2Parse(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	must(t, err)
	if len(files) < 2 {
		t.Fatal("testdata is missing")
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(t, err)
		want, err := os.ReadFile(strings.TrimSuffix(f, ".txt") + ".want")
		must(t, err)
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		e, data, err := Parse(Prefix+name, text)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if got := strings.ReplaceAll(describe(e, data), " \n", "\n"); got != strings.ReplaceAll(string(want), " \n", "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", f, got, want)
		}
		if e.Size != int64(len(data)) {
			t.Errorf("%s: size %d of %d", f, e.Size, len(data))
		}
	}
}

func TestParseRefuses(t *testing.T) {
	ok := `rcpt: { address: "a@b" } `
	for _, c := range []struct{ name, text string }{
		{"m:", ok},
		{"m:x", `from: "<>"`},
		{"m:x", ok + `from: "a@b@c"`},
		{"m:x", ok + `from: `},
		{"m:x", `rcpt: { address: "" }`},
		{"m:x", `rcpt: { address: "a b@c" }`},
		{"m:x", `rcpt: { type: PIPE address: "|" }`},
		{"m:x", `rcpt: { type: 7 address: "a@b" }`},
		{"m:x", `rcpt: { status: 3 address: "a@b" }`},
		{"m:x", "\x00\x01 garbage"},
	} {
		if e, _, err := Parse(c.name, []byte(c.text)); err == nil {
			t.Errorf("%q, %q is taken: %+v", c.name, c.text, e)
		}
	}
}

func full(id mail.ID) (queue.Entry, string) {
	a := func(s string) address.Address { return address.MustParse(s) }
	return queue.Entry{
		ID: id,
		Env: mail.Envelope{From: a("sender@example.org"), Arrived: time.Unix(1.7e9, 7).UTC(), Source: mail.FromAdmin, Body: mail.Body8Bit, UTF8: true, Rcpts: []mail.Recipient{
			{To: a("user@example.net"), Orig: a("list@example.net")},
			{To: a("usér@example.com"), Orig: a("usér@example.com")},
			{Kind: mail.Pipe, Command: "prog -x", Orig: a("list@example.net")},
			{Kind: mail.Forward, To: a("f@example.com"), Orig: a("f@example.net"), Via: []string{"h1", "h2:26"}},
		}},
		Status: []queue.RcptStatus{{}, {Status: queue.Sent, Attempts: 1}, {Status: queue.Failed, Attempts: 1, Text: "exit status 1"}, {Attempts: 1, Text: "later\nagain"}},
	}, "Subject: ñ\r\n\r\n\x00 any \xff bytes\r\n.\r\nend\r\n"
}

// TestRoundTrip: what is exported is imported as it was.
func TestRoundTrip(t *testing.T) {
	e, body := full("one")
	text, err := Format(&e, strings.NewReader(body))
	must(t, err)
	if strings.Contains(string(text), `\r`) {
		t.Errorf("CRLF in an item:\n%s", text)
	}
	got, data, err := Parse("m:one", text)
	must(t, err)
	e.Size = int64(len(body))
	if string(data) != body || !reflect.DeepEqual(got, e) {
		t.Errorf("comes back as\n%+v %q\nwant\n%+v %q\ntext\n%s", got, data, e, body, text)
	}
}

func openSpool(t *testing.T, fsys vfs.FS) *spool.Store {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: "q", FS: fsys, MinFree: -1, SegmentSize: 1, NoPrefill: true})
	must(t, err)
	return s
}

func fill(t *testing.T, fsys vfs.FS, dir string, n int) (want []string) {
	t.Helper()
	must(t, vfs.MkdirAll(fsys, dir, 0700))
	for i := range n {
		e, body := full(mail.ID(fmt.Sprint("item", i)))
		text, err := Format(&e, strings.NewReader(body+fmt.Sprint(i)))
		must(t, err)
		must(t, vfs.WriteFile(fsys, filepath.Join(dir, Prefix+string(e.ID)), text, 0600))
		want = append(want, string(e.ID))
	}
	slices.Sort(want)
	return want
}

func storeIDs(t *testing.T, s queue.Store) (ids []string) {
	t.Helper()
	for e, err := range s.All() {
		must(t, err)
		ids = append(ids, string(e.ID))
		r, err := s.Open(e.ID)
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		r.Close()
		if _, body := full(""); string(b) != body+strings.TrimPrefix(string(e.ID), "item") {
			t.Errorf("%s: body %q", e.ID, b)
		}
	}
	slices.Sort(ids)
	return ids
}

func names(t *testing.T, fsys vfs.FS, dir string) (names []string) {
	t.Helper()
	infos, err := fsys.ReadDir(dir)
	must(t, err)
	for _, i := range infos {
		if strings.HasPrefix(i.Name, Prefix) {
			names = append(names, i.Name)
		}
	}
	return names
}

func TestImport(t *testing.T) {
	fsys := vfs.NewMem()
	want := fill(t, fsys, "q", 50)
	must(t, vfs.WriteFile(fsys, "q/m:broken", []byte("from: 17"), 0600))
	must(t, vfs.WriteFile(fsys, "q/.m:item7x", []byte("temporary"), 0600))
	s := openSpool(t, fsys)
	defer s.Close()
	last := 0
	res, err := Import(context.Background(), Config{Store: s, Dir: "q", FS: fsys, Progress: func(done, total int) {
		if done != last+1 || total != 51 {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}})
	if res != (Result{Done: 50, Failed: 1}) || err != nil || last != 51 {
		t.Errorf("Import: %+v, %v, progress %d", res, err, last)
	}
	if got := storeIDs(t, s); !slices.Equal(got, want) {
		t.Errorf("imported %v, want %v", got, want)
	}
	if got := names(t, fsys.PowerCut(nil), "q"); !slices.Equal(got, []string{"m:broken"}) {
		t.Errorf("left after a power cut: %v", got)
	}
	if res, err := Import(context.Background(), Config{Store: s, Dir: "none", FS: fsys}); res != (Result{}) || err != nil {
		t.Errorf("Import of nothing: %+v, %v", res, err)
	}
}

// TestImportCrash: whenever the power fails during an import, after the next one every message is there once and no file is left.
func TestImportCrash(t *testing.T) {
	mem := vfs.NewMem()
	want := fill(t, mem, "q", 6)
	ops := 0
	s := openSpool(t, vfs.Hook(mem, func(op vfs.Op) error {
		if !op.Verb.Changes() {
			return nil
		}
		ops++
		for seed := range uint64(3) {
			img := mem.PowerCut(rand.New(rand.NewPCG(uint64(op.N), seed)))
			again := openSpool(t, img)
			res, err := Import(context.Background(), Config{Store: again, Dir: "q", FS: img})
			if res.Failed > 0 || err != nil {
				t.Errorf("crash at %s: %+v, %v", op, res, err)
			}
			if got := storeIDs(t, again); !slices.Equal(got, want) {
				t.Errorf("crash at %s: %v, want %v", op, got, want)
			}
			if left := names(t, img.PowerCut(nil), "q"); len(left) > 0 {
				t.Errorf("crash at %s: left %v", op, left)
			}
			must(t, again.Close())
		}
		return nil
	}))
	_, err := Import(context.Background(), Config{Store: s, Dir: "q", FS: mem})
	must(t, err)
	must(t, s.Close())
	if ops < 8 {
		t.Errorf("only %d operations", ops)
	}
}

func TestImportStops(t *testing.T) {
	fsys := vfs.NewMem()
	want := fill(t, fsys, "d", 40)
	var n atomic.Int64
	s := &memstore.Store{Fail: func() error {
		if n.Add(1) > 10 {
			return queue.ErrFull
		}
		return nil
	}}
	res, err := Import(context.Background(), Config{Store: s, Dir: "d", FS: fsys})
	if !errors.Is(err, queue.ErrFull) {
		t.Errorf("Import into a full store: %v", err)
	}
	if left := len(names(t, fsys, "d")); res.Done != 10 || left != len(want)-10 || s.Len() != 10 {
		t.Errorf("%+v, %d left, %d in the store", res, left, s.Len())
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Import(ctx, Config{Store: memstore.New(), Dir: "d", FS: fsys}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestExport(t *testing.T) {
	fsys := vfs.NewMem()
	want := fill(t, fsys, "q", 30)
	s := openSpool(t, fsys)
	defer s.Close()
	_, err := Import(context.Background(), Config{Store: s, Dir: "q", FS: fsys})
	must(t, err)
	last, total := 0, 0
	res, err := Export(context.Background(), Config{Store: s, Dir: "out/items", FS: fsys, Progress: func(d, n int) { last, total = d, n }})
	if res != (Result{Done: 30}) || err != nil || last != 30 || total != 30 {
		t.Errorf("Export: %+v, %v, progress %d of %d", res, err, last, total)
	}
	if got := storeIDs(t, s); !slices.Equal(got, want) {
		t.Errorf("Export changed the store: %v", got)
	}
	// What was exported survives a power cut, and is what another installation imports.
	cut := fsys.PowerCut(nil)
	other := openSpool(t, vfs.NewMem())
	defer other.Close()
	if res, err := Import(context.Background(), Config{Store: other, Dir: "out/items", FS: cut}); res.Done != 30 || err != nil {
		t.Errorf("Import of the export: %+v, %v", res, err)
	}
	if got := storeIDs(t, other); !slices.Equal(got, want) {
		t.Errorf("after export and import: %v", got)
	}
}

// TestExportCrash: a file of an interrupted export is whole.
func TestExportCrash(t *testing.T) {
	s := memstore.New()
	for i := range 5 {
		e, body := full(mail.ID(fmt.Sprint("item", i)))
		d, err := s.Create()
		must(t, err)
		io.WriteString(d, body)
		must(t, d.Commit(&e, nil))
	}
	mem := vfs.NewMem()
	_, err := Export(context.Background(), Config{Store: s, Dir: "out", FS: vfs.Hook(mem, func(op vfs.Op) error {
		img := mem.PowerCut(rand.New(rand.NewPCG(uint64(op.N), 1)))
		infos, _ := img.ReadDir("out")
		for _, i := range infos {
			if !strings.HasPrefix(i.Name, Prefix) {
				continue
			}
			text, err := vfs.ReadFile(img, filepath.Join("out", i.Name))
			if err != nil {
				t.Error(err)
			}
			if _, data, err := Parse(i.Name, text); err != nil || !bytes.HasSuffix(data, []byte("end\r\n")) {
				t.Errorf("crash at %s: %s is torn: %v", op, i.Name, err)
			}
		}
		return nil
	})})
	must(t, err)
}

// TestManyRealFiles: the same on a real disk.
func TestManyRealFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "queue")
	want := fill(t, vfs.OS, dir, 300)
	s, err := spool.Open(spool.Config{Dir: dir, MinFree: -1})
	must(t, err)
	defer s.Close()
	res, err := Import(context.Background(), Config{Store: s, Dir: dir})
	if res.Done != 300 || err != nil {
		t.Errorf("Import: %+v, %v", res, err)
	}
	if got := storeIDs(t, s); !slices.Equal(got, want) {
		t.Errorf("%d of %d imported", len(got), len(want))
	}
}
