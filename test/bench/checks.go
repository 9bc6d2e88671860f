package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// check is a measurement of our server beside the table of loads; it prints what it found and returns verdicts.
type check func(ctx context.Context, o options, s *sink, dir string) ([]string, error)

// runChecks runs the chosen checks and prints their verdicts.
func runChecks(ctx context.Context, o options, s *sink, dir string) error {
	all := map[string]check{"slow": checkSlowFlush, "idle": checkIdle, "deferred": checkDeferred, "monitoring": checkMonitoring}
	var out []string
	for name := range strings.SplitSeq(o.checks, ",") {
		if name == "" || name == "none" {
			continue
		}
		c := all[name]
		if c == nil {
			return fmt.Errorf("no check %q", name)
		}
		sub := filepath.Join(dir, "check-"+name)
		if err := os.MkdirAll(sub, 0755); err != nil {
			return err
		}
		vs, err := c(ctx, o, s, sub)
		if err != nil {
			return fmt.Errorf("check %s: %w", name, err)
		}
		out = append(out, vs...)
	}
	if len(out) > 0 {
		fmt.Println("\nverdicts of further checks")
		for _, v := range out {
			fmt.Println(" ", v)
		}
	}
	return nil
}

const slowFlush = 2 * time.Millisecond

// checkSlowFlush measures with 2 ms added to every flush, next to the floor and to a design that flushes every message by itself,
// on the same slow disk.
func checkSlowFlush(ctx context.Context, o options, s *sink, dir string) ([]string, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	delay := slowFlush.String()
	servers := []server{
		{"floor", floorServer("-floor-delay", delay)},
		{"file each", floorServer("-floor-delay", delay, "-floor-each")},
		{"chasquid", chasquidServer(bin, o.extra, "-testing__flush_delay="+delay)},
	}
	loads := []load{
		{Name: "100 clients, slow disk", Clients: 100, PerConn: 100, Size: 4 << 10, Recipients: 1},
		{Name: "1 client, slow disk", Clients: 1, PerConn: 1000, Size: 4 << 10, Recipients: 1},
	}
	var rs []result
	for round := range o.rounds {
		for _, ld := range loads {
			ld.Duration = o.duration
			for _, srv := range servers {
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
	many, one := loads[0].Name, loads[1].Name
	a, _ := ratio(rs, "chasquid", "file each", many, endToEnd)
	b, _ := ratio(rs, "chasquid", "floor", one, func(r result) float64 { return r.AcceptRate })
	p50 := medianOf(pick(rs, "chasquid", one), func(r result) float64 { return r.P50.Seconds() })
	return []string{
		verdict("end to end / file each", many, a, 10, false),
		verdict("accepted / floor", one, b, 0.7, false),
		verdict("flushes a reply takes", one, p50/slowFlush.Seconds(), 2, true),
	}, nil
}
