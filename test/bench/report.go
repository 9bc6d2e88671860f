package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// pick returns the results of one server under one load, by round.
func pick(rs []result, server, scenario string) []result {
	var out []result
	for _, r := range rs {
		if r.Server == server && r.Scenario == scenario {
			out = append(out, r)
		}
	}
	return out
}

func median[T int | int64 | float64 | time.Duration](vs []T) T {
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	return vs[len(vs)/2]
}

func medianOf[T int | int64 | float64 | time.Duration](rs []result, f func(result) T) T {
	vs := make([]T, len(rs))
	for i, r := range rs {
		vs[i] = f(r)
	}
	return median(vs)
}

// ratio is the median over the rounds of a/b, each pair taken in the same round.
func ratio(rs []result, a, b, scenario string, f func(result) float64) (float64, bool) {
	as, bs := pick(rs, a, scenario), pick(rs, b, scenario)
	var vs []float64
	for i := range min(len(as), len(bs)) {
		if d := f(bs[i]); d > 0 {
			vs = append(vs, f(as[i])/d)
		}
	}
	return median(vs), len(vs) > 0
}

func report(w io.Writer, rs []result, servers []server, loads []load) {
	for _, ld := range loads {
		fmt.Fprintf(w, "\n%s\n", ld.Name)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "server\taccepted/s\tend to end/s\tp50\tp99\tCPU/message\tsource and sink\tpeak memory\tmissing\ttwice\terrors\tof floor\tby CPU\t")
		for _, s := range servers {
			p := pick(rs, s.name, ld.Name)
			of, by := "-", "-"
			if v, ok := ratio(rs, s.name, "floor", ld.Name, endToEnd); ok {
				of = fmt.Sprintf("%.2f", v)
			}
			if v, ok := ratio(rs, "floor", s.name, ld.Name, allCPU); ok {
				by = fmt.Sprintf("%.2f", v)
			}
			fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%v\t%v\t%v\t%v\t%d MB\t%d\t%d\t%d\t%s\t%s\t\n", s.name,
				medianOf(p, func(r result) float64 { return r.AcceptRate }), medianOf(p, endToEnd),
				medianOf(p, func(r result) time.Duration { return r.P50 }).Round(10*time.Microsecond),
				medianOf(p, func(r result) time.Duration { return r.P99 }).Round(10*time.Microsecond),
				medianOf(p, func(r result) time.Duration { return r.CPUPerMessage }).Round(time.Microsecond),
				medianOf(p, func(r result) time.Duration { return r.LoadCPUPerMessage }).Round(time.Microsecond),
				medianOf(p, func(r result) int64 { return r.RSS })>>20, sum(p, func(r result) int { return r.Missing }),
				sum(p, func(r result) int { return r.Duplicate }), sum(p, func(r result) int { return r.Errors }), of, by)
		}
		t.Flush()
	}
	if len(loads) == 0 {
		return
	}
	fmt.Fprintln(w, "\nverdicts (medians of ratios taken round by round)")
	for _, v := range verdicts(rs, loads) {
		fmt.Fprintln(w, " ", v)
	}
}

func endToEnd(r result) float64 { return r.EndToEndRate }

// allCPU is the CPU time of a message, of the server and of the load tool together: on a machine that has nothing else to do, the rate is
// the inverse of it. Other work on the machine changes it less than the rate.
func allCPU(r result) float64 { return (r.CPUPerMessage + r.LoadCPUPerMessage).Seconds() }

func sum(rs []result, f func(result) int) int {
	n := 0
	for _, r := range rs {
		n += f(r)
	}
	return n
}

// verdict says whether a number is what was wanted.
func verdict(name, scenario string, got, want float64, atMost bool) string {
	ok, sign := got >= want, ">="
	if atMost {
		ok, sign = got <= want, "<="
	}
	word := map[bool]string{true: "ok  ", false: "MISS"}[ok]
	return fmt.Sprintf("%s %-28s %-32s %6.2f (wanted %s %.2f)", word, name, scenario, got, sign, want)
}

// verdicts compares our server with the floor and the peers.
func verdicts(rs []result, loads []load) []string {
	var out []string
	add := func(name, scenario string, got, want float64, atMost bool) {
		out = append(out, verdict(name, scenario, got, want, atMost))
	}
	for _, ld := range loads {
		if v, ok := ratio(rs, "chasquid", "floor", ld.Name, endToEnd); ok {
			add("end to end / floor", ld.Name, v, 0.70, false)
		}
		if v, ok := ratio(rs, "chasquid", "floor", ld.Name, func(r result) float64 { return r.P99.Seconds() }); ok {
			add("accept p99 / floor", ld.Name, v, 2, true)
		}
		if ld.Clients != 20 || ld.Size != 4<<10 {
			continue
		}
		if v, ok := ratio(rs, "chasquid", "postfix", ld.Name, endToEnd); ok {
			add("end to end / postfix", ld.Name, v, 4, false)
		}
		if v, ok := ratio(rs, "chasquid", "packaged", ld.Name, endToEnd); ok {
			add("end to end / packaged", ld.Name, v, 6, false)
		}
	}
	lost := 0
	for _, r := range rs {
		if r.Server == "chasquid" {
			lost += r.Missing
		}
	}
	add("acknowledged but missing", "all", float64(lost), 0, true)
	return out
}

// plot draws the end-to-end rates as grouped bars.
func plot(rs []result, servers []server, loads []load) []byte {
	const barH, gap, left, width = 16, 14, 250, 640
	colours := []string{"#8b949e", "#0969da", "#bf8700", "#cf222e"}
	var most float64
	for _, r := range rs {
		most = max(most, r.EndToEndRate)
	}
	height := len(loads)*(len(servers)*barH+gap) + 50
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="#fff"/>`, left+width+80, height)
	y := 10
	for _, ld := range loads {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y+len(servers)*barH/2+4, ld.Name)
		for i, s := range servers {
			v := medianOf(pick(rs, s.name, ld.Name), endToEnd)
			w := v / most * width
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d" fill="#333">%.0f/s</text>`,
				left, y, w, barH-3, colours[i%len(colours)], left+w+4, y+barH-5, v)
			y += barH
		}
		y += gap
	}
	x := left
	for i, s := range servers {
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`, x, y, colours[i%len(colours)], x+16, y+11, s.name)
		x += 110
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}
