package listen

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
)

// ErrProxy is wrapped by every error of a connection that was refused for its PROXY header: whoever serves the connection closes
// it without a reply.
var ErrProxy = errors.New("PROXY header")

// Sizes of what is buffered while a header is read. A version 1 header has at most 107 bytes with its CRLF.
const (
	headerBuffer = 256
	maxV1Header  = 107
)

// Conn is a connection that starts with a PROXY header, version 1 or 2. The header is read by the first call that needs it:
// RemoteAddr, LocalAddr, Read or ReadHeader. If there is no good header from a trusted peer, all reads and writes fail with
// ErrProxy and the addresses stay the peer's.
type Conn struct {
	net.Conn
	proxy    *Proxy
	listener *Listener

	once          sync.Once
	done          atomic.Bool // once is
	err           error
	remote, local net.Addr

	read *bufio.Reader // what arrived with the header; nil once it is used up

	mu       sync.Mutex
	reading  bool      // the header is being read, under its own deadline
	deadline time.Time // the caller's read deadline, put in force after the header
}

func newConn(c net.Conn, l *Listener, p *Proxy) *Conn {
	return &Conn{Conn: c, proxy: p, listener: l}
}

// ReadHeader reads the header if that has not happened yet and returns its error.
func (c *Conn) ReadHeader() error {
	c.once.Do(c.readHeader)
	return c.err
}

func (c *Conn) readHeader() {
	defer c.done.Store(true)
	c.remote, c.local = c.Conn.RemoteAddr(), c.Conn.LocalAddr()
	result := c.parseHeader()
	c.listener.set.metrics.headers.With(result).Inc()
	if c.err != nil && c.proxy.Refused != nil {
		c.proxy.Refused(c.listener.Role, c.Conn.RemoteAddr(), c.err)
	}
}

// parseHeader reads the header and sets the addresses or err. It returns the metric's label.
func (c *Conn) parseHeader() (result string) {
	if !c.proxy.trusts(c.remote) {
		c.err = fmt.Errorf("%w: %v is not in haproxy_trusted", ErrProxy, c.remote)
		return "untrusted"
	}
	c.startDeadline()
	defer c.endDeadline()
	c.read = bufio.NewReaderSize(c.Conn, headerBuffer)
	err := fillV1(c.read)
	var h *proxyproto.Header
	if err == nil {
		h, err = proxyproto.Read(c.read)
	}
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		c.err = fmt.Errorf("%w: not received in time", ErrProxy)
		return "timeout"
	case err != nil:
		c.err = fmt.Errorf("%w: %w", ErrProxy, err)
		return "malformed"
	case h.Command.IsLocal() || h.TransportProtocol.IsUnspec():
		return "local" // the proxy's own connection, or an unknown client: the peer's address stays
	}
	src, ok1 := h.SourceAddr.(*net.TCPAddr)
	dst, ok2 := h.DestinationAddr.(*net.TCPAddr)
	if !ok1 || !ok2 {
		if h.TransportProtocol.IsUnix() && h.TransportProtocol.IsStream() {
			return "local"
		}
		c.err = fmt.Errorf("%w: not a TCP connection", ErrProxy)
		return "malformed"
	}
	c.remote, c.local = src, dst
	return "ok"
}

// fillV1 waits until a version 1 header is in the buffer whole, however it was cut into packets: the parser wants it at once.
func fillV1(r *bufio.Reader) error {
	for n := 1; n <= maxV1Header; n++ {
		b, err := r.Peek(n)
		if err != nil {
			return err
		}
		if n <= len(proxyproto.SIGV1) && !bytes.HasPrefix(proxyproto.SIGV1, b) || b[n-1] == '\n' {
			return nil
		}
	}
	return nil
}

func (p *Proxy) trusts(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return true // a UNIX socket: its file's permissions say who may connect
	}
	ip, ok := netip.AddrFromSlice(t.IP)
	ip = ip.Unmap()
	for _, n := range p.Trusted {
		if ok && n.Contains(ip) {
			return true
		}
	}
	return false
}

// startDeadline puts the header's time limit in force, unless the caller's is earlier.
func (c *Conn) startDeadline() {
	timeout := c.proxy.Timeout
	if timeout == 0 {
		timeout = DefaultHeaderTimeout
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = true
	d := time.Now().Add(timeout)
	if !c.deadline.IsZero() && c.deadline.Before(d) {
		d = c.deadline
	}
	c.Conn.SetReadDeadline(d)
}

// endDeadline puts the caller's deadline back.
func (c *Conn) endDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = false
	c.Conn.SetReadDeadline(c.deadline)
}

// SetReadDeadline sets the deadline of reads. While the header is read, only an earlier end than the header's own counts.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.reading && (t.IsZero() || time.Until(t) > 0) {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline sets the deadlines of reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.Conn.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// RemoteAddr returns the client's address as the proxy gave it; the peer's for the proxy's own connections.
func (c *Conn) RemoteAddr() net.Addr {
	c.ReadHeader()
	return c.remote
}

// LocalAddr returns the address that the client connected to.
func (c *Conn) LocalAddr() net.Addr {
	c.ReadHeader()
	return c.local
}

// ProxyAddr returns the address of the peer itself, the proxy.
func (c *Conn) ProxyAddr() net.Addr { return c.Conn.RemoteAddr() }

// NetConn returns the connection below, as tls.Conn has it.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read reads what follows the header.
func (c *Conn) Read(b []byte) (int, error) {
	if err := c.ReadHeader(); err != nil {
		return 0, err
	}
	if r := c.read; r != nil {
		if r.Buffered() > 0 {
			return r.Read(b)
		}
		c.read = nil
	}
	return c.Conn.Read(b)
}

// Write writes, once there was a good header: nothing is said to a stranger. It never waits for the header, so that whoever accepts
// connections can turn one away without waiting for it: before the header was read, it fails.
func (c *Conn) Write(b []byte) (int, error) {
	if !c.done.Load() {
		return 0, fmt.Errorf("%w: not read yet", ErrProxy)
	}
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Write(b)
}
