package fault

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestSIGKILL kills the server at random moments while mail flows.
func TestSIGKILL(t *testing.T) {
	tr := newTraffic(t, "", "")
	n := rounds(8)
	for range n {
		tr.more(between())
		time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
		tr.kill(time.Now())
		tr.start()
	}
	tr.settle(fmt.Sprintf("%d kills", n))
}
