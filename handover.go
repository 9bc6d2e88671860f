package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"blitiri.com.ar/go/chasquid/internal/handover"
	"blitiri.com.ar/go/chasquid/internal/opctl"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// The old process's side of an upgrade. docs/architecture.md has the order and why.

var (
	errUpgrading = &handover.Error{Msg: "the server is being upgraded or stopped already", Fix: "wait for the end of that"}
	errFirst     = &handover.Error{Msg: "this server is process 1: when it ends, everything in its container is ended",
		Fix: "replace the container instead"}
)

// upgrade starts the present binary and hands over to it. If that fails, this process goes on as before.
func (s *server) upgrade(ctx context.Context) (opctl.Upgraded, error) {
	if !s.up.mu.TryLock() {
		return opctl.Upgraded{}, errUpgrading
	}
	defer s.up.mu.Unlock()
	if s.up.next != nil || ctx.Err() != nil {
		return opctl.Upgraded{}, errUpgrading
	}
	log.Infof("Upgrade: starting %s", s.up.program.Path)
	start := time.Now()
	tctx, span := trace.Start(ctx, trace.Reload, "upgrade")
	defer span.Finish()
	release := s.reload.Hold() // the new process gets the listeners that are open now, and reads all files itself
	next, paused, err := s.handOver(tctx)
	if err != nil {
		release()
		s.up.failed++
		s.up.bad.Inc()
		log.Errorf("Upgrade failed: %v%s; the running server goes on as before", err, remedy.Text(err))
		return opctl.Upgraded{}, span.Error(err)
	}
	done := opctl.Upgraded{From: s.build.version, To: next.Intr.Version, PID: next.PID, Took: time.Since(start), Paused: paused}
	log.Infof("Upgrade: version %s, process %d, serves now; it took %v, and mail waited for %v. This process ends with its last session",
		done.To, done.PID, done.Took.Round(time.Millisecond), done.Paused.Round(time.Millisecond))
	s.up.next = next
	close(s.up.done)
	if ctx.Err() != nil { // we were told to stop meanwhile: that is for whoever is the server
		next.Terminate()
	}
	return done, nil
}

// handOver does the steps of an upgrade. It returns how long mail had to wait.
func (s *server) handOver(ctx context.Context) (next *handover.Successor, paused time.Duration, err error) {
	if os.Getpid() == 1 {
		return nil, 0, errFirst
	}
	sockets, err := s.socketsForNext()
	if err != nil {
		return nil, 0, err
	}
	defer sockets.Close()
	if next, err = handover.Start(s.up.program, s.introduction(), sockets); err != nil {
		return nil, 0, err
	}
	prepare, cancel := context.WithTimeout(ctx, s.flags.upgradeTime)
	defer cancel()
	if err := next.Prepared(prepare); err != nil {
		next.Kill()
		return nil, 0, err
	}
	s.flags.at("old-prepared")
	if paused, err = s.giveQueue(ctx, next, sockets); err != nil {
		return nil, 0, err
	}
	s.flags.at("old-served")
	s.up.relay = handover.NewRelay(next.Dial)
	s.intake.Forward(s.up.relay)
	s.supervisor.Handover(next.PID)
	return next, paused, nil
}

// giveQueue lets running deliveries finish, stops taking mail and gives the queue away. It takes everything back if that fails.
func (s *server) giveQueue(ctx context.Context, next *handover.Successor, sockets *handover.Sockets) (paused time.Duration, err error) {
	s.up.giving.Store(true)
	s.run.delivering.stop()
	start := time.Now()
	s.listeners.Close()
	pause, cancel := context.WithTimeout(ctx, s.conf().Time.Drain)
	defer cancel()
	given := false
	if err = s.intake.Pause(pause); err != nil {
		err = &handover.Error{Msg: "messages being put into the queue did not get there in time", Err: err, Fix: "see whether the disk or an alias hook hangs"}
	} else if err = ctx.Err(); err == nil {
		given = true
		err = s.give(next)
	}
	if err == nil {
		return time.Since(start), nil
	}
	next.Kill()
	return 0, errors.Join(err, s.takeBack(given, sockets))
}

// give closes the queue, and returns when the successor serves.
func (s *server) give(next *handover.Successor) error {
	s.flags.at("old-paused")
	if err := s.slot.Close(); err != nil { // of a broken disk; the new process may do better
		log.Errorf("Upgrade: closing the queue: %v", err)
	}
	s.flags.at("old-closed")
	if err := next.Give(); err != nil {
		return err
	}
	s.flags.at("old-given")
	ctx, cancel := context.WithTimeout(s.run.base, takeTime)
	defer cancel()
	return next.Serving(ctx)
}

// takeBack serves again. Given says that the successor may have had the queue.
func (s *server) takeBack(given bool, sockets *handover.Sockets) error {
	ctx := s.run.base
	defer s.up.giving.Store(false)
	if given {
		s.queue.Forget()
		if err := s.openStore(ctx, lockPatience); err != nil {
			log.Errorf("Upgrade: the queue cannot be opened again, stopping: %v", err)
			s.exit()
			return err
		}
	} else {
		s.intake.Resume()
	}
	s.run.delivering.start(ctx, s.deliver)
	s.listeners.SetInherited(sockets.Take)
	return s.listen(ctx)
}

// handedOver waits for an upgrade that is under way, and reports whether another process is the server now. There can be none after it.
func (s *server) handedOver() bool {
	s.up.mu.Lock() // for good
	return s.up.next != nil
}

// retire serves the sessions that are left, until they end, the time for that is over, or the new process or ctx end.
func (s *server) retire(ctx context.Context) {
	next, relay := s.up.next, s.up.relay
	s.up.events.forward(relay)
	s.up.levels.forward(relay)
	s.run.explaining.start(s.run.base, relay.Run)
	closed := make(chan struct{})
	go func() {
		s.run.tending.stop()
		s.run.recording.stop()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(restTime):
		log.Errorf("Upgrade: the history or other files cannot be closed; the new process uses them too")
	}
	s.flags.at("old-rest")
	if err := next.GiveRest(); err != nil {
		log.Errorf("Upgrade: %v", err)
	}
	go s.run.asking.stop() // who asked for the upgrade still gets the answer
	go s.run.pages.stop()
	left := make(chan struct{})
	go func() {
		s.run.receiving.Wait()
		s.awaitPredecessor(s.run.base)
		close(left)
	}()
	select {
	case <-left:
	case <-time.After(s.conf().Time.Drain):
		log.Infof("Upgrade: %d sessions are left, and are told to come again", s.smtp.Open())
	case <-next.Gone():
	case <-ctx.Done():
	}
}

// watchUpgrades upgrades on SIGUSR2 until ctx ends.
func (s *server) watchUpgrades(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.up.done:
			return
		case <-s.up.usr2:
			if _, err := s.upgrade(ctx); errors.Is(err, errUpgrading) {
				log.Errorf("Upgrade failed: %v", err)
			}
		}
	}
}

// rpcUpgrade is the method of the control socket. The caller's patience does not end an upgrade.
func (s *server) rpcUpgrade(ctx context.Context, _ url.Values) (url.Values, error) {
	stopping, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(s.run.life, cancel)
	defer stop()
	done, err := s.upgrade(stopping)
	if err != nil {
		return nil, fmt.Errorf("%s; the running server goes on as before", describe(err))
	}
	return opctl.Answer(done, nil)
}
