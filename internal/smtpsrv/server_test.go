package smtpsrv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// tcpServer is a test server on loopback.
func tcpServer(t testing.TB, mode Mode, change func(*Config)) (*testServer, string) {
	ts := newTestServer(t, change)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stop := ts.cancel
	ts.cancel = func() { cancel(); stop() }
	ts.wg.Go(func() { ts.srv.Serve(ctx, l, mode) })
	return ts, l.Addr().String()
}

func tcpDial(t testing.TB, addr string) *client {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return newClient(t, nc)
}

// C1: bytes that are there before the greeting are an early talker's, without any greeting delay.
func TestC1EarlyTalker(t *testing.T) {
	ts := newTestServer(t, nil)
	defer ts.close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := tcpDial(t, l.Addr().String())
	c.send("EHLO early\r\n") // in the kernel before anybody accepts
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ts.wg.Go(func() { ts.srv.Serve(ctx, l, SMTP) })
	if r := c.reply(); len(r) != 1 || !strings.HasPrefix(r[0], "554 ") {
		t.Errorf("got %q", r)
	}
	if r := c.reply(); r != nil {
		t.Errorf("then %q", r)
	}
	polite := tcpDial(t, l.Addr().String())
	if r := polite.reply(); len(r) != 1 || !strings.HasPrefix(r[0], "220 ") {
		t.Errorf("got %q", r)
	}
	polite.nc.Close()
	cancel()
}

// SMTP-42: over a real connection the client reads the reply although it was still sending.
func TestC33ReplyArrives(t *testing.T) {
	ts, addr := tcpServer(t, SMTP, nil)
	defer ts.close()
	c := tcpDial(t, addr)
	c.reply()
	for _, cmd := range []string{"EHLO c", "MAIL FROM:<a@there.test>", "RCPT TO:<b@example.test>", "DATA"} {
		c.cmd(cmd)
	}
	c.send("bare\nline\r\n" + strings.Repeat("more and more\r\n", 10_000))
	if r := c.reply(); len(r) != 1 || !strings.HasPrefix(r[0], "521 5.5.2 ") {
		t.Errorf("got %q", r)
	}
}

// D32: connections per network and in total; each is told why.
func TestD32Limits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, func(c *Config) { c.MaxConns = 4; c.MaxConnsPerIP = 2 })
		defer ts.close()
		var open []*client
		dial := func(ip, want string) {
			t.Helper()
			c := ts.dial(SMTP, ip)
			open = append(open, c)
			if r := c.reply(); len(r) != 1 || !strings.HasPrefix(r[0], want) {
				t.Errorf("%s: got %q, want %s", ip, r, want)
			}
		}
		dial("192.0.2.1", "220 ")
		dial("192.0.2.1", "220 ")
		dial("192.0.2.1", "421 4.7.0 ")
		synctest.Wait()
		dial("2001:db8::1", "220 ")
		dial("2001:db8::2", "220 ")
		dial("192.0.2.9", "421 4.7.0 ") // four are open
		open[0].nc.Close()
		synctest.Wait()
		dial("2001:db8::3", "421 4.7.0 ") // of the same /64
		synctest.Wait()
		dial("192.0.2.1", "220 ")
		if n := ts.srv.Open(); n != 4 {
			t.Errorf("%d open", n)
		}
		for _, c := range open {
			c.nc.Close()
		}
		synctest.Wait()
		if n := ts.srv.Open(); n != 0 {
			t.Errorf("%d open at the end", n)
		}
		if len(ts.srv.nets.open) != 0 {
			t.Errorf("networks left: %v", ts.srv.nets.open)
		}
		for _, l := range ts.srv.Listeners() {
			if l.Mode == SMTP && (l.Total != 8 || l.Open != 0) {
				t.Errorf("listener: %+v", l)
			}
		}
	})
}

// when connections are scarce the first command must come soon.
func TestR6Scarce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, func(c *Config) { c.MaxConns = 4 })
		defer ts.close()
		var cs []*client
		for range 4 {
			c := ts.dial(SMTP, "127.0.0.1")
			c.reply()
			cs = append(cs, c)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := ts.srv.Open(); n != 3 {
			t.Errorf("%d open, want 3: the fourth came when connections were scarce", n)
		}
		for _, c := range cs {
			c.nc.Close()
		}
	})
}

// D31: many clients that hardly speak; a new one is served at once, and all slow ones are gone in the end.
func TestD31SlowClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		const n = 500
		starts := []string{"", "N", "EHLO c\r\nMAIL FROM:<a@there.test>\r\nRCPT TO:<b@example.test>\r\n", "EHLO c\r\nAUTH", "BDAT 100\r\n"}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		for i := range n {
			c := ts.dial(SMTP, "127.0.0.1")
			wg.Go(func() {
				defer c.nc.Close()
				c.send(starts[i%len(starts)])
				for ctx.Err() == nil {
					time.Sleep(30 * time.Second)
					if c.send("x") != nil {
						return
					}
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		c := ts.dial(SMTP, "127.0.0.1")
		c.reply()
		if r := c.cmd("NOOP"); !strings.HasPrefix(r, "250 ") {
			t.Errorf("got %q", r)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("served after %v", took)
		}
		c.nc.Close()
		time.Sleep(25 * time.Minute)
		synctest.Wait()
		if open := ts.srv.Open(); open != 0 {
			t.Errorf("%d slow clients are still there", open)
		}
		cancel()
		wg.Wait()
	})
}

// SMTP-29, D20: every login takes 100 ms and up to a fifth more, whatever its result.
func TestSMTP29AuthTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		for _, creds := range []string{
			"AHVzZXJAZXhhbXBsZS50ZXN0AHNlY3JldA==", // right
			"AHVzZXJAZXhhbXBsZS50ZXN0AHdyb25n",     // wrong
			"AGJyb2tlbkBleGFtcGxlLnRlc3QAeA==",     // backend down
		} {
			c := ts.dial(SubmissionTLS, "192.0.2.1")
			if err := c.startTLS(clientTLS("")); err != nil {
				t.Fatal(err)
			}
			c.reply()
			start := time.Now()
			c.cmd("AUTH PLAIN " + creds)
			if took := time.Since(start); took < 100*time.Millisecond || took > 120*time.Millisecond {
				t.Errorf("took %v", took)
			}
			c.nc.Close()
		}
	})
}

// D57: a panic outside of any command ends one session too.
func TestD57AuthPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		c := ts.dial(SubmissionTLS, "192.0.2.1")
		if err := c.startTLS(clientTLS("")); err != nil {
			t.Fatal(err)
		}
		c.reply()
		// "\0panic@example.test\0x"
		if r := c.cmd("AUTH PLAIN AHBhbmljQGV4YW1wbGUudGVzdAB4"); !strings.HasPrefix(r, "421 4.3.0 ") {
			t.Errorf("got %q", r)
		}
		c.nc.Close()
	})
}

// failingListener fails a few times before it accepts.
type failingListener struct {
	net.Listener
	mu    sync.Mutex
	fails int
	times []time.Time
}

func (l *failingListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.times = append(l.times, time.Now())
	if l.fails > 0 {
		l.fails--
		l.mu.Unlock()
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	l.mu.Unlock()
	return l.Listener.Accept()
}

// N-4, D33: accept errors are waited out, longer and longer, without a busy loop.
func TestD33AcceptErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		ql := newQueueListener()
		l := &failingListener{Listener: ql, fails: 12}
		ts.wg.Go(func() { ts.srv.Serve(t.Context(), l, SMTP) })
		near, far := net.Pipe()
		ql.ch <- addressed{far, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
		c := newClient(t, near)
		if r := c.reply(); len(r) != 1 || !strings.HasPrefix(r[0], "220 ") {
			t.Errorf("got %q", r)
		}
		near.Close()
		ql.Close()
		synctest.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := 2; i < 12; i++ {
			gap, before := l.times[i].Sub(l.times[i-1]), l.times[i-1].Sub(l.times[i-2])
			if gap > time.Second || gap < before || gap < time.Duration(i)*minAcceptPause {
				t.Errorf("pause %d is %v after %v", i, gap, before)
			}
		}
	})
}

// Drain ends when its context does, and cuts what is left.
func TestDrainCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		c := ts.dial(SMTP, "192.0.2.1")
		c.reply()
		for _, cmd := range []string{"EHLO c", "MAIL FROM:<a@there.test>", "RCPT TO:<b@example.test>", "DATA"} {
			c.cmd(cmd)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if err := ts.srv.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Drain: %v", err)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("after %v", took)
		}
		synctest.Wait()
		if len(ts.srv.Listeners()) != 0 {
			t.Error("still listening")
		}
		if err := ts.srv.Serve(t.Context(), newQueueListener(), SMTP); err != nil {
			t.Errorf("Serve after Drain: %v", err)
		}
		c.nc.Close()
	})
}

// SIGTERM comes at any moment: no session is left, and every message was taken or not, as the client was told.
func TestC31DrainUnderLoad(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		ts, addr := tcpServer(t, SMTP, nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		acked := 0
		for range 8 {
			wg.Go(func() {
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer nc.Close()
				c := newClient(t, nc)
				c.reply()
				c.cmd("EHLO c")
				for {
					c.send("MAIL FROM:<a@there.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n")
					var last string
					for range 3 {
						r := c.reply()
						if r == nil {
							return
						}
						last = r[0]
					}
					if !strings.HasPrefix(last, "354") {
						return
					}
					if r := c.cmd("Subject: x\r\n\r\nx\r\n."); !strings.HasPrefix(r, "250 ") {
						return
					}
					mu.Lock()
					acked++
					mu.Unlock()
				}
			})
		}
		time.Sleep(after)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := ts.srv.Drain(ctx); err != nil {
			t.Errorf("after %v: %v", after, err)
		}
		cancel()
		wg.Wait()
		if n := len(ts.intake.all()); n != acked {
			t.Errorf("after %v: %d messages taken, %d acknowledged", after, n, acked)
		}
		ts.close()
	}
}

// N-3, D41: whatever strangers send, the number of series stays.
func TestD41SeriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		count := func() (n int) {
			mfs, err := ts.reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, mf := range mfs {
				n += len(mf.Metric)
			}
			return n
		}
		before := count()
		for i := range 300 {
			c := ts.dial(SMTP, fmt.Sprintf("192.0.%d.%d", i/200, i%200))
			c.reply()
			c.cmd(fmt.Sprintf("EHLO host%d", i))
			c.cmd(fmt.Sprintf("V%dRB x", i))
			c.cmd(fmt.Sprintf("X%d\"\xff", i))
			c.nc.Close()
			synctest.Wait()
		}
		if after := count(); after > before+20 {
			t.Errorf("%d series, then %d", before, after)
		}
	})
}

// LOG-6, LOG-8: what the timeline is told, and the pages.
func TestRefusalsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		c := ts.dial(SMTP, "192.0.2.7")
		c.reply()
		c.cmd("EHLO c")
		c.cmd("MAIL FROM:<a@pass.test>")
		for i := range 120 {
			c.cmd(fmt.Sprintf("RCPT TO:<x%d@elsewhere.test>", i))
		}
		c.nc.Close()
		synctest.Wait()
		rs := ts.srv.Rejections(1000)
		if len(rs) != keptRejections {
			t.Fatalf("%d rejections kept", len(rs))
		}
		r := rs[0]
		if r.Client != "192.0.2.7:4321" || r.Mode != "SMTP" || r.From != "a@pass.test" || len(r.Rcpts) != 1 || r.Rcpts[0] != "x119@elsewhere.test" ||
			r.Reason != "relay not allowed" || r.Reply != "503 5.7.1 Relay not allowed" || r.Trace.String() == "" || r.At.IsZero() {
			t.Errorf("%+v", r)
		}
		if rs := ts.srv.Rejections(2); len(rs) != 2 || rs[1].Rcpts[0] != "x118@elsewhere.test" {
			t.Errorf("%+v", rs)
		}
		if got := ts.events.texts(timeline.Check); len(got) != 1 || got[0] != "spf: spf=pass" {
			t.Errorf("checks: %q", got)
		}
	})
}

// An authentication is an event, whatever its result.
func TestAuthIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		c := ts.dial(SubmissionTLS, "192.0.2.7")
		if err := c.startTLS(clientTLS("")); err != nil {
			t.Fatal(err)
		}
		c.reply()
		c.cmd("AUTH PLAIN AHVzZXJAZXhhbXBsZS50ZXN0AHdyb25n")
		c.cmd("AUTH PLAIN AHVzZXJAZXhhbXBsZS50ZXN0AHNlY3JldA==")
		c.nc.Close()
		ts.events.mu.Lock()
		defer ts.events.mu.Unlock()
		var got []string
		for _, e := range ts.events.list {
			if e.Kind == timeline.Auth {
				got = append(got, fmt.Sprint(e.Client, " ", e.User, " ", e.Err == nil))
			}
		}
		if len(got) != 2 || got[0] != "192.0.2.7:4321 user@example.test false" || got[1] != "192.0.2.7:4321 user@example.test true" {
			t.Errorf("%q", got)
		}
	})
}

func TestNetworks(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:1:2:3::4": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
		"127.0.0.1": "", "::1": "",
	} {
		key, ok := network(netip.MustParseAddr(in))
		if ok != (want != "") || ok && key.String() != want {
			t.Errorf("%s: %v, %v", in, key, ok)
		}
	}
	if _, ok := network(netip.Addr{}); ok {
		t.Error("no address is limited")
	}
}

// A check that learns is told of messages that were accepted, once each, and of no others.
func TestLearners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &learner{}
		ts := newTestServer(t, func(c *Config) {
			c.MailChecks = append(c.MailChecks, l)
			c.BodyChecks = append(c.BodyChecks, l)
		})
		defer ts.close()
		c := ts.dial(SMTP, "192.0.2.7")
		c.reply()
		c.cmd("EHLO c")
		for _, body := range []string{"REJECT", "fine"} {
			c.cmd("MAIL FROM:<a@there.test>")
			c.cmd("RCPT TO:<b@example.test>")
			c.cmd("DATA")
			c.cmd(body + "\r\n.")
		}
		c.nc.Close()
		synctest.Wait()
		if len(l.ids) != 1 || l.ids[0] != "id2" {
			t.Errorf("told of %q", l.ids)
		}
	})
}

type learner struct{ ids []mail.ID }

func (*learner) Name() string                                             { return "learner" }
func (*learner) Mail(context.Context, *policy.Transaction) policy.Verdict { return policy.Verdict{} }
func (*learner) Body(context.Context, *policy.Transaction, policy.Content) policy.Verdict {
	return policy.Verdict{}
}
func (l *learner) Accepted(_ context.Context, t *policy.Transaction) { l.ids = append(l.ids, t.ID) }

// brokenConn fails every write: the session ends and nothing is lost but itself.
type brokenConn struct{ net.Conn }

func (brokenConn) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriteError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, nil)
		defer ts.close()
		near, far := net.Pipe()
		ts.l[SMTP].ch <- addressed{brokenConn{far}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
		synctest.Wait()
		if n := ts.srv.Open(); n != 0 {
			t.Errorf("%d open", n)
		}
		near.Close()
	})
}

// TestStuck: a server is stuck when nobody accepts, or an accept loop does not get around to the next connection.
func TestStuck(t *testing.T) {
	srv := New(Config{})
	if err := srv.Stuck(time.Minute); err == nil {
		t.Error("a server without listeners is not stuck")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(t.Context(), l, SMTP) }()
	c := tcpDial(t, l.Addr().String())
	c.reply()
	if err := srv.Stuck(time.Minute); err != nil {
		t.Error(err)
	}
	var ln *listener
	srv.mu.Lock()
	for ln = range srv.listeners {
	}
	srv.mu.Unlock()
	ln.since.Store(time.Now().Add(-time.Hour).UnixNano())
	if err := srv.Stuck(time.Minute); err == nil {
		t.Error("an accept loop that is busy with one connection for an hour is not stuck")
	}
	c2 := tcpDial(t, l.Addr().String())
	c2.reply() // it was not, and this resets the time
	if err := srv.Stuck(time.Minute); err != nil {
		t.Error(err)
	}
	l.Close()
	for end := time.Now().Add(10 * time.Second); srv.Stuck(time.Minute) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a server that no longer accepts, but has a session, is not stuck")
		}
	}
	c.nc.Close()
	c2.nc.Close()
	<-done
}

// lateListener has a last connection when it is closed.
type lateListener struct {
	*queueListener
	last net.Conn
}

func (l *lateListener) Accept() (net.Conn, error) {
	<-l.done
	if c := l.last; c != nil {
		time.Sleep(time.Second) // the sessions have been cut
		l.last = nil
		return c, nil
	}
	return nil, net.ErrClosed
}

// A connection that is accepted while the server ends is cut as those before it.
func TestLateConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		l := &lateListener{newQueueListener(), addressed{far, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4321}}}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		begin := time.Now()
		go func() { New(Config{}).Serve(ctx, l, SMTP); close(ended) }()
		cancel()
		<-ended
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("ended after %v", took)
		}
	})
}
