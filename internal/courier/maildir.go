package courier

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// maildir delivers to one recipient into a Maildir, which is made if it is not there. The message is on disk under its final
// name, and the name is too, before this says so.
func (l *Local) maildir(ctx context.Context, job *mail.Job, r *mail.Recipient, template string) mail.Outcome {
	dir, err := maildirPath(template, r)
	if err != nil {
		return refused(mail.ReasonMDA, 553, "5.1.3", "the address cannot be the name of a mailbox")
	}
	in, err := content(job, true)
	if err != nil {
		return internalError(err)
	}
	defer in.Close()
	name := l.names.next(time.Now(), l.cfg.Hostname)
	if err := deliverMaildir(l.cfg.FS, dir, name, traceFields(job, r), in); err != nil {
		return localFault(fmt.Errorf("Maildir delivery failed: %w", err))
	}
	trace.From(ctx).Printf("written to %s/new/%s", dir, name)
	return mail.Outcome{Disposition: mail.Delivered}
}

// traceFields are what final delivery puts on top (RFC 5321 section 4.4): the sender, and who got it.
func traceFields(job *mail.Job, r *mail.Recipient) string {
	one := func(s string) string {
		return strings.Map(func(c rune) rune {
			if unicode.IsControl(c) {
				return -1
			}
			return c
		}, s)
	}
	return "Return-Path: " + one(job.From.Path()) + "\nDelivered-To: " + one(r.To.String()) + "\n"
}

// deliverMaildir writes a message into a Maildir: under tmp, flushed, renamed into new, the directory flushed. When it fails,
// nothing is in new.
func deliverMaildir(fsys vfs.FS, dir, name, top string, in io.Reader) (err error) {
	for _, sub := range []string{"tmp", "cur", "new"} {
		if err := vfs.MkdirAll(fsys, filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	tmp := filepath.Join(dir, "tmp", name)
	f, err := fsys.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fsys.Remove(tmp)
		}
	}()
	w := bufio.NewWriterSize(io.NewOffsetWriter(f, 0), 32<<10)
	w.WriteString(top)
	_, err = io.Copy(w, in)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := fsys.Rename(tmp, filepath.Join(dir, "new", name)); err != nil {
		return err
	}
	// The message may be seen already. If its name cannot be made durable it is delivered again rather than never.
	return fsys.SyncDir(filepath.Join(dir, "new"))
}

// maildirPath fills in the template: %to_user%, %to_domain%, and %user%, %domain% for short. What is filled in is one name in
// the path, or part of one, and cannot lead anywhere else.
func maildirPath(template string, r *mail.Recipient) (string, error) {
	for _, s := range []string{r.To.Local, r.To.Domain} {
		if !safeName(s) {
			return "", errors.New("not usable as a file name")
		}
	}
	fill := strings.NewReplacer("%to_user%", r.To.Local, "%to_domain%", r.To.Domain, "%user%", r.To.Local, "%domain%", r.To.Domain)
	for part := range strings.SplitSeq(template, "/") {
		full := fill.Replace(part)
		if full != part && (full == "." || full == ".." || len(full) > 255) {
			return "", errors.New("not usable as a file name")
		}
	}
	return path.Clean(fill.Replace(template)), nil
}

// safeName reports text that is harmless as part of a file name.
func safeName(s string) bool {
	if s == "" || len(s) > 255 || s[0] == '.' || !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if c == '/' || c == '\\' || unicode.IsControl(c) || unicode.Is(unicode.Cf, c) {
			return false
		}
	}
	return true
}

// nameMaker makes names that no other delivery on any machine has: time, process, count and host, as the Maildir convention wants it.
type nameMaker struct{ count atomic.Uint64 }

func (m *nameMaker) next(now time.Time, host string) string {
	host = strings.NewReplacer("/", `\057`, ":", `\072`).Replace(host)
	if host == "" {
		host = "localhost"
	}
	b := strconv.AppendInt(nil, now.Unix(), 10)
	b = strconv.AppendInt(append(b, ".M"...), int64(now.Nanosecond()/1000), 10)
	b = strconv.AppendInt(append(b, 'P'), int64(os.Getpid()), 10)
	b = strconv.AppendUint(append(b, 'Q'), m.count.Add(1), 10)
	return string(append(append(b, '.'), host...))
}
