package aliases

import (
	"context"
	"sync"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// maxCached is how many answers of the hook a transaction keeps: three look-ups for each of a thousand recipients, and some.
const maxCached = 4096

// answer is what the hook said.
type answer struct {
	targets []target
	err     error
}

// cache keeps the hook's answers of one transaction. A nil cache keeps nothing.
type cache struct {
	mu sync.Mutex
	m  map[address.Address]answer
}

// cacheOf is the cache of a pinned context, nil for others.
func cacheOf(ctx context.Context) *cache {
	if p, ok := ctx.Value(pinKey{}).(*pin); ok {
		return &p.answers
	}
	return nil
}

func (c *cache) get(a address.Address) (ans answer, ok bool) {
	if c == nil {
		return answer{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ans, ok = c.m[a]
	return ans, ok
}

func (c *cache) put(a address.Address, ans answer) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[address.Address]answer{}
	}
	if len(c.m) < maxCached {
		c.m[a] = ans
	}
}
