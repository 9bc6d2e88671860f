package monitoring

import (
	"iter"
	"slices"
)

// ring keeps the last max values.
type ring[T any] struct {
	max  int
	vals []T
	next int
}

func (r *ring[T]) add(v T) {
	if len(r.vals) < r.max {
		r.vals = append(r.vals, v)
		return
	}
	r.vals[r.next%r.max] = v
	r.next++
}

// list returns the values, latest first.
func (r *ring[T]) list() []T {
	l := slices.Concat(r.vals[r.next%max(r.max, 1):], r.vals[:r.next%max(r.max, 1)])
	slices.Reverse(l)
	return l
}

// topk keeps values for the keys that occur most often, in bounded memory: a new key takes the place of the one counted least and
// inherits its count (Space-Saving), so that a key that is frequent in the long run always gets in.
type topk[T any] struct {
	max int
	by  map[string]*counted[T]
}

type counted[T any] struct {
	n int
	v T
}

func newTopk[T any](max int) topk[T] { return topk[T]{max: max, by: map[string]*counted[T]{}} }

// get counts the key once more and returns its value, a new one if it has none.
func (t *topk[T]) get(key string, fresh func() T) (v T, isNew bool) {
	c := t.by[key]
	if c != nil {
		c.n++
		return c.v, false
	}
	c = &counted[T]{v: fresh()}
	if len(t.by) >= t.max {
		least, n := "", 0
		for k, o := range t.by {
			if least == "" && n == 0 || o.n < n {
				least, n = k, o.n
			}
		}
		delete(t.by, least)
		c.n = n
	}
	c.n++
	t.by[key] = c
	return c.v, true
}

// all yields keys and values in no order.
func (t *topk[T]) all() iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		for k, c := range t.by {
			if !yield(k, c.v) {
				return
			}
		}
	}
}
