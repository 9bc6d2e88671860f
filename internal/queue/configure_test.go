package queue

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// configure changes the configuration of a running queue.
func (w *world) configure(edit func(*Config)) {
	conf := *w.Queue.conf()
	edit(&conf)
	w.Queue.Configure(conf)
}

// TestConfigureWorkers: more attempts may run at once from then on, and fewer; what runs goes on.
func TestConfigureWorkers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Workers = 1 })
		w.courier.took = time.Minute
		for i := range 6 {
			w.put(envelope("a@them.test", fmt.Sprintf("b@x%d.test", i)))
		}
		synctest.Wait()
		if n := w.Stats().Sending; n != 1 {
			t.Errorf("%d attempts at once, want 1", n)
		}
		w.configure(func(c *Config) { c.Workers = 4 })
		synctest.Wait()
		if n := w.Stats().Sending; n < 3 || n > 4 { // three quarters are for sites that are not known yet
			t.Errorf("%d attempts at once after the change, want 3 or 4", n)
		}
		w.configure(func(c *Config) { c.Workers = 1 })
		time.Sleep(90 * time.Second)
		if n := w.Stats().Sending; n != 1 {
			t.Errorf("%d attempts at once after the second change, want 1", n)
		}
		time.Sleep(10 * time.Minute)
		w.mustBeEmpty()
		w.stop()
	})
}

// TestConfigureSite: the bound of one destination.
func TestConfigureSite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.took = time.Minute
		for range 12 {
			w.put(envelope("a@them.test", "b@x.test"))
		}
		synctest.Wait()
		if n := w.Stats().Sending; n != 5 {
			t.Errorf("%d attempts at once, want 5", n)
		}
		w.configure(func(c *Config) { c.SiteWorkers = 2 })
		time.Sleep(90 * time.Second)
		if n := w.Stats().Sending; n != 2 {
			t.Errorf("%d attempts at once after the change, want 2", n)
		}
		time.Sleep(10 * time.Minute)
		w.mustBeEmpty()
		w.stop()
	})
}

// TestConfigureTimes: messages that wait already are told of and given up by the new times.
func TestConfigureTimes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.DelayNoticeAfter = -1 })
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "x.test" {
				return mail.Outcome{Reason: mail.ReasonNetwork, Err: context.DeadlineExceeded}
			}
			return delivered
		}
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(6 * time.Hour)
		if n := len(w.courier.times("a@them.test")); n != 0 {
			t.Errorf("%d notices while they are off", n)
		}
		w.configure(func(c *Config) { c.DelayNoticeAfter = 5 * time.Hour })
		time.Sleep(2 * time.Minute)
		if n := len(w.courier.times("a@them.test")); n != 1 {
			t.Errorf("%d notices after they were switched on, want 1", n)
		}
		w.configure(func(c *Config) { c.DelayNoticeAfter = -1 })
		w.put(envelope("a@them.test", "c@x.test"))
		time.Sleep(6 * time.Hour)
		if n := len(w.courier.times("a@them.test")); n != 1 || !w.store.has(id) {
			t.Errorf("%d notices after they were switched off, want the 1 from before", n)
		}
		w.configure(func(c *Config) { c.GiveUpAfter = time.Hour })
		time.Sleep(70 * time.Minute) // the next attempt is at most an hour away
		if n := len(w.courier.times("a@them.test")); n != 3 {
			t.Errorf("%d notices after the time to give up was shortened, want one more for each message", n)
		}
		w.mustBeEmpty()
		w.stop()
	})
}

// TestConfigureLimits: the number of messages, and who gets notices that fail.
func TestConfigureLimits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxItems = 1 })
		w.courier.deliver = func(_ context.Context, job *mail.Job, r *mail.Recipient) mail.Outcome {
			switch {
			case r.To.Domain == local:
				return delivered
			case job.Attempt == 1:
				return mail.Outcome{Reason: mail.ReasonNetwork, Err: context.DeadlineExceeded}
			}
			return noUser
		}
		w.put(envelope("a@them.test", "b@x.test"))
		if _, err := w.try(envelope("a@them.test", "b@x.test")); err == nil {
			t.Error("a second message was taken")
		}
		w.configure(func(c *Config) { c.MaxItems = 2; c.DoubleBounceTo = addr("postmaster@us.test") })
		w.put(envelope("a@them.test", "b@x.test"))
		if _, err := w.try(envelope("a@them.test", "b@x.test")); err == nil || w.Stats().Capacity != 2 {
			t.Errorf("a third message: %v, capacity %d", err, w.Stats().Capacity)
		}
		time.Sleep(time.Hour)
		if n := len(w.courier.times("postmaster@us.test")); n != 2 {
			t.Errorf("%d double bounces, want 2", n)
		}
		w.mustBeEmpty()
		w.stop()
	})
}
