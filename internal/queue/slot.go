package queue

import (
	"io"
	"iter"
	"sync/atomic"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

// Slot is a Store that is another one for as long as there is one: a process that waits for its turn, or has given its store away, has an
// empty slot, which answers ErrClosed. It is safe for concurrent use.
type Slot struct{ store atomic.Pointer[Store] }

// Put fills the slot; nil empties it. The store that was in it is not closed.
func (s *Slot) Put(st Store) {
	if st == nil {
		s.store.Store(nil)
		return
	}
	s.store.Store(&st)
}

func (s *Slot) get() (Store, error) {
	if p := s.store.Load(); p != nil {
		return *p, nil
	}
	return nil, ErrClosed
}

// Create implements Store.
func (s *Slot) Create() (Incoming, error) {
	st, err := s.get()
	if err != nil {
		return nil, err
	}
	return st.Create()
}

// All implements Store.
func (s *Slot) All() iter.Seq2[Entry, error] {
	st, err := s.get()
	if err != nil {
		return func(func(Entry, error) bool) {}
	}
	return st.All()
}

// Load implements Store.
func (s *Slot) Load(id mail.ID) (Entry, error) {
	st, err := s.get()
	if err != nil {
		return Entry{}, err
	}
	return st.Load(id)
}

// Open implements Store.
func (s *Slot) Open(id mail.ID) (io.ReadCloser, error) {
	st, err := s.get()
	if err != nil {
		return nil, err
	}
	return st.Open(id)
}

// Update implements Store.
func (s *Slot) Update(id mail.ID, us ...RcptUpdate) error {
	st, err := s.get()
	if err != nil {
		return err
	}
	return st.Update(id, us...)
}

// Remove implements Store.
func (s *Slot) Remove(id mail.ID) error {
	st, err := s.get()
	if err != nil {
		return err
	}
	return st.Remove(id)
}

// Close closes the store and empties the slot.
func (s *Slot) Close() error {
	p := s.store.Swap(nil)
	if p == nil {
		return nil
	}
	return (*p).Close()
}
