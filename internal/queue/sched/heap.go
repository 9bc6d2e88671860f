package sched

import "time"

// The heap of waiting units, by time. A unit knows its place, so it can be taken out from the middle.

func (s *Schedule) less(i, j int) bool { return s.unit(s.heap[i]).due < s.unit(s.heap[j]).due }

func (s *Schedule) swap(i, j int) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.unit(s.heap[i]).place = uint32(i)
	s.unit(s.heap[j]).place = uint32(j)
}

func (s *Schedule) push(k Key) {
	s.heap = append(s.heap, k)
	s.unit(k).place = uint32(len(s.heap) - 1)
	s.up(len(s.heap) - 1)
}

// remove takes the unit at place i out of the heap.
func (s *Schedule) remove(i int) {
	last := len(s.heap) - 1
	if i != last {
		s.swap(i, last)
	}
	s.heap = s.heap[:last]
	if i != last && !s.down(i) {
		s.up(i)
	}
	if cap(s.heap) > 4*chunkSize && len(s.heap) < cap(s.heap)/4 {
		s.heap = append(make([]Key, 0, cap(s.heap)/2), s.heap...)
	}
}

func (s *Schedule) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !s.less(i, p) {
			return
		}
		s.swap(i, p)
		i = p
	}
}

func (s *Schedule) down(i int) (moved bool) {
	for {
		c := 2*i + 1
		if c >= len(s.heap) {
			return moved
		}
		if c+1 < len(s.heap) && s.less(c+1, c) {
			c++
		}
		if !s.less(c, i) {
			return moved
		}
		s.swap(i, c)
		i, moved = c, true
	}
}

// tickMax bounds the work of one Tick.
const tickMax = 512

// Tick makes units ready whose time has come, at most some hundred, and opens dead sites to a probe whose time has come. It returns when
// to call it again: the zero time if there is nothing to wait for, a time not after now if there is more to do at once.
func (s *Schedule) Tick(now time.Time) (wake time.Time) {
	sec := uint32(max(0, now.Unix()))
	for n := 0; n < tickMax && len(s.heap) > 0 && s.unit(s.heap[0]).due <= sec; n++ {
		k := s.heap[0]
		s.remove(0)
		s.ready(k, now)
	}
	for len(s.probes) > 0 && !s.probes[0].probeAt.After(now) {
		s.enqueue(s.probes[0], now)
	}
	if len(s.heap) > 0 {
		wake = fromSeconds(s.unit(s.heap[0]).due)
	}
	if len(s.probes) > 0 && (wake.IsZero() || s.probes[0].probeAt.Before(wake)) {
		wake = s.probes[0].probeAt
	}
	return wake
}

// probeHeap orders dead sites that have work by the time of their next probe.
type probeHeap []*site

func (h *probeHeap) swap(i, j int) {
	a := *h
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}

func (h *probeHeap) push(st *site) {
	*h = append(*h, st)
	st.place = len(*h) - 1
	h.up(st.place)
}

func (h *probeHeap) remove(st *site) {
	i, last := st.place, len(*h)-1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	st.place = -1
	if i < last {
		h.down(i)
		h.up(i)
	}
}

func (h *probeHeap) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !(*h)[i].probeAt.Before((*h)[p].probeAt) {
			return
		}
		h.swap(i, p)
		i = p
	}
}

func (h *probeHeap) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(*h) {
			return
		}
		if c+1 < len(*h) && (*h)[c+1].probeAt.Before((*h)[c].probeAt) {
			c++
		}
		if !(*h)[c].probeAt.Before((*h)[i].probeAt) {
			return
		}
		h.swap(i, c)
		i = c
	}
}
