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
