package courier

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// moody is a server that follows the protocol, answers as its moods say, and knows what it took.
type moody struct {
	mu    sync.Mutex
	moods []int // the next answers; when they are used up, everything is fine
	taken map[string]int
	ext   string
	lost  bool // it took a message and hung up before saying so
	bad   []string
}

func (m *moody) mood() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.moods) == 0 {
		return 0
	}
	x := m.moods[0]
	m.moods = m.moods[1:]
	return x
}

var moodReplies = []string{"250 2.0.0 fine", "451 4.3.0 later", "550 5.1.1 never", "421 4.3.2 bye", "452 4.5.3 too many recipients", "", "garbage"}

// answer writes the answer of a mood; false means that the connection is over.
func answer(w *bufio.Writer, mood int, good string) bool {
	text := moodReplies[mood]
	if mood == 0 {
		text = good
	}
	if text != "" {
		w.WriteString(text + "\r\n")
		w.Flush()
	}
	return text != "" && mood != 3 && mood != 6
}

func (m *moody) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReader(newDrained(c)), bufio.NewWriter(c)
	var rcpts []string
	inMail := false
	if !answer(w, m.mood(), "220 hi") {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		mood, good := 0, "250 2.0.0 fine"
		switch verb {
		case "EHLO", "HELO":
			if mood = m.mood(); verb == "EHLO" && mood == 0 {
				good = "250-moody\r\n" + m.ext + "250 HELP"
			}
		case "RSET":
			inMail, rcpts = false, nil
		case "MAIL":
			if inMail {
				m.bad = append(m.bad, "nested MAIL")
			}
			if mood = m.mood(); mood == 0 {
				inMail, rcpts = true, nil
			}
		case "RCPT":
			if !inMail {
				good = "503 5.5.1 no MAIL"
			} else if mood = m.mood(); mood == 0 {
				rcpts = append(rcpts, arg)
			}
		case "DATA":
			if len(rcpts) == 0 {
				good = "503 5.5.1 no RCPT"
			} else if mood = m.mood(); mood == 0 {
				good = "354 go on"
			}
			if !answer(w, mood, good) {
				return
			}
			if good != "354 go on" || mood != 0 {
				continue
			}
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			if !m.end(w, rcpts) {
				return
			}
			inMail = false
			continue
		case "BDAT":
			n, _ := strconv.Atoi(strings.Fields(arg)[0])
			if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
				return
			}
			if len(rcpts) > 0 {
				if !m.end(w, rcpts) {
					return
				}
				inMail = false
				continue
			}
			good = "503 5.5.1 no RCPT"
		case "QUIT":
			return
		default:
			m.bad = append(m.bad, line)
			good = "500 5.5.1 what"
		}
		if !answer(w, mood, good) {
			return
		}
	}
}

// end is the end of a message: taken, refused, or taken and never said so.
func (m *moody) end(w *bufio.Writer, rcpts []string) bool {
	mood := m.mood()
	if mood == 0 || mood == 5 {
		m.mu.Lock()
		for _, r := range rcpts {
			m.taken[r]++
		}
		m.lost = m.lost || mood == 5
		m.mu.Unlock()
	}
	return answer(w, mood, "250 2.0.0 taken")
}

// TestModel: whatever the servers' moods, who is called delivered was taken by one of them, nobody else was, nobody twice; except
// where a server took a message and hung up before it said so.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		moods := rapid.SliceOfN(rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6}), 0, 30).Draw(rt, "moods")
		ext := rapid.SampledFrom([]string{"", "250-PIPELINING\r\n", "250-PIPELINING\r\n250-CHUNKING\r\n", "250-PIPELINING\r\n250-LIMITS RCPTMAX=2 MAILMAX=2\r\n"}).Draw(rt, "extensions")
		rcpts := rapid.IntRange(1, 6).Draw(rt, "recipients")
		wrong := ""
		fail := func(format string, a ...any) { wrong = fmt.Sprintf(format, a...) } // not rt's: this is another goroutine
		synctest.Test(t, func(t *testing.T) {
			m := &moody{moods: moods, taken: map[string]int{}, ext: ext}
			var wg sync.WaitGroup
			s := NewSMTP(Config{Hostname: "me.test", MaxRcpts: 4,
				Resolver: zone.MustNew("x.test MX 1 a.x.test\nx.test MX 2 b.x.test\na.x.test A 192.0.2.1\nb.x.test A 192.0.2.2\n"),
				Dial: func(context.Context, string, string) (net.Conn, error) {
					ours, theirs := net.Pipe()
					wg.Go(func() { m.serve(theirs) })
					return ours, nil
				}})
			env := &mail.Envelope{From: address.MustParse("a@local.test")}
			for round := range 2 {
				job := mail.Job{ID: "1", Env: env, From: env.From, Size: 9, Route: mail.Route{Transport: mail.SMTP, Domain: "x.test"},
					Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("S: x\r\n\r\n\n")), nil }}
				for i := range rcpts {
					job.Rcpts = append(job.Rcpts, mail.Recipient{To: address.MustParse(fmt.Sprintf("r%d-%d@x.test", round, i))})
				}
				begin := time.Now()
				out := s.Deliver(t.Context(), job)
				if d := time.Since(begin); d > 2*time.Hour {
					fail("took %v", d)
				}
				for i, o := range out {
					n := m.taken["TO:<"+job.Rcpts[i].To.String()+">"]
					switch {
					case o.Disposition == mail.Delivered && n == 0:
						fail("recipient %d is called delivered, but no server took it: %+v", i, o)
					case !m.lost && (n > 1 || n == 1 && o.Disposition != mail.Delivered):
						fail("recipient %d was taken %d times and is called %v: %v", i, n, o.Disposition, o.Err)
					case o.Disposition == mail.Failed && o.Reply.Code != 550:
						fail("recipient %d failed for good with %v: %v", i, o.Reply, o.Err)
					case o.Disposition == mail.Deferred && o.Err == nil:
						fail("recipient %d is deferred without a reason", i)
					}
				}
			}
			s.Close()
			wg.Wait()
			if len(m.bad) > 0 {
				fail("the server did not like %q", m.bad)
			}
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// said is a connection whose other end says what it is given, and hangs up.
type said struct {
	net.Conn
	r io.Reader
}

func (s said) Read(p []byte) (int, error)       { return s.r.Read(p) }
func (s said) Write(p []byte) (int, error)      { return len(p), nil }
func (s said) Close() error                     { return nil }
func (s said) SetDeadline(time.Time) error      { return nil }
func (s said) SetReadDeadline(time.Time) error  { return nil }
func (s said) SetWriteDeadline(time.Time) error { return nil }

// FuzzHostileServer: whatever a server says, at whatever moment, there is an outcome for everybody, and only a proper answer to the
// end of the message makes a delivery.
func FuzzHostileServer(f *testing.F) {
	f.Add([]byte("220 x\r\n250-x\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 taken\r\n"))
	f.Add([]byte("220 x\r\n250-x\r\n250-CHUNKING\r\n250-SIZE 5\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n250 ok\r\n250 taken\r\n"))
	f.Add([]byte("220-\r\n220 x\r\n500 x\r\n250 x\r\n250 ok\r\n421 no\r\n"))
	f.Add([]byte("220 x\r\n250-x\r\n250-LIMITS RCPTMAX=1 MAILMAX=1\r\n250-AUTH=PLAIN\r\n250 STARTTLS\r\n220 go\r\n\x16\x03\x03"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := NewSMTP(Config{Hostname: "me.test", Resolver: zone.MustNew("example.org MX 10 mx.example.org\nmx.example.org A 192.0.2.1\n"), MaxIdle: -1,
			Dial: func(context.Context, string, string) (net.Conn, error) {
				return said{r: strings.NewReader(string(in))}, nil
			}})
		for _, o := range s.Deliver(context.Background(), sinkJob(messageOf(100), 2)) {
			if (o.Err == nil) != (o.Disposition == mail.Delivered) || o.Disposition == mail.Delivered && o.Reply.Class() != 2 {
				t.Fatalf("%+v", o)
			}
		}
	})
}
