package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"blitiri.com.ar/go/log"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// message does what a server does for one message: five spans, 25 events.
func message(ctx context.Context, i int) {
	id := NewID()
	ctx, tx := StartMessage(ctx, SMTPTransaction, "192.0.2.1:12345", id)
	tx.Event("MAIL", Str("from", "someone@example.org"), Num("size", 12345))
	tx.Event("RCPT", Str("to", "other@example.net"))
	tx.Printf("recipient %s accepted", "other@example.net")
	tx.Event("DATA", Num("bytes", 12345))
	tx.Set("from", "someone@example.org")
	_, spf := Start(ctx, CheckSPF, "example.org")
	for range 3 {
		spf.Event("lookup", Str("name", "example.org"), Str("type", "TXT"))
	}
	spf.Printf("pass: %v", "matched ip4")
	spf.Finish()
	qctx, put := Start(ctx, QueuePut, "x20260102")
	put.Event("write", Num("bytes", 12345), Took("took", 123*time.Microsecond))
	put.Event("fsync", Took("took", 2*time.Millisecond))
	put.Finish()
	_, al := Start(qctx, Aliases, "other@example.net")
	al.Event("expanded", Num("recipients", 1))
	al.Finish()
	tx.Printf("queued as %s", "x20260102")
	tx.Event("reply", Num("code", 250))
	tx.Finish()
	_, del := StartMessage(context.WithValue(context.Background(), recorderKey{}, RecorderFrom(ctx)), DeliveryRemote, "other@example.net", id)
	for range 9 {
		del.Event("command", Str("verb", "RCPT"), Num("code", 250), Took("took", time.Millisecond))
	}
	del.Printf("%s sent", "other@example.net")
	if i%1000 == 999 {
		del.Error(errors.New("remote said 451"))
	}
	del.Finish()
}

// exchange does what a server does for one message that comes by a connection of its own and is relayed: ten spans, 40 events.
func exchange(ctx context.Context) {
	root := ctx
	span := func(ctx context.Context, f Family, title string, events int) {
		_, s := Start(ctx, f, title)
		for range events {
			s.Event("lookup", Str("name", "example.org"), Str("type", "TXT"))
		}
		s.Set("result", "pass")
		s.Finish()
	}
	cctx, conn := Start(ctx, SMTPConn, "192.0.2.1:12345")
	conn.Event("EHLO", Str("name", "client.example.org"))
	id := NewID()
	tctx, tx := StartMessage(cctx, SMTPTransaction, "192.0.2.1:12345", id)
	tx.Event("MAIL", Str("from", "someone@example.org"), Num("size", 12345))
	span(tctx, CheckSPF, "example.org", 5)
	span(tctx, Aliases, "exists other@example.net", 1)
	tx.Event("RCPT", Str("to", "other@example.net"))
	span(tctx, CheckDKIM, "verify", 2)
	span(tctx, CheckDMARC, "evaluate", 3)
	span(tctx, Aliases, "resolve other@example.net", 2)
	span(tctx, QueuePut, "x20260102", 2)
	tx.Printf("queued as %s", "x20260102")
	tx.Finish()
	conn.Printf("QUIT")
	conn.Finish()
	qctx, item := StartMessage(root, QueueItem, "x20260102", id)
	item.Printf("attempt %d", 1)
	span(qctx, DeliveryRemote, "other@example.net", 12)
	item.Printf("done")
	item.Finish()
}

// BenchmarkExchange does so with a store that is full, as that of a busy server is, and with the settings of the server.
func BenchmarkExchange(b *testing.B) {
	old := log.Default
	log.Default = log.New(discard{io.Discard})
	defer func() { log.Default = old }()
	r := New(Config{Metrics: expvarom.New(), Log: true, Labels: true, Mirror: true})
	ctx := WithRecorder(context.Background(), r)
	for range 20_000 {
		exchange(ctx)
	}
	if r.Size() < DefaultBudget*9/10 {
		b.Fatalf("the store is not full: %d bytes", r.Size())
	}
	runtime.GC()
	b.ReportAllocs()
	for b.Loop() {
		exchange(ctx)
	}
	b.StopTimer()
	start := time.Now()
	runtime.GC()
	b.ReportMetric(float64(time.Since(start).Microseconds()), "µs/GC")
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

func benchMessage(b *testing.B, cfg Config) {
	old := log.Default
	log.Default = log.New(discard{io.Discard})
	defer func() { log.Default = old }()
	r := New(cfg)
	ctx, conn := Start(WithRecorder(context.Background(), r), SMTPConn, "192.0.2.1:12345")
	defer conn.Finish()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		message(ctx, i)
	}
}

func BenchmarkMessage(b *testing.B) {
	b.Run("plain", func(b *testing.B) { benchMessage(b, Config{}) })
	b.Run("metrics", func(b *testing.B) { benchMessage(b, Config{Metrics: expvarom.New()}) })
	b.Run("labels", func(b *testing.B) { benchMessage(b, Config{Labels: true}) })
	b.Run("log", func(b *testing.B) { benchMessage(b, Config{Log: true}) })
	b.Run("mirror50", func(b *testing.B) { benchMessage(b, Config{Mirror: true}) })
	b.Run("mirrorAll", func(b *testing.B) { benchMessage(b, Config{Mirror: true, Mirrors: 1 << 30}) })
	b.Run("all", func(b *testing.B) {
		benchMessage(b, Config{Metrics: expvarom.New(), Log: true, Labels: true, Mirror: true})
	})
	b.Run("none", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			message(context.Background(), i)
		}
	})
}

func BenchmarkEvent(b *testing.B) {
	_, s := Start(WithRecorder(context.Background(), New(Config{})), CheckSPF, "x")
	b.Run("Event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Event("RCPT", Str("to", "other@example.net"), Num("n", 12345))
		}
	})
	b.Run("Printf", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Printf("RCPT to=%s n=%d", "other@example.net", 12345)
		}
	})
}

func BenchmarkSearch(b *testing.B) {
	r := New(Config{})
	ctx := WithRecorder(context.Background(), r)
	for i := range keepRows {
		_, s := Start(ctx, SMTPConn, fmt.Sprintf("192.0.2.1:%d", i))
		s.Finish()
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Search(Query{Text: "nowhere"})
	}
}

// TestCost holds a message to its budget of memory: 12 KB.
func TestCost(t *testing.T) {
	res := testing.Benchmark(func(b *testing.B) {
		benchMessage(b, Config{Metrics: expvarom.New(), Log: true, Labels: true, Mirror: true})
	})
	if res.AllocedBytesPerOp() > 12<<10 || res.AllocsPerOp() > 60 {
		t.Errorf("a message costs %d bytes and %d allocations", res.AllocedBytesPerOp(), res.AllocsPerOp())
	}
	t.Logf("a message costs %v, %d bytes, %d allocations", time.Duration(res.NsPerOp()), res.AllocedBytesPerOp(), res.AllocsPerOp())
}
