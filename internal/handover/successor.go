package handover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Program is how a process was started, and how its successor is.
type Program struct {
	Path string   // absolute; links are followed when it is started, not before
	Args []string // with the name first
	Dir  string   // the working directory
}

// Successor is the new process, as the old one sees it.
type Successor struct {
	PID  int
	Intr Introduction // once it is prepared

	link   link
	words  chan packet   // closed when it says no more
	exited chan struct{} // closed when the process has ended
	state  *os.ProcessState
	proc   *os.Process
}

// Start starts the program and gives it copies of the sockets. Its environment is ours, but for what is meant for one process.
func Start(p Program, self Introduction, sockets *Sockets) (*Successor, error) {
	ours, theirs, err := newPair(syscall.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	c, err := connOf(ours)
	if err != nil {
		syscall.Close(theirs)
		return nil, err
	}
	pid, err := spawn(p, theirs)
	syscall.Close(theirs)
	if err != nil {
		c.Close()
		return nil, startError(p.Path, err)
	}
	proc, err := os.FindProcess(pid)
	if err != nil { // it does not fail on UNIX
		c.Close()
		return nil, err
	}
	s := &Successor{PID: pid, link: link{c}, words: make(chan packet, 16), exited: make(chan struct{}), proc: proc}
	go s.listen()
	go func() {
		s.state, _ = proc.Wait()
		close(s.exited)
	}()
	err = s.link.send(packet{Say: hello, From: &self, Sockets: sockets.names}, sockets.fds...)
	if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) { // these say that it has ended: Prepared says how
		s.Kill()
		return nil, fmt.Errorf("handing the sockets to %s: %w", p.Path, err)
	}
	return s, nil
}

// spawn starts the program with the descriptor as its fourth. It does not use package os for that: see Sockets.
func spawn(p Program, fd int) (int, error) {
	var env []string
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case Variable, "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES": // of one process only
		default:
			env = append(env, v)
		}
	}
	env = append(env, Variable+"="+strconv.Itoa(Version)+":3")
	pid, _, err := syscall.StartProcess(p.Path, p.Args, &syscall.ProcAttr{Dir: p.Dir, Env: env, Files: []uintptr{0, 1, 2, uintptr(fd)}})
	return pid, err
}

// startError says why a program cannot be started and what to do.
func startError(path string, err error) error {
	e := &Error{Msg: fmt.Sprintf("%s cannot be started: %v", path, err), Err: err, Fix: "put a working chasquid there and try again"}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Fix = "put the new binary there; if the file exists, the interpreter or the working directory does not"
	case errors.Is(err, fs.ErrPermission):
		e.Fix = "make it executable (chmod 755); if it is, the unit or a security module forbids to run programs: restart the service instead"
	case errors.Is(err, syscall.ENOEXEC):
		e.Fix = "it is no program for this machine: check what was copied there"
	case errors.Is(err, syscall.ETXTBSY):
		e.Fix = "it is still being written: replace it by renaming a complete file"
	}
	return e
}

// listen reads what the successor says.
func (s *Successor) listen() {
	defer close(s.words)
	for {
		p, err := s.link.receive()
		if err != nil {
			return
		}
		s.words <- p
	}
}

// expect waits until the successor says the word.
func (s *Successor) expect(ctx context.Context, word string) (packet, error) {
	select {
	case p, ok := <-s.words:
		switch {
		case !ok:
			return p, s.ended(ctx)
		case p.Say == failed:
			return p, &Error{Msg: "the new process failed: " + p.Text, Fix: "correct that and try again"}
		case p.Say != word:
			return p, &Error{Msg: fmt.Sprintf("the new process said %q instead of %q", p.Say, word), Fix: "restart the server instead of upgrading it"}
		}
		return p, nil
	case <-ctx.Done():
		return packet{}, &Error{Msg: "the new process did not get ready in time", Err: context.Cause(ctx), Fix: "the log may say what it waited for"}
	}
}

// ended describes a successor that ended without a word.
func (s *Successor) ended(ctx context.Context) error {
	e := &Error{Msg: "the new process closed the connection", Fix: "its last lines in the log say why"}
	select {
	case <-s.exited:
		e.Msg = "the new process ended before it was ready: " + s.state.String()
	case <-time.After(2 * time.Second): // it closed the connection first
	case <-ctx.Done():
	}
	return e
}

// Prepared waits until the successor has everything it needs but the queue.
func (s *Successor) Prepared(ctx context.Context) error {
	p, err := s.expect(ctx, prepared)
	if err == nil && p.From != nil {
		s.Intr = *p.From
	}
	return err
}

// Give says that the queue's directory is the successor's.
func (s *Successor) Give() error {
	if err := s.link.send(packet{Say: yours}); err != nil {
		return fmt.Errorf("giving the queue away: %w", err)
	}
	return nil
}

// Serving waits until the successor serves.
func (s *Successor) Serving(ctx context.Context) error {
	_, err := s.expect(ctx, serving)
	return err
}

// GiveRest says that nothing of ours is open any more but the sessions that are left.
func (s *Successor) GiveRest() error { return s.link.send(packet{Say: rest}) }

// Gone is closed when the successor has ended, or asks us to end.
func (s *Successor) Gone() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for p := range s.words {
			if p.Say == stop {
				return
			}
		}
	}()
	return gone
}

// Dial makes a connection to the successor, for Serve there.
func (s *Successor) Dial() (net.Conn, error) {
	ours, theirs, err := newPair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(theirs)
	c, err := connOf(ours)
	if err != nil {
		return nil, err
	}
	if err := s.link.send(packet{Say: relay}, theirs); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Terminate asks the successor to stop, as a supervisor does.
func (s *Successor) Terminate() { s.proc.Signal(syscall.SIGTERM) }

// Kill ends the successor and returns when it is gone, and with it its locks.
func (s *Successor) Kill() {
	s.proc.Kill()
	<-s.exited
	s.link.c.Close()
}
