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

// Config is what a Resolver needs. The zero value knows no local domain and returns every address as it is.
type Config struct {
	SuffixSeparators string // every rune starts a suffix; empty: there are no suffixes
	DropCharacters   string // every rune is left out of user names; empty: none

	Local   func(domain string) bool                                      // whether we are responsible for the (normalised) domain
	User    func(ctx context.Context, addr address.Address) (bool, error) // whether the (clean) address is a mailbox; nil: none is
	First   func(domain string) (address.Address, bool)                   // some mailbox of the domain, for a postmaster nobody set up
	Primary func() string                                                 // the domain of a bare <postmaster>

	FS fs.FS // where Load reads; nil: the working directory

	Hook        string         // path of the alias-resolve hook, run if the file exists; empty: none
	HookEnv     []string       // its whole environment
	HookDir     string         // its working directory
	HookTimeout time.Duration  // 0: DefaultHookTimeout
	Runner      command.Runner // nil: real programs

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
	cfg     Config
	rules   rules
	metrics *metrics
	tables  atomic.Pointer[map[string]*table]
	hooks   chan struct{} // a slot for each hook that may run at once

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
	if cfg.HookTimeout == 0 {
		cfg.HookTimeout = DefaultHookTimeout
	}
	if cfg.Runner == nil {
		cfg.Runner = command.Exec{}
	}
	if cfg.MaxRecipients == 0 {
		cfg.MaxRecipients = DefaultMaxRecipients
	}
	r := &Resolver{cfg: cfg, rules: rules{sep: cfg.SuffixSeparators, drop: cfg.DropCharacters}, metrics: newMetrics(cfg.Metrics),
		hooks: make(chan struct{}, maxHooks)}
	r.tables.Store(&map[string]*table{})
	return r
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
	_, span := trace.Start(ctx, trace.Reload, "aliases")
	defer span.Finish()
	old := *r.tables.Load()
	tables := make(map[string]*table, len(r.files))
	var errs []error
	for _, f := range r.files {
		t, err := r.readTable(f, old[f.Domain])
		if err != nil {
			errs = append(errs, span.Error(err))
		}
		tables[f.Domain] = t
	}
	r.tables.Store(&tables)
	return errors.Join(errs...)
}

// readTable returns the table of the file; with an error the one to use instead.
func (r *Resolver) readTable(f File, old *table) (*table, error) {
	data, err := readFile(r.cfg.FS, f.Path)
	sum := sha256.Sum256(data)
	if err == nil && old != nil && old.err == nil && old.sum == sum {
		return old, nil
	}
	var t *table
	if err == nil {
		t, err = parseFile(f.Path, f.Domain, r.rules, bytes.NewReader(data))
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
	if t := (*r.tables.Load())[domain]; t != nil {
		return len(t.entries)
	}
	return 0
}

// Clean returns the address as a mailbox is known: without suffix and drop characters, normalised.
func (r *Resolver) Clean(addr address.Address) (address.Address, error) {
	user, _, err := r.rules.clean(addr.Local)
	return address.Address{Local: user, Domain: addr.Domain}, err
}
