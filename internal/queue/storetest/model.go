package storetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
)

// model is what a store may and must hold after what was done to it. Before an operation is tried it is noted as possible, after
// it succeeded as certain; one that failed stays possible until the next look.
type model struct {
	items map[mail.ID]*expected
}

type expected struct {
	text   string
	rcpts  int
	must   bool  // committed
	gone   bool  // removed: must not be there
	maybe  bool  // a removal was tried
	states []set // by recipient: the marks it may have
}

// set is a set of marks. A state is recognised by its number of attempts.
type set []int

func newModel() *model { return &model{items: map[mail.ID]*expected{}} }

func (m *model) clone() *model {
	c := newModel()
	for id, e := range m.items {
		x := *e
		x.states = make([]set, len(e.states))
		for i, s := range e.states {
			x.states[i] = slices.Clone(s)
		}
		c.items[id] = &x
	}
	return c
}

// sorted returns the ids for which f holds, in order.
func (m *model) sorted(f func(*expected) bool) []mail.ID {
	ids := slices.Sorted(maps.Keys(m.items))
	return slices.DeleteFunc(ids, func(id mail.ID) bool { return !f(m.items[id]) })
}

func (m *model) living() []mail.ID {
	return m.sorted(func(e *expected) bool { return e.must && !e.gone && !e.maybe })
}

func mark(n int) queue.RcptStatus {
	return queue.RcptStatus{Attempts: n, Text: fmt.Sprint("attempt ", n)}
}

// commit commits a message, which may be one whose commit failed before.
func (m *model) commit(st queue.Store, id mail.ID, rcpts int, prefix, body string) error {
	e := m.items[id]
	if e == nil {
		e = &expected{text: prefix + body, rcpts: rcpts, states: make([]set, rcpts)}
		for i := range e.states {
			e.states[i] = set{0}
		}
		m.items[id] = e
	}
	err := commit(st, newEntry(id, rcpts), prefix, body)
	if err == nil || errors.Is(err, queue.ErrExists) {
		e.must = true
	}
	return err
}

func (m *model) update(st queue.Store, id mail.ID, n int, rcpts ...int) error {
	e := m.items[id]
	var us []queue.RcptUpdate
	for _, r := range rcpts {
		e.states[r] = append(e.states[r], n)
		us = append(us, queue.RcptUpdate{Rcpt: r, State: mark(n)})
	}
	err := st.Update(id, us...)
	if err == nil {
		for _, r := range rcpts {
			e.states[r] = set{n}
		}
	}
	return err
}

func (m *model) remove(st queue.Store, id mail.ID) error {
	e := m.items[id]
	e.maybe = true
	err := st.Remove(id)
	if err == nil {
		e.gone = true
	}
	return err
}

// check compares a store with the model. What was only possible is certain afterwards, one way or the other, when settle is set:
// the store was opened anew.
func (m *model) check(st queue.Store, settle bool) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	seen := map[mail.ID]bool{}
	for got, err := range st.All() {
		if err != nil {
			bad("All: %q: %w", got.ID, err)
			continue
		}
		e := m.items[got.ID]
		switch {
		case e == nil:
			bad("%s: was never committed", got.ID)
			continue
		case seen[got.ID]:
			bad("%s: comes twice", got.ID)
		case e.gone:
			bad("%s: was removed", got.ID)
		case !e.must && !settle:
			bad("%s: its commit failed", got.ID)
		}
		seen[got.ID] = true
		m.checkItem(st, got, e, settle, bad)
	}
	for id, e := range m.items {
		switch {
		case seen[id]:
		case e.must && !e.gone && (!e.maybe || !settle):
			bad("%s: lost", id)
		case settle:
			delete(m.items, id)
		}
	}
	return errors.Join(errs...)
}

func (m *model) checkItem(st queue.Store, got queue.Entry, e *expected, settle bool, bad func(string, ...any)) {
	if text, err := readBody(st, got.ID); err != nil || text != e.text {
		bad("%s: the body has %d bytes, want %d, equal %v: %w", got.ID, len(text), len(e.text), text == e.text, err)
	}
	if got.Size != int64(len(e.text)) {
		bad("%s: size %d, want %d", got.ID, got.Size, len(e.text))
	}
	if len(got.Status) != e.rcpts || len(got.Env.Rcpts) != e.rcpts {
		bad("%s: %d states, %d recipients, want %d", got.ID, len(got.Status), len(got.Env.Rcpts), e.rcpts)
		return
	}
	for r, s := range got.Status {
		if !slices.Contains(e.states[r], s.Attempts) || s.Attempts > 0 && s != mark(s.Attempts) {
			bad("%s: recipient %d is %+v, want attempts of %v", got.ID, r, s, e.states[r])
		}
		if settle {
			e.states[r] = set{s.Attempts}
		}
	}
	if settle {
		e.must, e.maybe = true, false
	}
}
