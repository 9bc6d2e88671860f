package handover

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// Sockets are listening sockets by name, to be handed to another process or taken up again in this one. A nil *Sockets has none.
//
// They are kept as plain descriptors: a file made of one would put the socket into blocking mode when its descriptor is asked for, and
// that mode is shared with the process that still accepts.
type Sockets struct {
	mu    sync.Mutex
	names []string
	fds   []int
}

// Add adds a duplicate of a listener's socket. Several may have the same name.
func (s *Sockets) Add(name string, l net.Listener) error {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%s: %T is not a socket", name, l)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fd := -1
	if cerr := raw.Control(func(orig uintptr) { fd, err = dup(int(orig)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names, s.fds = append(s.names, name), append(s.fds, fd)
	return nil
}

func dup(fd int) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 3)
	if errno != 0 {
		return -1, os.NewSyscallError("fcntl", errno)
	}
	return int(n), nil
}

// Take hands out the listeners of a name, once.
func (s *Sockets) Take(name string) (ls []net.Listener, err error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; i < len(s.names); {
		if s.names[i] != name {
			i++
			continue
		}
		f := os.NewFile(uintptr(s.fds[i]), name)
		s.names, s.fds = append(s.names[:i:i], s.names[i+1:]...), append(s.fds[:i:i], s.fds[i+1:]...)
		l, lerr := net.FileListener(f) // a duplicate
		f.Close()
		if lerr != nil {
			err = fmt.Errorf("the inherited socket %q cannot be used: %w", name, lerr)
			continue
		}
		ls = append(ls, l)
	}
	return ls, err
}

// Names returns the names of those that are left.
func (s *Sockets) Names() []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.names...)
}

// Close closes those that are left.
func (s *Sockets) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	closeFDs(s.fds)
	s.names, s.fds = nil, nil
}
