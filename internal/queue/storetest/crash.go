package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// step is one thing done to a store.
type step struct {
	do    string // commit, update, remove, discard, care
	id    mail.ID
	rcpts int // of a commit
	size  int // of the body
	which []int
}

// script is a short life with everything in it.
func (s Subject) script() []step {
	return []step{
		{do: "commit", id: "a", rcpts: 1, size: 100},
		{do: "commit", id: "b", rcpts: 3, size: 9000},
		{do: "update", id: "b", which: []int{1}},
		{do: "commit", id: "c", rcpts: 1, size: s.Large},
		{do: "remove", id: "a"},
		{do: "update", id: "b", which: []int{0, 1, 2}},
		{do: "discard", size: 70_000},
		{do: "commit", id: "d", rcpts: 2, size: 70_000},
		{do: "remove", id: "c"},
		{do: "care"},
		{do: "update", id: "d", which: []int{0}},
		{do: "commit", id: "e", rcpts: 1, size: 0},
		{do: "remove", id: "b"},
		{do: "discard", size: s.Large},
		{do: "care"},
	}
}

// churn is a longer life, in which most messages go and a few stay: what makes a store clean up.
func (s Subject) churn() (steps []step) {
	id := func(i int) mail.ID { return mail.ID(fmt.Sprintf("m%02d", i)) }
	for i := range 36 {
		size := 30_000 + i*700
		if i%14 == 1 || i%11 == 5 { // some of them stay
			size = 140_000
		}
		steps = append(steps, step{do: "commit", id: id(i), rcpts: 1 + i%3, size: size})
		steps = append(steps, step{do: "update", id: id(i), which: []int{i % (1 + i%3)}})
		if j := i - 3; j >= 0 && j%7 != 1 {
			steps = append(steps, step{do: "remove", id: id(j)})
		} else if j >= 0 {
			steps = append(steps, step{do: "update", id: id(j), which: []int{0}})
		}
		if i%4 == 3 {
			steps = append(steps, step{do: "care"})
		}
	}
	return append(steps, step{do: "update", id: id(1), which: []int{0, 1}}, step{do: "care"}, step{do: "care"})
}

// run does a step; n tells it from others.
func (s Subject) run(st queue.Store, m *model, n int, p step) error {
	switch p.do {
	case "commit":
		return m.commit(st, p.id, p.rcpts, fmt.Sprintf("X-Step: %d\r\n", n), text(n, p.size))
	case "update":
		return m.update(st, p.id, n+1, p.which...)
	case "remove":
		return m.remove(st, p.id)
	case "discard":
		d, err := st.Create()
		if err != nil {
			return err
		}
		defer d.Discard()
		_, err = d.Write([]byte(text(n, p.size)))
		return err
	case "care":
		s.Care(st)
		return nil
	}
	return errors.New("no such step")
}

func (s Subject) testExclusive(t *testing.T) {
	fsys := vfs.NewMem()
	st := s.open(t, fsys)
	if second, err := s.Open(fsys); err == nil {
		t.Error("two stores share the files")
		second.Close()
	} else if !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("second Open: %v", err)
	}
	if err := commit(st, newEntry("a", 1), "", "x"); err != nil {
		t.Errorf("the first store, after the second failed: %v", err)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
	st = s.open(t, fsys)
	if got := ids(t, st); len(got) != 1 {
		t.Errorf("after Close and Open: %v", got)
	}
}

func (s Subject) testRestart(t *testing.T) {
	for name, steps := range map[string][]step{"script": s.script(), "churn": s.churn()} {
		fsys, m := vfs.NewMem(), newModel()
		for n, p := range steps {
			st, err := s.Open(fsys)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.check(st, true); err != nil {
				t.Fatalf("%s, restart before step %d: %v", name, n, err)
			}
			if err := s.run(st, m, n, p); err != nil {
				t.Fatalf("%s, step %d: %v", name, n, err)
			}
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if st := s.open(t, fsys); m.check(st, true) != nil {
			t.Errorf("%s: at the end: %v", name, m.check(st, true))
		}
	}
}

// testCrashes runs the scripts once, and before every operation on files looks at what would be found if it never happened:
// because the process was killed, because the power failed and all that was not flushed is gone, or part of it.
func (s Subject) testCrashes(t *testing.T) {
	for name, steps := range map[string][]step{"script": s.script(), "churn": s.churn()} {
		t.Run(name, func(t *testing.T) {
			mem, m := vfs.NewMem(), newModel()
			ops := 0
			fsys := vfs.Hook(mem, func(op vfs.Op) error {
				if !op.Verb.Changes() || t.Failed() {
					return nil
				}
				if ops++; name == "churn" && ops%5 > 0 && !s.Thorough {
					return nil
				}
				for mode, img := range images(mem, uint64(op.N)) {
					if err := s.survives(img, m.clone(), rand.New(rand.NewPCG(uint64(op.N), 7))); err != nil {
						t.Errorf("crash before operation %d (%s), %s: %v", op.N, op, mode, err)
					}
				}
				return nil
			})
			st, err := s.Open(fsys)
			if err != nil {
				t.Fatal(err)
			}
			for n, p := range steps {
				if err := s.run(st, m, n, p); err != nil {
					t.Fatalf("step %d: %v", n, err)
				}
			}
			if err := st.Close(); err != nil {
				t.Error(err)
			}
			t.Logf("%d operations", ops)
		})
	}
}

func images(mem *vfs.Mem, seed uint64) map[string]*vfs.Mem {
	return map[string]*vfs.Mem{
		"killed":       mem.Kill(),
		"power cut":    mem.PowerCut(nil),
		"power cut, A": mem.PowerCut(rand.New(rand.NewPCG(seed, 1))),
		"power cut, B": mem.PowerCut(rand.New(rand.NewPCG(seed, 2))),
	}
}

// errCrashed is what a machine without power answers.
var errCrashed = errors.New("crashed")

// survives opens a store from a crash image and checks it, and again after it has worked a little. Now and then another crash
// interrupts the recovery from the first.
func (s Subject) survives(img *vfs.Mem, m *model, rng *rand.Rand) error {
	if rng.IntN(3) == 0 {
		img = s.crashAgain(img, rng)
	}
	st, err := s.Open(img)
	if err != nil {
		return fmt.Errorf("Open: %w", err)
	}
	defer st.Close()
	if err := m.check(st, true); err != nil {
		return fmt.Errorf("after the crash: %w", err)
	}
	if err := m.commit(st, "after", 2, "", text(1, 5000)); err != nil {
		return fmt.Errorf("commit after the crash: %w", err)
	}
	for _, id := range m.living() {
		if err := m.update(st, id, 1000, 0); err != nil {
			return fmt.Errorf("update after the crash: %w", err)
		}
		if rng.IntN(2) == 0 {
			if err := m.remove(st, id); err != nil {
				return fmt.Errorf("remove after the crash: %w", err)
			}
		}
	}
	s.Care(st)
	st2, err := s.Open(img.PowerCut(rng))
	if err != nil {
		return fmt.Errorf("second Open: %w", err)
	}
	defer st2.Close()
	if err := m.check(st2, true); err != nil {
		return fmt.Errorf("after the second crash: %w", err)
	}
	return nil
}

// crashAgain cuts the power while the store is being opened.
func (s Subject) crashAgain(img *vfs.Mem, rng *rand.Rand) *vfs.Mem {
	last := 1 + rng.Int64N(60)
	st, err := s.Open(vfs.Hook(img, func(op vfs.Op) error {
		if op.N > last && op.Verb != vfs.OpClose {
			return errCrashed
		}
		return nil
	}))
	cut := img.PowerCut(rng)
	if err == nil {
		st.Close()
	}
	return cut
}

// fault is one way an operation fails.
type fault struct {
	name  string
	err   error
	short bool // only of writes, after half of the bytes
}

var faults = []fault{
	{"no space", syscall.ENOSPC, false},
	{"I/O error", syscall.EIO, false},
	{"short write, no space", syscall.ENOSPC, true},
	{"short write, I/O error", syscall.EIO, true},
}

// hit returns the error of an operation.
func (f fault) hit(op vfs.Op) error {
	switch {
	case op.Verb == vfs.OpClose || f.short && op.Verb != vfs.OpWrite:
		return nil
	case f.short:
		return &vfs.ShortWrite{N: op.Len / 2, Err: f.err}
	}
	return f.err
}

// testFailures lets every operation fail once, each in every way. Nothing that was acknowledged may be lost, nothing torn may be
// seen, and unless a flush failed the store has to go on.
func (s Subject) testFailures(t *testing.T) {
	for name, steps := range map[string][]step{"script": s.script(), "churn": s.churn()} {
		for _, f := range faults {
			t.Run(name+", "+f.name, func(t *testing.T) {
				stride := int64(1)
				if name == "churn" && !s.Thorough {
					stride = 23
				}
				_, last, err := s.failAt(steps, 0, f)
				if err != nil {
					t.Fatalf("without a fault: %v", err)
				}
				runs := 0
				for k := int64(1); k <= last; k += stride {
					op, _, err := s.failAt(steps, k, f)
					if err != nil {
						t.Fatalf("operation %d (%s) failed: %v", k, op, err)
					}
					if op.N > 0 {
						runs++
					}
				}
				t.Logf("%d of %d operations failed", runs, last)
			})
		}
	}
}

// failAt runs the steps with operation k failing. It returns the operation that failed, if any, and how many there were.
func (s Subject) failAt(steps []step, k int64, f fault) (failed vfs.Op, ops int64, err error) {
	mem, m := vfs.NewMem(), newModel()
	rng := rand.New(rand.NewPCG(uint64(k), 3))
	armed := true
	fsys := vfs.Hook(mem, func(op vfs.Op) error {
		if !armed {
			return nil
		}
		ops = op.N
		if op.N != k || f.hit(op) == nil {
			return nil
		}
		failed = op
		return f.hit(op)
	})
	st, err := s.Open(fsys)
	if err != nil {
		if failed.N == 0 {
			return failed, ops, fmt.Errorf("without a fault: %w", err)
		}
		return failed, ops, s.survives(mem.PowerCut(rng), m, rng)
	}
	defer st.Close()
	for n, p := range steps {
		if failed.N == 0 && k > 0 && ops >= k {
			return failed, ops, nil // not an operation that can fail this way
		}
		if err = s.runFaulty(st, m, n, p, &failed); err != nil {
			break
		}
	}
	armed = false
	if err != nil && !errors.Is(err, queue.ErrBroken) {
		return failed, ops, err
	}
	if err := m.check(st, false); err != nil {
		return failed, ops, err
	}
	flush := failed.Verb == vfs.OpSync || failed.Verb == vfs.OpSyncDir
	if err := m.commit(st, "last", 1, "", "last"); err != nil && !flush {
		return failed, ops, fmt.Errorf("commit afterwards: %w", err)
	}
	if err := s.survives(mem.Kill(), m.clone(), rng); err != nil {
		return failed, ops, fmt.Errorf("killed afterwards: %w", err)
	}
	return failed, ops, s.survives(mem.PowerCut(rng), m, rng)
}

// runFaulty runs a step that may fail because of a fault, and then once more, as a client would. It returns an error if the step
// failed without a fault, or if there is no point in going on.
func (s Subject) runFaulty(st queue.Store, m *model, n int, p step, failed *vfs.Op) error {
	err := s.run(st, m, n, p)
	if err == nil {
		return nil
	}
	if failed.N == 0 {
		return fmt.Errorf("step %d, without a fault: %w", n, err)
	}
	if p.do == "discard" {
		return nil
	}
	if err = s.run(st, m, n, p); err != nil {
		return fmt.Errorf("second try of step %d: %w", n, err)
	}
	return nil
}

// testFullDisk fills the disk. Mail is refused with queue.ErrFull; what frees the disk works; with space mail is taken again.
func (s Subject) testFullDisk(t *testing.T) {
	mem, m := vfs.NewMem(), newModel()
	st := s.open(t, mem)
	mem.SetCapacity(mem.Used() + 200_000)
	n, refused := 0, 0
	for ; refused < 5 && n < 2000; n++ {
		id := mail.ID(fmt.Sprintf("f%04d", n))
		err := m.commit(st, id, 1, "", text(n, []int{5000, 100, s.Large}[n%3]))
		if errors.Is(err, queue.ErrFull) {
			refused++
		} else if err != nil {
			t.Fatalf("commit on a full disk: %v", err)
		}
	}
	if refused < 5 {
		t.Fatal("the disk does not fill")
	}
	for _, id := range m.living() {
		if err := m.update(st, id, 9, 0); err != nil {
			t.Fatalf("update on a full disk: %v", err)
		}
	}
	for _, id := range m.living()[:3] {
		if err := m.remove(st, id); err != nil {
			t.Fatalf("remove on a full disk: %v", err)
		}
	}
	if err := m.check(st, false); err != nil {
		t.Error(err)
	}
	if err := s.survives(withCapacity(mem.PowerCut(nil)), m.clone(), rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Error(err)
	}
	mem.SetCapacity(0)
	if err := m.commit(st, "f9999", 1, "", text(1, s.Large)); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if err := m.check(st, false); err != nil {
		t.Error(err)
	}
}

func withCapacity(m *vfs.Mem) *vfs.Mem {
	m.SetCapacity(0)
	return m
}

// testFailedFlush: after a flush has failed nothing is acknowledged any more, also if later flushes would seem to succeed. A store
// opened anew has everything that was acknowledged before.
func (s Subject) testFailedFlush(t *testing.T) {
	mem, m := vfs.NewMem(), newModel()
	fail := false
	st := s.open(t, vfs.Hook(mem, func(op vfs.Op) error {
		if fail && op.Verb == vfs.OpSync {
			fail = false
			return syscall.EIO
		}
		return nil
	}))
	for _, id := range []mail.ID{"a", "b"} {
		if err := m.commit(st, id, 1, "", "text"); err != nil {
			t.Fatal(err)
		}
	}
	fail = true
	if err := m.commit(st, "c", 1, "", "text"); !errors.Is(err, queue.ErrBroken) || !errors.Is(err, syscall.EIO) {
		t.Errorf("commit with a failing flush: %v", err)
	}
	for name, err := range map[string]error{
		"commit": m.commit(st, "d", 1, "", "text"), "update": m.update(st, "a", 1, 0), "remove": m.remove(st, "b"),
	} {
		if !errors.Is(err, queue.ErrBroken) {
			t.Errorf("%s after a failed flush: %v", name, err)
		}
	}
	if err := m.check(st, false); err != nil {
		t.Errorf("reading after a failed flush: %v", err)
	}
	for mode, img := range images(mem, 1) {
		if err := s.survives(img, m.clone(), rand.New(rand.NewPCG(1, 1))); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// testGolden compares the operations of each kind of call with a file.
func (s Subject) testGolden(t *testing.T) {
	mem := vfs.NewMem()
	var log vfs.Log
	st := s.open(t, vfs.Hook(mem, log.Add))
	log.Take()
	var b strings.Builder
	m := newModel()
	for n, p := range []step{
		{do: "commit", id: "small", rcpts: 1, size: 2000},
		{do: "commit", id: "chunked", rcpts: 1, size: 100_000},
		{do: "commit", id: "large", rcpts: 1, size: s.Large},
		{do: "update", id: "small", which: []int{0}},
		{do: "remove", id: "small"},
		{do: "discard", size: 2000},
	} {
		if err := s.run(st, m, n, p); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s, %d bytes\n", p.do, p.id, p.size)
		for line := range strings.Lines(log.Take()) {
			b.WriteString("\t" + line)
		}
	}
	if s.UpdateGolden {
		if err := os.MkdirAll(filepath.Dir(s.Golden), 0755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.Golden, []byte(b.String()), 0644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(s.Golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, []byte(b.String())) {
		t.Errorf("operations differ from %s:\n%s", s.Golden, b.String())
	}
}
