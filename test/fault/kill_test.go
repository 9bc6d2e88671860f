package fault

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// kills is how often the server is killed: CHASQUID_FAULT_ROUNDS, or ten.
func kills() int {
	if n, err := strconv.Atoi(os.Getenv("CHASQUID_FAULT_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return 10
}

// TestSIGKILL kills the server at random moments while mail flows, and checks that every acknowledged message is delivered whole.
func TestSIGKILL(t *testing.T) {
	s := harness.New(t, harness.Options{})
	s.Start()
	l := NewLedger()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	size := func() int { return 100 + rand.IntN(20000) }
	for range 8 {
		wg.Go(func() { l.Sender(s.SMTP, "m", "user@example.test", size, stop) })
	}
	wanted := 100 // acknowledged messages between two kills
	for i := range kills() {
		target := (i + 1) * wanted
		harness.WaitFor(t, 60*time.Second, "more messages acknowledged", func() bool { return l.Accepted() >= target })
		time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
		s.Kill()
		s.Start()
	}
	close(stop)
	wg.Wait()
	all := func() []string {
		var out []string
		for _, m := range s.Maildir("user@example.test") {
			out = append(out, m)
		}
		return out
	}
	deadline := time.Now().Add(60 * time.Second)
	v := l.Judge(all())
	for v.Lost > 0 && time.Now().Before(deadline) {
		time.Sleep(200 * time.Millisecond)
		v = l.Judge(all())
	}
	t.Logf("%d kills: %d acknowledged, %d delivered, %d lost, %d torn, %d twice; refusals %v", kills(), v.Accepted, v.Delivered, v.Lost, v.Torn, v.Duplicates, l.Replies())
	if v.Lost > 0 || v.Torn > 0 {
		t.Errorf("lost %d (%.5q), torn %d", v.Lost, v.LostIDs, v.Torn)
	}
	// At most what was being delivered at each kill may come twice.
	if most := kills() * maxInFlight; v.Duplicates > most {
		t.Errorf("%d came twice, more than the %d that can have been in flight", v.Duplicates, most)
	}
}

// maxInFlight bounds the local deliveries under way at one moment.
const maxInFlight = 100
