package vitals

import (
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// A window keeps how much each metric of a family grew, minute by minute.
const (
	minutes   = 61  // one hour, and the minute under way
	maxWindow = 250 // metrics of one family
)

type window struct {
	cells   map[string]*tally
	sampled bool
}

type tally struct {
	labels []*dto.LabelPair
	last   float64
	at     time.Duration // when it grew last
	grown  [minutes]float32
	minute int64
}

func newWindow() *window { return &window{cells: map[string]*tally{}} }

func (w *window) sample(f *dto.MetricFamily, mono time.Duration) {
	minute := int64(mono / time.Minute)
	for _, m := range f.GetMetric() {
		var key strings.Builder
		for _, l := range m.GetLabel() {
			key.WriteString(l.GetValue())
			key.WriteByte(0)
		}
		t := w.cells[key.String()]
		if t == nil {
			if len(w.cells) >= maxWindow {
				continue
			}
			t = &tally{labels: m.GetLabel(), minute: minute}
			w.cells[key.String()] = t
			if !w.sampled {
				t.last = value(m) // what was before is not known; what appears later began at zero
			}
		}
		t.forward(minute)
		v := value(m)
		if v > t.last {
			t.grown[minute%minutes] += float32(v - t.last)
			t.at = mono
		}
		t.last = v
	}
	w.sampled = true
}

// forward empties the minutes that have passed since the last sample.
func (t *tally) forward(minute int64) {
	for i := t.minute + 1; i <= minute && i <= t.minute+minutes; i++ {
		t.grown[i%minutes] = 0
	}
	t.minute = max(t.minute, minute)
}

// within sums up the last minutes, the one under way included.
func (t *tally) within(minute int64, last time.Duration) (sum float64) {
	for i := int64(0); i <= int64(last/time.Minute) && i < minutes; i++ {
		if at := minute - i; at >= 0 && at <= t.minute && at > t.minute-minutes {
			sum += float64(t.grown[at%minutes])
		}
	}
	return sum
}

func (t *tally) label(name string) string {
	for _, l := range t.labels {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func (t *tally) fits(match []string) bool {
	for i := 0; i+1 < len(match); i += 2 {
		v, ok := t.label(match[i]), false
		for _, a := range alternatives(match[i+1]) {
			ok = ok || a == v
		}
		if !ok {
			return false
		}
	}
	return true
}

// grew returns how much the metrics of a family that fit grew in the last time, an hour at most. s.mu is held.
func (s *Sampler) grew(family string, last time.Duration, match ...string) (sum float64) {
	minute := int64(s.mono / time.Minute)
	for _, t := range s.windows[family].cells {
		if t.fits(match) {
			sum += t.within(minute, last)
		}
	}
	return sum
}

// grewAt returns when the metrics of a family that fit grew last.
func (s *Sampler) grewAt(family string, match ...string) (at time.Duration) {
	for _, t := range s.windows[family].cells {
		if t.fits(match) {
			at = max(at, t.at)
		}
	}
	return at
}

// grewBy is grew for each value of a label.
func (s *Sampler) grewBy(family, label string, last time.Duration, match ...string) map[string]float64 {
	minute := int64(s.mono / time.Minute)
	by := map[string]float64{}
	for _, t := range s.windows[family].cells {
		if t.fits(match) {
			if n := t.within(minute, last); n > 0 {
				by[t.label(label)] += n
			}
		}
	}
	return by
}

// now returns the present values of a family by a label; "" for one without labels.
func (s *Sampler) now(family, label string) map[string]float64 {
	by := map[string]float64{}
	for _, t := range s.windows[family].cells {
		by[t.label(label)] = t.last
	}
	return by
}
