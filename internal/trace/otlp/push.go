package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Limits of an Exporter.
const (
	batchSize    = 512
	batchEvery   = 5 * time.Second
	queueSize    = 2048
	sendTimeout  = 10 * time.Second
	sendTries    = 5
	retryFirst   = time.Second // doubled with each try
	retryMax     = 30 * time.Second
	flushTimeout = 5 * time.Second // for what is left when Run is told to stop
	replyMax     = 64 << 10        // bytes read of the collector's reply
	logEvery     = time.Minute     // how often trouble is logged
)

// Config says where an Exporter pushes spans to.
type Config struct {
	Endpoint string            // such as "http://127.0.0.1:4318/v1/traces"
	Headers  map[string]string // sent with each request, such as Authorization
	Client   *http.Client      // nil: one that follows no redirects
	Resource Resource
	Metrics  *expvarom.Registry
}

// Exporter pushes spans to an OpenTelemetry collector: protocol buffers over HTTP, in batches. It never makes its callers wait: what the
// collector does not take in time is dropped and counted.
type Exporter struct {
	cfg    Config
	queue  chan trace.SpanData
	logged time.Time // when trouble was last logged

	ok, dropped, failed *expvarom.Counter
}

// New returns an Exporter; Run makes it work.
func New(cfg Config) (*Exporter, error) {
	u, err := url.Parse(cfg.Endpoint)
	if bad := (*url.Error)(nil); errors.As(err, &bad) {
		return nil, fmt.Errorf("OTLP endpoint: %w", bad.Err) // without the URL, which may hold a password
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("OTLP endpoint %q is not an http or https URL", u.Redacted())
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	v := cfg.Metrics.CounterVec("chasquid_trace_exported_total", "Spans pushed to the collector, by what became of them.",
		[]string{"result"}, []string{"ok", "dropped", "error"})
	return &Exporter{cfg: cfg, queue: make(chan trace.SpanData, queueSize), ok: v.With("ok"), dropped: v.With("dropped"), failed: v.With("error")}, nil
}

// Export hands a span over, or drops it if too many wait. It is a trace.Config.Export.
func (e *Exporter) Export(d trace.SpanData) {
	select {
	case e.queue <- d:
	default:
		e.dropped.Inc()
	}
}

// Run pushes spans until the context is done, and then for a moment what is left.
func (e *Exporter) Run(ctx context.Context) {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		sleep(sending, flushTimeout)
		cancel()
	})()
	for {
		batch, more := e.collect(ctx)
		if !more {
			break
		}
		e.push(ctx, sending, batch)
	}
	for batch := e.rest(); len(batch) > 0; batch = e.rest() {
		e.push(ctx, sending, batch)
	}
}

// collect waits for a batch, false if the context is done: then what is left is in the queue.
func (e *Exporter) collect(ctx context.Context) (batch []trace.SpanData, more bool) {
	full := time.NewTimer(batchEvery)
	defer full.Stop()
	for len(batch) < batchSize {
		select {
		case d := <-e.queue:
			batch = append(batch, d)
		case <-full.C:
			if len(batch) > 0 {
				return batch, true
			}
			full.Reset(batchEvery)
		case <-ctx.Done():
			for _, d := range batch {
				e.Export(d)
			}
			return nil, false
		}
	}
	return batch, true
}

// rest returns up to a batch of what is in the queue.
func (e *Exporter) rest() (batch []trace.SpanData) {
	for len(batch) < batchSize {
		select {
		case d := <-e.queue:
			batch = append(batch, d)
		default:
			return batch
		}
	}
	return batch
}

// retryError is a failure the collector asks to try again after.
type retryError struct {
	status string
	after  time.Duration // 0 if it does not say
}

func (r *retryError) Error() string { return "collector answers " + r.status }

// push sends a batch, again if the collector is busy and ctx not done, and counts what became of it.
func (e *Exporter) push(ctx, sending context.Context, batch []trace.SpanData) {
	body, err := proto.Marshal(Request(batch, e.cfg.Resource))
	if err != nil {
		e.fail(len(batch), err)
		return
	}
	wait := retryFirst
	for try := 1; ; try++ {
		rejected, err := e.send(sending, body)
		var again *retryError
		if err == nil {
			rejected = min(rejected, len(batch))
			e.ok.Add(float64(len(batch) - rejected))
			e.failed.Add(float64(rejected))
			return
		}
		if !errors.As(err, &again) || try == sendTries || !sleep(ctx, min(max(wait, again.after), retryMax)) {
			e.fail(len(batch), err)
			return
		}
		wait *= 2
	}
}

// fail counts spans that could not be sent, and says so now and then.
func (e *Exporter) fail(n int, err error) {
	e.failed.Add(float64(n))
	if now := time.Now(); now.Sub(e.logged) >= logEvery {
		e.logged = now
		log.Errorf("pushing %d trace spans: %q", n, err)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// send makes one request and returns how many spans the collector took but did not want.
func (e *Exporter) send(ctx context.Context, body []byte) (rejected int, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.cfg.Endpoint, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	for k, v := range e.cfg.Headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := e.cfg.Client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	reply, _ := io.ReadAll(io.LimitReader(resp.Body, replyMax)) // a reply cut short changes nothing
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		var r collector.ExportTraceServiceResponse
		if proto.Unmarshal(reply, &r) == nil {
			rejected = int(min(max(r.GetPartialSuccess().GetRejectedSpans(), 0), int64(batchSize)))
		}
		return rejected, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		after, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // a date is not understood: the usual wait
		return 0, &retryError{resp.Status, time.Duration(min(max(after, 0), int(retryMax/time.Second))) * time.Second}
	}
	return 0, fmt.Errorf("collector answers %s", resp.Status)
}
