package spool

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// clients runs b.N operations from n goroutines.
func clients(b *testing.B, n int, op func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := op(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func slow(fsys vfs.FS, d time.Duration) vfs.FS {
	if d == 0 {
		return fsys
	}
	return vfs.Hook(fsys, func(op vfs.Op) error {
		if op.Verb == vfs.OpSync || op.Verb == vfs.OpSyncDir {
			time.Sleep(d)
		}
		return nil
	})
}

var benchCases = []struct {
	clients int
	delay   time.Duration
	size    int
}{
	{1, 0, 4 << 10}, {20, 0, 4 << 10}, {100, 0, 4 << 10},
	{1, 2 * time.Millisecond, 4 << 10}, {100, 2 * time.Millisecond, 4 << 10},
	{20, 0, 100 << 10},
}

func benchName(clients int, delay time.Duration, size int) string {
	return fmt.Sprintf("clients=%d/delay=%v/size=%d", clients, delay, size)
}

// benchDir is where benchmarks write: a real disk, if TMPDIR is one.
func benchDir(b *testing.B) string { return b.TempDir() }

// BenchmarkCommit commits messages and removes them, each durable before the next of the same client.
func BenchmarkCommit(b *testing.B) {
	for _, c := range benchCases {
		b.Run(benchName(c.clients, c.delay, c.size), func(b *testing.B) {
			s, err := Open(Config{Dir: filepath.Join(benchDir(b), "queue"), FS: slow(vfs.OS, c.delay), MinFree: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			body := make([]byte, c.size)
			prefix := make([]byte, 300)
			b.SetBytes(int64(c.size))
			clients(b, c.clients, func() error {
				d, err := s.Create()
				if err != nil {
					return err
				}
				if _, err := d.Write(body); err != nil {
					return err
				}
				e := benchEntry()
				return d.Commit(&e, prefix)
			})
		})
	}
}

// BenchmarkLifeOfMessage is commit, read, remove.
func BenchmarkLifeOfMessage(b *testing.B) {
	for _, n := range []int{1, 20, 100} {
		b.Run(benchName(n, 0, 4<<10), func(b *testing.B) {
			s, err := Open(Config{Dir: filepath.Join(benchDir(b), "queue"), MinFree: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			body := make([]byte, 4<<10)
			clients(b, n, func() error {
				d, err := s.Create()
				if err != nil {
					return err
				}
				d.Write(body)
				e := benchEntry()
				if err := d.Commit(&e, nil); err != nil {
					return err
				}
				r, err := s.Open(e.ID)
				if err != nil {
					return err
				}
				io.Copy(io.Discard, r)
				r.Close()
				return s.Remove(e.ID)
			})
		})
	}
}

func benchEntry() queue.Entry {
	return queue.Entry{ID: mail.NewID(), Env: mail.Envelope{
		From:    address.Address{Local: "sender", Domain: "example.org"},
		Rcpts:   []mail.Recipient{{To: address.Address{Local: "recipient", Domain: "example.net"}, Orig: address.Address{Local: "recipient", Domain: "example.net"}}},
		Arrived: time.Now(),
		Client:  "192.0.2.1:12345",
	}}
}

// floor is the least a durable server can do: append to one file, share fdatasync. No index, no checksum, no way to read it back.
type floor struct {
	mu      sync.Mutex
	f       *os.File
	off     int64
	delay   time.Duration
	cond    sync.Cond
	syncing bool
	synced  int64
}

func (f *floor) commit(p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.f.WriteAt(p, f.off); err != nil {
		return err
	}
	f.off += int64(len(p))
	mine := f.off
	for f.synced < mine {
		if f.syncing {
			f.cond.Wait()
			continue
		}
		f.syncing = true
		upTo := f.off
		f.mu.Unlock()
		time.Sleep(f.delay)
		err := unix.Fdatasync(int(f.f.Fd()))
		f.mu.Lock()
		f.syncing = false
		if err != nil {
			return err
		}
		f.synced = upTo
		f.cond.Broadcast()
	}
	return nil
}

// BenchmarkFloor is what BenchmarkCommit is to be compared with.
func BenchmarkFloor(b *testing.B) {
	for _, c := range benchCases {
		b.Run(benchName(c.clients, c.delay, c.size), func(b *testing.B) {
			file, err := os.Create(filepath.Join(benchDir(b), "log"))
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			f := &floor{f: file, delay: c.delay}
			f.cond.L = &f.mu
			body := make([]byte, c.size+500)
			b.SetBytes(int64(c.size))
			clients(b, c.clients, func() error { return f.commit(body) })
		})
	}
}

var startMessages = flag.Int("messages", 100_000, "how many messages BenchmarkStart has in the queue")

// BenchmarkStart opens a store with many deferred messages after a crash and reads all entries, as the queue does at start.
// Run it with -messages=1000000 -benchtime=1x.
func BenchmarkStart(b *testing.B) {
	dir := filepath.Join(benchDir(b), "queue")
	s, err := Open(Config{Dir: dir, FS: noSync{vfs.OS}, MinFree: -1, NoPrefill: true})
	if err != nil {
		b.Fatal(err)
	}
	commitMany(b, s, *startMessages, strings.Repeat("x", 1000))
	deferAll(b, s)
	s.closeFiles() // no orderly end
	s.lock.Close()
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		s, err := Open(Config{Dir: dir, FS: noSync{vfs.OS}, MinFree: -1, NoPrefill: true})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/open")
		n := 0
		start = time.Now()
		for _, err := range s.All() {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/all")
		if n < *startMessages-8 {
			b.Fatalf("%d messages", n)
		}
		s.closeFiles()
		s.lock.Close()
	}
}

// BenchmarkLoad is what the queue does before a later attempt.
func BenchmarkLoad(b *testing.B) {
	s, err := Open(Config{Dir: benchDir(b), FS: noSync{vfs.OS}, MinFree: -1, NoPrefill: true})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	commitMany(b, s, 8, "x")
	deferAll(b, s)
	var ids []mail.ID
	for e := range s.All() {
		ids = append(ids, e.ID)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := s.Load(ids[i%len(ids)]); err != nil {
			b.Fatal(err)
		}
	}
}
