package main

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/handover"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/log"
)

// The new process's side of an upgrade.

// takeOver gets everything ready that needs no queue, and waits for the queue. It does nothing in a process that succeeds none.
func (s *server) takeOver(ctx context.Context) error {
	p := s.up.pred
	if p == nil {
		return nil
	}
	err := errors.Join(s.openListeners(ctx), s.openMonitoring())
	if err != nil {
		return err
	}
	p.Sockets.Close() // those that the settings no longer want
	s.flags.at("new-prepared")
	if err := p.Prepared(ctx, s.introduction()); err != nil {
		return err
	}
	s.flags.at("new-given")
	s.up.took = time.Now()
	err = s.openStore(ctx, lockPatience)
	s.flags.at("new-opened")
	return err
}

// serving says that everything is started. What another process has still open is started when it is not any more.
func (s *server) serving(ctx context.Context) {
	p := s.up.pred
	if p == nil {
		s.startRest()
		return
	}
	log.Infof("Upgrade: serving, in place of version %s, process %d", p.Version, p.PID)
	relayed := handover.Server{Begin: s.intake.BeginAs, Events: &s.up.events, Level: s.up.levels.RecordIncoming}
	p.Serving(func(c net.Conn) { relayed.Serve(s.run.base, c) })
	s.flags.at("new-serving")
	s.up.awaiting.start(s.run.base, func(ctx context.Context) {
		select {
		case <-p.Rest():
		case <-ctx.Done(): // what we have learned is to be written, whatever the other process does
		}
		if err := s.levels.Reload(ctx); err != nil {
			log.Errorf("reading the TLS levels of domains again: %v", err)
		}
		if s.reports != nil {
			if err := s.reports.Load(); err != nil {
				log.Errorf("The counts for TLS reports start anew: %v", err)
			}
		}
		s.startRest()
		s.flags.at("new-rest")
		select {
		case <-p.Gone():
			log.Infof("Upgrade: process %d has ended", p.PID)
		case <-ctx.Done():
		}
	})
}

// stopPredecessor asks the process before this one to end soon, if it still has sessions.
func (s *server) stopPredecessor(context.Context) {
	if s.up.pred != nil {
		s.up.pred.Stop()
	}
}

// awaitPredecessor waits for the end of the process before this one: it sends us what its sessions receive.
func (s *server) awaitPredecessor(ctx context.Context) {
	if s.up.pred == nil {
		return
	}
	select {
	case <-s.up.pred.Gone():
	case <-ctx.Done():
	}
}

// eventSwitch hands events to the observers of this process, or to those of its successor.
type eventSwitch struct {
	here  timeline.Observers
	there atomic.Pointer[handover.Relay]
}

// Observe is for the timeline.
func (o *eventSwitch) Observe(e *timeline.Event) {
	if r := o.there.Load(); r != nil {
		r.Observe(e)
		return
	}
	o.here.Observe(e)
}

func (o *eventSwitch) forward(r *handover.Relay) { o.there.Store(r) }

// levelSwitch is what the check of incoming TLS levels knows them by: what it learns after an upgrade is for the files of the successor.
type levelSwitch struct {
	s     *server
	there atomic.Pointer[handover.Relay]
}

// CheckIncoming asks what this process knows.
func (l *levelSwitch) CheckIncoming(ctx context.Context, domain string, level tlspolicy.Level) bool {
	return l.s.levels.CheckIncoming(ctx, domain, level)
}

// RecordIncoming notes a level, here and for the successor.
func (l *levelSwitch) RecordIncoming(ctx context.Context, domain string, level tlspolicy.Level) {
	l.s.levels.RecordIncoming(ctx, domain, level)
	if r := l.there.Load(); r != nil {
		r.RecordIncoming(ctx, domain, level)
	}
}

func (l *levelSwitch) forward(r *handover.Relay) { l.there.Store(r) }
