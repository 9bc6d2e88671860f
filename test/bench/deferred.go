package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/spool"
)

const (
	deferredSites = 2000
	deferredSpan  = time.Hour // the next attempts are spread over it
	monitorURL    = "http://127.0.0.1:2503"
)

func makeDir(dir string) error { return os.MkdirAll(dir, 0755) }

// checkDeferred measures a server with very many deferred recipients, whose destinations refuse connections.
func checkDeferred(ctx context.Context, o options, s *sink, dir string) ([]string, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	deep, empty := filepath.Join(dir, "deep"), filepath.Join(dir, "empty")
	start := time.Now()
	if err := makeQueue(filepath.Join(deep, "data", "queue"), o.deferred/o.deferredPer, o.deferredPer); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%d deferred, %d a message", o.deferred, o.deferredPer)
	fmt.Fprintf(os.Stderr, "deferred: made %s in %v\n", name, time.Since(start).Round(time.Millisecond))
	srv := chasquidServer(bin, fmt.Sprintf("max_queue_items: %d\n", 2*o.deferred)+o.extra)
	var took, scrape, page, rss, ratios []float64
	for round := range o.rounds {
		ld := load{Name: "20 clients", Clients: 20, PerConn: 1, Size: 4 << 10, Recipients: 1, Duration: o.duration}
		bare, err := measure(ctx, server{"empty", srv}, ld, s, filepath.Join(empty, fmt.Sprint(round)))
		if err != nil {
			return nil, err
		}
		progress(bare)
		r, err := srv(ctx, deep)
		if err != nil {
			return nil, err
		}
		took = append(took, r.took.Seconds())
		known, err := waitKnown(o.deferred / o.deferredPer)
		if err != nil {
			r.stop()
			return nil, err
		}
		a, errA := fetch(monitorURL+"/metrics", 20)
		b, errB := fetch(monitorURL+"/debug/queue", 5)
		full, errC := measureRunning(ctx, "deep", r, ld, s)
		r.stop()
		if err := errors.Join(errA, errB, errC); err != nil {
			return nil, err
		}
		progress(full)
		scrape, page = append(scrape, a.Seconds()), append(page, b.Seconds())
		rss, ratios = append(rss, float64(full.RSS>>20)), append(ratios, full.EndToEndRate/bare.EndToEndRate)
		fmt.Fprintf(os.Stderr, "deferred: serves after %v, knows the whole queue %v later, scrape %v, page %v, peak memory %d MB\n", r.took.Round(time.Millisecond), known.Round(time.Millisecond), a, b, full.RSS>>20)
	}
	return []string{
		verdict("MB of memory, peak", name, slices.Max(rss), 512, true),
		verdict("seconds to serve", name, median(took), 5, true),
		verdict("ms a scrape", name, 1000*median(scrape), 20, true),
		verdict("ms /debug/queue", name, 1000*median(page), 200, true),
		verdict("new mail / empty server", name, median(ratios), 0.8, false),
	}, nil
}

// waitKnown waits until the metrics show n messages in the queue, and settles for 99 in 100: some are delivered or returned meanwhile.
func waitKnown(n int) (time.Duration, error) {
	start := time.Now()
	for time.Since(start) < 60*time.Second {
		items, err := queueItems()
		if err != nil {
			return 0, err
		}
		if items >= n/100*99 {
			return time.Since(start), nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, errors.New("the server does not know all messages after a minute")
}

// queueItems is the number of messages in the queue as the metrics have it.
func queueItems() (int, error) {
	resp, err := http.Get(monitorURL + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	sum := 0.0
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), "chasquid_queue_items{"); ok {
			_, value, _ := strings.Cut(rest, "} ")
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, err
			}
			sum += f
		}
	}
	return int(sum), nil
}

// fetch gets a page n times and returns the median time.
func fetch(url string, n int) (time.Duration, error) {
	var ds []time.Duration
	for range n {
		start := time.Now()
		resp, err := http.Get(url)
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return 0, err
		}
		if resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("%s: %s", url, resp.Status)
		}
		ds = append(ds, time.Since(start))
	}
	return median(ds), nil
}

// makeQueue fills a queue directory with deferred messages, attempted three times so far.
func makeQueue(dir string, messages, rcpts int) error {
	st, err := spool.Open(spool.Config{Dir: dir})
	if err != nil {
		return err
	}
	const writers = 256
	errs := make([]error, writers)
	var wg sync.WaitGroup
	due := time.Now().Add(10 * time.Second)
	for w := range writers {
		wg.Go(func() {
			for i := w; i < messages && errs[w] == nil; i += writers {
				errs[w] = addDeferred(st, i, rcpts, due)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, st.Close())...)
}

var deferredBody = makeBody(600)

func addDeferred(st *spool.Store, i, rcpts int, due time.Time) error {
	in, err := st.Create()
	if err != nil {
		return err
	}
	if _, err := in.Write(deferredBody); err != nil {
		in.Discard()
		return err
	}
	e := &queue.Entry{ID: mail.NewID(), Env: mail.Envelope{From: address.Address{Local: fmt.Sprintf("sender%d", i%5000), Domain: "sender.test"},
		Arrived: time.Now().Add(-2 * time.Hour)}}
	for r := range rcpts {
		n := i*rcpts + r
		a := address.Address{Local: fmt.Sprintf("user%d", n), Domain: fmt.Sprintf("d%d.%s", n%deferredSites, deadDomain)}
		e.Env.Rcpts = append(e.Env.Rcpts, mail.Recipient{To: a, Orig: a})
		e.Status = append(e.Status, queue.RcptStatus{Attempts: 3, Next: due.Add(time.Duration(n%3600) * deferredSpan / 3600), Reason: mail.ReasonConnectRefused,
			Text: "dial tcp " + deadIP + ":25: connect: connection refused"})
	}
	return in.Commit(e, []byte("Received: from client.test\r\n"))
}
