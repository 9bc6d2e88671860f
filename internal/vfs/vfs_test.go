package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// eachFS runs a test against every implementation, in an empty directory.
func eachFS(t *testing.T, test func(t *testing.T, fsys FS, dir string)) {
	t.Run("os", func(t *testing.T) { test(t, OS, t.TempDir()) })
	t.Run("mem", func(t *testing.T) {
		m := NewMem()
		must(t, m.Mkdir("d", 0700))
		test(t, m, "d")
	})
	t.Run("hook", func(t *testing.T) {
		test(t, Hook(OS, func(Op) error { return nil }), t.TempDir())
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, fsys FS, name, content string) File {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0600)
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, err)
	return f
}

func content(t *testing.T, fsys FS, name string) string {
	t.Helper()
	b, err := ReadFile(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "(none)"
	}
	must(t, err)
	return string(b)
}

func TestFiles(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "a")
		f := create(t, fsys, name, "hello")
		if _, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0600); !errors.Is(err, fs.ErrExist) {
			t.Errorf("O_EXCL on an existing file: %v", err)
		}
		n, err := f.WritevAt([][]byte{[]byte("J"), nil, []byte("ump"), []byte("ing")}, 0)
		if n != 7 || err != nil {
			t.Errorf("WritevAt: %d, %v", n, err)
		}
		if _, err := f.WriteAt([]byte("!"), 9); err != nil {
			t.Error(err)
		}
		must(t, f.Sync())
		if got := content(t, fsys, name); got != "Jumping\x00\x00!" {
			t.Errorf("content %q", got)
		}
		must(t, f.Truncate(3))
		must(t, f.Allocate(5))
		must(t, f.Allocate(4))
		if got := content(t, fsys, name); got != "Jum\x00\x00" {
			t.Errorf("after truncate and allocate: %q", got)
		}
		b := make([]byte, 8)
		if n, err := f.ReadAt(b, 2); n != 3 || err != io.EOF {
			t.Errorf("ReadAt over the end: %d, %v", n, err)
		}
		if n, err := f.Size(); n != 5 || err != nil {
			t.Errorf("Size: %d, %v", n, err)
		}
		must(t, fsys.Remove(name))
		if n, err := f.ReadAt(b[:3], 0); n != 3 || err != nil {
			t.Errorf("reading a removed file that is open: %d, %v", n, err)
		}
		must(t, f.Close())
		if _, err := fsys.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat of a removed file: %v", err)
		}
	})
}

func TestNames(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		at := func(s string) string { return filepath.Join(dir, s) }
		create(t, fsys, at("a"), "A").Close()
		must(t, fsys.Link(at("a"), at("b")))
		if err := fsys.Link(at("a"), at("b")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("link over a file: %v", err)
		}
		create(t, fsys, at("c"), "C").Close()
		must(t, fsys.Rename(at("c"), at("a")))
		must(t, MkdirAll(fsys, at("x/y"), 0700))
		must(t, MkdirAll(fsys, at("x/y"), 0700))
		if err := MkdirAll(fsys, at("a/y"), 0700); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("directory under a file: %v", err)
		}
		must(t, WriteFile(fsys, at("x/w"), []byte("one"), 0600))
		must(t, WriteFile(fsys, at("x/w"), []byte("two"), 0600))
		must(t, fsys.SyncDir(dir))
		if err := fsys.Remove(at("x")); !errors.Is(err, syscall.ENOTEMPTY) {
			t.Errorf("removing a full directory: %v", err)
		}
		var list string
		for _, d := range []string{"", "x"} {
			infos, err := fsys.ReadDir(at(d))
			must(t, err)
			for _, i := range infos {
				list += fmt.Sprintf("%s/%s dir=%v; ", d, i.Name, i.Dir)
			}
		}
		if want := "/a dir=false; /b dir=false; /x dir=true; x/w dir=false; x/y dir=true; "; list != want {
			t.Errorf("listing\n %s\nwant\n %s", list, want)
		}
		if got := content(t, fsys, at("a")) + content(t, fsys, at("b")) + content(t, fsys, at("x/w")); got != "CAtwo" {
			t.Errorf("contents %q", got)
		}
		if n, err := fsys.Free(dir); n <= 0 || err != nil {
			t.Errorf("Free: %d, %v", n, err)
		}
		for _, err := range []error{fsys.Remove(at("no")), fsys.Rename(at("no"), at("n")), fsys.SyncDir(at("no"))} {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("operation on nothing: %v", err)
			}
		}
	})
}

func TestLock(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		l, err := fsys.Lock(filepath.Join(dir, "lock"))
		must(t, err)
		if _, err := fsys.Lock(filepath.Join(dir, "lock")); !errors.Is(err, ErrLocked) {
			t.Errorf("second lock: %v", err)
		}
		must(t, l.Close())
		l, err = fsys.Lock(filepath.Join(dir, "lock"))
		must(t, err)
		must(t, l.Close())
	})
}

// TestManyBuffers passes the limit of buffers per system call.
func TestManyBuffers(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		var bufs [][]byte
		var want []byte
		for i := range 1300 {
			b := bytes.Repeat([]byte{byte(i)}, i%7)
			bufs, want = append(bufs, b), append(want, b...)
		}
		f := create(t, fsys, filepath.Join(dir, "f"), "")
		if n, err := f.WritevAt(bufs, 0); n != len(want) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(want), err)
		}
		if content(t, fsys, filepath.Join(dir, "f")) != string(want) {
			t.Error("content differs")
		}
		must(t, f.Close())
	})
}

// TestPowerCut holds the facts measured on ext4 and xfs: what is not flushed is gone, names and contents apart.
func TestPowerCut(t *testing.T) {
	m := NewMem()
	sync := create(t, m, "synced", "old")
	must(t, sync.Sync())
	create(t, m, "named", "data").Close()
	must(t, m.SyncDir("/"))
	unnamed := create(t, m, "unnamed", "data")
	must(t, unnamed.Sync())
	_, err := sync.WriteAt([]byte("new"), 0)
	must(t, err)
	must(t, m.Rename("named", "renamed"))
	if got := content(t, m, "synced") + content(t, m, "renamed"); got != "newdata" {
		t.Errorf("before the cut %q", got)
	}

	cut := m.PowerCut(nil)
	got := fmt.Sprint(content(t, cut, "synced"), content(t, cut, "named"), content(t, cut, "renamed"), content(t, cut, "unnamed"))
	if want := "old" + "" + "(none)" + "(none)"; got != want {
		t.Errorf("after the cut %q, want %q", got, want)
	}
	killed := m.Kill()
	got = fmt.Sprint(content(t, killed, "synced"), content(t, killed, "named"), content(t, killed, "renamed"), content(t, killed, "unnamed"))
	if want := "new" + "(none)" + "data" + "data"; got != want {
		t.Errorf("after the kill %q, want %q", got, want)
	}
	must(t, m.SyncDir("/"))
	must(t, m.Remove("unnamed"))
	if got := content(t, m.PowerCut(nil), "unnamed"); got != "data" {
		t.Errorf("an unlink that was not flushed: %q", got)
	}
	if content(t, m, "unnamed") != "(none)" {
		t.Error("taking an image changed the original")
	}
}

// TestPowerCutRandom sees every fate of an unflushed write and name: kept, lost, torn at a sector.
func TestPowerCutRandom(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", "")
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	_, err := f.WriteAt(bytes.Repeat([]byte("x"), 1024), 0)
	must(t, err)
	create(t, m, "g", "").Close()
	seen := map[string]int{}
	for seed := range uint64(200) {
		cut := m.PowerCut(rand.New(rand.NewPCG(seed, 0)))
		c := []byte(content(t, cut, "f"))
		switch first, second := bytes.Count(c[:min(512, len(c))], []byte("x")), bytes.Count(c[min(512, len(c)):], []byte("x")); {
		case first == 512 && second == 512:
			seen["whole"]++
		case first == 0 && second == 0:
			seen["lost"]++
		case first%512 == 0 && second%512 == 0:
			seen["torn"]++
		default:
			t.Fatalf("torn inside a sector: %d and %d", first, second)
		}
		seen["g "+content(t, cut, "g")]++
		if again := m.PowerCut(rand.New(rand.NewPCG(seed, 0))); content(t, again, "f") != string(c) {
			t.Fatal("the same seed gives another image")
		}
	}
	for _, k := range []string{"whole", "lost", "torn", "g ", "g (none)"} {
		if seen[k] == 0 {
			t.Errorf("never seen: %s (%v)", k, seen)
		}
	}
}

func TestCapacity(t *testing.T) {
	m := NewMem()
	m.SetCapacity(10)
	f := create(t, m, "f", "12345678")
	if n, err := f.WriteAt([]byte("abcd"), 8); n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write over the capacity: %d, %v", n, err)
	}
	if n, err := f.WriteAt([]byte("XY"), 0); n != 2 || err != nil {
		t.Errorf("overwrite on a full disk: %d, %v", n, err)
	}
	if err := f.Allocate(11); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("allocate: %v", err)
	}
	must(t, m.Remove("f"))
	if free, _ := m.Free("/"); free != 0 {
		t.Errorf("%d free while the removed file is open", free)
	}
	must(t, f.Close())
	if free, _ := m.Free("/"); free != 10 {
		t.Errorf("%d free at the end", free)
	}
}

func TestHook(t *testing.T) {
	boom := errors.New("boom")
	var log Log
	fail := map[string]error{}
	m := NewMem()
	h := Hook(m, func(op Op) error {
		log.Add(op)
		return fail[op.String()]
	})
	f := create(t, h, "f", "12345")
	fail["write f off=5 len=4"] = &ShortWrite{N: 3, Err: syscall.EIO}
	if n, err := f.WritevAt([][]byte{[]byte("ab"), []byte("cd")}, 5); n != 3 || !errors.Is(err, syscall.EIO) {
		t.Errorf("short write: %d, %v", n, err)
	}
	fail["sync f"] = boom
	if err := f.Sync(); !errors.Is(err, boom) {
		t.Errorf("sync: %v", err)
	}
	fail["rename f g"] = boom
	if err := h.Rename("f", "g"); !errors.Is(err, boom) {
		t.Errorf("rename: %v", err)
	}
	must(t, f.Truncate(7))
	must(t, f.Allocate(9))
	if got := content(t, h, "f"); got != "12345ab\x00\x00" {
		t.Errorf("content %q", got)
	}
	want := `create f
write f off=0 len=5
write f off=5 len=4
sync f
rename f g
truncate f size=7
allocate f size=9
`
	if got := log.Take(); got != want {
		t.Errorf("log\n%swant\n%s", got, want)
	}
	if got := log.Take(); got != "" {
		t.Errorf("log not emptied: %q", got)
	}
}
