package sts

import (
	"context"
	"runtime/debug"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Run refreshes the policies, at once and then every ten minutes, until ctx ends.
func (c *Cache) Run(ctx context.Context) {
	for ctx.Err() == nil {
		c.refreshSafely(ctx)
		select {
		case <-time.After(refreshEvery):
		case <-ctx.Done():
		}
	}
}

// refreshSafely outlives whatever is in a policy.
func (c *Cache) refreshSafely(ctx context.Context) {
	defer func() {
		if r := recover(); r != nil {
			log.Errorf("sts: panic refreshing: %v\n%s", r, debug.Stack())
		}
	}()
	c.refresh(ctx)
}

// refresh looks at every domain that has a policy here, one after the other.
func (c *Cache) refresh(ctx context.Context) {
	ctx, span := trace.Start(ctx, trace.STS, "refresh")
	defer span.Finish()
	c.m.refreshCycles.Inc()
	domains, err := c.known()
	if err != nil {
		c.m.ioErrors.Inc()
		span.Errorf("listing the cache: %w", err)
	}
	for _, d := range domains {
		if ctx.Err() != nil {
			return
		}
		c.refreshOne(ctx, d)
	}
	c.m.lastRefresh.Set(float64(time.Now().Unix()))
}

// known returns the domains with a file, or with a policy in memory if there are no files.
func (c *Cache) known() ([]string, error) {
	if c.files.dir != "" {
		return c.files.list()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []string
	for d, e := range c.entries.All() {
		e.mu.Lock()
		if e.policy != nil {
			l = append(l, d)
		}
		e.mu.Unlock()
	}
	return l, nil
}

// refreshOne fetches the policy of a domain if it may be new.
func (c *Cache) refreshOne(ctx context.Context, domain string) {
	ctx, cancel := context.WithTimeout(ctx, refreshBudget)
	defer cancel()
	e := c.entry(domain)
	select {
	case e.busy <- struct{}{}:
		defer func() { <-e.busy }()
	case <-ctx.Done():
		return
	}
	c.load(e, domain)
	now := time.Now()
	if !e.due(now) || now.Sub(e.checkedAt()) < min(e.age()/2, maxUnchecked) && e.sameID(ctx, c.cfg.Resolver, domain) {
		return
	}
	c.m.refreshes.Inc()
	e.forgetID()
	if _, err := c.update(ctx, e, domain); err != nil || e.checkedAt().Before(now) {
		c.m.refreshErrors.Inc()
	}
}

// due reports a policy that is worth a refresh: not one that expired long ago and is not used.
func (e *entry) due(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.policy != nil && (now.Sub(e.expires) < deadAfter || now.Sub(e.used) < deadAfter)
}

func (e *entry) checkedAt() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.checked
}

func (e *entry) age() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.policy.MaxAge
}

// forgetID makes the next update fetch.
func (e *entry) forgetID() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.id = ""
}
