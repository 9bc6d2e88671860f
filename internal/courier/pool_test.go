package courier

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Each waiting connection has its own 30 seconds; no more wait than may; none is left after close.
func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		ended := map[string]time.Duration{}
		begin := time.Now()
		make1 := func(p *pool, name, host string) {
			ours, theirs := net.Pipe()
			c := newClient(&clientEnv{metrics: newMetrics(nil)}, ours, host, netip.AddrPort{})
			c.key = poolKey{host: host}
			go func() {
				b, _ := io.ReadAll(theirs)
				if string(b) != "QUIT\r\n" {
					t.Errorf("%s ended with %q", name, b)
				}
				mu.Lock()
				defer mu.Unlock()
				ended[name] = time.Since(begin)
			}()
			p.put(c)
		}
		p := newPool(3, 30*time.Second)
		make1(p, "a1", "a")
		time.Sleep(10 * time.Second)
		make1(p, "a2", "a")
		make1(p, "b1", "b")
		make1(p, "too many", "b")
		time.Sleep(25 * time.Second) // 35 s: a1 is gone
		make1(p, "a3", "a")
		time.Sleep(time.Second)
		if c := p.get(poolKey{host: "a"}); c == nil || time.Since(c.idleSince) != time.Second {
			t.Error("not the one that was used last")
		} else {
			p.put(c)
		}
		time.Sleep(14 * time.Second) // 50 s: a2 and b1 are gone, a3 waits since 36 s
		p.close()
		make1(p, "after close", "c")
		synctest.Wait()
		for name, want := range map[string]int{"a1": 30, "too many": 10, "a2": 40, "b1": 40, "a3": 50, "after close": 50} {
			if got := ended[name]; got != time.Duration(want)*time.Second {
				t.Errorf("%s ended after %v, want %d s", name, got, want)
			}
		}
		if len(p.idle) != 0 || p.n != 0 {
			t.Errorf("left: %v", p.idle)
		}
	})
}

// A connection that waits is not timed out by what was left of the time for its last reply.
func TestPoolDeadline(t *testing.T) {
	for _, left := range []time.Duration{time.Second, 29 * time.Second, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer theirs.Close()
			c := newClient(&clientEnv{metrics: newMetrics(nil)}, ours, "mx", netip.AddrPort{})
			c.within(left)
			p := newPool(1, 30*time.Second)
			p.put(c)
			time.Sleep(30*time.Second - 1)
			go theirs.Write([]byte("250 ok\r\n"))
			if c = p.get(c.key); c == nil {
				t.Fatal("it is gone")
			}
			if code, err := c.read(cmdEnd); code != 250 {
				t.Errorf("with %v left: %d, %v", left, code, err)
			}
			p.close()
			ours.Close()
		})
	}
}
