package courier

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// sink is a server over loopback TCP that takes everything and answers a group of commands in one write.
type sink struct {
	l        net.Listener
	ehlo     string
	messages atomic.Int64
	conns    atomic.Int64
	wg       sync.WaitGroup
}

func newSink(tb testing.TB, extensions ...string) *sink {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &sink{l: l}
	for _, e := range append([]string{"sink"}, extensions[:max(len(extensions)-1, 0)]...) {
		s.ehlo += "250-" + e + "\r\n"
	}
	s.ehlo += "250 " + append([]string{"HELP"}, extensions...)[len(extensions)] + "\r\n"
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.wg.Go(func() {
				defer c.Close()
				s.serve(c)
			})
		}
	})
	return s
}

func (s *sink) close() {
	s.l.Close()
	s.wg.Wait()
}

func (s *sink) serve(c net.Conn) {
	r, w := bufio.NewReaderSize(c, 128<<10), bufio.NewWriter(c)
	w.WriteString("220 sink\r\n")
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(line, []byte("EHLO")):
			w.WriteString(s.ehlo)
		case bytes.HasPrefix(line, []byte("DATA")):
			w.WriteString("354 go on\r\n")
			w.Flush()
			for err == nil {
				if line, err = r.ReadSlice('\n'); string(line) == ".\r\n" {
					break
				}
			}
			if err != nil {
				return
			}
			s.messages.Add(1)
			w.WriteString("250 2.0.0 taken as 1234567\r\n")
		case bytes.HasPrefix(line, []byte("BDAT ")):
			n, _ := strconv.Atoi(strings.Fields(string(line))[1])
			if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
				return
			}
			s.messages.Add(1)
			w.WriteString("250 2.0.0 taken as 1234567\r\n")
		case bytes.HasPrefix(line, []byte("QUIT")):
			return
		default:
			w.WriteString("250 2.1.0 ok\r\n")
		}
	}
}

// counted counts the reads and writes of a connection.
type counted struct {
	net.Conn
	reads, writes *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	c.reads.Add(1)
	return c.Conn.Read(p)
}

func (c counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// toSink makes a courier whose mail for example.org goes to the sink.
func toSink(addr string, wrap func(net.Conn) net.Conn) *SMTP {
	return NewSMTP(Config{Hostname: "me.test", Resolver: zone.MustNew("example.org MX 10 mx.example.org\nmx.example.org A 192.0.2.1\n"),
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil && wrap != nil {
				c = wrap(c)
			}
			return c, err
		}})
}

func sinkJob(content []byte, rcpts int) mail.Job {
	env := &mail.Envelope{From: address.MustParse("sender@local.test")}
	job := mail.Job{ID: "1abc", Env: env, From: env.From, Size: int64(len(content)), Route: mail.Route{Transport: mail.SMTP, Domain: "example.org"},
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
	for i := range rcpts {
		job.Rcpts = append(job.Rcpts, mail.Recipient{To: address.MustParse(fmt.Sprintf("user%d@example.org", i))})
	}
	return job
}

func messageOf(n int) []byte {
	return []byte("Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("m", 74)+"\r\n", n/76))
}

// What a message costs on a connection that waits: the calls are the price of the hot path.
func TestCallsPerMessage(t *testing.T) {
	for _, c := range []struct {
		name          string
		ext           []string
		size, rcpts   int
		writes, reads int64 // at most, for each message
	}{
		{"PIPELINING", []string{"PIPELINING", "8BITMIME", "SIZE 0"}, 4096, 1, 2, 2},
		{"PIPELINING, 20 recipients", []string{"PIPELINING"}, 4096, 20, 2, 2},
		{"CHUNKING", []string{"PIPELINING", "CHUNKING"}, 4096, 1, 1, 2},
		{"CHUNKING, 60 KB", []string{"PIPELINING", "CHUNKING"}, 60_000, 5, 1, 2},
		{"CHUNKING, 100 KB", []string{"PIPELINING", "CHUNKING"}, 100_000, 1, 6, 2},
		{"nothing", nil, 4096, 1, 4, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := newSink(t, c.ext...)
			var reads, writes atomic.Int64
			s := toSink(sink.l.Addr().String(), func(c net.Conn) net.Conn { return counted{c, &reads, &writes} })
			job := sinkJob(messageOf(c.size), c.rcpts)
			deliver := func() {
				for _, o := range s.Deliver(t.Context(), job) {
					if o.Disposition != mail.Delivered || o.Reply.String() != "250 2.0.0 taken as 1234567" {
						t.Fatalf("%+v", o)
					}
				}
			}
			deliver()
			reads.Store(0)
			writes.Store(0)
			const n = 20
			for range n {
				deliver()
			}
			if r, w := reads.Load(), writes.Load(); r > n*c.reads || w > n*c.writes {
				t.Errorf("%d messages took %d writes and %d reads", n, w, r)
			}
			s.Close()
			sink.close()
			if m, k := sink.messages.Load(), sink.conns.Load(); m != n+1 || k != 1 {
				t.Errorf("%d messages on %d connections", m, k)
			}
		})
	}
}

// Many workers at once: nothing is mixed up, lost or sent twice, connections are shared.
func TestConcurrentDeliveries(t *testing.T) {
	sink := newSink(t, "PIPELINING", "CHUNKING")
	s := toSink(sink.l.Addr().String(), nil)
	const workers, each = 8, 50
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range each {
				if o := s.Deliver(t.Context(), sinkJob(messageOf(100*i), 2))[1]; o.Disposition != mail.Delivered {
					t.Errorf("%+v", o)
				}
			}
		})
	}
	wg.Wait()
	s.Close()
	sink.close()
	if m, k := sink.messages.Load(), sink.conns.Load(); m != workers*each || k > 2*workers {
		t.Errorf("%d messages on %d connections", m, k)
	}
}

// A connection that the server closed while it waited is noticed before a message is risked on it.
func TestClosedWhileWaiting(t *testing.T) {
	sink := newSink(t, "PIPELINING", "CHUNKING")
	addr := sink.l.Addr().String()
	s := toSink(addr, nil)
	job := sinkJob(messageOf(1000), 1)
	if o := s.Deliver(t.Context(), job)[0]; o.Disposition != mail.Delivered {
		t.Fatalf("%+v", o)
	}
	c := s.pool.get(poolKey{"mx.example.org", 25, ""})
	if c == nil || !c.alive(time.Now().Add(time.Minute)) {
		t.Fatal("no live connection waits")
	}
	c.conn.Write([]byte("QUIT\r\n")) // the sink closes
	deadline := time.Now().Add(5 * time.Second)
	for c.alive(time.Now().Add(time.Minute)) {
		if time.Now().After(deadline) {
			t.Fatal("the closed connection still looks alive")
		}
		time.Sleep(time.Millisecond)
	}
	if c.state = new(tls.ConnectionState); c.alive(time.Now().Add(time.Minute)) {
		t.Error("with TLS it looks alive")
	}
	c.close()
	s.Close()
	sink.close()
}

// smtp-sink of Postfix as the server, in its usual form and without extensions, and speaking LMTP.
func TestRealSMTPSink(t *testing.T) {
	path := "/usr/sbin/smtp-sink"
	if _, err := os.Stat(path); err != nil {
		t.Skipf("smtp-sink of Postfix is not installed (Debian: postfix): %v", err)
	}
	for _, args := range [][]string{nil, {"-p"}, {"-e"}, {"-L"}, {"-8"}} {
		t.Run(strings.Join(append([]string{"sink"}, args...), " "), func(t *testing.T) {
			dir := t.TempDir()
			l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
			if err != nil {
				t.Fatal(err)
			}
			addr := l.Addr().String()
			l.Close()
			cmd := exec.Command(path, append(args, "-u", "root", "-d", filepath.Join(dir, "m."), addr, "10")...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Kill()
				cmd.Wait()
			}()
			waitFor(t, addr, &stderr)
			content := []byte("Subject: x\r\n\r\n.\r\n..dots\r\nend\r\n")
			job := sinkJob(content, 3)
			var c Courier = toSink(addr, nil)
			if args != nil && args[0] == "-L" {
				job.Route = mail.Route{Transport: mail.Local, Target: "lmtp:" + addr}
				c = NewLocal(LocalConfig{Hostname: "me.test"})
			}
			for range 3 {
				for i, o := range c.Deliver(t.Context(), job) {
					if o.Disposition != mail.Delivered {
						t.Fatalf("recipient %d: %+v", i, o)
					}
				}
			}
			files, _ := filepath.Glob(filepath.Join(dir, "m.*"))
			if len(files) != 3 {
				t.Fatalf("%d messages in the sink", len(files))
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil || !bytes.Contains(b, []byte("Subject: x\n\n.\n..dots\nend\n")) || bytes.Count(b, []byte("X-Rcpt-Args:")) != 3 {
					t.Errorf("the sink has %q %v", b, err)
				}
			}
		})
	}
}

func waitFor(t *testing.T, addr string, stderr *bytes.Buffer) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody answers at %s: %v %s", addr, err, stderr)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func BenchmarkDeliver(b *testing.B) {
	for _, c := range []struct {
		name string
		ext  []string
		size int
	}{
		{"pipelining-4k", []string{"PIPELINING", "8BITMIME"}, 4096},
		{"chunking-4k", []string{"PIPELINING", "CHUNKING", "8BITMIME"}, 4096},
		{"pipelining-100k", []string{"PIPELINING", "8BITMIME"}, 100_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			sink := newSink(b, c.ext...)
			s := toSink(sink.l.Addr().String(), nil)
			job := sinkJob(messageOf(c.size), 1)
			b.SetBytes(job.Size)
			b.ReportAllocs()
			for b.Loop() {
				if o := s.Deliver(context.Background(), job)[0]; o.Disposition != mail.Delivered {
					b.Fatalf("%+v", o)
				}
			}
			s.Close()
			sink.close()
		})
	}
}

// A message that cannot be read to its end, or has more than its end, is never ended on the wire: the server throws it away.
func TestMessageOfTheWrongSize(t *testing.T) {
	for _, ext := range [][]string{{"PIPELINING"}, {"PIPELINING", "CHUNKING", "8BITMIME", "BINARYMIME"}} {
		sink := newSink(t, ext...)
		s := toSink(sink.l.Addr().String(), nil)
		for _, off := range []int64{-1, -1000, 1, 1000} {
			job := sinkJob(messageOf(200_000), 1)
			job.Env.Body = mail.BodyBinary
			job.Size -= off // what Open yields is off bytes more
			o := s.Deliver(t.Context(), job)[0]
			if o.Disposition != mail.Deferred || o.Reason != mail.ReasonInternal {
				t.Errorf("%v, %d bytes more: %+v", ext, off, o)
			}
		}
		if o := s.Deliver(t.Context(), sinkJob(messageOf(100), 1))[0]; o.Disposition != mail.Delivered {
			t.Errorf("the next message: %+v", o)
		}
		s.Close()
		sink.close()
		if n := sink.messages.Load(); n != 1 {
			t.Errorf("%v: the sink took %d messages, want 1", ext, n)
		}
	}
}

// A waiting connection on which the server said something is not used.
func TestSaidSomethingWhileWaiting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	c := newClient(&clientEnv{}, ours, "mx", l.Addr().(*net.TCPAddr).AddrPort())
	later := time.Now().Add(time.Minute)
	if !c.alive(later) {
		t.Error("a quiet connection is called dead")
	}
	theirs.Write([]byte("421 bye\r\n"))
	for deadline := time.Now().Add(5 * time.Second); c.alive(later); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a connection with something unread is called alive")
		}
	}
}

// A password never goes out in the clear, whatever else went wrong before.
func TestNoPasswordInTheClear(t *testing.T) {
	c := newClient(&clientEnv{}, said{r: strings.NewReader("")}, "mx", netip.AddrPort{})
	c.caps.authPlain = true
	if f := c.auth("joe", "secret"); f == nil || f.Disposition != mail.Deferred || len(c.log.b) != 0 {
		t.Errorf("%+v, said %q", f, c.log.b)
	}
}
