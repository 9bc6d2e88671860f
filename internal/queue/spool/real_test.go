package spool

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// TestIdleCommit: on a real file system a commit while nobody else commits is one write and one flush; so are an update and a
// removal.
func TestIdleCommit(t *testing.T) {
	var ops vfs.Log
	s := openTest(t, Config{Dir: t.TempDir(), FS: vfs.Hook(vfs.OS, ops.Add), NoPrefill: true, MinFree: -1})
	seg := filepath.Join(s.dir, segmentName(1))
	for i := range 3 {
		id := fmt.Sprint("m", i)
		for what, do := range map[string]func() error{
			"commit": func() error { return put(s, entry(id), "Received: x\r\n", randomBody(4000)) },
			"update": func() error { return s.Update(mail.ID(id), queue.RcptUpdate{}) },
			"remove": func() error { return s.Remove(mail.ID(id)) },
		} {
			if what != "commit" {
				put(s, entry(id), "", "x")
			}
			ops.Take()
			must(t, do())
			var off, n int64
			got := ops.Take()
			if _, err := fmt.Sscanf(got, "write "+seg+" off=%d len=%d\nsync "+seg+"\n", &off, &n); err != nil {
				t.Errorf("%s:\n%s", what, got)
			}
			s.Remove(mail.ID(id))
		}
	}
}

// noSync is a real file system that does not flush, for tests that need many messages and no durability.
type noSync struct{ vfs.FS }

type noSyncFile struct{ vfs.File }

func (n noSync) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := n.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return noSyncFile{f}, nil
}

func (noSync) SyncDir(string) error     { return nil }
func (noSyncFile) Sync() error          { return nil }
func (noSyncFile) Allocate(int64) error { return nil } // sparse

// TestMemory: what the store remembers of a message with one recipient, deferred once, stays under 100 bytes.
func TestMemory(t *testing.T) {
	const n = 150_000 // the map is then at one of its less dense sizes
	s := openTest(t, Config{Dir: t.TempDir(), FS: noSync{vfs.OS}, NoPrefill: true, MinFree: -1})
	must(t, put(s, entry("first"), "", "x"))
	before := heap()
	commitMany(t, s, n, "x")
	deferAll(t, s)
	if per := float64(heap()-before) / n; per > 100 {
		t.Errorf("%.1f bytes per message", per)
	} else {
		t.Logf("%.1f bytes per message", per)
	}
	runtime.KeepAlive(s)
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func commitMany(t testing.TB, s *Store, n int, body string) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range n / 8 {
				e := benchEntry()
				if err := put(s, &e, "", body); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func deferAll(t testing.TB, s *Store) {
	state := queue.RcptStatus{Attempts: 1, Next: time.Now().Add(time.Hour), Reason: mail.ReasonConnectTimeout, Text: "i/o timeout"}
	ids := make(chan mail.ID, 100)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for id := range ids {
				if err := s.Update(id, queue.RcptUpdate{State: state}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for e, err := range s.All() {
		if err != nil {
			t.Error(err)
		}
		ids <- e.ID
	}
	close(ids)
	wg.Wait()
}

// TestChurnOnDisk lets many clients commit, read, update and remove at once while the janitor works behind them, with readers that
// dawdle. At the end the disk holds little more than what lives, and everything that lives is right.
func TestChurnOnDisk(t *testing.T) {
	dir := t.TempDir()
	c := Config{Dir: dir, FS: slow(vfs.OS, 300*time.Microsecond), MinFree: -1, SegmentSize: minSegmentSize, LargeBody: 2 * blockSize, eager: true}
	s := openTest(t, c)
	var mu sync.Mutex
	alive := map[mail.ID]string{}
	var wg sync.WaitGroup
	for client := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(client), 5))
			var mine []mail.ID
			for i := range 150 {
				id := mail.NewID()
				body := randomBody(rng.IntN(1 + (600_000 >> rng.IntN(12))))
				if err := put(s, entry(string(id)), "p", body); err != nil {
					t.Error(err)
					return
				}
				mine = append(mine, id)
				mu.Lock()
				alive[id] = "p" + body
				mu.Unlock()
				if rng.IntN(3) == 0 {
					if err := s.Update(id, queue.RcptUpdate{State: queue.RcptStatus{Attempts: i}}); err != nil {
						t.Error(err)
					}
				}
				if len(mine) > 5 && rng.IntN(20) > 0 {
					k := rng.IntN(len(mine))
					victim := mine[k]
					mine = append(mine[:k], mine[k+1:]...)
					readAndRemove(t, s, victim, &mu, alive)
				}
			}
		})
	}
	wg.Wait()
	s.care()
	checkAlive(t, s, alive)
	if st := s.Stats(); st.DiskBytes > 4*st.LiveBytes+8*c.SegmentSize {
		t.Errorf("the disk holds %d bytes for %d that live, in %d segments", st.DiskBytes, st.LiveBytes, st.Segments)
	}
	must(t, s.Close())
	s = openTest(t, c)
	checkAlive(t, s, alive)
	must(t, s.Close())
	var onDisk int64
	infos, err := vfs.OS.ReadDir(dir)
	must(t, err)
	for _, i := range infos {
		onDisk += i.Size
	}
	t.Logf("%d messages alive, %d files, %d bytes", len(alive), len(infos), onDisk)
}

// readAndRemove removes a message while it is being read.
func readAndRemove(t *testing.T, s *Store, id mail.ID, mu *sync.Mutex, alive map[mail.ID]string) {
	mu.Lock()
	want := alive[id]
	delete(alive, id)
	mu.Unlock()
	r, err := s.Open(id)
	if err != nil {
		t.Errorf("Open: %v", err)
		return
	}
	defer r.Close()
	first := make([]byte, len(want)/2)
	if _, err := io.ReadFull(r, first); err != nil {
		t.Errorf("reading: %v", err)
	}
	if err := s.Remove(id); err != nil {
		t.Errorf("Remove: %v", err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || string(first)+string(rest) != want {
		t.Errorf("%s: read %d bytes of %d: %v", id, len(first)+len(rest), len(want), err)
	}
}

func checkAlive(t *testing.T, s *Store, alive map[mail.ID]string) {
	t.Helper()
	n := 0
	for e, err := range s.All() {
		if err != nil {
			t.Errorf("All: %v", err)
		}
		n++
		if got, err := read(s, e.ID); err != nil || got != alive[e.ID] {
			t.Errorf("%s: %d bytes of %d, %v", e.ID, len(got), len(alive[e.ID]), err)
		}
	}
	if n != len(alive) || s.Len() != n {
		t.Errorf("%d messages of %d", n, len(alive))
	}
}

// TestCloseIsQuick: handing the queue to another process does not wait for housekeeping.
func TestCloseIsQuick(t *testing.T) {
	s := openTest(t, Config{Dir: t.TempDir(), MinFree: -1})
	must(t, put(s, entry("a"), "", "x"))
	start := time.Now()
	must(t, s.Close())
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
	if _, err := os.Stat(filepath.Join(s.dir, lockName)); err != nil {
		t.Error(err)
	}
}
