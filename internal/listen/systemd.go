package listen

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"blitiri.com.ar/go/log"
)

// firstFD is the first descriptor that systemd passes (sd_listen_fds(3)).
const firstFD = 3

// maxFDs bounds what a broken environment can make us look at.
const maxFDs = 1024

// Sockets are the listening sockets that systemd passed, by name. A nil *Sockets has none.
type Sockets struct {
	mu     sync.Mutex
	byName map[string][]net.Listener
}

// FromEnvironment takes the sockets that systemd passed to this process (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES), removes the
// variables, so that children do not take them for theirs, and keeps the descriptors from being inherited. Without such
// variables it returns nil. Wrong ones are an error: the process was started in a way that cannot work.
func FromEnvironment() (*Sockets, error) {
	defer func() {
		for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			os.Unsetenv(v)
		}
	}()
	names, err := parseEnvironment(os.Getenv, os.Getpid())
	if err != nil || names == nil {
		return nil, err
	}
	return takeFDs(names, firstFD)
}

// parseEnvironment returns the names of the passed descriptors, in order; nil if there are none.
func parseEnvironment(getenv func(string) string, pid int) ([]string, error) {
	p, n, list := getenv("LISTEN_PID"), getenv("LISTEN_FDS"), getenv("LISTEN_FDNAMES")
	if p == "" && n == "" {
		return nil, nil
	}
	fail := func(format string, a ...any) ([]string, error) {
		return nil, &Error{Msg: "systemd environment: " + fmt.Sprintf(format, a...),
			Fix: "start the server by its units, without a wrapper that forks, or unset LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES"}
	}
	if got, err := strconv.Atoi(p); err != nil || got != pid {
		return fail("LISTEN_PID is %q, this process is %d", p, pid)
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 0 || count > maxFDs {
		return fail("LISTEN_FDS is %q, not a number of sockets", n)
	}
	if count == 0 {
		return nil, nil
	}
	names := strings.Split(list, ":")
	if len(names) != count {
		return fail("LISTEN_FDS is %d, but LISTEN_FDNAMES has %d names (%q)", count, len(names), list)
	}
	return names, nil
}

func takeFDs(names []string, first int) (*Sockets, error) {
	s := &Sockets{byName: map[string][]net.Listener{}}
	for i, name := range names {
		fd := first + i
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), name)
		if f == nil {
			return nil, badSocket(fd, name, os.ErrInvalid)
		}
		l, err := net.FileListener(f) // a duplicate, close-on-exec too
		f.Close()
		if err != nil {
			return nil, badSocket(fd, name, err)
		}
		s.byName[name] = append(s.byName[name], l)
	}
	return s, nil
}

func badSocket(fd int, name string, err error) error {
	return &Error{Msg: fmt.Sprintf("systemd environment: descriptor %d (%q) is not a listening socket: %v", fd, name, err), Err: err,
		Fix: "use ListenStream= and Accept=no in the socket unit"}
}

// take hands out the sockets of a name, once.
func (s *Sockets) take(name string) []net.Listener {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.byName[name]
	delete(s.byName, name)
	return l
}

// put takes a socket back: a duplicate, as l is about to be closed.
func (s *Sockets) put(name string, l net.Listener) {
	socket, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return // then it is not a socket of systemd's
	}
	f, err := socket.File()
	if err != nil {
		log.Errorf("keeping the socket %q of systemd: %v; a restart is needed to use it again", name, err)
		return
	}
	defer f.Close()
	again, err := net.FileListener(f)
	if err != nil {
		log.Errorf("keeping the socket %q of systemd: %v; a restart is needed to use it again", name, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byName[name] = append(s.byName[name], again)
}

// unused warns of sockets that no role takes.
func (s *Sockets) unused(roles []Role) (warnings []string) {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.byName {
		known := slices.ContainsFunc(roles, func(r Role) bool { return r.Name == name })
		reason := "no role has that name: FileDescriptorName= must be smtp, submission or submission_tls"
		if known {
			reason = `its role has addresses of its own: write "systemd" there to use it`
		}
		warnings = append(warnings, fmt.Sprintf("systemd passed a socket named %q that is not used; %s", name, reason))
	}
	slices.Sort(warnings)
	return warnings
}
