package cli

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/queue/items"
	"blitiri.com.ar/go/chasquid/internal/queue/spool"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

func exportCommand() *command {
	return &command{name: "queue export", args: "[-format=items] <directory>", short: "Write the queue as files of earlier versions",
		long: "Writes every message of the queue to a file of its own, in the format of chasquid up to 1.18, for going back to that version: " +
			"stop the server, export to a new directory, and put that in the place of the queue directory.\n\n" +
			"The server must be stopped. The queue itself stays as it is: a message is delivered twice if both are used. " +
			"The command may be interrupted and run again. Run as root, it works as the owner of the queue.",
		prepare: queueExport}
}

func queueExport(fs *flag.FlagSet) func(*call) error {
	format := fs.String("format", "items", "`format` of the files; there is one")
	asJSON := fs.Bool("json", false, "write JSON")
	return func(c *call) error {
		if err := c.wantArgs(1, 1); err != nil {
			return err
		}
		if *format != "items" {
			return usageError(fmt.Sprintf("there is no format %q", *format))
		}
		res, err := c.export(c.args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(c.Stdout, map[string]int{"exported": res.Done, "failed": res.Failed})
		} else {
			fmt.Fprintf(c.Stdout, "Exported %s to %s\n", plural(res.Done, "message"), c.args[0])
		}
		if err == nil && res.Failed > 0 {
			err = fmt.Errorf("%s could not be exported", plural(res.Failed, "message"))
		}
		return err
	}
}

func (c *call) export(dir string) (items.Result, error) {
	conf, err := config.Load(filepath.Join(c.configDir, config.FileName), "")
	if err != nil {
		return items.Result{}, err
	}
	source := filepath.Join(conf.Path(conf.GetDataDir()), "queue")
	uid, gid, err := ownerOf(source)
	if errors.Is(err, fs.ErrNotExist) {
		return items.Result{}, fmt.Errorf("there is no queue in %s", source)
	} else if err != nil {
		return items.Result{}, err
	}
	if same(source, dir) {
		return items.Result{}, errors.New("the queue cannot be exported into its own directory")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return items.Result{}, err
	}
	if err := become(uid, gid, dir); err != nil {
		return items.Result{}, err
	}
	store, err := spool.Open(spool.Config{Dir: source, MinFree: -1, NoPrefill: true})
	if errors.Is(err, vfs.ErrLocked) {
		return items.Result{}, fmt.Errorf("the queue is in use: stop the server first (%w)", err)
	} else if err != nil {
		return items.Result{}, err
	}
	p := c.progress("exported")
	res, err := items.Export(c.ctx, items.Config{Store: store, Dir: dir, Progress: p.update})
	p.end()
	return res, errors.Join(err, store.Close())
}

// same reports whether two paths are the same directory.
func same(a, b string) bool {
	ia, err := os.Stat(a)
	if err != nil {
		return false
	}
	ib, err := os.Stat(b)
	return err == nil && os.SameFile(ia, ib)
}

// become continues as another user if we are root, so that the files of the server stay the server's, and gives it the directory.
func become(uid, gid int, dir string) error {
	if os.Geteuid() != 0 || uid == 0 {
		return nil
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return syscall.Setgroups([]int{gid}) },
		func() error { return syscall.Setgid(gid) },
		func() error { return syscall.Setuid(uid) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("becoming the owner of the queue: %w", err)
		}
	}
	return nil
}

// fileOwner returns the numeric owner of a file.
func fileOwner(info os.FileInfo) (uid, gid int, err error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, errors.New("files have no owner here")
	}
	return int(st.Uid), int(st.Gid), nil
}

// progress shows on a terminal how far something is, a few times a second. A nil progress shows nothing.
type progress struct {
	env   *Env
	verb  string
	last  time.Time
	shown bool
}

func (e *Env) progress(verb string) *progress {
	if !e.Terminal {
		return nil
	}
	return &progress{env: e, verb: verb}
}

// update is told how far it is. Total is 0 if it is not known.
func (p *progress) update(done, total int) {
	if p == nil || done != total && time.Since(p.last) < 200*time.Millisecond {
		return
	}
	p.last, p.shown = time.Now(), true
	if total == 0 {
		fmt.Fprintf(p.env.Stderr, "\r%d %s", done, p.verb)
		return
	}
	fmt.Fprintf(p.env.Stderr, "\r%d of %d %s (%d%%)", done, total, p.verb, done*100/total)
}

func (p *progress) end() {
	if p != nil && p.shown {
		fmt.Fprintln(p.env.Stderr)
	}
}
