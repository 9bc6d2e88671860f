package mail

import (
	"regexp"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestMakeID(t *testing.T) {
	for _, c := range []struct {
		micros uint64
		random uint32
		want   ID
	}{
		{0, 0, "0000000000000000"},
		{0, 1, "0000000000000001"},
		{0, 1<<29 - 1, "0000000000fzzzzz"},
		{0, 1<<32 - 1, "0000000000fzzzzz"},
		{1, 0, "0000000000g00000"},
		{1<<31 - 1, 0, "0000zzzzzzg00000"},
		{1 << 31, 0, "0001000000000000"},
		{1<<51 - 1, 1<<29 - 1, "zzzzzzzzzzzzzzzz"},
	} {
		if got := makeID(c.micros, c.random); got != c.want {
			t.Errorf("makeID(%d, %d) = %s, want %s", c.micros, c.random, got, c.want)
		}
	}
}

func TestNewID(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-hjkmnp-tv-z]{16}$`)
	var all []ID
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ids := make([]ID, 2000)
			for i := range ids {
				ids[i] = NewID()
			}
			if !slices.IsSorted(ids) {
				t.Error("ids of one goroutine are not in order")
			}
			mu.Lock()
			all = append(all, ids...)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(all)
	if n := len(slices.Compact(slices.Clone(all))); n != 16000 {
		t.Errorf("%d different ids of 16000", n)
	}
	if !form.MatchString(string(all[0])) {
		t.Errorf("unexpected form %q", all[0])
	}
}

// TestNewIDOrder: ids sort by the time they were made, over years.
func TestNewIDOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		last := ID("")
		time.Sleep(27 * 365 * 24 * time.Hour) // the bubble begins in 2000, the ids in 2020
		for d := time.Microsecond; d < 20*365*24*time.Hour; d *= 3 {
			id := NewID()
			if id <= last {
				t.Fatalf("%s after %s", id, last)
			}
			last = id
			time.Sleep(d)
		}
		lastID.Store(0)
	})
}

func TestDeriveID(t *testing.T) {
	at := time.UnixMicro(idEpoch + 1)
	if a, b := DeriveID(at, []byte{0, 0, 0, 1}), makeID(1, 1); a != b {
		t.Errorf("%s, want %s", a, b)
	}
	if a, b := DeriveID(at, []byte{1, 2, 3, 4, 5}), DeriveID(at, []byte{1, 2, 3, 5}); a == b || len(a) != 16 {
		t.Errorf("%s, %s", a, b)
	}
	if got := DeriveID(time.Time{}, make([]byte, 4)); got != makeID(0, 0) {
		t.Errorf("%s", got)
	}
}
