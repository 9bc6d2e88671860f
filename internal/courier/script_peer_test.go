package courier

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// play is the server's side of one connection.
func (s *script) play(p *peer, raw net.Conn) {
	defer raw.Close()
	var conn net.Conn = newDrained(raw)
	r := bufio.NewReader(conn)
	for _, st := range p.steps {
		var err error
		switch st.word {
		case ">":
			_, err = fmt.Fprintf(conn, "%s\r\n", st.arg)
		case "raw":
			var text string
			if text, err = strconv.Unquote(st.arg); err == nil {
				_, err = conn.Write([]byte(text))
			}
		case "<":
			var line string
			if line, err = r.ReadString('\n'); err == nil && line != st.arg+"\r\n" {
				err = fmt.Errorf("got %q, want %q", line, st.arg)
			}
		case "read":
			err = s.expect(r, st.arg)
		case "message":
			err = s.message(r)
		case "tls":
			tc := tls.Server(conn, s.certs.config(st.arg))
			if err = tc.Handshake(); err != nil && strings.HasPrefix(st.arg, "fail-") {
				return
			}
			conn, r = tc, bufio.NewReader(tc)
		case "close":
			return
		case "hang", "eof":
			io.Copy(io.Discard, r)
			return
		case "wait":
			var d time.Duration
			if d, err = time.ParseDuration(st.arg); err == nil {
				time.Sleep(d)
			}
		case "drip":
			d, _ := time.ParseDuration(st.arg)
			for err == nil {
				time.Sleep(d)
				_, err = conn.Write([]byte("x"))
			}
			return
		case "endless":
			for err == nil {
				_, err = conn.Write([]byte(strings.ReplaceAll(st.arg, `\n`, "\r\n")))
			}
			return
		default:
			err = fmt.Errorf("no such step %q", st.word)
		}
		if err != nil {
			s.t.Errorf("%s, line %d (%s %s): %v", p.addr, st.line, st.word, st.arg, err)
			return
		}
	}
	if rest, _ := io.ReadAll(r); len(rest) > 0 && string(rest) != "QUIT\r\n" {
		s.t.Errorf("%s: at the end of the script came %.200q", p.addr, rest)
	}
}

func (s *script) expect(r *bufio.Reader, arg string) error {
	n, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if string(b) != s.content[:n] {
		return fmt.Errorf("got %.200q, want the message", b)
	}
	return nil
}

func (s *script) message(r *bufio.Reader) error {
	var got, want bytes.Buffer
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("after %d octets: %w", got.Len(), err)
		}
		got.WriteString(line)
		if line == ".\r\n" {
			break
		}
	}
	d := smtp.NewDotWriter(&want)
	d.Write([]byte(s.content))
	d.Close()
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		return fmt.Errorf("got %.300q, want %.300q", got.Bytes(), want.Bytes())
	}
	return nil
}

// bigMessage is n octets of text, with dots where they hurt.
func bigMessage(n int) string {
	var b strings.Builder
	b.WriteString("Subject: big\r\n\r\n")
	for i := 0; b.Len() < n; i++ {
		line := strings.Repeat(string(rune('a'+i%26)), 70)
		if i%7 == 0 {
			line = "." + line
		}
		b.WriteString(line + "\r\n")
	}
	return b.String()[:n-2] + "\r\n"
}

// drained is a connection whose peer's writes never block, like one with a large buffer in the kernel.
type drained struct {
	net.Conn
	mu   sync.Mutex
	cond *sync.Cond
	buf  bytes.Buffer
	err  error
}

func newDrained(c net.Conn) *drained {
	d := &drained{Conn: c}
	d.cond = sync.NewCond(&d.mu)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			d.mu.Lock()
			d.buf.Write(b[:n])
			if err != nil {
				d.err = io.EOF
			}
			d.cond.Broadcast()
			d.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return d
}

func (d *drained) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.buf.Len() == 0 {
		if d.err != nil {
			return 0, d.err
		}
		d.cond.Wait()
	}
	return d.buf.Read(p)
}
