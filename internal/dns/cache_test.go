package dns_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns"
	miekg "github.com/miekg/dns"
)

// TestTTL: answers, positive and negative, are kept for their time and no longer.
func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}})
		asked := map[string]int{}
		c.SetExchange(func(_ context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
			name := q.Question[0].Name
			asked[name]++
			m := new(miekg.Msg)
			m.SetReply(q)
			switch name {
			case "zero.example.":
				m.Answer = []miekg.RR{rr(`zero.example. 0 TXT x`)}
			case "minute.example.":
				m.Answer = []miekg.RR{rr(`minute.example. 60 TXT x`)}
			case "year.example.":
				m.Answer = []miekg.RR{rr(`year.example. 31536000 TXT x`)}
			case "none.example.":
				m.Rcode = miekg.RcodeNameError
				m.Ns = []miekg.RR{rr(`example. 900 SOA ns. root. 1 2 3 4 30`)}
			case "nosoa.example.":
			}
			return m, nil
		})
		for _, s := range []struct {
			name string
			kept time.Duration
		}{
			{"zero.example", time.Second}, {"minute.example", time.Minute}, {"year.example", 24 * time.Hour},
			{"none.example", 30 * time.Second}, {"nosoa.example", time.Minute},
		} {
			c.TXT(bg, dns.Other, s.name)
			time.Sleep(s.kept - time.Millisecond)
			_, meta, _ := c.TXT(bg, dns.Other, s.name)
			if meta.TTL != time.Millisecond {
				t.Errorf("%s: TTL left %v", s.name, meta.TTL)
			}
			if asked[s.name+"."] != 1 {
				t.Errorf("%s asked again before its time", s.name)
			}
			time.Sleep(2 * time.Millisecond)
			c.TXT(bg, dns.Other, s.name)
			if asked[s.name+"."] != 2 {
				t.Errorf("%s: asked %d times after its time", s.name, asked[s.name+"."])
			}
		}
	})
}

// TestOneAsks: many want the same, one asks; if it is cancelled, another does.
func TestOneAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}})
		var tries atomic.Int32
		c.SetExchange(func(ctx context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
			tries.Add(1)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			m := new(miekg.Msg)
			m.SetReply(q)
			m.Answer = []miekg.RR{rr(`x.example. 60 TXT x`)}
			return m, nil
		})
		first, cancel := context.WithCancel(bg)
		var wg sync.WaitGroup
		var failed, good atomic.Int32
		for i := range 20 {
			ctx := bg
			if i == 0 {
				ctx = first
			}
			wg.Go(func() {
				if _, _, err := c.TXT(ctx, dns.Other, "x.example"); err != nil {
					failed.Add(1)
				} else {
					good.Add(1)
				}
			})
			synctest.Wait()
		}
		time.Sleep(500 * time.Millisecond)
		cancel()
		wg.Wait()
		if tries.Load() != 2 || failed.Load() != 1 || good.Load() != 19 {
			t.Errorf("%d tries, %d failed, %d good", tries.Load(), failed.Load(), good.Load())
		}
	})
}

// TestN3CacheBounded: strangers' names do not grow the cache beyond its limits, in number and in bytes.
func TestN3CacheBounded(t *testing.T) {
	c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}, MaxEntries: 320, MaxBytes: 1 << 20})
	long := strings.Repeat("y", 250)
	c.SetExchange(func(_ context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		m := new(miekg.Msg)
		m.SetReply(q)
		for range 10 {
			m.Answer = append(m.Answer, &miekg.TXT{Hdr: miekg.RR_Header{Name: q.Question[0].Name, Rrtype: miekg.TypeTXT, Class: 1, Ttl: 600}, Txt: []string{long}})
		}
		return m, nil
	})
	for i := range 5000 {
		c.TXT(bg, dns.Other, fmt.Sprintf("n%d.example", i))
	}
	entries, bytes, _, _, evicted := c.CacheStats()
	if entries > 320 || bytes > 1<<20 || evicted < 4000 || entries < 100 {
		t.Errorf("%d entries, %d bytes, %d evicted", entries, bytes, evicted)
	}
}

// TestCacheBytes: the bound in bytes holds by itself.
func TestCacheBytes(t *testing.T) {
	c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}, MaxEntries: 1 << 20, MaxBytes: 1 << 18})
	c.SetExchange(answerTXT(strings.Repeat("y", 250)))
	for i := range 3000 {
		c.TXT(bg, dns.Other, fmt.Sprintf("n%d.example", i))
	}
	if entries, bytes, _, _, evicted := c.CacheStats(); bytes > 1<<18 || entries < 100 || evicted == 0 {
		t.Errorf("%d entries, %d bytes, %d evicted", entries, bytes, evicted)
	}
}

// TestCacheOrder: what is in use stays while other names come and go.
func TestCacheOrder(t *testing.T) {
	c := newClient(t, dns.Config{Servers: []string{"192.0.2.53"}, MaxEntries: 64})
	asked := 0
	answer := answerTXT("x")
	c.SetExchange(func(ctx context.Context, s string, tcp bool, d time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		if q.Question[0].Name == "used.example." {
			asked++
		}
		return answer(ctx, s, tcp, d, q)
	})
	for i := range 1000 {
		c.TXT(bg, dns.Other, "used.example")
		c.TXT(bg, dns.Other, fmt.Sprintf("n%d.example", i))
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func answerTXT(text string) func(context.Context, string, bool, time.Duration, *miekg.Msg) (*miekg.Msg, error) {
	return func(_ context.Context, _ string, _ bool, _ time.Duration, q *miekg.Msg) (*miekg.Msg, error) {
		m := new(miekg.Msg)
		m.SetReply(q)
		m.Answer = []miekg.RR{&miekg.TXT{Hdr: miekg.RR_Header{Name: q.Question[0].Name, Rrtype: miekg.TypeTXT, Class: 1, Ttl: 600}, Txt: []string{text}}}
		return m, nil
	}
}
