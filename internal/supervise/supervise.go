// Package supervise tells systemd how the server is: ready, reloading, stopping, and alive for as long as it makes progress.
package supervise

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/log"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Probe finds out whether a part of the server makes progress. Check returns when ctx ends; its error says what is stuck.
type Probe struct {
	Name  string
	Check func(ctx context.Context) error
}

// Config is what to tell and to whom.
type Config struct {
	Probes []Probe
	// Every is the time within which systemd wants to hear of us, 0 if it does not. FromEnvironment knows.
	Every time.Duration
	// Send sends a state; nil sends nothing.
	Send func(state string) error
}

// FromEnvironment is for a process that systemd started (sd_notify(3), sd_watchdog_enabled(3)); for others nothing is sent.
func FromEnvironment(probes ...Probe) Config {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Errorf("systemd watchdog: %v; it is not fed", err)
	}
	return Config{Probes: probes, Every: every, Send: func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}}
}

// Supervisor speaks with systemd. A nil one says nothing.
type Supervisor struct {
	cfg   Config
	quiet atomic.Bool // another process speaks
	ends  atomic.Bool // the server drains: a reload that was under way is no news
}

// New returns a supervisor.
func New(cfg Config) *Supervisor { return &Supervisor{cfg: cfg} }

func (s *Supervisor) send(states ...string) {
	if s == nil || s.cfg.Send == nil || s.quiet.Load() {
		return
	}
	if err := s.cfg.Send(strings.Join(states, "\n")); err != nil {
		log.Errorf("telling systemd: %v", err)
	}
}

// Ready says that the server serves, or that a reload is over. status is a line for people.
func (s *Supervisor) Ready(status string) {
	if s == nil || !s.ends.Load() {
		s.send(daemon.SdNotifyReady, statusLine(status))
	}
}

// Reloading says that files are being read again; Ready ends it.
func (s *Supervisor) Reloading() {
	s.send(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
}

// Stopping says that the server drains.
func (s *Supervisor) Stopping() {
	if s != nil {
		s.ends.Store(true)
	}
	s.send(daemon.SdNotifyStopping, statusLine("finishing what is under way"))
}

// Status shows a line for people in systemctl status.
func (s *Supervisor) Status(status string) { s.send(statusLine(status)) }

// Handover says that another process is the server from now on. Nothing more is said by this one.
func (s *Supervisor) Handover(pid int) {
	s.send(fmt.Sprintf("MAINPID=%d", pid), daemon.SdNotifyReady)
	if s != nil {
		s.quiet.Store(true)
	}
}

// statusLine makes a status of one line, whatever is in it.
func statusLine(status string) string {
	return "STATUS=" + strings.Join(strings.Fields(status), " ")
}

// Run feeds the watchdog until the context ends: twice in the time that systemd allows, if all probes find progress. If one does
// not, the watchdog starves and systemd restarts the server; the log says why.
func (s *Supervisor) Run(ctx context.Context) {
	if s == nil || s.cfg.Every <= 0 {
		return
	}
	every := s.cfg.Every / 2
	t := time.NewTicker(every)
	defer t.Stop()
	stuck := false
	for {
		err := s.probe(ctx, every)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Errorf("Watchdog: %v; systemd restarts the server if this lasts %v", err, s.cfg.Every)
			s.Status("stuck: " + err.Error())
		case stuck:
			s.send(daemon.SdNotifyWatchdog, statusLine("serving"))
		default:
			s.send(daemon.SdNotifyWatchdog)
		}
		stuck = err != nil
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// probe runs the probes one after the other within the limit and returns the first failure.
func (s *Supervisor) probe(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, p := range s.cfg.Probes {
		if err := p.Check(ctx); err != nil {
			return fmt.Errorf("%s makes no progress: %w", p.Name, err)
		}
	}
	return nil
}
