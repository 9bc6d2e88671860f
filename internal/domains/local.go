package domains

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// readDomains returns the domains that are usable, sorted by directory, and the errors of those that are not or not any more.
func (t *Table) readDomains(ctx context.Context) (list []*Domain, warnings []string, err error) {
	entries, err := t.readDir("domains")
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	seen := map[string]*loaded[*Domain]{}
	byName := map[string]string{}
	for _, e := range entries {
		dir := t.path("domains", e.Name())
		if st, err := os.Stat(dir); err == nil && !st.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue // notes, editors' files and the like
		}
		l := loadDomain(dir, e.Name(), t.domains[dir])
		seen[dir] = l
		if l.err != nil {
			trace.From(ctx).Printf("%v", l.err)
			errs = append(errs, l.err)
		}
		if !l.ok {
			continue
		}
		if other := byName[l.value.Name]; other != "" {
			warnings = append(warnings, fmt.Sprintf("%s and %s are the same domain; the first is used", other, dir))
			continue
		}
		byName[l.value.Name] = dir
		list = append(list, l.value)
	}
	t.domains = seen
	return list, warnings, errors.Join(errs...)
}

// loadDomain loads a domain's directory, unless its keys are as they were at the last look.
func loadDomain(dir, name string, last *loaded[*Domain]) *loaded[*Domain] {
	keyFiles, err := findKeys(dir)
	state := FileState(keyFiles...)
	if last != nil && last.state == state && err == nil {
		return last
	}
	next := &loaded[*Domain]{state: state}
	if err != nil {
		next.state = err.Error()
		next.err = &Error{Path: dir, Msg: err.Error(), Err: err, Fix: fixRead(dir)}
	} else {
		next.value, next.err = newDomain(dir, name, keyFiles)
	}
	next.ok = next.err == nil
	if !next.ok && last != nil && last.ok && !errors.Is(next.err, fs.ErrNotExist) {
		next.value, next.ok = last.value, true
	}
	return next
}

// findKeys lists the files of DKIM keys in a domain's directory, in lexical order.
func findKeys(dir string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if n := e.Name(); strings.HasPrefix(n, "dkim:") && strings.HasSuffix(n, ".pem") {
			files = append(files, filepath.Join(dir, n))
		}
	}
	return files, err
}

func newDomain(dir, name string, keyFiles []string) (*Domain, error) {
	norm, err := address.NormalizeDomain(name)
	if err != nil || strings.HasPrefix(norm, "[") {
		if err == nil {
			err = address.ErrDomain
		}
		return nil, &Error{Path: dir, Msg: fmt.Sprintf("%s: %q is not a domain: %v", dir, name, err), Err: err,
			Fix: "rename the directory to the domain's name, or move it elsewhere"}
	}
	d := &Domain{Name: norm, Dir: dir, Users: filepath.Join(dir, "users"), Aliases: filepath.Join(dir, "aliases")}
	for _, f := range keyFiles {
		k, err := loadKey(norm, f)
		if err != nil {
			return nil, err
		}
		d.Keys = append(d.Keys, k)
	}
	return d, nil
}
