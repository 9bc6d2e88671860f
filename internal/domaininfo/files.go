package domaininfo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/lru"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

//go:generate protoc --go_out=. --go_opt=paths=source_relative domaininfo.proto

// Names of the files. Those of overrides are not seen by programs that know only the others.
const (
	levelPrefix    = "s:"
	overridePrefix = "o:"
	dirMode        = 0o770
	fileMode       = 0o660
	maxFile        = 64 << 10

	retryEvery = 30 * time.Second // after a write failed
)

// FileError says which file is bad and what to do about it.
type FileError struct {
	Path string
	Err  error
}

func (e *FileError) Error() string {
	return fmt.Sprintf("%s: %v", e.Path, e.Err)
}

// Remedy says what to do.
func (e *FileError) Remedy() string { return "remove the file to forget the domain's security levels" }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// Open reads the files of the directory, which is made if need be. A file that cannot be read is an error. Whoever opened a DB calls Run, or
// Flush before the end.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	if cfg.FS == nil {
		cfg.FS = vfs.OS
	}
	if cfg.Max == 0 {
		cfg.Max = DefaultMax
	}
	db := &DB{cfg: cfg, overrides: map[string]time.Time{}, dirty: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	for c := range db.classes {
		db.classes[c] = lru.New[string, *entry](cfg.Max + 1)
	}
	if err := vfs.MkdirAll(cfg.FS, cfg.Dir, dirMode); err != nil {
		return nil, err
	}
	if err := db.Reload(ctx); err != nil {
		return nil, err
	}
	return db, nil
}

// Reload reads the files again. What they say counts, but for what is not written yet. Bad files are reported, joined, and leave what is
// known of their domains.
func (db *DB) Reload(ctx context.Context) error {
	_, span := trace.Start(ctx, trace.Reload, "domaininfo")
	defer span.Finish()
	db.files.Lock()
	defer db.files.Unlock()
	infos, err := db.cfg.FS.ReadDir(db.cfg.Dir)
	if err != nil {
		return span.Error(err)
	}
	slices.SortStableFunc(infos, func(a, b vfs.Info) int { return a.ModTime.Compare(b.ModTime) })
	r := reading{db: db, entries: map[string]*entry{}, overrides: map[string]time.Time{}, bad: map[string]bool{}}
	for _, info := range infos {
		if err := r.file(info); err != nil {
			r.errs = append(r.errs, span.Error(&FileError{Path: filepath.Join(db.cfg.Dir, info.Name), Err: err}))
		}
	}
	r.install()
	return errors.Join(r.errs...)
}

// reading is one pass over the files, the oldest first.
type reading struct {
	db        *DB
	order     []string
	entries   map[string]*entry
	overrides map[string]time.Time
	bad       map[string]bool // domains whose file is bad
	errs      []error
}

func (r *reading) file(info vfs.Info) error {
	prefix := levelPrefix
	escaped, ok := strings.CutPrefix(info.Name, prefix)
	if !ok {
		prefix = overridePrefix
		escaped, ok = strings.CutPrefix(info.Name, prefix)
	}
	name, err := url.QueryUnescape(escaped)
	if !ok || err != nil || info.Dir {
		return nil // not one of ours
	}
	if domain, err := address.NormalizeDomain(name); err == nil {
		name = domain
	}
	if info.Size > maxFile {
		err = errors.New("the file is too big")
	}
	var data []byte
	if err == nil {
		data, err = vfs.ReadFile(r.db.cfg.FS, filepath.Join(r.db.cfg.Dir, info.Name))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
	case prefix == overridePrefix:
		var until time.Time
		until, err = time.Parse(time.RFC3339, string(bytes.TrimSpace(data)))
		switch {
		case err != nil:
		case time.Now().Before(until):
			r.overrides[name] = until
		default:
			err = r.db.cfg.FS.Remove(filepath.Join(r.db.cfg.Dir, info.Name)) // it has ended
		}
	default:
		err = r.levels(info.Name, data)
	}
	if err != nil {
		r.bad[name] = true
	}
	return err
}

// levels takes the content of a level file. An empty one, as a crash may leave it, says nothing; nor does one with a name that is no domain.
func (r *reading) levels(file string, data []byte) error {
	var d Domain
	if err := prototext.Unmarshal(data, &d); err != nil {
		return parseError(err)
	}
	in, out := d.IncomingSecLevel, d.OutgoingSecLevel
	if in < SecLevel_PLAIN || in > SecLevel_TLS_SECURE || out < SecLevel_PLAIN || out > SecLevel_TLS_SECURE {
		return errors.New("unknown security level")
	}
	domain, err := address.NormalizeDomain(d.Name)
	if err != nil {
		return nil
	}
	e := r.entries[domain]
	if e == nil {
		e = &entry{}
		r.entries[domain] = e
		r.order = append(r.order, domain)
	}
	e.in, e.out = max(e.in, tlspolicy.Level(in)), max(e.out, tlspolicy.Level(out))
	if file != levelPrefix+url.QueryEscape(domain) {
		e.others = append(e.others, file)
	}
	return nil
}

// parseError makes the library's error text plain.
func parseError(err error) error {
	return errors.New(strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == '\u00a0' {
			return ' '
		}
		return c
	}, err.Error()))
}

// install puts what was read in place.
func (r *reading) install() {
	db := r.db
	db.mu.Lock()
	defer db.mu.Unlock()
	kept := func(domain string) bool { // what the files do not know better
		_, dirty := db.dirty[domain]
		return dirty || r.bad[domain]
	}
	for _, m := range db.classes {
		var gone []string
		for d := range m.All() {
			if !kept(d) {
				gone = append(gone, d)
			}
		}
		for _, d := range gone {
			m.Remove(d)
		}
	}
	for _, d := range r.order {
		if !kept(d) {
			db.place(d, r.entries[d])
		}
	}
	for d, until := range db.overrides {
		if r.bad[d] && r.overrides[d].IsZero() {
			r.overrides[d] = until
		}
	}
	db.overrides = r.overrides
}

// Run writes what changes until ctx ends, and then what is left.
func (db *DB) Run(ctx context.Context) {
	for {
		var retry <-chan time.Time
		wake := db.wake
		if !db.flush() {
			wake, retry = nil, time.After(retryEvery)
		}
		select {
		case <-wake:
		case <-retry:
		case <-ctx.Done():
			db.flush()
			return
		}
	}
}

// flush is Flush, with errors in the log.
func (db *DB) flush() bool {
	err := db.Flush()
	if err != nil {
		log.Errorf("domaininfo: %v; trying again later", err)
	}
	return err == nil
}

// Flush writes everything that is not written yet. What could not be written is tried again at the next call.
func (db *DB) Flush() error {
	db.mu.Lock()
	domains := slices.Collect(maps.Keys(db.dirty))
	db.mu.Unlock()
	var first error
	failed := 0
	for _, d := range domains {
		if err := db.write(d); err != nil {
			failed++
			if first == nil {
				first = err
			}
		}
	}
	if first != nil {
		return fmt.Errorf("%d of %d files not written: %w", failed, len(domains), first)
	}
	return nil
}

// write makes the domain's file agree with its entry.
func (db *DB) write(domain string) error {
	db.files.Lock()
	defer db.files.Unlock()
	db.mu.Lock()
	delete(db.dirty, domain)
	e := db.peek(domain)
	var now entry
	if e != nil {
		now = *e
		e.others = nil
	}
	db.mu.Unlock()
	err := db.replace(levelPrefix, domain, e != nil, func() ([]byte, error) { return encode(domain, now) })
	for _, other := range now.others {
		if rerr := db.cfg.FS.Remove(filepath.Join(db.cfg.Dir, other)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		db.mu.Lock()
		if e != nil {
			e.others = now.others
		}
		db.markDirty(domain)
		db.mu.Unlock()
	}
	return err
}

func encode(domain string, e entry) ([]byte, error) {
	return prototext.MarshalOptions{Multiline: true}.Marshal(&Domain{
		Name: domain, IncomingSecLevel: SecLevel(e.in), OutgoingSecLevel: SecLevel(e.out),
	})
}

// replace writes or removes a file. One whose name is too long for the file system is kept in memory only.
func (db *DB) replace(prefix, domain string, keep bool, content func() ([]byte, error)) error {
	path := filepath.Join(db.cfg.Dir, prefix+url.QueryEscape(domain))
	var err error
	if keep {
		var data []byte
		if data, err = content(); err == nil {
			err = vfs.WriteFile(db.cfg.FS, path, data, fileMode)
		}
	} else if err = db.cfg.FS.Remove(path); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if errors.Is(err, syscall.ENAMETOOLONG) {
		err = nil
	}
	return err
}

// Override lets outgoing mail to the domain go at any level until then; the zero time ends it. It is in its file when this returns.
func (db *DB) Override(ctx context.Context, domain string, until time.Time) error {
	domain, err := address.NormalizeDomain(domain)
	if err != nil {
		return err
	}
	db.files.Lock()
	defer db.files.Unlock()
	db.mu.Lock()
	_, had := db.overrides[domain]
	if until.IsZero() {
		delete(db.overrides, domain)
	} else {
		db.overrides[domain] = until
	}
	db.mu.Unlock()
	if until.IsZero() && !had {
		return nil
	}
	trace.From(ctx).Printf("security level of %s overridden until %s", domain, until.Format(time.RFC3339))
	return db.replace(overridePrefix, domain, !until.IsZero(), func() ([]byte, error) {
		return []byte(until.UTC().Format(time.RFC3339) + "\n"), nil
	})
}
