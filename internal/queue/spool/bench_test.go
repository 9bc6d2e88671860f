package spool

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
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
