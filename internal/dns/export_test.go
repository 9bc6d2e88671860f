package dns

import (
	"context"
	"time"

	miekg "github.com/miekg/dns"
)

// SetExchange replaces the way to the servers.
func (c *Client) SetExchange(f func(ctx context.Context, server string, tcp bool, timeout time.Duration, q *miekg.Msg) (*miekg.Msg, error)) {
	c.exchange = f
}

// CacheStats exposes the cache's numbers.
func (c *Client) CacheStats() (entries, bytes int, hits, misses, evicted uint64) {
	return c.cache.stats()
}

var (
	Canonical    = canonical
	Escape       = escape
	UnescapeText = unescapeText
	ReadAnswer   = readAnswer
	ParseHosts   = parseHosts
	ReverseName  = reverseName
)
