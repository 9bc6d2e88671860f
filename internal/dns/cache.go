package dns

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

var errBadRecords = errors.New("only malformed records")

// key names a question.
type key struct {
	qtype uint16
	name  string // canonical
}

// entry is an answer. It is not changed once it is in the cache, except for its place in the list.
type entry struct {
	mx    []MX
	ips   []netip.Addr
	texts []string // TXT and PTR
	tlsa  []TLSA

	err     error
	ttl     time.Duration // as the server said
	expires time.Duration // since the client's epoch
	secure  bool
	count   int // records seen

	key        key
	cost       int
	prev, next *entry
}

func (e *entry) meta(now time.Duration) Meta {
	return Meta{TTL: max(e.expires-now, 0), Secure: e.secure}
}

// String says what the answer is, for traces.
func (e *entry) String() string {
	switch {
	case e.err != nil:
		return e.err.Error()
	case e.mx != nil:
		return fmt.Sprint(e.mx)
	case e.ips != nil:
		return fmt.Sprint(e.ips)
	case e.tlsa != nil:
		return fmt.Sprintf("%d TLSA, secure %t", len(e.tlsa), e.secure)
	}
	return fmt.Sprintf("%.300q", e.texts)
}

// size is about what the answer costs in memory.
func (e *entry) size() int {
	n := 320 + 2*len(e.key.name) + 32*len(e.mx) + 24*len(e.ips) + 16*len(e.texts) + 48*len(e.tlsa)
	for _, m := range e.mx {
		n += len(m.Host)
	}
	for _, t := range e.texts {
		n += len(t)
	}
	for _, t := range e.tlsa {
		n += len(t.Data)
	}
	return n
}

// numShards is how many locks the cache has.
const numShards = 16

// cache keeps answers, bounded in number and in memory; the least recently used go first.
type cache struct {
	seed   maphash.Seed
	shards [numShards]shard
}

type shard struct {
	mu       sync.Mutex
	entries  map[key]*entry
	flights  map[key]*flight
	list     entry // ring: list.next is the most recently used
	cost     int
	maxCost  int
	maxCount int

	hits, misses, evicted uint64
}

// flight is a question being asked.
type flight struct {
	done chan struct{}
	e    *entry // set before done is closed; nil if the caller who asked went away
}

func newCache(entries, bytes int) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		s := &c.shards[i]
		s.entries = map[key]*entry{}
		s.flights = map[key]*flight{}
		s.list.prev, s.list.next = &s.list, &s.list
		s.maxCount = max(entries/numShards, 1)
		s.maxCost = max(bytes/numShards, 1024)
	}
	return c
}

func (c *cache) shard(k key) *shard {
	return &c.shards[maphash.String(c.seed, k.name)%numShards]
}

// get returns the answer if there is one, else the flight that will bring it and whether the caller is the one to ask.
func (c *cache) get(k key, now time.Duration) (_ *entry, _ *flight, lead bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[k]; e != nil {
		if e.expires > now {
			s.hits++
			if s.list.next != e {
				e.unlink()
				s.pushFront(e)
			}
			return e, nil, false
		}
		s.remove(e)
	}
	s.misses++
	if f := s.flights[k]; f != nil {
		return nil, f, false
	}
	f := &flight{done: make(chan struct{})}
	s.flights[k] = f
	return nil, f, true
}

// finish stores the answer, if there is one, and wakes those who wait for it.
func (c *cache) finish(k key, f *flight, e *entry, now time.Duration) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	forgotten := s.flights[k] != f // the cache was flushed since the question was asked
	if !forgotten {
		delete(s.flights, k)
	}
	f.e = e
	close(f.done)
	if e == nil || e.expires <= now || forgotten {
		return
	}
	if old := s.entries[k]; old != nil {
		s.remove(old)
	}
	e.key = k
	e.cost = e.size()
	if e.cost > s.maxCost/4 {
		return // one giant must not push out the rest
	}
	s.entries[k] = e
	s.cost += e.cost
	s.pushFront(e)
	for len(s.entries) > s.maxCount || s.cost > s.maxCost {
		s.remove(s.list.prev)
		s.evicted++
	}
}

func (s *shard) pushFront(e *entry) {
	e.prev, e.next = &s.list, s.list.next
	e.prev.next, e.next.prev = e, e
}

func (e *entry) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
}

func (s *shard) remove(e *entry) {
	e.unlink()
	delete(s.entries, e.key)
	s.cost -= e.cost
}

// stats sums the shards.
func (c *cache) stats() (entries, bytes int, hits, misses, evicted uint64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		entries += len(s.entries)
		bytes += s.cost
		hits += s.hits
		misses += s.misses
		evicted += s.evicted
		s.mu.Unlock()
	}
	return
}

// flush forgets everything, the answers that are under way included: who waits for them gets them, and nobody else.
func (c *cache) flush() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		clear(s.entries)
		clear(s.flights)
		s.list.prev, s.list.next = &s.list, &s.list
		s.cost = 0
		s.mu.Unlock()
	}
}
