package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// diskHold is how long a failing disk is told of after it was last seen.
const diskHold = 3 * time.Second

// healthChecks are what /readyz runs. Only what keeps this server from taking mail makes it not ready. Everything else is a warning: what is
// taken is safe in the queue, the other servers behind the same address most likely share the trouble, and a server without traffic could not
// show that the trouble is over.
func (s *server) healthChecks() []monitoring.Check {
	return []monitoring.Check{
		{Name: "listeners", Run: func(context.Context) error {
			if len(s.smtp.Listeners()) == 0 && !s.up.giving.Load() {
				return errors.New("no SMTP listener is open: set smtp_address, and look for errors of listening in the log")
			}
			return nil
		}},
		{Name: "queue_dir", Run: s.checkQueueDir, Hold: diskHold},
		{Name: "queue_space", Run: s.checkQueueSpace, Hold: diskHold},
		{Name: "certificates", Run: s.checkCertificates, Warning: true},
		{Name: "config", Run: s.checkReload, Warning: true},
		{Name: "resolver", Warning: true},
		{Name: "mda", Run: s.checkMDA, Warning: true},
		{Name: "hooks", Warning: true},
		{Name: "auth", Warning: true},
		{Name: "relay", Warning: true}, // of relays that are set now
		{Name: "shutdown", Run: func(context.Context) error {
			select {
			case <-s.draining:
				return errors.New("the server is stopping")
			default:
				return nil
			}
		}},
	}
}

func (s *server) queuePath() string { return filepath.Join(s.conf().GetDataDir(), "queue") }

// checkQueueDir fails while the disk of the queue does.
func (s *server) checkQueueDir(context.Context) error {
	err := s.store.Load().Err()
	if err == nil || errors.Is(err, queue.ErrFull) || s.up.giving.Load() { // an upgrade closes it, and mail waits
		return nil
	}
	return fmt.Errorf("the disk of the queue, in %s, fails: %w: look at the kernel's log, repair or replace the disk, then restart", s.queuePath(), err)
}

// checkQueueSpace fails while there is no room for mail.
func (s *server) checkQueueSpace(context.Context) error {
	if err := s.store.Load().Err(); errors.Is(err, queue.ErrFull) {
		free, ferr := vfs.OS.Free(s.queuePath())
		if ferr != nil {
			return ferr
		}
		return fmt.Errorf("not enough disk space in %s: %.0f MiB are free, and mail is refused below %d MiB (min_free_disk_mb): free some, and mail is taken again",
			s.queuePath(), float64(free)/(1<<20), s.conf().GetMinFreeDiskMb())
	}
	if q := s.queue.Stats(); q.Capacity > 0 && q.Messages >= q.Capacity {
		return fmt.Errorf("the queue is full: it holds %d messages, the limit (max_queue_items): see what they wait for, or raise it", q.Messages)
	}
	return nil
}

// checkCertificates fails when one in use has expired, or one that ACME shall get is not there.
func (s *server) checkCertificates(context.Context) error {
	var errs []error
	for _, c := range s.domains.Current().Certs {
		if time.Now().After(c.NotAfter) {
			errs = append(errs, fmt.Errorf("the certificate in %s expired on %s UTC: renew it, and the new one is loaded by itself", c.Dir, c.NotAfter.UTC().Format(time.DateTime)))
		}
	}
	return errors.Join(append(errs, s.missingCertificates()...)...)
}

// checkReload fails when the last reload did; what was loaded before is in use.
func (s *server) checkReload(context.Context) error {
	var errs []error
	for _, e := range s.reload.Last().Errors {
		errs = append(errs, fmt.Errorf("%w%s", e, remedy.Text(e)))
	}
	return errors.Join(errs...)
}

// checkMDA fails when the program for local mail cannot be run.
func (s *server) checkMDA(context.Context) error {
	if s.conf().LocalMaildir != "" || s.conf().LocalLMTP != "" {
		return nil
	}
	if _, err := exec.LookPath(s.conf().GetMailDeliveryAgentBin()); err != nil {
		return fmt.Errorf("mail for local users waits in the queue: the delivery program cannot be run: %w (set mail_delivery_agent_bin or local_delivery)", err)
	}
	return nil
}
