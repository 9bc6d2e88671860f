// Command bench measures a mail server between a source and a sink of its own, next to peers, all in one run.
//
// Absolute figures depend on the machine; the ratios between servers that ran in turn, again and again, are what counts.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type options struct {
	bin, servers, scenarios, jsonOut, svgOut, extra string
	rounds                                          int
	duration                                        time.Duration
	custom                                          load
	checks                                          string
	deferred, deferredPer                           int
	keep                                            bool
	profile                                         string
}

// scenarios are the loads of the published table.
var scenarios = []load{
	{Name: "1 client", Clients: 1, PerConn: 1, Size: 4 << 10, Recipients: 1},
	{Name: "20 clients", Clients: 20, PerConn: 1, Size: 4 << 10, Recipients: 1},
	{Name: "100 clients", Clients: 100, PerConn: 1, Size: 4 << 10, Recipients: 1},
	{Name: "20 clients, 100 per connection", Clients: 20, PerConn: 100, Size: 4 << 10, Recipients: 1},
	{Name: "20 clients, 100 KB", Clients: 20, PerConn: 1, Size: 100 << 10, Recipients: 1},
}

// result is one server under one load.
type result struct {
	Server, Scenario   string
	Round              int
	Accepted           int
	AcceptRate         float64 // messages acknowledged a second
	EndToEndRate       float64 // recipients served at the sink a second, until the last arrived
	P50, P99           time.Duration
	Missing, Duplicate int
	Errors             int
	CPUPerMessage      time.Duration
	LoadCPUPerMessage  time.Duration // of the source and the sink
	Switches           float64       // of the server's threads that went to sleep, a message
	RSS                int64
	Connections        int64 // to the sink
}

func main() {
	var o options
	floorAddr := flag.String("floor", "", "run the floor server on this address (used by the benchmark itself)")
	floorNext := flag.String("floor-next", "", "next hop of the floor server")
	floorFile := flag.String("floor-file", "", "file of the floor server")
	floorDelay := flag.Duration("floor-delay", 0, "time that each flush of the floor server takes longer")
	floorEach := flag.Bool("floor-each", false, "let the floor server keep and flush a file per message")
	flag.StringVar(&o.bin, "bin", "./chasquid", "the chasquid binary to measure")
	flag.StringVar(&o.servers, "servers", "floor,chasquid,postfix,packaged", "servers to measure, in turn")
	flag.StringVar(&o.scenarios, "scenarios", "all", "numbers of the scenarios (1-5), separated by commas; all; none; or custom")
	flag.StringVar(&o.checks, "checks", "slow,idle,deferred,monitoring", "further measurements of our server: slow (flushes), idle (connections), deferred (messages in the queue), monitoring (its cost)")
	flag.IntVar(&o.deferred, "deferred", 1_000_000, "deferred recipients in the check of that name")
	flag.IntVar(&o.deferredPer, "deferred-recipients", 1, "recipients of each deferred message")
	flag.IntVar(&o.rounds, "rounds", 3, "how often the whole is repeated; medians are reported")
	flag.DurationVar(&o.duration, "duration", 4*time.Second, "how long each server is loaded, per scenario and round")
	flag.IntVar(&o.custom.Clients, "clients", 20, "custom: connections at once")
	flag.IntVar(&o.custom.PerConn, "per-connection", 1, "custom: messages per connection")
	flag.IntVar(&o.custom.Size, "size", 4<<10, "custom: bytes per message")
	flag.IntVar(&o.custom.Recipients, "recipients", 1, "custom: recipients per message")
	flag.IntVar(&o.custom.Max, "messages", 0, "custom: messages at the most")
	flag.StringVar(&o.jsonOut, "json", "", "write all results to this file")
	flag.StringVar(&o.svgOut, "svg", "", "write a plot to this file")
	flag.StringVar(&o.extra, "config", "", "lines added to our chasquid.conf")
	flag.StringVar(&o.profile, "profile", "", "write profiles of our server to this directory for each scenario: CPU time, and what was allocated")
	flag.BoolVar(&o.keep, "keep", false, "keep the servers' files and say where they are")
	flag.Parse()
	if *floorAddr != "" {
		fatal(runFloor(&floor{nextHop: *floorNext, path: *floorFile, delay: *floorDelay, each: *floorEach}, *floorAddr))
	}
	if os.Getenv(isolated) == "" {
		if strings.Contains(o.servers, "packaged") {
			bin, err := packagedChasquid(filepath.Join(os.TempDir(), "chasquid-debs"))
			if err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
			}
			os.Setenv("PACKAGED_CHASQUID", bin)
		}
		os.Exit(isolate())
	}
	fatal(run(context.Background(), o))
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (o *options) loads() ([]load, error) {
	if o.scenarios == "custom" {
		o.custom.Name = fmt.Sprintf("%d clients, %d per connection, %d bytes, %d recipients", o.custom.Clients, o.custom.PerConn, o.custom.Size, o.custom.Recipients)
		return []load{o.custom}, nil
	}
	if o.scenarios == "none" {
		return nil, nil
	}
	if o.scenarios == "all" {
		return scenarios, nil
	}
	var ls []load
	for f := range strings.SplitSeq(o.scenarios, ",") {
		var n int
		if _, err := fmt.Sscan(f, &n); err != nil || n < 1 || n > len(scenarios) {
			return nil, fmt.Errorf("no scenario %q", f)
		}
		ls = append(ls, scenarios[n-1])
	}
	return ls, nil
}

func (o *options) chosen() ([]server, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	all := []server{
		{"floor", floorServer()},
		{"chasquid", chasquidServer(bin, o.extra)},
		{"postfix", postfixServer},
		{"packaged", packagedServer(os.Getenv("PACKAGED_CHASQUID"))},
	}
	var out []server
	for f := range strings.SplitSeq(o.servers, ",") {
		i := slices.IndexFunc(all, func(s server) bool { return s.name == f })
		if i < 0 {
			return nil, fmt.Errorf("no server %q", f)
		}
		out = append(out, all[i])
	}
	return out, nil
}

func run(ctx context.Context, o options) error {
	loads, err := o.loads()
	if err != nil {
		return err
	}
	servers, err := o.chosen()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(".", ".bench-")
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if !o.keep {
		defer os.RemoveAll(dir)
	} else {
		fmt.Println("files are in", dir)
	}
	os.Chmod(dir, 0755)
	if err := furnish(dir); err != nil {
		return err
	}
	l, err := net.Listen("tcp", sinkIP+":25")
	if err != nil {
		return err
	}
	s := newSink()
	go s.serve(l)
	var results []result
	for round := range o.rounds {
		for _, ld := range loads {
			ld.Duration = o.duration
			for _, srv := range servers {
				if o.profile != "" && srv.name == "chasquid" {
					base := filepath.Join(o.profile, strings.ReplaceAll(ld.Name, " ", "-"))
					go fetchProfile("profile", base+".pprof", o.duration)
					go fetchProfile("allocs", base+".allocs.pprof", o.duration)
				}
				r, err := measure(ctx, srv, ld, s, filepath.Join(dir, fmt.Sprintf("%s-%d", srv.name, len(results))))
				if err != nil {
					return fmt.Errorf("%s: %w", srv.name, err)
				}
				r.Round = round
				results = append(results, r)
				progress(r)
			}
		}
	}
	report(os.Stdout, results, servers, loads)
	if err := runChecks(ctx, o, s, dir); err != nil {
		return err
	}
	if o.svgOut != "" {
		if err := os.WriteFile(o.svgOut, plot(results, servers, loads), 0644); err != nil {
			return err
		}
	}
	if o.jsonOut != "" {
		b, err := json.MarshalIndent(results, "", " ")
		if err != nil {
			return err
		}
		return os.WriteFile(o.jsonOut, b, 0644)
	}
	return nil
}

func progress(r result) {
	fmt.Fprintf(os.Stderr, "%-9s %-32s accepted %8.0f/s  end to end %8.0f/s  p50 %8v p99 %8v  cpu %6v/msg and %6v here, %4.1f sleeps  rss %4d MB  missing %d dup %d errors %d conns %d\n",
		r.Server, r.Scenario, r.AcceptRate, r.EndToEndRate, r.P50.Round(10*time.Microsecond), r.P99.Round(10*time.Microsecond),
		r.CPUPerMessage.Round(time.Microsecond), r.LoadCPUPerMessage.Round(time.Microsecond), r.Switches, r.RSS>>20, r.Missing, r.Duplicate, r.Errors, r.Connections)
}

// fetchProfile takes a profile of our server while it is loaded.
func fetchProfile(kind, path string, d time.Duration) {
	time.Sleep(time.Second) // the server starts
	resp, err := http.Get(fmt.Sprintf(monitorURL+"/debug/pprof/%s?seconds=%d", kind, max(1, int(d.Seconds())-1)))
	if err == nil {
		defer resp.Body.Close()
		var b []byte
		if b, err = io.ReadAll(resp.Body); err == nil {
			err = os.WriteFile(path, b, 0644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: profile:", err)
	}
}

const drainTime = 120 * time.Second

var messageBase int

// measure runs one server under one load, from start to its last message at the sink.
func measure(ctx context.Context, srv server, ld load, s *sink, dir string) (result, error) {
	if err := os.MkdirAll(dir, 0755); err != nil {
		return result{}, err
	}
	r, err := srv.start(ctx, dir)
	if err != nil {
		return result{}, err
	}
	defer r.stop()
	return measureRunning(ctx, srv.name, r, ld, s)
}

// measureRunning is measure for a server that runs already.
func measureRunning(ctx context.Context, name string, r *running, ld load, s *sink) (result, error) {
	// One message first, so that every look-up has been made once and connections can be reused.
	warm := &source{addr: r.addr, from: "from@sender.test", to: r.to, load: load{Clients: 1, PerConn: 1, Size: 100, Recipients: 1, Max: 1, Duration: 10 * time.Second}}
	s.reset()
	if out := warm.run(ctx); out.firstErr != nil {
		return result{}, fmt.Errorf("first message: %w", out.firstErr)
	}
	waitFor(s, 1)
	s.reset()
	messageBase += 10_000_000
	stop := make(chan struct{})
	peak := make(chan int64, 1)
	go func() { peak <- watchRSS(r.pid, stop) }()
	cpu, own, switches := cpuOf(r.pid), ownCPU(), switchesOf(r.pid)
	src := &source{addr: r.addr, from: "from@sender.test", to: r.to, load: ld, base: messageBase,
		window: r.room, served: func() int64 { return s.total.Load() / int64(ld.Recipients) }}
	out := src.run(ctx)
	waitFor(s, int64(len(out.accepted)*ld.Recipients))
	cpu, own, switches = cpuOf(r.pid)-cpu, ownCPU()-own, switchesOf(r.pid)-switches
	close(stop)
	res := summarise(name, ld, out, s, cpu, <-peak)
	if n := len(out.accepted); n > 0 {
		res.LoadCPUPerMessage, res.Switches = own/time.Duration(n), float64(switches)/float64(n)
	}
	return res, nil
}

// waitFor waits until n recipients were served, or nothing has moved for long.
func waitFor(s *sink, n int64) {
	deadline := time.Now().Add(drainTime)
	for s.total.Load() < n && time.Now().Before(deadline) {
		time.Sleep(2 * time.Millisecond)
	}
}

func summarise(name string, ld load, out *sent, s *sink, cpu time.Duration, rss int64) result {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := result{Server: name, Scenario: ld.Name, Accepted: len(out.accepted), Errors: out.errors, RSS: rss, Connections: s.conns.Load()}
	if out.firstErr != nil {
		fmt.Fprintf(os.Stderr, "%s: first of %d errors: %v\n", name, out.errors, out.firstErr)
	}
	var lastAccept time.Time
	served := 0
	for n, at := range out.accepted {
		if at.After(lastAccept) {
			lastAccept = at
		}
		a := s.arrivals[n]
		served += min(a.copies, ld.Recipients)
		r.Missing += max(0, ld.Recipients-a.copies)
		r.Duplicate += max(0, a.copies-ld.Recipients)
	}
	if len(out.accepted) == 0 {
		return r
	}
	r.AcceptRate = float64(len(out.accepted)) / lastAccept.Sub(out.start).Seconds()
	if last := s.last.Sub(out.start).Seconds(); last > 0 {
		r.EndToEndRate = float64(served) / last
	}
	r.P50, r.P99 = out.delays[len(out.delays)/2], out.delays[len(out.delays)*99/100]
	r.CPUPerMessage = cpu / time.Duration(len(out.accepted))
	return r
}
