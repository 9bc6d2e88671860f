// Package lru is a map with a bound: it forgets what was used longest ago.
package lru

import "iter"

// Map holds at most a fixed number of entries. It is not safe for concurrent use.
type Map[K comparable, V any] struct {
	max   int
	nodes map[K]*node[K, V]
	root  node[K, V] // of a ring: next is the most recently used, prev the least
}

type node[K comparable, V any] struct {
	key        K
	value      V
	prev, next *node[K, V]
}

// New returns an empty map for at most max entries, at least one.
func New[K comparable, V any](max int) *Map[K, V] {
	if max < 1 {
		max = 1
	}
	m := &Map[K, V]{max: max, nodes: map[K]*node[K, V]{}}
	m.root.prev, m.root.next = &m.root, &m.root
	return m
}

// Len returns the number of entries.
func (m *Map[K, V]) Len() int { return len(m.nodes) }

// Get returns the value and marks it as used now.
func (m *Map[K, V]) Get(k K) (v V, ok bool) {
	n := m.nodes[k]
	if n == nil {
		return v, false
	}
	m.toFront(n)
	return n.value, true
}

// Peek returns the value without marking it as used.
func (m *Map[K, V]) Peek(k K) (v V, ok bool) {
	n := m.nodes[k]
	if n == nil {
		return v, false
	}
	return n.value, true
}

// Put sets the value and marks it as used now. If that made the map exceed its bound, the entry used longest ago is returned and gone.
func (m *Map[K, V]) Put(k K, v V) (oldKey K, old V, evicted bool) {
	if n := m.nodes[k]; n != nil {
		n.value = v
		m.toFront(n)
		return oldKey, old, false
	}
	if len(m.nodes) == m.max {
		n := m.root.prev
		m.unlink(n)
		delete(m.nodes, n.key)
		oldKey, old, evicted = n.key, n.value, true
	}
	n := &node[K, V]{key: k, value: v}
	m.nodes[k] = n
	m.link(n)
	return oldKey, old, evicted
}

// Oldest returns the entry used longest ago, without marking it as used.
func (m *Map[K, V]) Oldest() (k K, v V, ok bool) {
	n := m.root.prev
	if n == &m.root {
		return k, v, false
	}
	return n.key, n.value, true
}

// Remove removes the entry and reports whether there was one.
func (m *Map[K, V]) Remove(k K) bool {
	n := m.nodes[k]
	if n == nil {
		return false
	}
	m.unlink(n)
	delete(m.nodes, k)
	return true
}

// All yields the entries, the most recently used first. The map must not change meanwhile.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for n := m.root.next; n != &m.root; n = n.next {
			if !yield(n.key, n.value) {
				return
			}
		}
	}
}

func (m *Map[K, V]) toFront(n *node[K, V]) {
	m.unlink(n)
	m.link(n)
}

func (m *Map[K, V]) link(n *node[K, V]) {
	n.prev, n.next = &m.root, m.root.next
	n.prev.next, n.next.prev = n, n
}

func (m *Map[K, V]) unlink(n *node[K, V]) {
	n.prev.next, n.next.prev = n.next, n.prev
}
