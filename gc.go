package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// gcHeadroom is how much garbage may gather before a collection even when little is alive. A mail server's live heap is a few
// megabytes; with the default of as much garbage as there is live heap it would collect dozens of times a second under load.
const gcHeadroom = 48 << 20

// tuneGC keeps the distance between collections at gcHeadroom or the size of the live heap, whichever is larger, until ctx ends.
// An operator's GOGC is respected.
func tuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	adjustGC()
	collected := make(chan struct{}, 1)
	watchGC(ctx, collected)
	for {
		select {
		case <-ctx.Done():
			return
		case <-collected:
			adjustGC()
		}
	}
}

// watchGC sends to collected after each collection: an object nobody refers to is finalised once in each.
func watchGC(ctx context.Context, collected chan<- struct{}) {
	type token struct{ _ [16]byte }
	runtime.AddCleanup(new(token), func(ctx context.Context) {
		if ctx.Err() != nil {
			return
		}
		select {
		case collected <- struct{}{}:
		default:
		}
		watchGC(ctx, collected)
	}, ctx)
}

// adjustGC sets the percentage that gives the headroom for the heap that was alive after the last collection.
func adjustGC() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() == metrics.KindUint64 {
		debug.SetGCPercent(gcPercent(sample[0].Value.Uint64()))
	}
}

func gcPercent(live uint64) int {
	const least, most = 100, 2000
	return min(max(int(gcHeadroom*100/max(live, 1)), least), most)
}
