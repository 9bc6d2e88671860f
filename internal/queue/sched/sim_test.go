package sched

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// sim runs a schedule against made-up sites on a simulated clock.
type sim struct {
	*testing.T
	s     *Schedule
	now   time.Time
	rnd   *rand.Rand
	ends  endHeap
	hosts map[string]func(s *sim, k Key) (took time.Duration, v Verdict) // by destination

	tries   map[Key][]time.Time
	done    map[Key]time.Time
	running map[string]int
	peak    map[string]int
	starts  []string // destinations in the order of the attempts
}

type end struct {
	at time.Time
	k  Key
	v  Verdict
}

type endHeap []end

func (h endHeap) Len() int           { return len(h) }
func (h endHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h endHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *endHeap) Push(x any)        { *h = append(*h, x.(end)) }
func (h *endHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func newSim(t *testing.T, conf Config) *sim {
	return &sim{T: t, s: New(conf), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), rnd: rand.New(rand.NewPCG(1, 2)),
		hosts: map[string]func(*sim, Key) (time.Duration, Verdict){}, tries: map[Key][]time.Time{}, done: map[Key]time.Time{},
		running: map[string]int{}, peak: map[string]int{}}
}

// host says how a destination behaves: always the same.
func (m *sim) host(name string, took time.Duration, v Verdict) {
	m.hosts[name] = func(*sim, Key) (time.Duration, Verdict) { return took, v }
}

func (m *sim) add(name string, group uint32, solo bool, due time.Time, attempts int) Key {
	d, _ := m.s.Intern(name, "", transportOf(name), m.now)
	k := m.s.Add(Unit{Dest: d, Group: group, Solo: solo, Due: due, Attempts: attempts}, m.now)
	m.s.Release(d)
	delete(m.tries, k) // of an earlier unit of that name
	delete(m.done, k)
	return k
}

func transportOf(name string) mail.Transport {
	switch name {
	case "local":
		return mail.Local
	case "pipe":
		return mail.Command
	}
	return mail.SMTP
}

// run lets the time pass.
func (m *sim) run(d time.Duration) {
	until := m.now.Add(d)
	for {
		wake := m.s.Tick(m.now)
		for {
			k, ok := m.s.Next(m.now)
			if !ok {
				break
			}
			m.begin(k)
		}
		next := until
		if !wake.IsZero() && wake.Before(next) {
			next = wake
		}
		if len(m.ends) > 0 && m.ends[0].at.Before(next) {
			next = m.ends[0].at
		}
		if next.Before(m.now) {
			next = m.now
		}
		if next.Equal(until) && !next.After(m.now) {
			return
		}
		m.now = next
		for len(m.ends) > 0 && !m.ends[0].at.After(m.now) {
			m.finish(heap.Pop(&m.ends).(end))
		}
		if !m.now.Before(until) {
			return
		}
	}
}

func (m *sim) begin(k Key) {
	name := m.s.Name(m.s.DestOf(k))
	h := m.hosts[name]
	if h == nil {
		m.Fatalf("no host %q", name)
	}
	took, v := h(m, k)
	m.tries[k] = append(m.tries[k], m.now)
	m.starts = append(m.starts, name)
	m.running[name]++
	m.peak[name] = max(m.peak[name], m.running[name])
	heap.Push(&m.ends, end{m.now.Add(took), k, v})
}

func (m *sim) finish(e end) {
	m.running[m.s.Name(m.s.DestOf(e.k))]--
	m.s.Done(e.k, e.v, fmt.Sprint("verdict ", e.v), m.now, m.rnd.Float64()*2-1)
	if e.v == Good {
		m.done[e.k] = m.now
		m.s.Remove(e.k)
		return
	}
	m.s.Defer(e.k, m.now.Add(Delay(m.s.Attempted(e.k), 0, m.rnd.Float64()*2-1)), m.now)
}
