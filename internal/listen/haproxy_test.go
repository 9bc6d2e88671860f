package listen

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// TestHAProxy puts a real HAProxy in front, with both versions of the header: the client's address arrives, and so does what it says
// right away. Its health checks, made with a header of its own, are answered too.
func TestHAProxy(t *testing.T) {
	haproxy := harness.Need(t, "haproxy", "haproxy")
	s := New(Config{})
	defer s.Close()
	added, _, _, err := s.Apply(t.Context(), []Role{role("smtp", "127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	s.SetProxy(Proxy{On: true, Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Timeout: 5 * time.Second})
	checks := make(chan string, 100)
	go serveEcho(added[0], checks)

	v1, v2 := harness.FreePort(t, "127.0.0.1"), harness.FreePort(t, "127.0.0.1")
	conf := fmt.Sprintf(`
defaults
  mode tcp
  timeout connect 5s
  timeout client 10s
  timeout server 10s
listen one
  bind 127.0.0.1:%s
  server s %s send-proxy
listen two
  bind 127.0.0.1:%s
  server s %[2]s send-proxy-v2 check check-send-proxy inter 200ms
`, v1, added[0].Addr(), v2)
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), haproxy, "-db", "-q", "-f", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()

	for _, port := range []string{v1, v2} {
		var c net.Conn
		harness.WaitFor(t, 10*time.Second, "HAProxy to listen", func() bool {
			c, err = net.Dial("tcp", "127.0.0.1:"+port)
			return err == nil
		})
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "EHLO x\r\n")
		got, err := bufio.NewReader(c).ReadString('\n')
		if want := c.LocalAddr().String() + " EHLO x\r\n"; got != want {
			t.Errorf("port %s: got %q %v, want %q", port, got, err, want)
		}
	}
	select {
	case a := <-checks:
		if host, _, _ := net.SplitHostPort(a); host != "127.0.0.1" {
			t.Errorf("health check from %s", a)
		}
	case <-time.After(10 * time.Second):
		t.Error("no health check was seen")
	}
}

// serveEcho answers the first line of each connection with the client's address and the line; connections that say nothing are
// told to checks.
func serveEcho(l *Listener, checks chan<- string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			addr := c.RemoteAddr().String()
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				select {
				case checks <- addr:
				default:
				}
				return
			}
			fmt.Fprintf(c, "%s %s", addr, line)
		}()
	}
}
