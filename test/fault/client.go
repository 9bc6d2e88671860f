// Package fault kills the server, cuts its power and breaks its disk, and counts what became of the mail.
package fault

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
)

// Ledger remembers what was acknowledged, and refused how.
type Ledger struct {
	mu       sync.Mutex
	accepted map[string]bool
	next     int
	replies  map[string]int // first words of replies other than 250 to end-of-data, and how often
	broken   map[string]int // sessions that ended otherwise than they should, and how often
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{accepted: map[string]bool{}, replies: map[string]int{}, broken: map[string]int{}}
}

// Accepted is the number of acknowledged messages.
func (l *Ledger) Accepted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted)
}

// Replies lists the refusals seen.
func (l *Ledger) Replies() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]int{}
	for k, v := range l.replies {
		out[k] = v
	}
	return out
}

// Broken lists the sessions that ended otherwise than they should.
func (l *Ledger) Broken() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.broken)
}

// Failures is the number of refusals and of broken sessions.
func (l *Ledger) Failures() int {
	n := l.Refusals()
	for _, k := range l.Broken() {
		n += k
	}
	return n
}

func (l *Ledger) take() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next
}

func (l *Ledger) note(id, reply string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.HasPrefix(reply, "250") {
		l.accepted[id] = true
		return
	}
	l.replies[strings.TrimSpace(reply)]++
}

// Refusals is the number of replies that were not positive.
func (l *Ledger) Refusals() (n int) {
	for _, k := range l.Replies() {
		n += k
	}
	return n
}

// message makes a message that carries its id and the checksum of its body.
func message(id string, size int) string {
	var body strings.Builder
	seed := sha256.Sum256([]byte(id))
	r := rand.New(rand.NewChaCha8(seed))
	for body.Len() < size {
		fmt.Fprintf(&body, "%s %016x%016x%016x\r\n", id, r.Uint64(), r.Uint64(), r.Uint64())
	}
	sum := sha256.Sum256([]byte(body.String()))
	return fmt.Sprintf("X-Id: %s\r\nX-Sum: %s\r\nSubject: test\r\nFrom: <a@[127.0.0.1]>\r\n\r\n%s", id, hex.EncodeToString(sum[:]), body.String())
}

// Check reads a delivered message (with CRLF or LF line ends): its id, and whether its body is whole.
func Check(msg string) (id string, whole bool) {
	msg = strings.ReplaceAll(msg, "\r\n", "\n")
	head, body, _ := strings.Cut(msg, "\n\n")
	sum := ""
	for line := range strings.SplitSeq(head, "\n") {
		if v, ok := strings.CutPrefix(line, "X-Id: "); ok {
			id = v
		}
		if v, ok := strings.CutPrefix(line, "X-Sum: "); ok {
			sum = v
		}
	}
	got := sha256.Sum256([]byte(strings.ReplaceAll(body, "\n", "\r\n")))
	return id, hex.EncodeToString(got[:]) == sum
}

// Client is how messages are sent.
type Client struct {
	Addr           string
	Rcpts          []string // each message goes to one of them
	Size           func() int
	PerSession     int           // messages over one connection, 5 if it is 0
	Pause          time.Duration // after each message
	TLS            *tls.Config   // from the first byte; nil: plain
	User, Password string        // empty: no AUTH
}

const perSession = 5 // messages

// Sender is Run with a plain client.
func (l *Ledger) Sender(addr string, rcpts []string, size func() int, stop <-chan struct{}) {
	l.Run(Client{Addr: addr, Rcpts: rcpts, Size: size}, stop)
}

// Run sends messages over one connection after another until stop is closed; what fails is tried again as a new message.
func (l *Ledger) Run(c Client, stop <-chan struct{}) {
	if c.PerSession == 0 {
		c.PerSession = perSession
	}
	for {
		select {
		case <-stop:
			return
		default:
		}
		if err := l.session(c, stop); err != nil {
			l.mu.Lock()
			l.broken[err.Error()]++
			l.mu.Unlock()
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

func (l *Ledger) session(cl Client, stop <-chan struct{}) error {
	c, err := net.DialTimeout("tcp", cl.Addr, 2*time.Second)
	if err != nil {
		return err
	}
	if cl.TLS != nil {
		c = tls.Client(c, cl.TLS)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(120 * time.Second))
	r := bufio.NewReader(c)
	if line, err := reply(r); err != nil || line[0] != '2' {
		return fmt.Errorf("greeting: %s %v", line, err)
	}
	if _, err := command(c, r, "EHLO client.test"); err != nil {
		return err
	}
	from := "a@[127.0.0.1]"
	if cl.User != "" {
		from = cl.User
		auth := base64.StdEncoding.EncodeToString([]byte("\x00" + cl.User + "\x00" + cl.Password))
		if line, err := command(c, r, "AUTH PLAIN "+auth); err != nil || line[0] != '2' {
			return fmt.Errorf("AUTH: %s %v", line, err)
		}
	}
	for range cl.PerSession {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := l.send(c, r, from, cl.Rcpts[rand.IntN(len(cl.Rcpts))], cl.Size()); err != nil {
			return err
		}
		time.Sleep(cl.Pause)
	}
	if line, err := command(c, r, "QUIT"); err != nil || line[0] != '2' {
		return fmt.Errorf("QUIT: %s %v", line, err)
	}
	return nil
}

// send sends one message, every other one with BDAT.
func (l *Ledger) send(c net.Conn, r *bufio.Reader, from, rcpt string, size int) error {
	n := l.take()
	id := fmt.Sprintf("m-%07d", n)
	cmds := []string{"MAIL FROM:<" + from + ">", "RCPT TO:<" + rcpt + ">", "DATA"}
	text := message(id, size)
	if n%2 == 0 {
		cmds = cmds[:2]
		text = fmt.Sprintf("BDAT %d LAST\r\n%s", len(text), text)
	} else {
		text += ".\r\n"
	}
	for _, cmd := range cmds {
		line, err := command(c, r, cmd)
		if err != nil {
			return err
		}
		if line[0] > '3' {
			l.note(id, line)
			return fmt.Errorf("%s: %s", cmd, line)
		}
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	line, err := reply(r)
	if err != nil {
		return err
	}
	l.note(id, line)
	if line[0] != '2' {
		return fmt.Errorf("end of data: %s", line)
	}
	return nil
}

func command(c net.Conn, r *bufio.Reader, line string) (string, error) {
	if _, err := io.WriteString(c, line+"\r\n"); err != nil {
		return "", err
	}
	return reply(r)
}

// reply reads one reply and returns its last line.
func reply(r *bufio.Reader) (string, error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if len(line) < 4 {
			return "", fmt.Errorf("short reply %q", line)
		}
		if line[3] != '-' {
			return line, nil
		}
	}
}
