package courier

import (
	"sync"
	"time"
)

// poolKey says which connections are interchangeable.
type poolKey struct {
	host   string // the server's name, or address
	port   uint16
	target string // of a smarthost: the user matters
}

// pool keeps connections that wait for the next message. Its lock is never held while the network is used.
type pool struct {
	max  int
	keep time.Duration

	mu     sync.Mutex
	idle   map[poolKey][]*client // the last one was used last
	n      int
	timer  *time.Timer
	closed bool
}

func newPool(max int, keep time.Duration) *pool {
	return &pool{max: max, keep: keep, idle: map[poolKey][]*client{}}
}

// get takes the connection to key that was used last, nil if there is none.
func (p *pool) get(key poolKey) *client {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.idle[key]
	if len(l) == 0 {
		return nil
	}
	c := l[len(l)-1]
	l[len(l)-1] = nil
	p.idle[key] = l[:len(l)-1] // an empty list stays until the next sweep: the connection is about to come back
	p.n--
	return c
}

// has reports whether a connection to key waits.
func (p *pool) has(key poolKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle[key]) > 0
}

// put keeps the connection, or ends it if there are too many.
func (p *pool) put(c *client) {
	p.mu.Lock()
	if p.closed || p.n >= p.max {
		p.mu.Unlock()
		c.quit()
		return
	}
	c.idleSince = time.Now()
	if c.armed.Sub(c.idleSince) < p.keep+quietFor { // else the time for the last reply is longer than it is kept
		c.conn.SetDeadline(time.Time{})
	}
	p.idle[c.key] = append(p.idle[c.key], c)
	p.n++
	if p.timer == nil {
		p.timer = time.AfterFunc(p.keep, p.sweep)
	}
	p.mu.Unlock()
}

// sweep ends the connections that waited long enough, and comes again when the next one is due.
func (p *pool) sweep() {
	p.mu.Lock()
	now := time.Now()
	next := p.keep
	var old []*client
	for key, l := range p.idle {
		i := 0
		for i < len(l) && now.Sub(l[i].idleSince) >= p.keep {
			i++
		}
		old = append(old, l[:i]...)
		if i == len(l) {
			delete(p.idle, key)
			continue
		}
		next = min(next, p.keep-now.Sub(l[i].idleSince))
		p.idle[key] = append([]*client(nil), l[i:]...)
	}
	p.n -= len(old)
	if p.timer = nil; p.n > 0 && !p.closed {
		p.timer = time.AfterFunc(next, p.sweep)
	}
	p.mu.Unlock()
	for _, c := range old {
		c.quit()
	}
}

// close ends all connections; those put later are ended at once.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	var all []*client
	for _, l := range p.idle {
		all = append(all, l...)
	}
	p.idle, p.n = map[poolKey][]*client{}, 0
	p.mu.Unlock()
	for _, c := range all {
		c.quit()
	}
}
