package courier

import (
	"net"
	"syscall"
	"time"
)

// quietFor is how long a connection may have waited without being looked at before it is used again. One that was in use a
// moment ago is not worth a system call.
const quietFor = time.Second

// alive reports whether an idle connection looks usable: not closed by the server, and on plain text nothing unexpected said.
func (c *client) alive(now time.Time) bool {
	if c.broken || c.rr.Buffered() > 0 {
		return false
	}
	if now.Sub(c.idleSince) < quietFor {
		return true
	}
	sc, ok := c.raw.(syscall.Conn)
	if !ok {
		return true
	}
	return peek(sc, c.state != nil)
}

// peek looks at what a connection has to read without reading it. TLS may have something that is not for us to see.
func peek(sc syscall.Conn, pendingOK bool) bool {
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	usable := false
	err = rc.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EAGAIN || err == syscall.EWOULDBLOCK || err == syscall.EINTR:
			usable = true
		case err == nil && n > 0:
			usable = pendingOK
		}
		return true
	})
	return err == nil && usable
}

var _ syscall.Conn = (*net.TCPConn)(nil)
