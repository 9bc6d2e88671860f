package listen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// peerConn is one end of a pipe with the addresses of a TCP connection.
type peerConn struct {
	net.Conn
	remote, local net.Addr
}

func (c peerConn) RemoteAddr() net.Addr { return c.remote }
func (c peerConn) LocalAddr() net.Addr  { return c.local }

func tcp(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// proxied returns a connection that expects a header, and the proxy's end of it.
func proxied(p Proxy, peer net.Addr) (*Conn, net.Conn, *Set) {
	a, b := net.Pipe()
	set := New(Config{Metrics: expvarom.New()})
	l := &Listener{Role: "smtp", set: set}
	return newConn(peerConn{a, peer, tcp("10.0.0.1:25")}, l, &p), b, set
}

func trusting(nets ...string) Proxy {
	p := Proxy{On: true}
	for _, n := range nets {
		p.Trusted = append(p.Trusted, netip.MustParsePrefix(n))
	}
	return p
}

// v2 builds a version 2 header: command and version byte, family byte, body.
func v2(verCmd, fam byte, body ...[]byte) []byte {
	b := bytes.Join(body, nil)
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), verCmd, fam)
	return append(binary.BigEndian.AppendUint16(h, uint16(len(b))), b...)
}

var (
	v4body = []byte{192, 0, 2, 9, 198, 51, 100, 1, 0x30, 0x39, 0, 25}
	v6body = append(append(append(make([]byte, 0, 36), netip.MustParseAddr("2001:db8::9").AsSlice()...), netip.MustParseAddr("2001:db8::1").AsSlice()...), 0x30, 0x39, 0, 25)
)

// TestR10ProxyHeaders holds what each form of header leads to: D46 and compat SMTP-68.
func TestR10ProxyHeaders(t *testing.T) {
	loopback := trusting("127.0.0.0/8")
	const peer, client, server = "127.0.0.1:999", "192.0.2.9:12345", "198.51.100.1:25"
	tests := []struct {
		name   string
		send   string
		peer   string
		remote string // expected; empty: refused
		local  string
		result string
	}{
		{"v1 TCP4", "PROXY TCP4 192.0.2.9 198.51.100.1 12345 25\r\n", peer, client, server, "ok"},
		{"v1 TCP6", "PROXY TCP6 2001:db8::9 2001:db8::1 12345 25\r\n", peer, "[2001:db8::9]:12345", "[2001:db8::1]:25", "ok"},
		{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", peer, peer, "10.0.0.1:25", "local"},
		{"v1 UNKNOWN with addresses", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", peer, peer, "10.0.0.1:25", "local"},
		{"v2 TCP4", string(v2(0x21, 0x11, v4body)), peer, client, server, "ok"},
		{"v2 TCP6", string(v2(0x21, 0x21, v6body)), peer, "[2001:db8::9]:12345", "[2001:db8::1]:25", "ok"},
		{"v2 LOCAL", string(v2(0x20, 0x00)), peer, peer, "10.0.0.1:25", "local"},
		{"v2 LOCAL with an address", string(v2(0x20, 0x11, v4body)), peer, peer, "10.0.0.1:25", "local"},
		{"v2 UNSPEC, which receivers may refuse", string(v2(0x21, 0x00)), peer, "", "", "malformed"},
		{"v2 with TLV", string(v2(0x21, 0x11, v4body, []byte{4, 0, 3, 'a', 'b', 'c'})), peer, client, server, "ok"},
		{"v2 UDP", string(v2(0x21, 0x12, v4body)), peer, "", "", "malformed"},
		{"v2 short body", string(v2(0x21, 0x11, v4body[:7])), peer, "", "", "malformed"},
		{"v2 unknown version", string(v2(0x31, 0x11, v4body)), peer, "", "", "malformed"},
		{"v2 longer than any", string(v2(0x21, 0x11, v4body)[:14]) + "\xff\xff", peer, "", "", "malformed"},
		{"none: a command", "EHLO client\r\n", peer, "", "", "malformed"},
		{"none: TLS", "\x16\x03\x01\x02\x00\x01\x00", peer, "", "", "malformed"},
		{"none: HTTP", "GET / HTTP/1.1\r\n\r\n", peer, "", "", "malformed"},
		{"v1 without CR", "PROXY TCP4 192.0.2.9 198.51.100.1 12345 25\n", peer, "", "", "malformed"},
		{"v1 too long", "PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n", peer, "", "", "malformed"},
		{"v1 bad address", "PROXY TCP4 192.0.2.999 198.51.100.1 12345 25\r\n", peer, "", "", "malformed"},
		{"v1 address of the other family", "PROXY TCP4 2001:db8::9 2001:db8::1 12345 25\r\n", peer, "", "", "malformed"},
		{"v1 bad port", "PROXY TCP4 192.0.2.9 198.51.100.1 70000 25\r\n", peer, "", "", "malformed"},
		{"v1 junk", "PROXYTCP4\r\n", peer, "", "", "malformed"},
		{"nothing: closed", "", peer, "", "", "malformed"},
		{"untrusted peer", "PROXY TCP4 192.0.2.9 198.51.100.1 12345 25\r\n", "203.0.113.5:1", "", "", "untrusted"},
		{"mapped IPv4 peer is trusted", "PROXY TCP4 192.0.2.9 198.51.100.1 12345 25\r\n", "[::ffff:127.0.0.1]:999", client, server, "ok"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var refused error
			p := loopback
			p.Refused = func(_ string, _ net.Addr, err error) { refused = err }
			c, far, set := proxied(p, tcp(tc.peer))
			go func() {
				far.Write([]byte(tc.send))
				if tc.send != "" {
					far.Write([]byte("EHLO x\r\n"))
				}
				far.Close()
			}()
			err := c.ReadHeader()
			if n := set.metrics.headers.With(tc.result).Value(); n != 1 {
				t.Errorf("result %s counted %v times (%v)", tc.result, n, err)
			}
			if tc.remote == "" {
				if !errors.Is(err, ErrProxy) || !errors.Is(refused, ErrProxy) {
					t.Fatalf("not refused: %v, told %v", err, refused)
				}
				if _, err := c.Write([]byte("220 ")); !errors.Is(err, ErrProxy) {
					t.Errorf("it may write: %v", err)
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrProxy) {
					t.Errorf("it may read: %v", err)
				}
				if got, peer := c.RemoteAddr(), tcp(tc.peer); got.String() != peer.String() {
					t.Errorf("remote %v, want the peer %v", got, peer)
				}
				return
			}
			if err != nil || refused != nil {
				t.Fatalf("%v, told %v", err, refused)
			}
			if c.RemoteAddr().String() != tc.remote || c.LocalAddr().String() != tc.local {
				t.Errorf("remote %v local %v, want %v %v", c.RemoteAddr(), c.LocalAddr(), tc.remote, tc.local)
			}
			if c.ProxyAddr().String() != tcp(tc.peer).String() {
				t.Errorf("proxy %v", c.ProxyAddr())
			}
			rest, _ := io.ReadAll(c)
			if string(rest) != "EHLO x\r\n" {
				t.Errorf("after the header: %q", rest)
			}
		})
	}
}

// TestProxyHeaderInPieces: packets may cut the header anywhere, and what follows it in the same packet is not lost.
func TestProxyHeaderInPieces(t *testing.T) {
	for _, header := range []string{"PROXY TCP4 192.0.2.9 198.51.100.1 12345 25\r\n", string(v2(0x21, 0x11, v4body))} {
		all := header + "EHLO x\r\n"
		for size := 1; size <= len(all); size++ {
			c, far, _ := proxied(trusting("127.0.0.0/8"), tcp("127.0.0.1:9"))
			go func() {
				for rest := []byte(all); len(rest) > 0; {
					n := min(size, len(rest))
					far.Write(rest[:n])
					rest = rest[n:]
				}
				far.Close()
			}()
			rest, err := io.ReadAll(c)
			if err != nil || string(rest) != "EHLO x\r\n" || c.RemoteAddr().String() != "192.0.2.9:12345" {
				t.Fatalf("pieces of %d: %q %v %v", size, rest, err, c.RemoteAddr())
			}
		}
	}
}

// TestProxyTimeout: a silent or slow peer is given up after the header's own time limit, and the caller's deadline comes back.
func TestProxyTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, far, set := proxied(trusting("127.0.0.0/8"), tcp("127.0.0.1:9"))
		defer far.Close()
		start := time.Now()
		c.SetDeadline(start.Add(time.Hour))
		if err := c.ReadHeader(); !errors.Is(err, ErrProxy) || time.Since(start) != DefaultHeaderTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if set.metrics.headers.With("timeout").Value() != 1 {
			t.Error("not counted")
		}

		c, far, _ = proxied(trusting("127.0.0.0/8"), tcp("127.0.0.1:9"))
		defer far.Close()
		start = time.Now()
		c.SetReadDeadline(start.Add(time.Minute))
		go far.Write([]byte("PROXY UNKNOWN\r\n"))
		if err := c.ReadHeader(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(start) != time.Minute {
			t.Errorf("the caller's deadline is lost: %v after %v", err, time.Since(start))
		}
	})
}

// TestProxyInterrupt: a server that stops can end the wait for a header from another goroutine.
func TestProxyInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, far, _ := proxied(trusting("127.0.0.0/8"), tcp("127.0.0.1:9"))
		defer far.Close()
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			c.SetReadDeadline(time.Now().Add(-time.Second))
		}()
		if err := c.ReadHeader(); !errors.Is(err, ErrProxy) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestWriteNeverWaits: turning a connection away before its header was read neither waits for it nor says anything.
func TestWriteNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, far, _ := proxied(trusting("127.0.0.0/8"), tcp("127.0.0.1:9"))
		defer far.Close()
		start := time.Now()
		if n, err := c.Write([]byte("421 ")); n != 0 || !errors.Is(err, ErrProxy) || time.Since(start) != 0 {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(start))
		}
		go far.Write([]byte("PROXY UNKNOWN\r\n"))
		if err := c.ReadHeader(); err != nil {
			t.Fatal(err)
		}
		go c.Write([]byte("220 "))
		b := make([]byte, 4)
		if _, err := io.ReadFull(far, b); err != nil || string(b) != "220 " {
			t.Errorf("%q %v", b, err)
		}
	})
}

// TestAcceptNeverWaits: a peer that sends nothing does not keep the next one from being accepted.
func TestAcceptNeverWaits(t *testing.T) {
	s := New(Config{})
	defer s.Close()
	added, _, _, err := s.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	s.SetProxy(trusting("127.0.0.0/8"))
	silent, err := net.Dial("tcp", added[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c1, err := added[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c1.Close()
	quick, err := net.Dial("tcp", added[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer quick.Close()
	quick.Write([]byte("PROXY TCP4 192.0.2.9 198.51.100.1 12345 25\r\n"))
	c2, err := added[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	if c2.RemoteAddr().String() != "192.0.2.9:12345" {
		t.Error(c2.RemoteAddr())
	}
}

// FuzzProxyHeader: no bytes crash the reader, hang it, make it believe an untrusted address form or lose what follows.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.9 198.51.100.1 12345 25\r\nEHLO x\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add(v2(0x21, 0x11, v4body))
	f.Add(v2(0x20, 0x00))
	f.Add([]byte("EHLO x\r\n"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, far, _ := proxied(trusting("127.0.0.0/8"), tcp("127.0.0.1:9"))
		go func() {
			far.Write(data)
			far.Close()
		}()
		err := c.ReadHeader()
		rest, _ := io.ReadAll(c)
		c.Close()
		if err != nil {
			if !errors.Is(err, ErrProxy) || len(rest) > 0 {
				t.Fatalf("%v, then %q", err, rest)
			}
			return
		}
		if !bytes.HasSuffix(data, rest) || len(rest) == len(data) {
			t.Fatalf("%q is not what follows the header in %q", rest, data)
		}
		if _, ok := c.RemoteAddr().(*net.TCPAddr); !ok {
			t.Fatalf("address %T", c.RemoteAddr())
		}
	})
}
