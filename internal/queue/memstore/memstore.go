// Package memstore is a queue.Store in memory: the contract in its simplest form, for tests.
package memstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
)

// Store is a queue.Store that forgets everything with the process. The zero value is an empty store.
type Store struct {
	// Fail, if set before use, is asked before every Commit, Update and Remove; its error is their result.
	Fail func() error

	mu     sync.Mutex
	items  map[mail.ID]*item
	order  int
	closed bool
}

type item struct {
	e     queue.Entry
	data  []byte
	order int
}

// New returns an empty store.
func New() *Store { return &Store{} }

// do runs f with the lock, unless the store is closed or made to fail.
func (s *Store) do(f func() error) error {
	if s.Fail != nil {
		if err := s.Fail(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return queue.ErrClosed
	}
	return f()
}

// Create implements queue.Store.
func (s *Store) Create() (queue.Incoming, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, queue.ErrClosed
	}
	s.order++
	return &incoming{s: s, order: s.order}, nil
}

type incoming struct {
	s     *Store
	order int
	data  []byte
	ended bool
}

var errEnded = errors.New("memstore: the message was committed or discarded already")

// Write implements io.Writer.
func (in *incoming) Write(p []byte) (int, error) {
	if in.ended {
		return 0, errEnded
	}
	in.data = append(in.data, p...)
	return len(p), nil
}

// Size implements queue.Incoming.
func (in *incoming) Size() int64 { return int64(len(in.data)) }

// Content implements queue.Incoming.
func (in *incoming) Content() io.ReadSeeker { return bytes.NewReader(in.data) }

// Commit implements queue.Incoming.
func (in *incoming) Commit(e *queue.Entry, prefix []byte) error {
	if in.ended {
		return errEnded
	}
	in.ended = true
	s := in.s
	return s.do(func() error {
		switch {
		case e.ID == "" || len(e.Env.Rcpts) == 0:
			return fmt.Errorf("memstore: message %q with %d recipients", e.ID, len(e.Env.Rcpts))
		case len(e.Status) != 0 && len(e.Status) != len(e.Env.Rcpts):
			return fmt.Errorf("memstore: %d states for %d recipients", len(e.Status), len(e.Env.Rcpts))
		case s.items[e.ID] != nil:
			return queue.ErrExists
		}
		it := &item{e: *e, data: slices.Concat(prefix, in.data), order: in.order}
		it.e.Env.Rcpts = slices.Clone(e.Env.Rcpts)
		it.e.Status = make([]queue.RcptStatus, len(e.Env.Rcpts))
		copy(it.e.Status, e.Status)
		it.e.Size = int64(len(it.data))
		if s.items == nil {
			s.items = map[mail.ID]*item{}
		}
		s.items[e.ID] = it
		return nil
	})
}

// Discard implements queue.Incoming.
func (in *incoming) Discard() { in.ended = true }

// entry is a copy that shares nothing that changes.
func (it *item) entry() queue.Entry {
	e := it.e
	e.Env.Rcpts = slices.Clone(e.Env.Rcpts)
	e.Status = slices.Clone(e.Status)
	return e
}

// All implements queue.Store.
func (s *Store) All() iter.Seq2[queue.Entry, error] {
	return func(yield func(queue.Entry, error) bool) {
		s.mu.Lock()
		items := make([]*item, 0, len(s.items))
		for _, it := range s.items {
			items = append(items, it)
		}
		s.mu.Unlock()
		slices.SortFunc(items, func(a, b *item) int { return a.order - b.order })
		for _, it := range items {
			if e, err := s.Load(it.e.ID); err == nil && !yield(e, nil) {
				return
			}
		}
	}
}

func (s *Store) find(id mail.ID) (*item, error) {
	if s.closed {
		return nil, queue.ErrClosed
	}
	if it := s.items[id]; it != nil {
		return it, nil
	}
	return nil, queue.ErrNotFound
}

// Load implements queue.Store.
func (s *Store) Load(id mail.ID) (queue.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it, err := s.find(id)
	if err != nil {
		return queue.Entry{}, err
	}
	return it.entry(), nil
}

// Open implements queue.Store.
func (s *Store) Open(id mail.ID) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(it.data)), nil
}

// Update implements queue.Store.
func (s *Store) Update(id mail.ID, us ...queue.RcptUpdate) error {
	return s.do(func() error {
		it, err := s.find(id)
		if err != nil {
			return err
		}
		for _, u := range us {
			if u.Rcpt < 0 || u.Rcpt >= len(it.e.Status) {
				return fmt.Errorf("memstore: message %s has no recipient %d", id, u.Rcpt)
			}
		}
		for _, u := range us {
			it.e.Status[u.Rcpt] = u.State
		}
		return nil
	})
}

// Remove implements queue.Store.
func (s *Store) Remove(id mail.ID) error {
	return s.do(func() error {
		if _, err := s.find(id); err != nil {
			return err
		}
		delete(s.items, id)
		return nil
	})
}

// Len returns the number of messages.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.items)
}

// Close implements queue.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return queue.ErrClosed
	}
	s.closed = true
	return nil
}
