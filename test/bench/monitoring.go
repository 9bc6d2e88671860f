package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"time"
)

const (
	monitoringPairs = 7 // at least: the difference is small
	scrapeEvery     = time.Second
)

// checkMonitoring measures what monitoring costs: our server with its pages on and scraped every second, and without, in turn.
func checkMonitoring(ctx context.Context, o options, s *sink, dir string) ([]string, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	servers := []server{
		{"watched", scraped(chasquidServer(bin, o.extra))},
		{"unwatched", chasquidServer(bin, o.extra, `-config_overrides=monitoring_address: ""`)},
	}
	loads := []load{
		{Name: "20 clients", Clients: 20, PerConn: 1, Size: 4 << 10, Recipients: 1},
		{Name: "20 clients, 100 per connection", Clients: 20, PerConn: 100, Size: 4 << 10, Recipients: 1},
	}
	var rs []result
	for round := range max(o.rounds, monitoringPairs) {
		for _, ld := range loads {
			ld.Duration = o.duration
			for i := range servers {
				srv := servers[(i+round)%2] // neither is always the first
				r, err := measure(ctx, srv, ld, s, filepath.Join(dir, fmt.Sprintf("%d-%d", round, len(rs))))
				if err != nil {
					return nil, fmt.Errorf("%s: %w", srv.name, err)
				}
				r.Round = round
				rs = append(rs, r)
				progress(r)
			}
		}
	}
	var out []string
	for _, ld := range loads {
		rate, _ := ratio(rs, "watched", "unwatched", ld.Name, endToEnd)
		out = append(out, verdict("scraped / without monitoring", ld.Name, rate, 0.97, false))
	}
	share, err := scrapeShare(ctx, chasquidServer(bin, o.extra), s, filepath.Join(dir, "share"))
	if err != nil {
		return nil, err
	}
	return append(out, verdict("% of the CPUs, a scrape each s", fmt.Sprint(runtime.NumCPU(), " CPUs, after 20 clients"), 100*share, 3, true)), nil
}

// scrapeShare is the share of all CPUs that the server needs for one scrape a second. Other work on the machine hardly changes it, unlike
// the rate of messages.
func scrapeShare(ctx context.Context, start func(context.Context, string) (*running, error), s *sink, dir string) (float64, error) {
	const scrapes = 200
	if err := makeDir(dir); err != nil {
		return 0, err
	}
	r, err := start(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer r.stop()
	ld := load{Name: "before scrapes", Clients: 20, PerConn: 1, Size: 4 << 10, Recipients: 1, Duration: time.Second}
	if _, err := measureRunning(ctx, "watched", r, ld, s); err != nil { // so that there is something in every metric
		return 0, err
	}
	before := cpuOf(r.pid)
	for range scrapes {
		scrape(ctx)
	}
	each := (cpuOf(r.pid) - before).Seconds() / scrapes
	return each / float64(runtime.NumCPU()), nil
}

// scraped gets the metrics every second while the server runs, as Prometheus does.
func scraped(start func(context.Context, string) (*running, error)) func(context.Context, string) (*running, error) {
	return func(ctx context.Context, dir string) (*running, error) {
		r, err := start(ctx, dir)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for tick := time.NewTicker(scrapeEvery); ; {
				select {
				case <-ctx.Done():
					tick.Stop()
					return
				case <-tick.C:
					scrape(ctx)
				}
			}
		}()
		stop := r.stop
		r.stop = func() { cancel(); <-done; stop() }
		return r, nil
	}
}

func scrape(ctx context.Context) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, monitorURL+"/metrics", nil)
	if err != nil {
		return
	}
	req.Header.Set("Accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
	if resp, err := http.DefaultClient.Do(req); err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}
