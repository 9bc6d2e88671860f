package queue

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(record{}); n > 60 {
		t.Errorf("a record takes %d bytes", n)
	}
	if n := unsafe.Sizeof(ref{}); n > 20 {
		t.Errorf("a recipient takes %d bytes", n)
	}
}

// The index finds what it holds and nothing else, whatever the ids and in whatever order they come and go, also when hashes collide.
func TestIndexProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex()
		model := map[mail.ID]uint32{}
		draw := func() mail.ID {
			return mail.ID(rapid.SampledFrom([]string{"a", "b", "0123456789abcdef", strings.Repeat("x", 40), strings.Repeat("x", 39)}).Draw(t, "id"))
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				id := draw()
				if model[id] != 0 {
					t.Skip()
				}
				e := Entry{ID: id, Env: *envelope("a@x.test", "b@x.test", "c@x.test"), Size: 10}
				e.Env.Rcpts = e.Env.Rcpts[:rapid.IntRange(0, 2).Draw(t, "rcpts")]
				e.Status = make([]RcptStatus, len(e.Env.Rcpts))
				e.Env.Arrived = time.Unix(1_800_000_000, 0)
				model[id] = x.insert(&e, true)
			},
			"remove": func(t *rapid.T) {
				id := draw()
				if model[id] == 0 {
					t.Skip()
				}
				x.remove(model[id])
				delete(model, id)
			},
			"": func(t *rapid.T) {
				for _, id := range []mail.ID{"a", "b", "c", "0123456789abcdef", mail.ID(strings.Repeat("x", 40)), mail.ID(strings.Repeat("x", 39))} {
					if got := x.find(id); got != model[id] {
						t.Fatalf("find(%q) = %d, want %d", id, got, model[id])
					}
					if m := model[id]; m != 0 && x.id(m) != id {
						t.Fatalf("id(%d) = %q, want %q", m, x.id(m), id)
					}
				}
				if x.n != len(model) || x.size != int64(10*len(model)) {
					t.Fatalf("%d messages of %d bytes, want %d", x.n, x.size, len(model))
				}
			},
		})
	})
}

func TestChains(t *testing.T) {
	x := newIndex()
	for i := range 4 { // all with one hash
		e := Entry{ID: mail.ID(fmt.Sprint(i)), Env: *envelope("a@x.test", "b@x.test"), Status: make([]RcptStatus, 1)}
		x.insert(&e, false)
	}
	clear(x.ids)
	prev := uint32(0)
	h := x.hashKey(x.at(1).id)
	for m := uint32(1); m <= 4; m++ {
		x.at(m).chain = prev
		prev = m
	}
	x.ids[h] = prev
	chain := func() (ms []uint32) {
		for m := x.ids[h]; m != 0; m = x.at(m).chain {
			ms = append(ms, m)
		}
		return ms
	}
	for _, c := range []struct {
		out  uint32
		want []uint32
	}{{2, []uint32{4, 3, 1}}, {4, []uint32{3, 1}}, {1, []uint32{3}}, {3, nil}} {
		x.at(c.out).id = x.at(1).id // whose hash is the one of all
		x.unchain(c.out)
		if got := chain(); !slices.Equal(got, c.want) {
			t.Errorf("without %d: %v, want %v", c.out, got, c.want)
		}
	}
	if len(x.ids) != 0 {
		t.Errorf("%d hashes left", len(x.ids))
	}
}

func TestAges(t *testing.T) {
	a, now := ages{}, time.Unix(1_800_000_000, 0)
	if a.oldest(now) != 0 {
		t.Error("an empty queue has an oldest message")
	}
	for i, age := range []time.Duration{time.Second, 6 * time.Minute, 2 * time.Hour, 5 * time.Hour, 30 * time.Hour, 31 * time.Hour} {
		a.add(now.Add(-age), 1)
		if got := a.oldest(now); got > age || got < age-2*ageStep*time.Second {
			t.Errorf("%d: the oldest is %v old, want %v", i, got, age)
		}
	}
	if got, want := a.classes(now), [5]int{1, 1, 1, 1, 2}; got != want {
		t.Errorf("classes %v, want %v", got, want)
	}
	a.add(now.Add(-31*time.Hour), -1)
	if got := a.oldest(now); got > 30*time.Hour {
		t.Errorf("the oldest is %v old after it left", got)
	}
}
