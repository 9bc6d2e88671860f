package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
	"blitiri.com.ar/go/chasquid/internal/listen"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/smtpsrv"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"golang.org/x/sys/unix"
)

// What a start does with the machine, tried without leaving anything behind. The words are those of the start: a test holds them together.

// serverRuns reports whether a server has this data directory now: then its ports and its lock are taken by right.
func (k *checker) serverRuns() bool {
	ctx, cancel := context.WithTimeout(k.ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(k.dataDir(), control.SocketName))
	if err == nil {
		conn.Close()
	}
	return err == nil || errors.Is(err, fs.ErrPermission) // a socket that we may not use is somebody's
}

func (k *checker) dataDir() string { return k.conf.Path(k.conf.GetDataDir()) }

// checkListeners opens the listeners for a moment.
func (k *checker) checkListeners() {
	roles := []listen.Role{
		{Name: "smtp", Label: smtpsrv.SMTP.String(), Addresses: k.conf.GetSmtpAddress()},
		{Name: "submission", Label: smtpsrv.Submission.String(), Addresses: k.conf.GetSubmissionAddress()},
		{Name: "submission_tls", Label: smtpsrv.SubmissionTLS.String(), Addresses: k.conf.GetSubmissionOverTlsAddress()},
	}
	systemd := false
	for i, r := range roles {
		roles[i].Addresses = nil
		for _, a := range r.Addresses {
			if a == listen.SystemdAddress {
				systemd = true
				continue
			}
			roles[i].Addresses = append(roles[i].Addresses, a)
		}
	}
	if k.NoPorts {
		return
	}
	set := listen.New(listen.Config{})
	_, _, _, err := set.Apply(k.ctx, roles)
	set.Close()
	if errors.Is(err, listen.ErrNoAddress) && systemd {
		k.ok("listeners", "by systemd's sockets")
		return
	}
	k.listenError("listeners", err)
	if addr := k.conf.GetMonitoringAddress(); addr != "" {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			l.Close()
		} else {
			err = remedy.With(fmt.Errorf("Error listening on monitoring_address: %w", err), "another process may use it, or the address is not of this machine: choose another")
		}
		k.listenError("monitoring", err)
	}
	if web := k.conf.GetMonitoringWebConfig(); web != "" {
		if err := monitoring.CheckWebConfig(k.conf.Path(web)); err != nil {
			k.failWith("monitoring", err)
		}
	}
}

// listenError tells why addresses cannot be listened on. Ports that are taken by the server itself are right, and those that only
// the server may use cannot be tried.
func (k *checker) listenError(about string, err error) {
	switch {
	case err == nil:
		k.ok(about, "the addresses can be listened on")
	case errors.Is(err, syscall.EADDRINUSE) && k.serverRuns():
		k.ok(about, "the server is running")
	case errors.Is(err, fs.ErrPermission):
		k.warn(about, remedy.Of(err), "%v", err)
	default:
		k.failWith(about, err)
	}
}

// checkMailLog looks whether the mail log can be written.
func (k *checker) checkMailLog() {
	path := k.conf.GetMailLogPath()
	if path == "" || path[0] == '<' {
		return
	}
	if err := canOpen(k.conf.Path(path)); err != nil {
		k.failWith("mail log", remedy.With(fmt.Errorf("Error opening mail log: %w", err), "correct mail_log_path, or let the server's user write there"))
		return
	}
	k.ok("mail log", "%s can be written", k.conf.Path(path))
}

// canOpen reports why a file could not be opened for appending; missing directories would be made.
func canOpen(path string) error {
	if st, err := os.Stat(path); err == nil {
		if st.IsDir() {
			return &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
		}
		return access("open", path)
	}
	dir := filepath.Dir(path)
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		if unix.Access(dir, unix.W_OK) != nil {
			return access("open", path)
		}
		return nil
	}
	return canMake(dir)
}

// canMake reports why a directory could not be made, with its parents.
func canMake(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case err == nil && st.IsDir():
		return access("open", dir)
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case errors.Is(err, syscall.ENOTDIR) || dir == "/" || dir == ".":
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case errors.Is(err, fs.ErrNotExist):
		parent := filepath.Dir(dir)
		if st, err := os.Stat(parent); err == nil && st.IsDir() && unix.Access(parent, unix.W_OK) != nil {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.EACCES}
		}
		return canMake(parent)
	}
	return err
}

// access reports why something that is there, or its directory, cannot be written.
func access(op, path string) error {
	target := path
	if _, err := os.Stat(path); err != nil {
		target = filepath.Dir(path)
	}
	if err := unix.Access(target, unix.W_OK); err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

// checkData looks at the data directory and what the server keeps in it.
func (k *checker) checkData() {
	dir := k.dataDir()
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		if err := canMake(dir); err != nil {
			k.failWith("data_dir", remedy.With(fmt.Errorf("Error making the data directory: %w", err), "let the server's user make it, or correct data_dir"))
		} else {
			k.warn("data_dir", "make it, for the user the server runs as", "%s does not exist yet", dir)
		}
		return
	}
	if info.Mode().Perm()&0o007 != 0 {
		k.warn("data_dir", "chmod o-rwx "+dir, "%s can be read by everybody on this machine (mode %04o)", dir, info.Mode().Perm())
	} else {
		k.ok("data_dir", "%s is there", dir)
	}
	for _, sub := range []struct{ name, failure string }{{"domaininfo", "Error opening domain info database"}, {"sts-cache", "Failed to initialize STS cache"},
		{"queue", "Error initializing queue: queue directory"}} {
		if err := canMake(filepath.Join(dir, sub.name)); err != nil {
			k.failWith("data_dir", fmt.Errorf("%s: %w", sub.failure, err))
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "domaininfo")); err == nil && st.IsDir() {
		if _, err := domaininfo.Open(k.ctx, domaininfo.Config{Dir: filepath.Join(dir, "domaininfo")}); err != nil {
			k.failWith("data_dir", fmt.Errorf("Error opening domain info database: %w", err))
		}
	}
	k.checkLock(filepath.Join(dir, "queue", "lock"))
}

// checkLock looks whether another process has the queue.
func (k *checker) checkLock(path string) {
	if _, err := os.Stat(path); err != nil {
		return // never started
	}
	lock, err := vfs.OS.Lock(path)
	switch {
	case err == nil:
		lock.Close()
	case errors.Is(err, vfs.ErrLocked) && !k.serverRuns():
		k.failWith("data_dir", remedy.With(fmt.Errorf("Error initializing queue: queue directory: %w", err), "another chasquid uses this data_dir: stop it, or set another"))
	case !errors.Is(err, vfs.ErrLocked):
		k.failWith("data_dir", fmt.Errorf("Error initializing queue: queue directory: %w", err))
	}
}
