package sched

// list is a queue of units, chained through link.
type list struct {
	head, tail Key
	n          int
}

func (s *Schedule) append(l *list, k Key) {
	s.unit(k).link = 0
	if l.n == 0 {
		l.head = k
	} else {
		s.unit(l.tail).link = uint32(k)
	}
	l.tail = k
	l.n++
}

// take removes units from the front of the list until it finds one that is ready, and returns it; 0 if there is none.
func (s *Schedule) take(l *list) Key {
	for l.n > 0 {
		k := l.head
		u := s.unit(k)
		l.head = Key(u.link)
		l.n--
		u.linked = false
		switch u.state {
		case ready:
			return k
		case free:
			s.release(k)
		}
	}
	return 0
}

// ring is a queue in a slice.
type ring[T any] struct {
	buf  []T
	head int
}

func (r *ring[T]) len() int { return len(r.buf) - r.head }

func (r *ring[T]) push(v T) {
	if r.head > 32 && r.head > len(r.buf)/2 {
		n := copy(r.buf, r.buf[r.head:])
		clear(r.buf[n:])
		r.buf, r.head = r.buf[:n], 0
	}
	r.buf = append(r.buf, v)
}

func (r *ring[T]) pop() T {
	var zero T
	v := r.buf[r.head]
	r.buf[r.head] = zero
	r.head++
	if r.head == len(r.buf) {
		r.buf, r.head = r.buf[:0], 0
	}
	return v
}
