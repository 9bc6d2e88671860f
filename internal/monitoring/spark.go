package monitoring

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// sparkPoints is how many points a small graph has.
const sparkPoints = 60

// spark draws values as a line with the area below it, as wide as it is given room. Gaps stay empty.
func spark(vals []float32, slots int) template.HTML {
	pts := squeeze(vals, slots)
	top := float32(0)
	for _, v := range pts {
		if v == v {
			top = max(top, v)
		}
	}
	if top == 0 {
		top = 1
	}
	top *= 1.1
	var line, area strings.Builder
	first, last := -1, 0
	for i, v := range pts {
		if v != v {
			first = flushArea(&area, first, last)
			continue
		}
		if first < 0 {
			first = i
			fmt.Fprintf(&area, "M%d,30", i)
			fmt.Fprintf(&line, "M%d,%s", i, coord(v, top))
		} else {
			fmt.Fprintf(&line, "L%d,%s", i, coord(v, top))
		}
		fmt.Fprintf(&area, "L%d,%s", i, coord(v, top))
		last = i
	}
	flushArea(&area, first, last)
	if line.Len() == 0 {
		return `<svg viewBox="0 0 59 30"></svg>`
	}
	return template.HTML(`<svg viewBox="0 -1 ` + strconv.Itoa(sparkPoints-1) + ` 32" preserveAspectRatio="none"><path class="area" d="` + area.String() + `"/><path class="spark" d="` + line.String() + `"/></svg>`)
}

func flushArea(area *strings.Builder, first, last int) int {
	if first >= 0 {
		fmt.Fprintf(area, "L%d,30Z", last)
	}
	return -1
}

func coord(v, top float32) string { return strconv.FormatFloat(30-float64(v/top)*29, 'f', 0, 32) }

// squeeze makes sparkPoints values of what fills slots when it is complete, the latest on the right: the largest of each group stands for it.
func squeeze(vals []float32, slots int) []float32 {
	out := make([]float32, sparkPoints)
	for i := range out {
		out[i] = float32(math.NaN())
	}
	per := slots / sparkPoints
	for i, v := range vals {
		at := sparkPoints - 1 - (len(vals)-1-i)/per
		if v == v && at >= 0 && (out[at] != out[at] || v > out[at]) {
			out[at] = v
		}
	}
	return out
}

// vital is one small graph of the index.
type vital struct {
	Title, Value, Peak string
	Href               string
	Graph              template.HTML
}

// shownVitals are the series of the index and where each leads.
var shownVitals = []struct{ name, href string }{
	{"in_accepted", "/debug/messages"}, {"in_rejected", "/debug/messages?state=refused"}, {"in_p99", "/debug/traces?lat=1&family=" + trace.SMTPTransaction.String()},
	{"auth_failed", "/debug/auth"}, {"queue_items", "/debug/queue"}, {"queue_oldest", "/debug/queue?sort=age"},
	{"out_delivered", "/debug/messages?state=delivered"}, {"out_deferred", "/debug/queue?sort=attempts"}, {"out_bounced", "/debug/messages?state=bounced"},
	{"dns_failed", "/debug/dns"}, {"goroutines", "/debug/goroutines"}, {"rss", "/debug/profiles"},
}

// vitalCards draws them.
func vitalCards(all []vitals.Series) (cards []vital) {
	for _, want := range shownVitals {
		for i := range all {
			if s := &all[i]; s.Name == want.name {
				peak := float32(math.NaN())
				for _, v := range s.Short {
					if v == v && !(peak >= v) {
						peak = v
					}
				}
				cards = append(cards, vital{s.Title, amount(s.Last, s.Unit), amount(peak, s.Unit), want.href, spark(s.Short, 360)})
			}
		}
	}
	return cards
}

// amount renders a value with its unit.
func amount(v float32, unit string) string {
	switch {
	case v != v:
		return "–"
	case unit == "B":
		return byteSize(int64(v))
	case unit == "s":
		return span(time.Duration(float64(v) * 1e9))
	}
	return short(float64(v)) + unit
}

// short renders a number with few digits: 0.25, 7, 1.2k.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'f', 1, 64) + "M"
	case v >= 1e4:
		return strconv.FormatFloat(v/1e3, 'f', 0, 64) + "k"
	case v >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}
