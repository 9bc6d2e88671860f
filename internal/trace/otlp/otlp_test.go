package otlp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// spans makes a small trace as a server would.
func spans(t *testing.T) []trace.SpanData {
	t.Helper()
	r := trace.New(trace.Config{Generation: 3})
	ctx := trace.WithRecorder(context.Background(), r)
	ctx, conn := trace.Start(ctx, trace.SMTPConn, "192.0.2.1:25")
	ctx, tx := trace.StartMessage(ctx, trace.SMTPTransaction, "192.0.2.1:25", trace.NewID())
	_, dns := trace.Start(ctx, trace.DNS, `exämple "org"`)
	for range 150 {
		dns.Printf("event \xff")
	}
	dns.Set("result", "timeout")
	dns.Errorf("timed out")
	dns.Finish()
	tx.Finish()
	conn.Finish()
	got, _ := r.Trace(tx.ID())
	return got.Spans
}

func TestRequest(t *testing.T) {
	ss := spans(t)
	req := Request(ss, Resource{Version: "1.2", Instance: "mx1"})
	rs := req.ResourceSpans[0]
	if got := rs.Resource.String(); !strings.Contains(got, "chasquid") || !strings.Contains(got, "1.2") || !strings.Contains(got, "mx1") {
		t.Errorf("resource %s", got)
	}
	got := rs.ScopeSpans[0].Spans
	tx, dns := got[0], got[1]
	if tx.ParentSpanId != nil || !bytes.Equal(dns.ParentSpanId, tx.SpanId) || !bytes.Equal(tx.TraceId, ss[0].Trace[:]) || len(tx.Links) != 1 {
		t.Errorf("tree %v %v", tx, dns)
	}
	if dns.Kind != tracepb.Span_SPAN_KIND_CLIENT || dns.Status.Code != tracepb.Status_STATUS_CODE_ERROR || dns.Status.Message != "timed out" ||
		dns.DroppedEventsCount != 51 || len(dns.Events) != 100 || tx.Status != nil {
		t.Errorf("%v", dns)
	}
	if dns.StartTimeUnixNano != uint64(ss[1].Start.UnixNano()) || dns.EndTimeUnixNano-dns.StartTimeUnixNano != uint64(ss[1].Duration) {
		t.Error("times are wrong")
	}
	if _, err := proto.Marshal(req); err != nil {
		t.Error(err) // invalid UTF-8, for example
	}
}

// TestJSON compares the JSON with what protocol buffers make of it, once its hexadecimal ids are base64, as those want them.
func TestJSON(t *testing.T) {
	ss := spans(t)
	b, err := JSON(ss, Resource{Version: "1.2"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"traceId":"`+ss[0].Trace.String()+`"`) {
		t.Errorf("the id is not hexadecimal: %s", b)
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for k, e := range v {
				if k == "traceId" || k == "spanId" || k == "parentSpanId" {
					id, err := hex.DecodeString(e.(string))
					if err != nil {
						t.Fatal(err)
					}
					v[k] = base64.StdEncoding.EncodeToString(id)
				}
				walk(e)
			}
		}
	}
	walk(tree)
	b, _ = json.Marshal(tree)
	var got collector.ExportTraceServiceRequest
	if err := protojson.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Request(ss, Resource{Version: "1.2"}), &got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if b, err := JSON(nil, Resource{}); err != nil || !strings.Contains(string(b), `"spans":[]`) {
		t.Errorf("%s %v", b, err)
	}
}

// fake is a collector that answers as told.
type fake struct {
	answer func(n int) (*http.Response, error) // to the nth request

	mu    sync.Mutex
	sizes []int // spans of each request
	at    []time.Time
}

// seen returns the number of spans of each request.
func (f *fake) seen() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.sizes)
}

func (f *fake) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	var r collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &r); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.sizes = append(f.sizes, len(r.ResourceSpans[0].ScopeSpans[0].Spans))
	f.at = append(f.at, time.Now())
	n := len(f.sizes)
	f.mu.Unlock()
	return f.answer(n)
}

func reply(code int, header ...string) (*http.Response, error) {
	w := httptest.NewRecorder()
	for i := 0; i < len(header); i += 2 {
		w.Header().Set(header[i], header[i+1])
	}
	w.WriteHeader(code)
	return w.Result(), nil
}

// pushing runs f with an Exporter in a bubble and then stops it.
func pushing(t *testing.T, answer func(n int) (*http.Response, error), f func(e *Exporter, c *fake)) (e *Exporter, c *fake) {
	t.Helper()
	old := log.Default
	log.Default = log.New(nopCloser{io.Discard})
	defer func() { log.Default = old }()
	synctest.Test(t, func(t *testing.T) {
		c = &fake{answer: answer}
		var err error
		e, err = New(Config{Endpoint: "http://collector.example/v1/traces", Client: &http.Client{Transport: c}, Metrics: expvarom.NewPedantic()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan bool)
		go func() { e.Run(ctx); close(done) }()
		f(e, c)
		cancel()
		<-done
	})
	return e, c
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func export(e *Exporter, n int) {
	for range n {
		e.Export(trace.SpanData{Trace: trace.NewID(), Family: trace.DNS})
	}
}

func (e *Exporter) counts(t *testing.T, ok, dropped, failed float64) {
	t.Helper()
	if e.ok.Value() != ok || e.dropped.Value() != dropped || e.failed.Value() != failed {
		t.Errorf("ok %v, dropped %v, error %v; want %v, %v, %v", e.ok.Value(), e.dropped.Value(), e.failed.Value(), ok, dropped, failed)
	}
}

func TestBatches(t *testing.T) {
	e, c := pushing(t, func(int) (*http.Response, error) { return reply(200) }, func(e *Exporter, c *fake) {
		export(e, 600)
		synctest.Wait()
		if diff := cmp.Diff([]int{512}, c.seen()); diff != "" {
			t.Error(diff)
		}
		time.Sleep(batchEvery)
		synctest.Wait()
		if diff := cmp.Diff([]int{512, 88}, c.seen()); diff != "" {
			t.Error(diff)
		}
		time.Sleep(time.Hour)
		export(e, 7)
	})
	if diff := cmp.Diff([]int{512, 88, 7}, c.seen()); diff != "" {
		t.Error(diff)
	}
	e.counts(t, 607, 0, 0)
}

// TestRetry checks which answers are taken for "try again", and when.
func TestRetry(t *testing.T) {
	for code, tries := range map[int]int{429: sendTries, 502: sendTries, 503: sendTries, 504: sendTries, 400: 1, 401: 1, 404: 1, 500: 1, 302: 1} {
		e, c := pushing(t, func(int) (*http.Response, error) { return reply(code) }, func(e *Exporter, c *fake) {
			export(e, 1)
			time.Sleep(10 * time.Minute)
		})
		if len(c.seen()) != tries {
			t.Errorf("%d: %d tries, want %d", code, len(c.seen()), tries)
		}
		e.counts(t, 0, 0, 1)
	}
	e, c := pushing(t, func(n int) (*http.Response, error) {
		switch n {
		case 1:
			return reply(503, "Retry-After", "7")
		case 2:
			return reply(429, "Retry-After", "86400")
		}
		return reply(200)
	}, func(e *Exporter, c *fake) {
		export(e, 1)
		time.Sleep(10 * time.Minute)
	})
	if len(c.at) != 3 || c.at[1].Sub(c.at[0]) != 7*time.Second || c.at[2].Sub(c.at[1]) != retryMax {
		t.Errorf("tries at %v", c.at)
	}
	e.counts(t, 1, 0, 0)
}

// TestHangingCollector checks that nobody waits for a collector that does not answer, and that stopping takes a moment at most.
func TestHangingCollector(t *testing.T) {
	var begin, end time.Time
	e, _ := pushing(t, func(int) (*http.Response, error) { time.Sleep(24 * time.Hour); return nil, errors.New("gone") }, func(e *Exporter, c *fake) {
		e.cfg.Client = &http.Client{Transport: hang{}}
		begin = time.Now()
		export(e, 3*queueSize)
		if time.Since(begin) != 0 {
			t.Error("Export waits")
		}
		synctest.Wait()
		end = time.Now()
	})
	if end.Sub(begin) > flushTimeout {
		t.Errorf("stopping took %v", end.Sub(begin))
	}
	if n := e.ok.Value() + e.dropped.Value() + e.failed.Value(); n != 3*queueSize || e.dropped.Value() < queueSize-batchSize {
		t.Errorf("%v of %d spans are accounted for, %v dropped", n, 3*queueSize, e.dropped.Value())
	}
}

// hang answers when the request is given up.
type hang struct{}

func (hang) RoundTrip(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

func TestPartialSuccess(t *testing.T) {
	for rejected, want := range map[int64]float64{2: 2, -5: 0, 1000: 3} {
		body, err := proto.Marshal(&collector.ExportTraceServiceResponse{PartialSuccess: &collector.ExportTracePartialSuccess{RejectedSpans: rejected}})
		if err != nil {
			t.Fatal(err)
		}
		e, _ := pushing(t, func(int) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.Write(body)
			return w.Result(), nil
		}, func(e *Exporter, c *fake) { export(e, 3) })
		e.counts(t, 3-want, 0, want)
	}
}

// TestServer pushes what a Recorder keeps to a server on loopback.
func TestServer(t *testing.T) {
	got := make(chan *collector.ExportTraceServiceRequest, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		var r collector.ExportTraceServiceRequest
		if req.Header.Get("Content-Type") != "application/x-protobuf" || req.Header.Get("Authorization") != "Bearer x" || proto.Unmarshal(body, &r) != nil {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		got <- &r
	}))
	defer srv.Close()
	e, err := New(Config{Endpoint: srv.URL, Headers: map[string]string{"Authorization": "Bearer x"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan bool)
	go func() { e.Run(ctx); close(done) }()
	tctx := trace.WithRecorder(ctx, trace.New(trace.Config{Export: e.Export}))
	_, s := trace.Start(tctx, trace.STS, "example.org")
	s.Errorf("no policy")
	s.Finish()
	cancel()
	<-done
	e.counts(t, 1, 0, 0)
	if r := <-got; r.ResourceSpans[0].ScopeSpans[0].Spans[0].Name != "STS" {
		t.Error(r)
	}
}

func TestNew(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:4318", "ftp://x/", "http://", "http://%zz/", "/v1/traces"} {
		if _, err := New(Config{Endpoint: bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, bad := range []string{"ftp://user:secret@x/", "http://user:secret@x:y/", "http://user:secret@[/"} {
		if _, err := New(Config{Endpoint: bad}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
