package main

import (
	"bufio"
	"bytes"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// idHeader carries the number of each test message through every server.
const idHeader = "X-Bench-Id: "

// sink is the next hop: it accepts everything at once and remembers which messages came and when.
type sink struct {
	mu       sync.Mutex
	arrivals map[int]arrival
	last     time.Time
	total    atomic.Int64 // recipients served
	conns    atomic.Int64
}

type arrival struct {
	copies int // recipients served
	at     time.Time
}

func newSink() *sink { return &sink{arrivals: map[int]arrival{}} }

// reset forgets everything, before the next measurement.
func (s *sink) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrivals, s.last = map[int]arrival{}, time.Time{}
	s.total.Store(0)
	s.conns.Store(0)
}

func (s *sink) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.conns.Add(1)
		go s.session(c)
	}
}

// session answers in one write for everything that has arrived, as a fast server does.
func (s *sink) session(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 4<<10)
	w.WriteString("220 sink.test ESMTP\r\n")
	w.Flush()
	rcpts := 0
	for {
		if r.Buffered() == 0 {
			w.Flush()
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		verb := strings.ToUpper(string(line[:min(4, len(line))]))
		switch verb {
		case "EHLO":
			w.WriteString("250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 104857600\r\n")
		case "MAIL", "RSET":
			rcpts = 0
			w.WriteString("250 2.1.0 ok\r\n")
		case "RCPT":
			rcpts++
			w.WriteString("250 2.1.5 ok\r\n")
		case "DATA":
			w.WriteString("354 go\r\n")
			w.Flush()
			if !s.body(r, rcpts) {
				return
			}
			w.WriteString("250 2.0.0 ok\r\n")
		case "QUIT":
			w.WriteString("221 2.0.0 bye\r\n")
			w.Flush()
			return
		default:
			w.WriteString("250 2.0.0 ok\r\n")
		}
	}
}

// body reads one message and counts it once per recipient.
func (s *sink) body(r *bufio.Reader, rcpts int) bool {
	id := ""
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return false
		}
		if id == "" && bytes.HasPrefix(line, []byte(idHeader)) {
			id = strings.TrimSpace(string(line[len(idHeader):]))
		}
		if len(line) == 3 && line[0] == '.' && line[1] == '\r' {
			break
		}
	}
	now := time.Now()
	n, _ := strconv.Atoi(id)
	s.mu.Lock()
	a := s.arrivals[n]
	s.arrivals[n] = arrival{a.copies + rcpts, now}
	s.last = now
	s.mu.Unlock()
	s.total.Add(int64(rcpts))
	return true
}
