package smtpsrv

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// scripted is a connection whose client sends given pieces, one for each read, and then closes. It keeps what the server says.
type scripted struct {
	pieces [][]byte
	out    bytes.Buffer
	writes int
	closed bool
}

func (c *scripted) Read(p []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	if len(c.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.pieces[0])
	if c.pieces[0] = c.pieces[0][n:]; len(c.pieces[0]) == 0 {
		c.pieces = c.pieces[1:]
	}
	return n, nil
}

func (c *scripted) Write(p []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	c.writes++
	return c.out.Write(p)
}

func (c *scripted) Close() error                     { c.closed = true; return nil }
func (c *scripted) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 25), Port: 25} }
func (c *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// play runs one session over the pieces, in this goroutine, and returns what the server said, in how many writes.
func (ts *testServer) play(pieces ...[]byte) (string, int) {
	var given [][]byte
	for _, p := range pieces {
		if len(p) > 0 {
			given = append(given, p)
		}
	}
	c := &scripted{pieces: given}
	srv := ts.srv
	ln := &listener{mode: SMTP, Listener: ts.l[SMTP], work: newWorkers()}
	s := newSession(srv, srv.cfg.Load(), ln, c)
	srv.mu.Lock()
	srv.sessions[s] = struct{}{}
	srv.running.Add(1)
	srv.mu.Unlock()
	s.run(context.Background())
	return c.out.String(), c.writes
}

// transcript is a pipelined session with everything in it that depends on where lines end. Each group is what a client may send at once.
var transcript = []string{
	"EHLO client.test\r\n",
	"MAIL FROM:<a@pass.test> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<b@example.test> NOTIFY=NEVER\r\nRCPT TO:<nobody@example.test>\r\nDATA\r\n",
	"Subject: x\r\nAuthentication-Results: mx.example.test; x=y\r\n folded\r\nBcc: y\r\n\r\n..dot\r\n.\r\nRSET\r\nMAIL FROM:<a@there.test>\r\nRCPT TO:<b@example.test>\r\n" +
		"BDAT 9\r\nS: x\r\n\r\n.BDAT 6 LAST\r\nRSET\r\nVRFY x\r\nNOOP\r\nQUIT\r\n",
}

// C48: wherever the segments are cut, each command gets the same reply in the same order and the same messages come out.
func TestC48EverySplit(t *testing.T) {
	ts := newTestServer(t, nil)
	defer ts.close()
	var whole [][]byte
	all := 0
	for _, g := range transcript {
		whole = append(whole, []byte(g))
		all += len(g)
	}
	want, writes := ts.play(whole...)
	if n := strings.Count(want, "\r\n"); n < 20 {
		t.Fatalf("the transcript is not what it should be:\n%s", want)
	}
	if writes > len(transcript)+1 { // and the greeting
		t.Errorf("%d writes for %d groups", writes, len(transcript))
	}
	msgs := ts.intake.all()
	if len(msgs) != 2 {
		t.Fatalf("%d messages", len(msgs))
	}
	want = withoutIDs(want)
	check := func(name string, pieces [][]byte) {
		t.Helper()
		got, _ := ts.play(pieces...)
		if withoutIDs(got) != want {
			t.Fatalf("%s:\n%s\nwant\n%s", name, got, want)
		}
		now := ts.intake.all()
		for i, m := range now[len(now)-2:] {
			if m.buf.String() != msgs[i].buf.String() {
				t.Fatalf("%s: message %d is %q, want %q", name, i, m.buf.String(), msgs[i].buf.String())
			}
		}
	}
	// every single cut within the groups
	for g := range transcript {
		for i := 1; i < len(transcript[g]); i++ {
			pieces := append([][]byte{}, whole[:g]...)
			pieces = append(pieces, whole[g][:i], whole[g][i:])
			check(fmt.Sprintf("group %d cut at %d", g, i), append(pieces, whole[g+1:]...))
		}
	}
	// everything byte by byte, and by threes
	for _, size := range []int{1, 3} {
		var pieces [][]byte
		for _, g := range whole {
			for len(g) > 0 {
				n := min(size, len(g))
				pieces, g = append(pieces, g[:n]), g[n:]
			}
		}
		check(fmt.Sprintf("by %d", size), pieces)
	}
}

// withoutIDs blanks queue ids, which are counted.
func withoutIDs(s string) string {
	lines := strings.Split(s, "\r\n")
	for i, l := range lines {
		if before, _, ok := strings.Cut(l, "queued as "); ok {
			lines[i] = before
		}
	}
	return strings.Join(lines, "\r\n")
}

// D1: whatever stands where the end of the data should be, one connection makes one message or none, never two, and nothing of the data
// is executed.
func TestD1SmugglingSessions(t *testing.T) {
	ts := newTestServer(t, nil)
	defer ts.close()
	const letters = "\r\n.\x00"
	depth := 6
	if testing.Short() {
		depth = 4
	}
	in := make([]byte, 0, depth)
	var rec func(n int)
	rec = func(n int) {
		before := len(ts.intake.all())
		out, _ := ts.play([]byte("EHLO c\r\n"), []byte("MAIL FROM:<a@there.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"),
			[]byte("first"+string(in)+"MAIL FROM:<evil@there.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"), []byte("second\r\n.\r\nQUIT\r\n"))
		msgs := ts.intake.all()[before:]
		// Only CRLF.CRLF in its strict form may part the two.
		honest := 1
		if i := bytes.Index(in, []byte("\r\n.\r\n")); i >= 0 && i == bytes.IndexAny(in, "\r\n") && bytes.IndexByte(in[:i], 0) < 0 {
			honest = 2
		}
		if len(msgs) > honest {
			t.Fatalf("%q made %d messages:\n%s", in, len(msgs), out)
		}
		for _, m := range msgs {
			if c := m.buf.String(); strings.Contains(strings.ReplaceAll(c, "\r\n", ""), "\r") || strings.Contains(strings.ReplaceAll(c, "\r\n", ""), "\n") || strings.Contains(c, "\x00") {
				t.Fatalf("%q let a bare line end or NUL in: %q", in, c)
			}
		}
		if n == 0 {
			return
		}
		for i := range letters {
			in = append(in, letters[i])
			rec(n - 1)
			in = in[:len(in)-1]
		}
	}
	rec(depth)
}

// FuzzSession: any bytes at any segmentation. The replies are well formed, nothing panics, every draft is ended, and memory stays small.
func FuzzSession(f *testing.F) {
	for _, g := range transcript {
		f.Add([]byte(g), uint8(7))
	}
	f.Add([]byte(strings.Join(transcript, "")), uint8(0))
	files, _ := filepath.Glob("testdata/*.txt")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		var in []byte
		for _, l := range strings.Split(string(b), "\n") {
			if s, ok := strings.CutPrefix(l, "C: "); ok {
				in = append(in, s+"\r\n"...)
			} else if s, ok := strings.CutPrefix(l, "C! "); ok && !strings.Contains(s, "00*") {
				u, _ := unquoteAll(s)
				in = append(in, u...)
			}
		}
		f.Add(in, uint8(len(in)))
	}
	ts := newTestServer(f, func(c *Config) { c.MaxSize = 2000; c.MaxRecipients = 5; c.Auth, c.MailChecks = nil, nil })
	defer ts.close()
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		ts.intake.messages = nil
		var pieces [][]byte
		for rest := bytes.Clone(in); len(rest) > 0; {
			n := min(len(rest), 1+int(cut))
			if i := bytes.Index(rest, []byte("DATA\r\n")); i >= 0 && i+6 < n {
				n = i + 6 // or no message would ever be received
			}
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		out, _ := ts.play(pieces...)
		first := ""
		for _, l := range strings.SplitAfter(out, "\r\n") {
			if l == "" {
				continue
			}
			l, ok := strings.CutSuffix(l, "\r\n")
			if first == "" {
				first = l
			}
			if err := checkReplyLine(l, first); !ok || err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			if l[3] == ' ' {
				first = ""
			}
		}
		if v := ts.srv.m.panics.Value(); v != 0 {
			t.Fatal("a session panicked")
		}
		if ts.intake.open != 0 {
			t.Fatal("a draft was neither committed nor discarded")
		}
		for _, m := range ts.intake.all() {
			if m.Size() > 2000+200 {
				t.Fatalf("a message of %d bytes", m.Size())
			}
			if strings.Contains(strings.ReplaceAll(m.prefix, "\r\n", ""), "\n") || strings.Contains(m.prefix, "\x00") {
				t.Fatalf("the lines on top are not what they should be: %q", m.prefix)
			}
		}
	})
}

// N-5, C45: a message of any size is taken with the memory of a session.
func TestN5BigMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got countingIntake
		ts := newTestServer(t, func(c *Config) { c.Intake = &got; c.BodyChecks = nil })
		defer ts.close()
		c := ts.dial(SMTP, "192.0.2.1")
		c.reply()
		for _, cmd := range []string{"EHLO c", "MAIL FROM:<a@there.test>", "RCPT TO:<b@example.test>", "DATA"} {
			c.cmd(cmd)
		}
		line := strings.Repeat("x", 998) + "\r\n"
		chunk := strings.Repeat(line, 1000)
		for range 45 {
			c.send(chunk)
		}
		if r := c.cmd("."); !strings.HasPrefix(r, "250 ") {
			t.Errorf("got %q", r)
		}
		if got.bytes != 45_000_000 {
			t.Errorf("%d bytes", got.bytes)
		}
		if got.biggest > bigBuffer {
			t.Errorf("a write of %d bytes", got.biggest)
		}
		c.nc.Close()
	})
}

// What is too big is given up at once, not when its end comes: disks are finite.
func TestTooBigIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := newTestServer(t, func(c *Config) { c.MaxSize = 1000 })
		defer ts.close()
		c := ts.dial(SMTP, "192.0.2.1")
		c.reply()
		for _, cmd := range []string{"EHLO c", "MAIL FROM:<a@there.test>", "RCPT TO:<b@example.test>", "DATA"} {
			c.cmd(cmd)
		}
		c.send(strings.Repeat("0123456789\r\n", 100))
		synctest.Wait()
		if ts.intake.open != 0 {
			t.Error("the message is still kept")
		}
		if r := c.cmd("."); !strings.HasPrefix(r, "552 ") {
			t.Errorf("got %q", r)
		}
		c.nc.Close()
	})
}

// Buffers come back clean to their pool: two sessions never share one.
func TestBuffersAreNotShared(t *testing.T) {
	ts, addr := tcpServer(t, SMTP, nil)
	defer ts.close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := tcpDial(t, addr)
			c.reply()
			c.cmd("EHLO c")
			for range 10 {
				c.cmd("MAIL FROM:<a@there.test>")
				c.cmd("RCPT TO:<b@example.test>")
				c.cmd("DATA")
				if r := c.cmd(strings.Repeat(strings.Repeat(string(rune('a'+i)), 70)+"\r\n", 1000) + "."); !strings.HasPrefix(r, "250 ") {
					t.Errorf("got %q", r)
				}
			}
			c.nc.Close()
		})
	}
	wg.Wait()
	for _, m := range ts.intake.all() {
		b := m.buf.Bytes()
		if len(b) != 72_000 || bytes.Count(b, b[:1]) != 70_000 {
			t.Errorf("a message of %d bytes holds %d of its first letter", len(b), bytes.Count(b, b[:1]))
		}
	}
}
