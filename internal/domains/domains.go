// Package domains is the configuration directory's certs/ and domains/: local domains, certificates and DKIM keys, reloadable.
package domains

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Localhost is always a local domain, with no files.
const Localhost = "localhost"

// Config says where to look and what is expected there. The zero value looks in the working directory.
type Config struct {
	// Dir is the configuration directory; empty is the working directory, as messages of existing installations have it.
	Dir string
	// Hostname is the server's name, for the count of domains without a certificate.
	Hostname string
	// CertsOptional allows certs/ to be missing or empty: certificates come from elsewhere too.
	CertsOptional bool
	Metrics       *expvarom.Registry
	// Users and Aliases, if set, count what others loaded for the domains: for the metric of loaded objects.
	Users, Aliases func() int
}

// Error is a file or directory that cannot be used.
type Error struct {
	Path string
	Msg  string
	Fix  string
	Err  error // the cause, may be nil
}

// Error says what is wrong.
func (e *Error) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Remedy says what to do.
func (e *Error) Remedy() string { return e.Fix }

// Domain is one local domain. It is not changed once made.
type Domain struct {
	Name    string // lower-case Unicode form
	Dir     string // its directory as spelled; empty for localhost
	Users   string // path of the users file, whether or not it exists; empty for localhost
	Aliases string // path of the aliases file, likewise
	Keys    []Key  // in order of their files' names
}

// Snapshot is the loaded state at one time. It is not changed once made.
type Snapshot struct {
	Domains []*Domain // sorted by name
	Certs   []*Cert   // in order of their directories, then those from elsewhere; the first is the default

	byName map[string]*Domain
	certs  certIndex
	extra  []*Cert // the tail of Certs that does not come from certs/
}

// IsLocal reports whether the domain, in lower-case Unicode form, is local.
func (s *Snapshot) IsLocal(domain string) bool { return s.byName[domain] != nil }

// Domain returns a local domain, nil if it is not one.
func (s *Snapshot) Domain(name string) *Domain { return s.byName[name] }

// Table is the current snapshot and what is needed to make the next.
type Table struct {
	cfg     Config // but for what is in expects
	expects atomic.Pointer[expectation]
	current atomic.Pointer[Snapshot]
	metrics *metrics

	localhost *Domain // for when it has no directory

	mu      sync.Mutex // one load at a time
	extra   []*Cert
	certs   map[string]*loaded[*Cert]
	domains map[string]*loaded[*Domain]
}

// expectation is what Config says of certificates.
type expectation struct {
	hostname      string
	certsOptional bool
}

// Expect changes Config.Hostname and Config.CertsOptional.
func (t *Table) Expect(hostname string, certsOptional bool) {
	t.expects.Store(&expectation{hostname, certsOptional})
}

// loaded is what became of one directory: the state of its files when it was last looked at, the value last good, and the
// error of the last look.
type loaded[T any] struct {
	state string
	value T
	ok    bool // value is usable
	err   error
}

// Load reads everything. Errors are of type *Error, several joined; warnings are sentences for the log.
func Load(ctx context.Context, cfg Config) (t *Table, warnings []string, err error) {
	t = &Table{cfg: cfg, localhost: &Domain{Name: Localhost},
		certs: map[string]*loaded[*Cert]{}, domains: map[string]*loaded[*Domain]{}}
	t.Expect(cfg.Hostname, cfg.CertsOptional)
	t.metrics = newMetrics(cfg.Metrics, t)
	t.mu.Lock()
	defer t.mu.Unlock()
	snap, warnings, err := t.read(ctx)
	if err != nil {
		return nil, warnings, err
	}
	t.current.Store(snap)
	return t, warnings, nil
}

// Current returns the snapshot in force.
func (t *Table) Current() *Snapshot { return t.current.Load() }

// IsLocal reports whether the domain, in lower-case Unicode form, is local now.
func (t *Table) IsLocal(domain string) bool { return t.Current().IsLocal(domain) }

// Reload reads what changed since the last time and puts it in force at once. A certificate or domain directory with a bad file
// keeps its last good state, a new one with a bad file is left out, and the error says which and what to do; everything else is
// taken. If certs/ or domains/ cannot be read, or would be empty, all of it stays. Changed says whether anything did; warnings
// are those of the present state, not only the new ones.
func (t *Table) Reload(ctx context.Context) (changed bool, warnings []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.Current()
	snap, warnings, err := t.read(ctx)
	if snap.same(old) {
		return false, warnings, err
	}
	t.current.Store(snap)
	trace.From(ctx).Printf("domains: %d, certificates: %d", len(snap.Domains), len(snap.Certs))
	return true, warnings, err
}

// SetExtra puts certificates that do not come from certs/ in force, instead of those of the last time. Those of certs/ go before them.
func (t *Table) SetExtra(list []*Cert) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.extra = list
	if old := t.Current(); old != nil {
		t.current.Store(newSnapshot(old.own(), list, old.Domains))
	}
}

// own are the certificates of certs/.
func (s *Snapshot) own() []*Cert {
	return s.Certs[: len(s.Certs)-len(s.extra) : len(s.Certs)-len(s.extra)]
}

// HasOwn reports whether there is a certificate in certs/.
func (s *Snapshot) HasOwn() bool { return len(s.own()) > 0 }

// same reports whether two snapshots consist of the same objects.
func (s *Snapshot) same(o *Snapshot) bool {
	return slices.Equal(s.Domains, o.Domains) && slices.Equal(s.Certs, o.Certs)
}

// read builds a snapshot; where something is wrong, from what was good before. It always returns one. t.mu is held.
func (t *Table) read(ctx context.Context) (*Snapshot, []string, error) {
	certs, certWarn, certErr := t.readCerts(ctx)
	list, domWarn, domErr := t.readDomains(ctx)
	if old := t.Current(); old != nil {
		if len(certs) == 0 {
			certs = old.own() // never left without, whatever happened to the directory
		}
		if len(list) == 0 {
			list = old.Domains
		}
	}
	return newSnapshot(certs, t.extra, append(list, t.localhost)), append(certWarn, domWarn...), errors.Join(certErr, domErr)
}

func newSnapshot(certs, extra []*Cert, list []*Domain) *Snapshot {
	all := slices.Concat(certs, extra)
	s := &Snapshot{Certs: all, byName: map[string]*Domain{}, certs: indexCerts(all), extra: extra}
	for _, d := range list {
		if s.byName[d.Name] == nil {
			s.Domains = append(s.Domains, d)
			s.byName[d.Name] = d
		}
	}
	slices.SortFunc(s.Domains, func(a, b *Domain) int { return strings.Compare(a.Name, b.Name) })
	return s
}

func (t *Table) path(elem ...string) string {
	return filepath.Join(append([]string{t.cfg.Dir}, elem...)...)
}

// errEmpty is the reason of errors about directories without entries.
var errEmpty = errors.New("the directory is empty")

// readDir lists certs/ or domains/, which must not be empty. The texts are those that existing tooling compares.
func (t *Table) readDir(name string) ([]fs.DirEntry, error) {
	shown := t.path(name) + "/"
	entries, err := os.ReadDir(shown)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Error{Path: shown, Msg: err.Error(), Err: err,
			Fix: "make the directory, or name the right configuration directory with -config_dir"}
	case err != nil:
		return nil, &Error{Path: shown, Msg: err.Error(), Err: err, Fix: fixRead(shown)}
	case len(entries) == 0:
		return nil, &Error{Path: shown, Msg: fmt.Sprintf("No entries found in %q", shown), Err: errEmpty, Fix: dirFix(name)}
	}
	return entries, nil
}

func dirFix(name string) string {
	if name == "certs" {
		return "make a directory there with fullchain.pem and privkey.pem, or link it to the directory where your ACME client keeps them"
	}
	return "make a directory there for each domain to receive mail for, such as domains/example.org; it may be empty"
}

func fixRead(path string) string {
	return fmt.Sprintf("let the server's user read it: check owner and mode of %s and of the directories above it", path)
}

// FileState describes files so that a change of any of them shows. Missing files count as well.
func FileState(paths ...string) string {
	var b strings.Builder
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			fmt.Fprintf(&b, "%s %v\n", p, err)
			continue
		}
		fmt.Fprintf(&b, "%s %d %d %v%s\n", p, st.Size(), st.ModTime().UnixNano(), st.Mode(), inode(st))
	}
	return b.String()
}
