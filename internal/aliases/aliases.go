// Package aliases turns one address into its final recipients.
//
// Every domain has an alias file, and a hook may add aliases on the fly. Files are read into immutable tables that are swapped as a whole:
// a look-up sees one state of the files from its start to its end, and a bad file leaves the table that was there.
package aliases

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/command"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Limits and defaults.
const (
	// MaxDepth is how many aliases deep a resolution goes.
	MaxDepth = 10

	// DefaultMaxRecipients is how many final recipients one address may have.
	DefaultMaxRecipients = 10000

	// DefaultHookTimeout is the time limit of one run of the alias-resolve hook.
	DefaultHookTimeout = 5 * time.Second

	maxFile  = 256 << 20 // bytes of an alias file
	maxHooks = 64        // hooks that run at once; more wait
)

// Settings are the part of a Config that may change while the Resolver works; see Prepare.
type Settings struct {
	SuffixSeparators string // every rune starts a suffix; empty: there are no suffixes
	DropCharacters   string // every rune is left out of user names; empty: none

	HookTimeout time.Duration // of one run of the alias-resolve hook; 0: DefaultHookTimeout
}

// Config is what a Resolver needs. The zero value knows no local domain and returns every address as it is.
type Config struct {
	Settings

	Local   func(domain string) bool                                      // whether we are responsible for the (normalised) domain
	User    func(ctx context.Context, addr address.Address) (bool, error) // whether the (clean) address is a mailbox; nil: none is
	First   func(domain string) (address.Address, bool)                   // some mailbox of the domain, for a postmaster nobody set up
	Primary func() string                                                 // the domain of a bare <postmaster>

	FS fs.FS // where Load reads; nil: the working directory

	Hook    string         // path of the alias-resolve hook, run if the file exists; empty: none
	HookEnv []string       // its whole environment
	HookDir string         // its working directory
	Runner  command.Runner // nil: real programs

	MaxRecipients int // of one address; 0: DefaultMaxRecipients
	Metrics       *expvarom.Registry
}

// Errors of a resolution. They stand in a wider text that names the addresses.
var (
	ErrRecursion = errors.New("recursion limit exceeded")
	ErrTooMany   = errors.New("too many recipients")
)

// Resolver resolves aliases. It is safe for concurrent use.
type Resolver struct {
	cfg     Config // but for what is in Settings
	metrics *metrics
	now     atomic.Pointer[state]
	program *command.Program // the hook
	hooks   chan struct{}    // a slot for each hook that may run at once

	mu    sync.Mutex // held while loading
	files []File
}

// File names the alias file of a domain.
type File struct {
	Domain string // normalised
	Path   string // in Config.FS; it need not exist
}

// New returns a Resolver without aliases; Load gives it some.
func New(cfg Config) *Resolver {
	if cfg.Local == nil {
		cfg.Local = func(string) bool { return false }
	}
	if cfg.User == nil {
		cfg.User = func(context.Context, address.Address) (bool, error) { return false, nil }
	}
	if cfg.FS == nil {
		cfg.FS = os.DirFS(".")
	}
	if cfg.Runner == nil {
		cfg.Runner = command.Exec{}
	}
	if cfg.MaxRecipients == 0 {
		cfg.MaxRecipients = DefaultMaxRecipients
	}
	r := &Resolver{cfg: cfg, metrics: newMetrics(cfg.Metrics), program: command.NewProgram(cfg.Hook), hooks: make(chan struct{}, maxHooks)}
	r.now.Store(newState(cfg.Settings, map[string]*table{}))
	return r
}

// state is what a look-up sees from its start to its end. It is immutable.
type state struct {
	rules       rules
	hookTimeout time.Duration
	tables      map[string]*table // by domain, each read by these rules
}

func newState(s Settings, tables map[string]*table) *state {
	if s.HookTimeout == 0 {
		s.HookTimeout = DefaultHookTimeout
	}
	return &state{rules: rules{sep: s.SuffixSeparators, drop: s.DropCharacters}, hookTimeout: s.HookTimeout, tables: tables}
}

// Prepare gets ready for other settings: if they give names another meaning, all files are read again. Apply puts them in force. An error
// says which file cannot be read, and nothing changes: its old table cannot be used with other rules.
func (r *Resolver) Prepare(ctx context.Context, s Settings) (apply func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.now.Load()
	next := newState(s, old.tables)
	if next.rules != old.rules {
		if next.tables, err = r.read(ctx, next.rules, nil); err != nil {
			return nil, err
		}
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if next.rules == old.rules {
			next.tables = r.now.Load().tables // files may have been loaded meanwhile; if the rules are others, the next Load sees to it
		}
		r.now.Store(next)
	}, nil
}

// Load replaces the tables by the contents of these files, one per domain. Domains not named have no aliases from then on; a missing
// file means an empty table. A file that cannot be read or parsed keeps the domain's table; if there was none, look-ups in
// the domain fail until the file is good. All such errors are returned, joined.
func (r *Resolver) Load(ctx context.Context, files []File) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = append([]File(nil), files...)
	return r.reload(ctx)
}

// Reload reads the files of the last Load again.
func (r *Resolver) Reload(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reload(ctx)
}

func (r *Resolver) reload(ctx context.Context) error {
	old := r.now.Load()
	next := *old
	var err error
	next.tables, err = r.read(ctx, old.rules, old.tables)
	r.now.Store(&next)
	return err
}

// read returns the tables of all files by the rules; old are those to use instead where a file is bad, or the same as it was.
func (r *Resolver) read(ctx context.Context, ru rules, old map[string]*table) (map[string]*table, error) {
	_, span := trace.Start(ctx, trace.Reload, "aliases")
	defer span.Finish()
	tables := make(map[string]*table, len(r.files))
	var errs []error
	for _, f := range r.files {
		t, err := r.readTable(f, ru, old[f.Domain])
		if err != nil {
			errs = append(errs, span.Error(err))
		}
		tables[f.Domain] = t
	}
	return tables, errors.Join(errs...)
}

// readTable returns the table of the file; with an error the one to use instead.
func (r *Resolver) readTable(f File, ru rules, old *table) (*table, error) {
	data, err := readFile(r.cfg.FS, f.Path)
	sum := sha256.Sum256(data)
	if err == nil && old != nil && old.err == nil && old.sum == sum {
		return old, nil
	}
	var t *table
	if err == nil {
		t, err = parseFile(f.Path, f.Domain, ru, bytes.NewReader(data))
		err = remedy.With(err, "correct that line: it reads \"name: address, address\" or \"name: | command\"")
	} else {
		// The words of existing installations.
		err = fmt.Errorf("aliases file error: %w", err)
	}
	switch {
	case err == nil:
		t.sum = sum
		return t, nil
	case old != nil && old.err == nil:
		return old, err
	default:
		return &table{err: err}, err
	}
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

// Count returns the number of aliases in the file of the domain.
func (r *Resolver) Count(domain string) int {
	if t := r.now.Load().tables[domain]; t != nil {
		return len(t.entries)
	}
	return 0
}
