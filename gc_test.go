package main

import (
	"context"
	"runtime"
	"testing"
)

// TestGCPercent checks the headroom for small heaps, and that large ones are collected as Go does by default.
func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 2000, 1 << 20: 2000, 4 << 20: 1200, 24 << 20: 200, 48 << 20: 100, 1 << 30: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MB alive: %d %%, want %d", live>>20, got, want)
		}
	}
}

// TestWatchGC checks that each collection is noticed.
func TestWatchGC(t *testing.T) {
	collected := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watchGC(ctx, collected)
	for range 3 {
		runtime.GC()
		<-collected
	}
}
