package sts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// filePrefix begins the names of cache files; the domain in Unicode follows.
const filePrefix = "pol:"

// Errors of loading, besides those of the file system.
var (
	errUnmarshal = errors.New("malformed cache file")
	errMarshal   = errors.New("policy cannot be encoded")
)

// files is the cache directory. A file's modification time is when it expires.
type files struct{ dir string }

// open makes the directory.
func (f files) open() error {
	if f.dir == "" {
		return nil
	}
	return os.MkdirAll(f.dir, 0o770)
}

func (f files) path(domain string) string { return filepath.Join(f.dir, filePrefix+domain) }

// load returns a policy and when it expires. fs.ErrNotExist says that there is none.
func (f files) load(domain string) (*Policy, time.Time, error) {
	if f.dir == "" {
		return nil, time.Time{}, fs.ErrNotExist
	}
	file, err := os.Open(f.path(domain))
	if err != nil {
		return nil, time.Time{}, err
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > 1<<20 {
		return nil, time.Time{}, errUnmarshal
	}
	p := &Policy{}
	if err := json.NewDecoder(file).Decode(p); err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %v", errUnmarshal, err)
	}
	return p, fi.ModTime(), nil
}

// save replaces the file of a domain. What a crash can lose is only a cache entry, so nothing is flushed.
func (f files) save(domain string, p *Policy, expires time.Time) (err error) {
	if f.dir == "" {
		return nil
	}
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("%w: %v", errMarshal, err)
	}
	tmp, err := os.CreateTemp(f.dir, ".sts-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(0o640)
	}
	if err == nil {
		err = keepOwner(tmp, f.path(domain))
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chtimes(tmp.Name(), expires, expires)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), f.path(domain))
	}
	return err
}

// keepOwner gives the new file the owner of the one it replaces.
func keepOwner(tmp *os.File, old string) error {
	fi, err := os.Stat(old)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return tmp.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}

// list returns the domains that have a file.
func (f files) list() ([]string, error) {
	if f.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	var l []string
	for _, e := range entries {
		if d, ok := strings.CutPrefix(e.Name(), filePrefix); ok {
			l = append(l, d)
		}
	}
	return l, nil
}
