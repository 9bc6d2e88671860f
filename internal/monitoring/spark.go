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
const sparkPoints = 40

// spark draws values as a line over the area below it, as wide as it is given room. Gaps stay empty. One path does both, so that the page
// stays small: each piece begins and ends below its ends, just out of sight at the sides.
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
	var d strings.Builder
	open, y := false, 0
	for i, v := range pts {
		if v != v {
			if open {
				d.WriteString("V33")
			}
			open = false
			continue
		}
		next := 30 - int(v/top*29+0.5)
		switch {
		case !open && i == 0:
			fmt.Fprintf(&d, "M-2 33V%dh2", next)
		case !open:
			fmt.Fprintf(&d, "M%d 33V%d", i, next)
		case next == y:
			d.WriteString("h1")
		default:
			fmt.Fprintf(&d, "l1 %d", next-y)
		}
		open, y = true, next
	}
	if open {
		d.WriteString("h2V33")
	}
	return template.HTML(`<svg viewBox="0 0 ` + strconv.Itoa(sparkPoints-1) + ` 32" preserveAspectRatio="none"><path d="` + d.String() + `"/></svg>`)
}

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
