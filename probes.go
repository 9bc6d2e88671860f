package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"blitiri.com.ar/go/chasquid/internal/supervise"
)

// probes are what feeds systemd's watchdog: each sees that a part that mail cannot flow without does something, not only that it could.
func (s *server) probes() []supervise.Probe {
	return []supervise.Probe{
		{Name: "queue", Check: func(ctx context.Context) error { return s.queue.Probe(ctx) }},
		{Name: "disk", Check: s.probeDisk},
		{Name: "listeners", Check: func(ctx context.Context) error {
			if s.up.giving.Load() { // they are closed for a moment, or for good
				return nil
			}
			return within(ctx, func() error { return s.smtp.Stuck(left(ctx)) })
		}},
	}
}

// probeDisk finds a write or flush that takes longer than the watchdog has patience for.
func (s *server) probeDisk(ctx context.Context) error {
	store := s.store.Load()
	if store == nil {
		return nil
	}
	if d := store.Stalled(); d > left(ctx) {
		return fmt.Errorf("a flush of the queue has been under way for %v", d.Round(time.Millisecond))
	}
	return nil
}

// left is how much time there is until ctx ends.
func left(ctx context.Context) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return time.Until(end)
	}
	return time.Minute
}

// within calls f, and gives up waiting for it when ctx ends.
func within(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("there is no answer")
	}
}
