// Package userdb is the users of one domain, as their file keeps them.
package userdb

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"google.golang.org/protobuf/encoding/prototext"

	"blitiri.com.ar/go/chasquid/internal/address"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative userdb.proto

// FileMode is the mode of a users file.
const FileMode = 0o660

// DB is the users of one domain. The zero value has none. Reading it is safe for concurrent use as long as nobody changes it.
type DB struct {
	users map[string]Password
}

// Parse reads the content of a users file: protobuf text format, in any of its spellings.
func Parse(data []byte) (*DB, error) {
	var f File
	if err := prototext.Unmarshal(data, &f); err != nil {
		return nil, lineError(err)
	}
	db := &DB{users: make(map[string]Password, len(f.Users))}
	for name, e := range f.Users {
		p, err := fromEntry(e)
		if err != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		db.users[name] = p
	}
	return db, nil
}

// lineError puts the position of a parse error first: "line 3: unknown field".
func lineError(err error) error {
	all := strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' ' // the library mixes in no-break spaces, and quotes the file
	}, err.Error())
	_, text, ok := strings.Cut(all, "(line ")
	if !ok {
		return errors.New("parsing: " + strings.TrimSpace(strings.TrimPrefix(all, "proto:")))
	}
	line, text, _ := strings.Cut(text, ":")
	_, text, _ = strings.Cut(text, "): ")
	if _, err := strconv.Atoi(line); err != nil {
		return errors.New("parsing: " + text)
	}
	return fmt.Errorf("line %s: %s", line, text)
}

// ReadFile reads a users file of the operating system. A missing one is an error (fs.ErrNotExist).
func ReadFile(path string) (*DB, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	db, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%q %w", path, err)
	}
	return db, nil
}

// WriteFile replaces the users file: readers see the old one or the new one, also after a crash. Mode is FileMode; the owner of the
// file that was there is kept, and failing to do so leaves it in place.
func (db *DB) WriteFile(path string) (err error) {
	if target, lerr := filepath.EvalSymlinks(path); lerr == nil {
		path = target // replace the file, not the link to it
	}
	data, err := db.Marshal()
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if err := prepare(tmp, path); err != nil {
		return err
	}
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// prepare gives the new file the mode, and the owner of the old one.
func prepare(tmp *os.File, path string) error {
	if err := tmp.Chmod(FileMode); err != nil {
		return err
	}
	old, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st, ok := old.Sys().(*syscall.Stat_t); ok {
		return tmp.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Marshal returns the content of the users file, sorted by name.
func (db *DB) Marshal() ([]byte, error) {
	f := &File{Users: make(map[string]*Entry, len(db.users))}
	for name, p := range db.users {
		f.Users[name] = p.entry()
	}
	return prototext.MarshalOptions{Multiline: true}.Marshal(f)
}

// Len returns the number of users.
func (db *DB) Len() int { return len(db.users) }

// Names returns the user names, sorted.
func (db *DB) Names() []string { return slices.Sorted(maps.Keys(db.users)) }

// Has reports whether the user exists, in normalised form.
func (db *DB) Has(name string) bool {
	_, ok := db.users[name]
	return ok
}

// Lookup returns the user's password; for an unknown user the zero Password, which matches nothing and takes as long.
func (db *DB) Lookup(name string) Password { return db.users[name] }

// Set adds the user or replaces the password. The name must be in normalised form.
func (db *DB) Set(name string, p Password) error {
	n, err := address.NormalizeUser(name)
	if err != nil {
		return err
	}
	if n != name {
		return fmt.Errorf("user name %q is not in its normal form %q", name, n)
	}
	if db.users == nil {
		db.users = map[string]Password{}
	}
	db.users[name] = p
	return nil
}

// Remove removes the user and reports whether there was one.
func (db *DB) Remove(name string) bool {
	had := db.Has(name)
	delete(db.users, name)
	return had
}
