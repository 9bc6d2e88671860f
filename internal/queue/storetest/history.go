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
	s     Subject
	mem   *vfs.Mem
	st    queue.Store
	m     *model
	n     int
	full  bool
	fault int // operations until one fails; 0: none will
	how   fault
	hit   bool // one failed since the store was opened
}

// Histories runs random histories against a model: the part of the suite that profits most from other sizes and more time
// (-rapid.checks).
func Histories(t *testing.T, s Subject) {
	if s.Care == nil {
		s.Care = func(queue.Store) {}
	}
	s.testHistories(t)
}

func (s Subject) testHistories(t *testing.T) {
	if s.Sizes == nil {
		s.Sizes = []int{0, 10, 3000, 20_000, 66_000, 131_072, s.Large}
	}
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
			actions["restart"], actions["crash"], actions["space"], actions["fault"] = h.restart, h.crash, h.space, h.breakDisk
		}
		t.Repeat(actions)
	})
}

func (h *history) open(t *rapid.T) {
	h.fault, h.hit = 0, false
	mem := h.mem
	st, err := h.s.Open(vfs.Hook(mem, func(op vfs.Op) error {
		if mem != h.mem || h.fault == 0 || h.how.hit(op) == nil || !op.Verb.Changes() {
			return nil
		}
		if h.fault--; h.fault > 0 {
			return nil
		}
		h.hit = true
		return h.how.hit(op)
	}))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	h.st = st
}

// tolerate fails the test for an error that nothing excuses.
func (h *history) tolerate(t *rapid.T, err error) {
	if err != nil && !h.hit && !(h.full && errors.Is(err, queue.ErrFull)) {
		t.Fatal(err)
	}
}

// breakDisk lets one of the next operations on files fail.
func (h *history) breakDisk(t *rapid.T) {
	h.how = rapid.SampledFrom(faults).Draw(t, "fault")
	h.fault = rapid.IntRange(1, 6).Draw(t, "after")
}

func (h *history) commit(t *rapid.T) {
	h.n++
	size := rapid.SampledFrom(h.s.Sizes).Draw(t, "size")
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
	err := h.s.run(h.st, h.m, h.n, step{do: "discard", size: rapid.SampledFrom(h.s.Sizes).Draw(t, "size")})
	h.tolerate(t, err)
}

func (h *history) restart(t *rapid.T) {
	if err := h.st.Close(); err != nil && !h.hit {
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
	h.st.Close() // of the store before the crash: it has another disk now
	h.open(t)
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
