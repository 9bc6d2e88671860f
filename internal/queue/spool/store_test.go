package spool

import (
	"flag"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/storetest"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

var (
	update   = flag.Bool("update", false, "rewrite the golden files")
	thorough = flag.Bool("thorough", false, "let every operation crash and fail, not a sample")
)

// TestStore is the acceptance suite.
func TestStore(t *testing.T) {
	storetest.Run(t, storetest.Subject{
		Open: func(fsys vfs.FS) (queue.Store, error) {
			c := testConfig(fsys)
			c.LargeBody = 2 * blockSize
			c.eager = true
			return Open(c)
		},
		Durable:      true,
		Care:         func(s queue.Store) { s.(*Store).care() },
		Thorough:     *thorough,
		Large:        5*blockSize + 1234,
		Golden:       "testdata/oplog.txt",
		UpdateGolden: *update,
	})
}

// TestTinySegments runs random histories on segments of a few messages each, so that there is always one to be sealed, emptied,
// removed or used again.
func TestTinySegments(t *testing.T) {
	storetest.Histories(t, storetest.Subject{
		Open: func(fsys vfs.FS) (queue.Store, error) {
			c := testConfig(fsys)
			c.SegmentSize, c.tiny, c.eager = 24<<10, true, true
			return Open(c)
		},
		Durable: true,
		Care:    func(s queue.Store) { s.(*Store).care() },
		Sizes:   []int{0, 10, 1000, 3000, 6000},
	})
}
