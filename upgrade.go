package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/handover"
	"blitiri.com.ar/go/chasquid/internal/listen"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/log"
)

// Limits of an upgrade. What is running may take timeouts { drain } besides.
const (
	prepareTime  = 30 * time.Second // for the new process to read everything but the queue
	takeTime     = 5 * time.Minute  // for it to open the queue: a million messages take seconds
	lockPatience = 10 * time.Second // for the kernel to free the lock of a process that has ended
	restTime     = 20 * time.Second // for the old process to close what is not mail
)

// origin is where a process comes from.
type origin struct {
	program handover.Program      // to start its successor
	pred    *handover.Predecessor // that it succeeds; nil: none
}

// findOrigin looks before anything is changed: the path is the one we were called by, so that a file that replaced ours is found there.
func findOrigin() (o origin, err error) {
	if o.program.Dir, err = os.Getwd(); err != nil {
		o.program.Dir = "/"
	}
	o.program.Args = os.Args
	if o.program.Path, err = exec.LookPath(os.Args[0]); err != nil {
		o.program.Path, err = os.Executable()
	}
	if err == nil {
		o.program.Path, err = filepath.Abs(o.program.Path)
	}
	if err != nil {
		log.Errorf("The path of this program is not known, so it cannot be upgraded while it runs: %v", err)
	}
	o.pred, err = handover.FromEnvironment()
	return o, err
}

// upgrades is what a process knows of being replaced, and of the one it replaced.
type upgrades struct {
	origin
	took     time.Time // when it succeeded pred
	ok, bad  *expvarom.Counter
	usr2     chan os.Signal
	awaiting loops // what pred still has to say

	// Sockets that are open and not served yet.
	opened []*listen.Listener

	mu     sync.Mutex  // held during an upgrade, and for good when there can be none any more
	giving atomic.Bool // the queue is being given away, or was
	next   *handover.Successor
	relay  *handover.Relay
	done   chan struct{} // closed when next serves
	failed int

	events eventSwitch
	levels levelSwitch
}

func (s *server) initUpgrades(o origin) {
	u := &s.up
	u.origin, u.done, u.usr2 = o, make(chan struct{}), make(chan os.Signal, 1)
	u.levels.s = s
	signal.Notify(u.usr2, syscall.SIGUSR2)
	v := s.reg.CounterVec("chasquid_upgrades_total", "Upgrades of the running server by its successors, by result; they are counted from process to process.",
		[]string{"result"}, []string{"ok", "failed"})
	u.ok, u.bad = v.With("ok"), v.With("failed")
	if p := o.pred; p != nil {
		u.failed = p.Failed
		u.ok.Add(float64(p.Generation))
		u.bad.Add(float64(p.Failed))
	}
}

// introduction is what the other process is told of this one.
func (s *server) introduction() handover.Introduction {
	i := handover.Introduction{Version: s.build.version, PID: os.Getpid(), Started: s.started, Generation: 1, Failed: s.up.failed}
	if p := s.up.pred; p != nil {
		i.Generation = p.Generation + 1
	}
	return i
}

// succeeded is what the pages show of the process before this one.
func (u *upgrades) succeeded() *monitoring.Succession {
	if u.pred == nil {
		return nil
	}
	return &monitoring.Succession{Version: u.pred.Version, PID: u.pred.PID, Generation: u.pred.Generation + 1, At: u.took}
}

// Names of sockets that are not listeners for mail.
func monitoringKey(addr string) string { return "monitoring " + addr }
func controlKey(path string) string    { return "control " + path }

// inherited hands out the sockets that the process before this one had.
func (s *server) inherited(key string) ([]net.Listener, error) {
	if s.up.pred == nil {
		return nil, nil
	}
	return s.up.pred.Sockets.Take(key)
}

func (s *server) inheritOne(key string) (net.Listener, error) {
	ls, err := s.inherited(key)
	if err != nil || len(ls) == 0 {
		return nil, err
	}
	return ls[0], nil
}

// sockets are duplicates of all that the successor needs.
func (s *server) socketsForNext() (*handover.Sockets, error) {
	all := &handover.Sockets{}
	var errs []error
	for _, l := range s.listeners.Listeners() {
		errs = append(errs, all.Add(l.Key(), l))
	}
	if p := s.settings.pages; p.l != nil {
		errs = append(errs, all.Add(monitoringKey(p.address), p.l))
	}
	errs = append(errs, all.Add(controlKey(s.control.Path()), s.control.Socket()))
	if err := errors.Join(errs...); err != nil {
		all.Close()
		return nil, err
	}
	return all, nil
}
