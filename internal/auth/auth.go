// Package auth knows whether a user exists and whether a password is right.
//
// Each domain has a users file; Dovecot may be asked about whom the file does not know. Nothing in the time an answer takes says whether a user exists.
package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

const (
	hashesPerCore = 2        // each takes 16 MiB and some 50 ms
	maxFile       = 64 << 20 // bytes of a users file
)

// Names of the backends, as metrics and logs show them.
const (
	UserDB  = "userdb"
	Dovecot = "dovecot"
	None    = "none" // no backend knows the domain
)

// Backend is asked about users no file knows. user is "user@domain", or "user" for a login without domain. An error means it cannot tell.
type Backend interface {
	Exists(ctx context.Context, user string) (bool, error)
	Authenticate(ctx context.Context, user, password string) (bool, error)
}

// Config is what an Authenticator needs. The zero value knows nobody.
type Config struct {
	FS       fs.FS   // where Load reads; nil: the working directory
	Fallback Backend // Dovecot; nil: none
	Hashes   int     // password hashes computed at once; 0: two per core
}

// Authenticator answers for all domains. It is safe for concurrent use.
type Authenticator struct {
	cfg      Config
	hashes   chan struct{}
	tables   atomic.Pointer[map[string]*table]
	fallback atomic.Pointer[Backend] // nil: none

	mu    sync.Mutex // held while loading
	files []File
}

// File names the users file of a domain.
type File struct {
	Domain string // normalised
	Path   string // in Config.FS; it need not exist
}

// New returns an Authenticator without users; Load gives it some.
func New(cfg Config) *Authenticator {
	if cfg.FS == nil {
		cfg.FS = os.DirFS(".")
	}
	if cfg.Hashes == 0 {
		cfg.Hashes = hashesPerCore * runtime.GOMAXPROCS(0)
	}
	a := &Authenticator{cfg: cfg, hashes: make(chan struct{}, cfg.Hashes)}
	a.tables.Store(&map[string]*table{})
	a.SetFallback(cfg.Fallback)
	return a
}

// SetFallback changes Config.Fallback for questions that come from now on.
func (a *Authenticator) SetFallback(b Backend) {
	if b == nil {
		a.fallback.Store(nil)
		return
	}
	a.fallback.Store(&b)
}

// Authenticate reports whether this is the user's password, and which backend said so. The users file of the domain is asked first, then
// the fallback, if the file did not say yes; about a user who is denied by the file its answer does not count. An error means that
// nobody can tell now.
func (a *Authenticator) Authenticate(ctx context.Context, user address.Address, password string) (ok bool, backend string, err error) {
	ctx, span := trace.Start(ctx, trace.Auth, "authenticate "+user.String())
	defer span.Finish()
	ok, backend, err = a.authenticate(ctx, user, password)
	span.Printf("%s says %v", backend, ok)
	return ok, backend, span.Error(err)
}

func (a *Authenticator) authenticate(ctx context.Context, user address.Address, password string) (ok bool, backend string, err error) {
	t := a.table(user.Domain)
	if t.err != nil {
		return false, UserDB, t.err
	}
	fallback := a.fallback.Load()
	entry := t.users.Lookup(user.Local)
	if ok, err = a.verify(ctx, entry, password); ok || err != nil {
		return ok, UserDB, err
	}
	switch {
	case fallback != nil:
		backend = Dovecot
	case t.users.Len() > 0:
		return false, UserDB, nil
	default:
		return false, None, nil
	}
	ok, err = (*fallback).Authenticate(ctx, user.String(), password)
	if entry.Scheme() != userdb.Unknown {
		backend = UserDB // the file knows the user; its "no" was only offered for revision
	}
	if entry.Scheme() == userdb.DeniedTo {
		return false, backend, nil // a receive-only user; asked nevertheless, so that it takes as long
	}
	if ok {
		backend = Dovecot
	}
	return ok, backend, err
}

// verify computes the hash when a slot is free.
func (a *Authenticator) verify(ctx context.Context, p userdb.Password, password string) (bool, error) {
	select {
	case a.hashes <- struct{}{}:
		defer func() { <-a.hashes }()
		return p.Verify(password), nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// Exists reports whether there is such a user: in the domain's file, or for the fallback. The address is in its clean form. An error
// means that nobody can tell now.
func (a *Authenticator) Exists(ctx context.Context, addr address.Address) (bool, error) {
	t := a.table(addr.Domain)
	if t.err != nil {
		return false, t.err
	}
	if t.users.Has(addr.Local) {
		return true, nil
	}
	fallback := a.fallback.Load()
	if fallback == nil {
		return false, nil
	}
	ctx, span := trace.Start(ctx, trace.Auth, "exists "+addr.String())
	defer span.Finish()
	ok, err := (*fallback).Exists(ctx, addr.String())
	span.Debugf("fallback says %v", ok)
	return ok, span.Error(err)
}

// First returns the first user of the domain's file, in order of names.
func (a *Authenticator) First(domain string) (address.Address, bool) {
	names := a.table(domain).users.Names()
	if len(names) == 0 {
		return address.Address{}, false
	}
	return address.Address{Local: names[0], Domain: domain}, true
}

// Count returns the number of users in the domain's file.
func (a *Authenticator) Count(domain string) int { return a.table(domain).users.Len() }

// ParseIdentity parses what a client calls itself: "user@domain" or "user", split at the first @. The user is prepared as RFC 8265
// section 3.3 says, the domain normalised.
func ParseIdentity(s string) (address.Address, error) {
	user, domain, err := splitIdentity(s)
	if err != nil {
		return address.Address{}, fmt.Errorf("identity %q: %w", s, err)
	}
	return address.Address{Local: user, Domain: domain}, nil
}

func splitIdentity(s string) (user, domain string, err error) {
	for i := range len(s) {
		if s[i] == '@' {
			if domain, err = address.NormalizeDomain(s[i+1:]); err != nil {
				return "", "", err
			}
			s = s[:i]
			break
		}
	}
	user, err = address.NormalizeUser(s)
	return user, domain, err
}

// table is the users of one domain.
type table struct {
	users *userdb.DB
	sum   [32]byte // SHA-256 of the file
	err   error    // why the file was never read; then users is empty
}

var noTable = &table{users: &userdb.DB{}}

func (a *Authenticator) table(domain string) *table {
	if t := (*a.tables.Load())[domain]; t != nil {
		return t
	}
	return noTable
}

func readFile(fsys fs.FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%q is larger than %d bytes", path, maxFile)
	}
	return data, err
}
