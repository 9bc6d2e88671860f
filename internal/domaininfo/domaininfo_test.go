package domaininfo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

const (
	lvPlain    = tlspolicy.Plain
	lvClient   = tlspolicy.TLSClient
	lvInsecure = tlspolicy.TLSInsecure
	lvSecure   = tlspolicy.TLSSecure
)

func open(t *testing.T, fsys vfs.FS) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{Dir: "data/domaininfo", FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func put(t *testing.T, fsys vfs.FS, name, content string) {
	t.Helper()
	if err := vfs.MkdirAll(fsys, "data/domaininfo", 0o770); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fsys, "data/domaininfo/"+name, []byte(content), 0o660); err != nil {
		t.Fatal(err)
	}
}

// dir renders the directory: "name: content" of each file, white space squeezed.
func dir(t *testing.T, fsys vfs.FS) string {
	t.Helper()
	infos, err := fsys.ReadDir("data/domaininfo")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, i := range infos {
		data, err := vfs.ReadFile(fsys, "data/domaininfo/"+i.Name)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, i.Name+" = "+strings.Join(strings.Fields(string(data)), " "))
	}
	return strings.Join(lines, "\n")
}

func flush(t *testing.T, db *DB) {
	t.Helper()
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestLevelsOnlyRise(t *testing.T) {
	fsys := vfs.NewMem()
	db := open(t, fsys)
	ctx := t.Context()
	if !db.CheckOutgoing(ctx, "d.test", lvPlain) || !db.CheckIncoming(ctx, "d.test", lvPlain) {
		t.Error("an unknown domain is refused")
	}
	db.RecordOutgoing(ctx, "d.test", lvInsecure)
	db.RecordIncoming(ctx, "d.test", lvClient)
	db.RecordOutgoing(ctx, "d.test", lvPlain) // an override let it through, say
	for level, want := range map[tlspolicy.Level][2]bool{lvPlain: {false, false}, lvClient: {true, false}, lvInsecure: {true, true}, lvSecure: {true, true}} {
		if in, out := db.CheckIncoming(ctx, "d.test", level), db.CheckOutgoing(ctx, "d.test", level); in != want[0] || out != want[1] {
			t.Errorf("%s: incoming %v, outgoing %v", level, in, out)
		}
	}
	flush(t, db)
	if got, want := dir(t, fsys), `s:d.test = name: "d.test" incoming_sec_level: TLS_CLIENT outgoing_sec_level: TLS_INSECURE`; got != want {
		t.Errorf("wrote %s; want %s", got, want)
	}
	db.RecordOutgoing(ctx, "d.test", lvSecure)
	if e, ok := db.Lookup("d.test"); !ok || e != (Entry{Domain: "d.test", Incoming: lvClient, Outgoing: lvSecure}) {
		t.Errorf("%+v, %v", e, ok)
	}
	if l := db.List(); len(l) != 1 {
		t.Errorf("entries: %v", l)
	}
}

// DAT-13, DAT-14: names are escaped, plain levels are omitted, the first contact makes a file.
func TestFiles(t *testing.T) {
	fsys := vfs.NewMem()
	db := open(t, fsys)
	db.RecordIncoming(t.Context(), "ñ.test", lvPlain)
	db.RecordOutgoing(t.Context(), "[192.0.2.1]", lvSecure)
	flush(t, db)
	want := `s:%5B192.0.2.1%5D = name: "[192.0.2.1]" outgoing_sec_level: TLS_SECURE
s:%C3%B1.test = name: "ñ.test"`
	if got := dir(t, fsys); got != want {
		t.Errorf("wrote\n%s\nwant\n%s", got, want)
	}
	again := open(t, fsys)
	if e, ok := again.Lookup("[192.0.2.1]"); !ok || e.Outgoing != lvSecure {
		t.Errorf("read back %+v, %v", e, ok)
	}
	if len(again.List()) != 2 {
		t.Errorf("%v", again.List())
	}
}

// Files as the original writes them, and what it ignores (DAT-13, DAT-15).
func TestRead(t *testing.T) {
	fsys := vfs.NewMem()
	put(t, fsys, "s:two.test", "name:  \"two.test\"\nincoming_sec_level:  TLS_CLIENT\noutgoing_sec_level:  TLS_SECURE\n")
	put(t, fsys, "s:one.test", "name: 'one.test' outgoing_sec_level: 2")
	put(t, fsys, "s:Mixed.TEST", "name: \"Mixed.TEST\" incoming_sec_level: TLS_CLIENT") // SMTP-58: as typed
	put(t, fsys, "s:mixed.test", "name: \"mixed.test\" outgoing_sec_level: TLS_INSECURE")
	put(t, fsys, "s:other", "name: \"renamed.test\" outgoing_sec_level: TLS_SECURE")
	put(t, fsys, "s:empty", "")
	put(t, fsys, "s:bad%zz", "nonsense")
	put(t, fsys, "README", "nonsense")
	put(t, fsys, ".s:left.test123", "nonsense")
	db := open(t, fsys)
	for d, want := range map[string]Entry{
		"two.test":     {Incoming: lvClient, Outgoing: lvSecure},
		"one.test":     {Outgoing: lvInsecure},
		"mixed.test":   {Incoming: lvClient, Outgoing: lvInsecure},
		"renamed.test": {Outgoing: lvSecure},
	} {
		want.Domain = d
		if e, ok := db.Lookup(d); !ok || e != want {
			t.Errorf("%s: %+v, %v", d, e, ok)
		}
	}
	if n := len(db.List()); n != 4 {
		t.Errorf("%d entries: %v", n, db.List())
	}
	db.RecordOutgoing(t.Context(), "mixed.test", lvSecure)
	flush(t, db)
	if got := dir(t, fsys); strings.Contains(got, "Mixed.TEST") ||
		!strings.Contains(got, `s:mixed.test = name: "mixed.test" incoming_sec_level: TLS_CLIENT outgoing_sec_level: TLS_SECURE`) {
		t.Errorf("the other spelling stays:\n%s", got)
	}
}

// A corrupt file stops a start with the file and the remedy in the message; at a reload the rest is loaded and the domain keeps its levels.
func TestCorruptFile(t *testing.T) {
	for _, content := range []string{"nonsense", "name: \"d.test\"\nnew_field: 1", "name: \"\xff\"", "name: \"d.test\" incoming_sec_level: 17", strings.Repeat("#", maxFile+1)} {
		fsys := vfs.NewMem()
		db := open(t, fsys)
		db.RecordOutgoing(t.Context(), "d.test", lvSecure)
		flush(t, db)
		put(t, fsys, "s:d.test", content)
		put(t, fsys, "s:new.test", `name: "new.test" outgoing_sec_level: TLS_SECURE`)
		err := db.Reload(t.Context())
		var fe *FileError
		if !errors.As(err, &fe) || fe.Path != filepath.Join("data/domaininfo", "s:d.test") || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%.20q: %v", content, err)
		}
		if db.CheckOutgoing(t.Context(), "d.test", lvPlain) || db.CheckOutgoing(t.Context(), "new.test", lvPlain) {
			t.Errorf("%.20q: levels lost", content)
		}
		if _, err := Open(t.Context(), Config{Dir: "data/domaininfo", FS: fsys}); err == nil || !strings.Contains(err.Error(), "s:d.test") || !strings.Contains(fe.Remedy(), "remove the file") {
			t.Errorf("%.20q: start: %v", content, err)
		}
	}
	fsys := vfs.NewMem()
	if err := vfs.MkdirAll(fsys, "data", 0o770); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fsys, "data/domaininfo", nil, 0o660); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: "data/domaininfo", FS: fsys}); err == nil || !strings.Contains(err.Error(), "mkdir data/domaininfo: not a directory") { // CFG-13
		t.Errorf("no directory: %v", err)
	}
}

func TestReload(t *testing.T) {
	fsys := vfs.NewMem()
	db := open(t, fsys)
	ctx := t.Context()
	for _, d := range []string{"gone.test", "edited.test", "same.test"} {
		db.RecordOutgoing(ctx, d, lvSecure)
	}
	flush(t, db)
	if err := fsys.Remove("data/domaininfo/s:gone.test"); err != nil {
		t.Fatal(err)
	}
	put(t, fsys, "s:edited.test", `name: "edited.test"`)
	db.RecordOutgoing(ctx, "unwritten.test", lvSecure)
	if err := db.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[string]bool{"gone.test": true, "edited.test": true, "same.test": false, "unwritten.test": false} {
		if db.CheckOutgoing(ctx, d, lvPlain) != want {
			t.Errorf("%s: plain is allowed: %v", d, !want)
		}
	}
}

func TestClear(t *testing.T) { // DAT-16, RPC-5
	fsys := vfs.NewMem()
	db := open(t, fsys)
	ctx := t.Context()
	db.RecordOutgoing(ctx, "d.test", lvSecure)
	db.RecordIncoming(ctx, "d.test", lvClient)
	flush(t, db)
	if err := db.Override(ctx, "d.test", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := db.Clear(ctx, "D.TEST"); err != nil {
		t.Fatal(err)
	}
	if got := dir(t, fsys); got != `s:d.test = name: "d.test"` {
		t.Errorf("left %s", got)
	}
	if !db.CheckOutgoing(ctx, "d.test", lvPlain) || !db.CheckIncoming(ctx, "d.test", lvPlain) {
		t.Error("levels are still there")
	}
	if l := db.List(); len(l) != 1 {
		t.Errorf("entries: %v", l)
	}
	for _, d := range []string{"unknown.test", "not a domain", ""} {
		if err := db.Clear(ctx, d); !errors.Is(err, ErrNotFound) || err.Error() != "does not exist" {
			t.Errorf("%q: %v", d, err)
		}
	}
}

func TestOverride(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := vfs.NewMem()
		db := open(t, fsys)
		ctx := t.Context()
		db.RecordOutgoing(ctx, "d.test", lvSecure)
		flush(t, db)
		if err := db.Override(ctx, "D.test", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		again := open(t, fsys)
		for _, db := range []*DB{db, again} {
			if !db.CheckOutgoing(ctx, "d.test", lvPlain) {
				t.Error("the override does not count")
			}
			if e, _ := db.Lookup("d.test"); e.Outgoing != lvSecure || e.Override.IsZero() {
				t.Errorf("%+v", e)
			}
		}
		time.Sleep(time.Hour)
		if db.CheckOutgoing(ctx, "d.test", lvPlain) || again.CheckOutgoing(ctx, "d.test", lvPlain) {
			t.Error("the override has no end")
		}
		if e, _ := db.Lookup("d.test"); !e.Override.IsZero() {
			t.Errorf("%+v", e)
		}
		open(t, fsys)
		if got := dir(t, fsys); strings.Contains(got, "o:") {
			t.Errorf("left %s", got)
		}
		put(t, fsys, "o:d.test", "tomorrow")
		if err := again.Reload(ctx); err == nil {
			t.Error("a bad override file is not reported")
		}
	})
}

// N-3, D40: the number of entries and files is bounded, and strangers push out strangers, not what was learned by delivering.
func TestD40Bounded(t *testing.T) {
	fsys := vfs.NewMem()
	db, err := Open(t.Context(), Config{Dir: "data/domaininfo", FS: fsys, Max: 100})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for i := range 50 {
		db.RecordOutgoing(ctx, fmt.Sprintf("peer%d.test", i), lvSecure)
		db.RecordIncoming(ctx, fmt.Sprintf("known%d.test", i), lvClient)
	}
	flush(t, db)
	db.CheckIncoming(ctx, "known0.test", lvPlain) // used just now
	for i := range 1000 {
		db.RecordIncoming(ctx, fmt.Sprintf("plain%d.test", i), lvPlain)
		if i%40 == 0 {
			db.RecordIncoming(ctx, fmt.Sprintf("tls%d.test", i), lvClient)
		}
	}
	flush(t, db)
	if n := len(db.List()); n != 100 {
		t.Errorf("%d entries", n)
	}
	if n := strings.Count(dir(t, fsys), "\n") + 1; n != 100 {
		t.Errorf("%d files", n)
	}
	for i := range 50 {
		if db.CheckOutgoing(ctx, fmt.Sprintf("peer%d.test", i), lvPlain) {
			t.Errorf("peer%d.test is forgotten", i)
		}
	}
	if db.CheckIncoming(ctx, "known0.test", lvPlain) || !db.CheckIncoming(ctx, "known1.test", lvPlain) {
		t.Error("not the one used longest ago is forgotten")
	}
	if again, err := Open(ctx, Config{Dir: "data/domaininfo", FS: fsys, Max: 60}); err != nil || len(again.List()) != 60 {
		t.Errorf("with a lower bound: %v", err)
	}
}

// A failing disk loses nothing that is in memory, and is tried again.
func TestDiskTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := vfs.NewMem()
		var mu sync.Mutex
		broken := true
		db := open(t, vfs.Hook(fsys, func(op vfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if broken && op.Verb.Changes() && !strings.HasSuffix(op.Name, "domaininfo") && strings.Contains(op.Name, "domaininfo") {
				return syscall.ENOSPC
			}
			return nil
		}))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { db.Run(ctx) })
		db.RecordOutgoing(ctx, "d.test", lvSecure)
		synctest.Wait()
		if db.CheckOutgoing(ctx, "d.test", lvPlain) {
			t.Error("forgotten")
		}
		if got := dir(t, fsys); got != "" {
			t.Errorf("wrote %s", got)
		}
		mu.Lock()
		broken = false
		mu.Unlock()
		time.Sleep(retryEvery + time.Second)
		synctest.Wait()
		if got := dir(t, fsys); !strings.HasPrefix(got, "s:d.test") {
			t.Errorf("not tried again: %s", got)
		}
		db.RecordOutgoing(ctx, "e.test", lvSecure)
		cancel()
		wg.Wait()
		if got := dir(t, fsys); !strings.Contains(got, "s:e.test") {
			t.Errorf("not written at the end: %s", got)
		}
	})
}

// Names too long for the file system are remembered all the same.
func TestLongName(t *testing.T) {
	db, err := Open(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "domaininfo")})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat(strings.Repeat("ñ", 40)+".", 4) + "test"
	db.RecordOutgoing(t.Context(), long, lvSecure)
	flush(t, db)
	if db.CheckOutgoing(t.Context(), long, lvPlain) {
		t.Error("forgotten")
	}
	if fi, err := os.Stat(db.cfg.Dir); err != nil || !fi.IsDir() {
		t.Errorf("%v, %v", fi, err)
	}
}

func TestRace(t *testing.T) {
	fsys := vfs.NewMem()
	db := open(t, fsys)
	ctx, cancel := context.WithCancel(t.Context())
	var run, wg sync.WaitGroup
	run.Go(func() { db.Run(ctx) })
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				d := fmt.Sprintf("d%d.test", i%20)
				db.RecordOutgoing(ctx, d, tlspolicy.Level(g))
				db.CheckIncoming(ctx, d, lvPlain)
				switch {
				case i%50 == 7:
					db.Clear(ctx, d)
				case i%50 == 9:
					if err := db.Reload(ctx); err != nil {
						t.Error(err)
					}
				case i%50 == 11:
					db.List()
				}
			}
		})
	}
	wg.Wait()
	cancel()
	run.Wait()
	again := open(t, fsys)
	for _, e := range db.List() {
		if got, ok := again.Lookup(e.Domain); !ok || got != e {
			t.Errorf("memory has %+v, the files %+v", e, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("s:d.test", []byte(`name: "d.test" incoming_sec_level: TLS_CLIENT`))
	f.Add("o:d.test", []byte("2100-01-02T03:04:05Z"))
	f.Add("s:%zz", []byte("\x00"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if strings.ContainsAny(name, "/\x00") || name == "" || name == "." || name == ".." {
			return
		}
		fsys := vfs.NewMem()
		db := open(t, fsys)
		put(t, fsys, name, string(data))
		db.Reload(t.Context())
		for _, e := range db.List() {
			db.RecordOutgoing(t.Context(), e.Domain, lvSecure)
		}
		flush(t, db)
		if err := db.Reload(t.Context()); err == nil {
			for _, e := range db.List() {
				if e.Outgoing != lvSecure {
					t.Fatalf("%q %q: %+v after writing", name, bytes.TrimSpace(data), e)
				}
			}
		}
	})
}
