package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load is what the source sends.
type load struct {
	Name       string
	Clients    int           // connections at once
	PerConn    int           // messages per connection
	Size       int           // bytes of each body
	Recipients int           // per message
	Duration   time.Duration // how long new messages are started
	Max        int           // messages at the most; 0: no limit
}

// sent is what the source saw.
type sent struct {
	start    time.Time
	accepted map[int]time.Time // number of each acknowledged message, and when it was acknowledged
	delays   []time.Duration   // final dot to reply
	errors   int
	firstErr error
}

// source sends messages to addr as the load says.
type source struct {
	addr string
	from string
	to   []string
	body []byte
	load load
	next atomic.Int64
	base int

	window int          // messages under way at the most: some servers refuse more; 0: no limit
	begun  atomic.Int64 // messages, but for those that failed
	served func() int64 // messages at the sink

	mu  sync.Mutex
	out sent
}

// message bodies are lines of printable text.
func makeBody(size int) []byte {
	line := strings.Repeat("all work and no play makes jack a dull boy. ", 2)[:76] + "\r\n"
	return []byte(strings.Repeat(line, size/len(line)+1)[:size/len(line)*len(line)])
}

func (s *source) run(ctx context.Context) *sent {
	s.body = makeBody(s.load.Size)
	s.out = sent{start: time.Now(), accepted: map[int]time.Time{}}
	ctx, cancel := context.WithTimeout(ctx, s.load.Duration)
	defer cancel()
	var wg sync.WaitGroup
	for range s.load.Clients {
		wg.Go(func() {
			for ctx.Err() == nil && s.more() {
				if err := s.connection(ctx); err != nil {
					s.fail(err)
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(s.out.delays)
	return &s.out
}

func (s *source) more() bool { return s.load.Max == 0 || s.next.Load() < int64(s.load.Max) }

func (s *source) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.errors++
	if s.out.firstErr == nil {
		s.out.firstErr = err
	}
}

func (s *source) connection(ctx context.Context) error {
	c, err := net.DialTimeout("tcp", s.addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	r := bufio.NewReaderSize(c, 4<<10)
	if err := expect(r, "220"); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	fmt.Fprintf(c, "EHLO client.test\r\n")
	if err := expect(r, "250"); err != nil {
		return fmt.Errorf("EHLO: %w", err)
	}
	for i := 0; i < s.load.PerConn && s.enter(ctx) && s.more(); i++ {
		if err := s.message(c, r); err != nil {
			s.begun.Add(-1)
			return err
		}
	}
	fmt.Fprintf(c, "QUIT\r\n")
	return expect(r, "221")
}

// enter waits until one more message may be under way. It reports whether the load goes on.
func (s *source) enter(ctx context.Context) bool {
	for s.window > 0 && s.begun.Load()-s.served() >= int64(s.window) && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	s.begun.Add(1)
	return ctx.Err() == nil
}

// message sends one message as a pipelining client does: envelope and DATA in one write, the content in another.
func (s *source) message(c net.Conn, r *bufio.Reader) error {
	n := s.base + int(s.next.Add(1))
	c.SetDeadline(time.Now().Add(60 * time.Second))
	var b []byte
	b = fmt.Appendf(b, "MAIL FROM:<%s>\r\n", s.from)
	for i := range s.load.Recipients {
		b = fmt.Appendf(b, "RCPT TO:<%s>\r\n", s.to[i])
	}
	b = append(b, "DATA\r\n"...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	if err := expect(r, "250"); err != nil {
		return fmt.Errorf("MAIL: %w", err)
	}
	for range s.load.Recipients {
		if err := expect(r, "250"); err != nil {
			return fmt.Errorf("RCPT: %w", err)
		}
	}
	if err := expect(r, "354"); err != nil {
		return fmt.Errorf("DATA: %w", err)
	}
	head := fmt.Appendf(b[:0], "From: <%s>\r\nTo: <%s>\r\nSubject: message %d\r\nMessage-ID: <%d@sender.test>\r\nDate: %s\r\n%s%d\r\n\r\n",
		s.from, s.to[0], n, n, time.Now().Format(time.RFC1123Z), idHeader, n)
	bufs := net.Buffers{head, s.body, []byte(".\r\n")}
	if _, err := bufs.WriteTo(c); err != nil {
		return err
	}
	dot := time.Now()
	if err := expect(r, "250"); err != nil {
		return fmt.Errorf("end of data: %w", err)
	}
	now := time.Now()
	s.mu.Lock()
	s.out.accepted[n] = now
	s.out.delays = append(s.out.delays, now.Sub(dot))
	s.mu.Unlock()
	return nil
}

// expect reads one reply and checks its code.
func expect(r *bufio.Reader, code string) error {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) < 4 || string(line[:3]) != code {
			return fmt.Errorf("got %q, want %s", strings.TrimSpace(string(line)), code)
		}
		if line[3] != '-' {
			return nil
		}
	}
}
