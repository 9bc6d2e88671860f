package vfs

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Mem is a file system in memory that can lose power. It is strict: what was written survives only if the file was flushed
// afterwards, and a name only if its directory was. The zero value is not usable; NewMem makes one.
type Mem struct {
	// Capacity is how many bytes the files may hold together; more is ENOSPC. Zero: no limit. Set before use or with SetCapacity.
	Capacity int64

	mu    sync.Mutex
	root  *memNode
	used  int64
	locks map[string]bool
}

// memNode is a file or a directory: what is there now, what would certainly survive, and what was done in between.
type memNode struct {
	dir     bool
	mod     time.Time
	links   int // names that point here, plus open files
	data    []byte
	durable []byte
	pending []memChange

	names        map[string]*memNode
	durableNames map[string]*memNode
	pendingNames []nameChange
}

// memChange is a change of a file that was not flushed yet: data at off, or a new size if data is nil.
type memChange struct {
	off  int64
	data []byte
}

// nameChange is a change of a directory that was not flushed yet. A nil node removes the name. Rename within one directory is
// one change: both names or none.
type nameChange struct {
	name string
	node *memNode
	gone string // also removed
}

// NewMem returns an empty file system.
func NewMem() *Mem {
	return &Mem{root: newDir(), locks: map[string]bool{}}
}

func newDir() *memNode {
	return &memNode{dir: true, names: map[string]*memNode{}, durableNames: map[string]*memNode{}}
}

// SetCapacity changes how many bytes the files may hold together.
func (m *Mem) SetCapacity(n int64) {
	m.mu.Lock()
	m.Capacity = n
	m.mu.Unlock()
}

// Used is the number of bytes the files hold.
func (m *Mem) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// split returns the elements of a cleaned path; the root has none.
func split(name string) []string {
	name = strings.Trim(filepath.ToSlash(filepath.Clean(name)), "/")
	if name == "" || name == "." {
		return nil
	}
	return strings.Split(name, "/")
}

func perr(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// find returns the node of a path.
func (m *Mem) find(op, name string) (*memNode, error) {
	n := m.root
	for _, e := range split(name) {
		if !n.dir {
			return nil, perr(op, name, errNotDir)
		}
		if n = n.names[e]; n == nil {
			return nil, perr(op, name, fs.ErrNotExist)
		}
	}
	return n, nil
}

// findDir returns the directory a path stands in, and its last element.
func (m *Mem) findDir(op, name string) (dir *memNode, base string, err error) {
	if len(split(name)) == 0 {
		return nil, "", perr(op, name, fs.ErrExist)
	}
	d, base := filepath.Split(filepath.Clean(name))
	dir, err = m.find(op, d)
	if err != nil {
		return nil, "", err
	}
	if !dir.dir {
		return nil, "", perr(op, name, errNotDir)
	}
	return dir, base, nil
}

func (d *memNode) change(c nameChange) {
	c.apply(d.names)
	d.pendingNames = append(d.pendingNames, c)
	d.mod = time.Now()
}

func (c nameChange) apply(names map[string]*memNode) {
	if c.node != nil {
		names[c.name] = c.node
	} else {
		delete(names, c.name)
	}
	if c.gone != "" {
		delete(names, c.gone)
	}
}

// OpenFile implements FS.
func (m *Mem) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.findDir("open", name)
	if err != nil {
		return nil, err
	}
	n := dir.names[base]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, perr("open", name, fs.ErrNotExist)
	case n == nil:
		n = &memNode{links: 1, mod: time.Now()}
		dir.change(nameChange{name: base, node: n})
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, perr("open", name, fs.ErrExist)
	case n.dir:
		return nil, perr("open", name, syscall.EISDIR)
	}
	n.links++
	f := &memFile{m: m, n: n, name: name, writable: flag&(os.O_WRONLY|os.O_RDWR) != 0}
	if flag&os.O_TRUNC != 0 {
		m.resize(n, 0)
	}
	return f, nil
}

// Mkdir implements FS.
func (m *Mem) Mkdir(name string, perm fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.findDir("mkdir", name)
	if err != nil {
		return err
	}
	if dir.names[base] != nil {
		return perr("mkdir", name, fs.ErrExist)
	}
	n := newDir()
	n.links = 1
	dir.change(nameChange{name: base, node: n})
	return nil
}

// ReadDir implements FS.
func (m *Mem) ReadDir(name string) ([]Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !d.dir {
		return nil, perr("readdir", name, errNotDir)
	}
	infos := make([]Info, 0, len(d.names))
	for base, n := range d.names {
		infos = append(infos, n.info(base))
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

func (n *memNode) info(base string) Info {
	return Info{Name: base, Size: int64(len(n.data)), Dir: n.dir, ModTime: n.mod}
}

// Stat implements FS.
func (m *Mem) Stat(name string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("stat", name)
	if err != nil {
		return Info{}, err
	}
	return n.info(filepath.Base(name)), nil
}

// Rename implements FS. Within one directory a crash leaves both names as they were or as they are to be; between two
// directories each is on its own, as far as it was flushed.
func (m *Mem) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, oldBase, err := m.findDir("rename", oldname)
	if err != nil {
		return err
	}
	to, newBase, err := m.findDir("rename", newname)
	if err != nil {
		return err
	}
	n := from.names[oldBase]
	if n == nil {
		return perr("rename", oldname, fs.ErrNotExist)
	}
	if old := to.names[newBase]; old != nil {
		if old == n {
			return nil
		}
		if old.dir {
			return perr("rename", newname, fs.ErrExist)
		}
		m.unlink(old)
	}
	if from == to {
		from.change(nameChange{name: newBase, node: n, gone: oldBase})
	} else {
		to.change(nameChange{name: newBase, node: n})
		from.change(nameChange{name: oldBase})
	}
	return nil
}

// Link implements FS.
func (m *Mem) Link(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("link", oldname)
	if err != nil {
		return err
	}
	to, base, err := m.findDir("link", newname)
	if err != nil {
		return err
	}
	switch {
	case n.dir:
		return perr("link", oldname, fs.ErrPermission)
	case to.names[base] != nil:
		return perr("link", newname, fs.ErrExist)
	}
	n.links++
	to.change(nameChange{name: base, node: n})
	return nil
}

// Remove implements FS. A file that is open can still be read.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.findDir("remove", name)
	if err != nil {
		return err
	}
	n := dir.names[base]
	switch {
	case n == nil:
		return perr("remove", name, fs.ErrNotExist)
	case n.dir && len(n.names) > 0:
		return perr("remove", name, syscall.ENOTEMPTY)
	}
	m.unlink(n)
	dir.change(nameChange{name: base})
	return nil
}

// unlink drops one reference; the space is free when the last is gone.
func (m *Mem) unlink(n *memNode) {
	if n.links--; n.links == 0 {
		m.used -= int64(len(n.data))
	}
}

// SyncDir implements FS.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, err := m.find("syncdir", name)
	if err != nil {
		return err
	}
	if !d.dir {
		return perr("syncdir", name, errNotDir)
	}
	for _, c := range d.pendingNames {
		c.apply(d.durableNames)
	}
	d.pendingNames = nil
	return nil
}

// Lock implements FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	f, err := m.OpenFile(name, os.O_RDWR|os.O_CREATE, 0600)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := filepath.Clean(name)
	if m.locks[key] {
		m.unlink(f.(*memFile).n)
		return nil, perr("lock", name, ErrLocked)
	}
	m.locks[key] = true
	return &memLock{f.(*memFile), key}, nil
}

type memLock struct {
	*memFile
	key string
}

func (l *memLock) Close() error {
	if err := l.memFile.Close(); err != nil {
		return err
	}
	l.m.mu.Lock()
	delete(l.m.locks, l.key)
	l.m.mu.Unlock()
	return nil
}

// Free implements FS.
func (m *Mem) Free(string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Capacity == 0 {
		return math.MaxInt64 / 2, nil
	}
	return max(0, m.Capacity-m.used), nil
}

// PowerCut returns what a machine finds after losing power now. What was flushed is there. Of what was not, with a nil rng
// nothing is there; otherwise each change survives, is lost, or (writes) survives in some of its 512-byte sectors, at random.
// The file system itself goes on as if nothing had happened, so several cuts can be taken from one history.
func (m *Mem) PowerCut(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.image(func(n *memNode, c *memNode) {
		if n.dir {
			c.names = map[string]*memNode{}
			for base, d := range n.durableNames {
				c.names[base] = d
			}
			for _, ch := range n.pendingNames {
				if rng != nil && rng.IntN(2) == 0 {
					ch.apply(c.names)
				}
			}
			return
		}
		c.data = slices.Clone(n.durable)
		for _, ch := range n.pending {
			if rng != nil {
				c.data = ch.survive(rng, c.data)
			}
		}
	})
}

// Kill returns what the next process finds when this one is killed now: everything it had done, and no locks.
func (m *Mem) Kill() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.image(func(n *memNode, c *memNode) {
		c.data = slices.Clone(n.data)
		c.names = map[string]*memNode{}
		for base, d := range n.names {
			c.names[base] = d
		}
	})
}

// image copies the tree; keep decides what of a node the copy holds, with children still those of the original.
func (m *Mem) image(keep func(n, c *memNode)) *Mem {
	img := NewMem()
	img.Capacity = m.Capacity
	copies := map[*memNode]*memNode{}
	var walk func(n *memNode) *memNode
	walk = func(n *memNode) *memNode {
		if c := copies[n]; c != nil {
			c.links++
			return c
		}
		c := &memNode{dir: n.dir, mod: n.mod, links: 1}
		copies[n] = c
		keep(n, c)
		img.used += int64(len(c.data))
		c.durable = slices.Clone(c.data)
		if n.dir {
			c.durableNames = map[string]*memNode{}
			for _, base := range sortedNames(c.names) {
				child := walk(c.names[base])
				c.names[base], c.durableNames[base] = child, child
			}
		}
		return c
	}
	img.root = walk(m.root)
	return img
}

func sortedNames(names map[string]*memNode) []string {
	s := make([]string, 0, len(names))
	for base := range names {
		s = append(s, base)
	}
	slices.Sort(s)
	return s
}

// memSector is what a disk writes whole or not at all.
const memSector = 512

// survive applies what a power cut leaves of a change.
func (ch memChange) survive(rng *rand.Rand, data []byte) []byte {
	switch rng.IntN(3) {
	case 0:
		return data
	case 1:
		return ch.apply(data)
	}
	if ch.data == nil {
		return ch.apply(data)
	}
	for off, end := ch.off, ch.off+int64(len(ch.data)); off < end; {
		next := min(end, (off/memSector+1)*memSector)
		if rng.IntN(2) == 0 {
			data = memChange{off, ch.data[off-ch.off : next-ch.off]}.apply(data)
		}
		off = next
	}
	return data
}

func (ch memChange) apply(data []byte) []byte {
	if ch.data == nil {
		return setLen(data, ch.off)
	}
	if end := ch.off + int64(len(ch.data)); end > int64(len(data)) {
		data = setLen(data, end)
	}
	copy(data[ch.off:], ch.data)
	return data
}

func setLen(data []byte, n int64) []byte {
	if n <= int64(len(data)) {
		return data[:n]
	}
	return append(data, make([]byte, n-int64(len(data)))...)
}

// errClosedFile is what a closed file answers.
var errClosedFile = errors.New("file already closed")
