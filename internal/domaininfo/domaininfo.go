// Package domaininfo remembers the best TLS level seen with each domain, in both directions.
//
// A domain that was reached over TLS once is not reached in plain text later: that would be what an attacker on the line makes of it.
// What is remembered stands in one small file per domain, written in the background; losing the last seconds of it to a crash is harmless.
package domaininfo

import (
	"context"
	"errors"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/lru"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// DefaultMax is how many domains are remembered.
const DefaultMax = 100_000

// ErrNotFound means that nothing is known of the domain.
var ErrNotFound = errors.New("does not exist")

// Config is what a DB needs.
type Config struct {
	Dir string // of the files; made if need be
	FS  vfs.FS // nil: the operating system's
	Max int    // domains remembered; 0: DefaultMax
}

// Entry is what is known of a domain.
type Entry struct {
	Domain             string // normalised
	Incoming, Outgoing tlspolicy.Level
	Override           time.Time // until then outgoing mail goes at any level; zero: there is no override
}

// DB is what is known of all domains. It is safe for concurrent use. Domains are given in their normalised form.
type DB struct {
	cfg Config

	files sync.Mutex // held while files are read or written, and before mu

	mu        sync.Mutex
	classes   [numClasses]*lru.Map[string, *entry]
	overrides map[string]time.Time
	dirty     map[string]struct{} // domains whose file is not as the entry is
	wake      chan struct{}       // has one element if there is something dirty
}

// entry is the mutable part of an Entry.
type entry struct {
	in, out tlspolicy.Level
	others  []string // further files that gave the domain another spelling; they go when this one is written
}

// class is how precious an entry is: of those of the least class, that used longest ago is forgotten first. So a stranger with many domains
// pushes out other strangers, and never what we learned by delivering.
type class uint8

const (
	plain    class = iota // says nothing that no entry would not say
	incoming              // only of mail that came in
	outgoing
	numClasses
)

func (e *entry) class() class {
	switch {
	case e.out > tlspolicy.Plain:
		return outgoing
	case e.in > tlspolicy.Plain:
		return incoming
	}
	return plain
}

// CheckIncoming reports whether mail from the domain may come over a connection of this level: not if a better one was recorded.
func (db *DB) CheckIncoming(ctx context.Context, domain string, level tlspolicy.Level) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	e := db.get(domain)
	return e == nil || level >= e.in
}

// RecordIncoming notes that mail from the domain, which proved to be from there, was accepted over a connection of this level.
func (db *DB) RecordIncoming(ctx context.Context, domain string, level tlspolicy.Level) {
	db.record(ctx, domain, "incoming", level, func(e *entry) *tlspolicy.Level { return &e.in })
}

// CheckOutgoing reports whether a connection of this level may carry mail to the domain: not if a better one was recorded, unless an operator
// allowed it.
func (db *DB) CheckOutgoing(ctx context.Context, domain string, level tlspolicy.Level) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	e := db.get(domain)
	if e == nil || level >= e.out {
		return true
	}
	if until, ok := db.overrides[domain]; ok && time.Now().Before(until) {
		trace.From(ctx).Printf("security level of %s is below %s: allowed until %s", domain, e.out, until.Format(time.RFC3339))
		return true
	}
	return false
}

// RecordOutgoing notes that a message was delivered to the domain at this level.
func (db *DB) RecordOutgoing(ctx context.Context, domain string, level tlspolicy.Level) {
	db.record(ctx, domain, "outgoing", level, func(e *entry) *tlspolicy.Level { return &e.out })
}

// record raises a level. A domain not met before gets an entry in any case.
func (db *DB) record(ctx context.Context, domain, direction string, level tlspolicy.Level, field func(*entry) *tlspolicy.Level) {
	db.mu.Lock()
	defer db.mu.Unlock()
	e := db.get(domain)
	if e != nil && level <= *field(e) {
		return
	}
	if e == nil {
		e = &entry{}
	}
	trace.From(ctx).Debugf("%s security level of %s is %s from now on", direction, domain, level)
	db.change(domain, e, func() { *field(e) = level })
}

// Lookup returns what is known of the domain.
func (db *DB) Lookup(domain string) (Entry, bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	e := db.peek(domain)
	_, overridden := db.overrides[domain]
	if e == nil && !overridden {
		return Entry{}, false
	}
	return db.view(domain, e), true
}

// List returns all entries, the most recently used first within their class, the most precious class first.
func (db *DB) List() []Entry {
	db.mu.Lock()
	defer db.mu.Unlock()
	list := make([]Entry, 0, db.len())
	for c := numClasses; c > 0; c-- {
		for d, e := range db.classes[c-1].All() {
			list = append(list, db.view(d, e))
		}
	}
	return list
}

func (db *DB) view(domain string, e *entry) Entry {
	v := Entry{Domain: domain}
	if until := db.overrides[domain]; time.Now().Before(until) {
		v.Override = until
	}
	if e != nil {
		v.Incoming, v.Outgoing = e.in, e.out
	}
	return v
}

// Clear sets both levels of the domain to plain and ends its override, in its file, too. The error is ErrNotFound if nothing is known of the domain.
func (db *DB) Clear(ctx context.Context, domain string) error {
	domain, err := address.NormalizeDomain(domain)
	if err != nil {
		return ErrNotFound
	}
	db.mu.Lock()
	e := db.get(domain)
	_, overridden := db.overrides[domain]
	if e == nil && !overridden {
		db.mu.Unlock()
		return ErrNotFound
	}
	if e == nil {
		e = &entry{}
	}
	db.change(domain, e, func() { e.in, e.out = tlspolicy.Plain, tlspolicy.Plain })
	db.mu.Unlock()
	trace.From(ctx).Printf("security levels of %s cleared", domain)
	return errors.Join(db.write(domain), db.Override(ctx, domain, time.Time{}))
}

// get returns the entry and marks it as used; nil if there is none.
func (db *DB) get(domain string) *entry {
	for _, m := range db.classes {
		if e, ok := m.Get(domain); ok {
			return e
		}
	}
	return nil
}

// peek is get without marking.
func (db *DB) peek(domain string) *entry {
	for _, m := range db.classes {
		if e, ok := m.Peek(domain); ok {
			return e
		}
	}
	return nil
}

func (db *DB) len() int {
	n := 0
	for _, m := range db.classes {
		n += m.Len()
	}
	return n
}

// change applies f to the entry, puts it where it belongs then, and has it written. If there are too many entries, one goes.
func (db *DB) change(domain string, e *entry, f func()) {
	db.classes[e.class()].Remove(domain)
	f()
	db.place(domain, e)
	db.markDirty(domain)
}

func (db *DB) place(domain string, e *entry) {
	db.classes[e.class()].Put(domain, e)
	if db.len() <= db.cfg.Max {
		return
	}
	for _, m := range db.classes {
		if d, _, ok := m.Oldest(); ok {
			m.Remove(d)
			db.markDirty(d) // without an entry: its file goes
			return
		}
	}
}

func (db *DB) markDirty(domain string) {
	db.dirty[domain] = struct{}{}
	select {
	case db.wake <- struct{}{}:
	default:
	}
}
