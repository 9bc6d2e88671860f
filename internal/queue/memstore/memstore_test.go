package memstore

import (
	"testing"

	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/storetest"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

func TestStore(t *testing.T) {
	storetest.Run(t, storetest.Subject{Open: func(vfs.FS) (queue.Store, error) { return New(), nil }})
}
