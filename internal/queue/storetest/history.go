package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// history is a store under random operations, with the model beside it.
type history struct {
	s    Subject
	mem  *vfs.Mem
	st   queue.Store
	m    *model
	n    int
	full bool
}

// testHistories runs random histories against the model.
func (s Subject) testHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{s: s, mem: vfs.NewMem(), m: newModel()}
		h.open(t)
		defer func() { h.st.Close() }()
		actions := map[string]func(*rapid.T){
			"commit": h.commit, "update": h.update, "remove": h.remove, "discard": h.discard,
			"care": func(*rapid.T) { s.Care(h.st) },
			"":     h.check,
		}
		if s.Durable {
			actions["restart"], actions["crash"], actions["space"] = h.restart, h.crash, h.space
		}
		t.Repeat(actions)
	})
}

func (h *history) open(t *rapid.T) {
	st, err := h.s.Open(h.mem)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	h.st = st
}

// tolerate fails the test for an error that a disk that is not full does not excuse.
func (h *history) tolerate(t *rapid.T, err error) {
	if err != nil && !(h.full && errors.Is(err, queue.ErrFull)) {
		t.Fatal(err)
	}
}

func (h *history) commit(t *rapid.T) {
	h.n++
	size := rapid.SampledFrom([]int{0, 10, 3000, 20_000, 66_000, 131_072, h.s.Large}).Draw(t, "size")
	id := mail.ID(fmt.Sprintf("h%d", h.n))
	h.tolerate(t, h.m.commit(h.st, id, rapid.IntRange(1, 3).Draw(t, "recipients"), "p", text(h.n, size)))
}

func (h *history) pick(t *rapid.T) mail.ID {
	living := h.m.living()
	if len(living) == 0 {
		t.Skip("no messages")
	}
	return rapid.SampledFrom(living).Draw(t, "id")
}

func (h *history) update(t *rapid.T) {
	h.n++
	id := h.pick(t)
	var which []int
	for r := range h.m.items[id].rcpts {
		if rapid.Bool().Draw(t, "recipient") {
			which = append(which, r)
		}
	}
	h.tolerate(t, h.m.update(h.st, id, h.n, which...))
}

func (h *history) remove(t *rapid.T) { h.tolerate(t, h.m.remove(h.st, h.pick(t))) }

func (h *history) discard(t *rapid.T) {
	h.n++
	err := h.s.run(h.st, h.m, h.n, step{do: "discard", size: rapid.SampledFrom([]int{10, 70_000, h.s.Large}).Draw(t, "size")})
	h.tolerate(t, err)
}

func (h *history) restart(t *rapid.T) {
	if err := h.st.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	h.open(t)
	h.settle(t)
}

func (h *history) crash(t *rapid.T) {
	switch seed := rapid.Uint64Range(0, 1000).Draw(t, "seed"); {
	case seed < 200:
		h.mem = h.mem.Kill()
	case seed < 400:
		h.mem = h.mem.PowerCut(nil)
	default:
		h.mem = h.mem.PowerCut(rand.New(rand.NewPCG(seed, 1)))
	}
	old := h.st
	h.open(t)
	old.Close()
	h.settle(t)
}

// space makes the disk full, or not.
func (h *history) space(t *rapid.T) {
	h.full = !h.full
	if h.full {
		h.mem.SetCapacity(h.mem.Used() + rapid.Int64Range(0, 200_000).Draw(t, "free"))
	} else {
		h.mem.SetCapacity(0)
	}
}

func (h *history) check(t *rapid.T) {
	if err := h.m.check(h.st, false); err != nil {
		t.Fatal(err)
	}
}

func (h *history) settle(t *rapid.T) {
	if err := h.m.check(h.st, true); err != nil {
		t.Fatalf("after a restart: %v", err)
	}
}
