package smtpsrv

import (
	"context"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// N-5: an idle plaintext connection costs at most 10 KB, with its trace. Both ends are in this process, so the client's is counted too.
func TestN5IdleConnections(t *testing.T) {
	const n = 1000
	reg := expvarom.New()
	srv := New(Config{Hostname: "mx.example.test", Intake: &countingIntake{}, Metrics: reg})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(trace.WithRecorder(t.Context(), trace.New(trace.Config{})))
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx, l, SMTP) })
	defer wg.Wait()
	defer cancel()

	var before, after runtime.MemStats
	settle := func(m *runtime.MemStats) {
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(m)
	}
	settle(&before)
	buf := make([]byte, 512)
	for range n {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		// through a first command, to the wait for the next
		if _, err := io.ReadAtLeast(nc, buf, 20); err != nil {
			t.Fatal(err)
		}
		io.WriteString(nc, "HELO c\r\n")
		if _, err := io.ReadAtLeast(nc, buf, 5); err != nil {
			t.Fatal(err)
		}
	}
	if srv.Open() != n {
		t.Fatalf("%d open", srv.Open())
	}
	settle(&after)
	heap := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	stack := (int64(after.StackInuse) - int64(before.StackInuse)) / n
	t.Logf("%d bytes of heap and %d of stack a connection", heap, stack)
	limit := int64(10 << 10)
	if raceEnabled {
		limit *= 2 // the race detector makes every stack frame bigger
	}
	if heap+stack > limit {
		t.Errorf("a connection costs %d bytes", heap+stack)
	}
}
