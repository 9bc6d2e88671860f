package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Load replaces the users by the contents of these files, one per domain. Domains not named have no users from then on; a missing file
// means none. A file that cannot be read or parsed keeps the domain's users; if there were none, questions about the domain
// get an error until the file is good. All such errors are returned, joined.
func (a *Authenticator) Load(ctx context.Context, files []File) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files = append([]File(nil), files...)
	return a.reload(ctx)
}

// Reload reads the files of the last Load again.
func (a *Authenticator) Reload(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reload(ctx)
}

func (a *Authenticator) reload(ctx context.Context) error {
	_, span := trace.Start(ctx, trace.Reload, "users")
	defer span.Finish()
	old := *a.tables.Load()
	tables := make(map[string]*table, len(a.files))
	var errs []error
	for _, f := range a.files {
		t, err := a.readTable(f, old[f.Domain])
		if err != nil {
			errs = append(errs, span.Error(err))
		}
		tables[f.Domain] = t
	}
	a.tables.Store(&tables)
	return errors.Join(errs...)
}

// readTable returns the table of the file; with an error the one to use instead.
func (a *Authenticator) readTable(f File, old *table) (*table, error) {
	data, err := readFile(a.cfg.FS, f.Path)
	sum := sha256.Sum256(data)
	if err == nil && old != nil && old.err == nil && old.sum == sum {
		return old, nil
	}
	var db *userdb.DB
	if err == nil {
		if db, err = userdb.Parse(data); err != nil {
			err = remedy.With(fmt.Errorf("%q %w", f.Path, err), "correct or restore the file; chasquid-util writes it")
		}
	}
	if err != nil {
		err = fmt.Errorf("users file error: %w", err) // the words of existing installations
	}
	switch {
	case err == nil:
		return &table{users: db, sum: sum}, nil
	case old != nil && old.err == nil:
		return old, err
	default:
		return &table{users: &userdb.DB{}, err: err}, err
	}
}
