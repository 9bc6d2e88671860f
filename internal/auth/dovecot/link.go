package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxLine is the longest line taken from Dovecot.
const maxLine = 64 << 10

// maxHandshake is how many lines a handshake may have.
const maxHandshake = 1000

var (
	errProtocol = errors.New("dovecot: unexpected reply")
	errRetired  = errors.New("dovecot: the sockets have changed")
)

// endpoint is one socket and its connection.
type endpoint struct {
	client *Client
	path   string
	greet  func(io.Writer, *bufio.Reader) error

	mu      sync.Mutex
	link    *link
	retired bool // other sockets are used from now on
}

// connect returns the endpoint's connection, making one if need be. fresh says that it was made now.
func (e *endpoint) connect(ctx context.Context) (l *link, fresh bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.client.closed.Load():
		return nil, false, net.ErrClosed
	case e.retired:
		return nil, false, errRetired
	}
	if e.link != nil && e.link.broken() == nil {
		return e.link, false, nil
	}
	conn, err := e.client.cfg.Dial(ctx, "unix", e.path)
	if err != nil {
		return nil, false, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	br := bufio.NewReaderSize(conn, 4096)
	err = e.greet(conn, br)
	if stop() && err == nil {
		err = conn.SetDeadline(time.Time{})
	} else if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, false, fmt.Errorf("dovecot: handshake on %s: %w", e.path, err)
	}
	e.link = &link{conn: conn, timeout: e.client.cfg.Timeout, pending: map[uint32]chan reply{}}
	e.client.wg.Add(1)
	go func(l *link) {
		defer e.client.wg.Done()
		l.read(br)
	}(e.link)
	return e.link, true, nil
}

// close ends the connection and whatever is asked on it.
func (e *endpoint) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.link != nil {
		e.link.fail(net.ErrClosed)
	}
}

// retire ends the connection once everything asked on it is answered.
func (e *endpoint) retire() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retired = true
	if e.link != nil {
		e.link.retire()
	}
}

// greetMaster is the handshake of auth masters: the server speaks first.
func greetMaster(w io.Writer, r *bufio.Reader) error {
	if err := readGreeting(r, "SPID"); err != nil {
		return err
	}
	_, err := io.WriteString(w, "VERSION\t1\t1\n")
	return err
}

// greetClient is the handshake of auth clients. Dovecot wants a number that no other client has: process ids are taken by Dovecot's own
// login processes, so it is one above them.
func greetClient(w io.Writer, r *bufio.Reader) error {
	const maxPID = 1 << 22
	id := maxPID + 1 + rand.Uint32N(1<<31-maxPID-1)
	if _, err := io.WriteString(w, "VERSION\t1\t1\nCPID\t"+itoa(id)+"\n"); err != nil {
		return err
	}
	return readGreeting(r, "DONE")
}

// readGreeting reads lines until the one with the verb last, and wants a VERSION line of protocol 1 among them.
func readGreeting(r *bufio.Reader, last string) error {
	version := false
	for range maxHandshake {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		verb, rest, _ := strings.Cut(line, "\t")
		if verb == "VERSION" {
			major, _, _ := strings.Cut(rest, "\t")
			if major != "1" {
				return fmt.Errorf("protocol version %q is not supported", rest)
			}
			version = true
		}
		if verb == last {
			if !version {
				return errProtocol
			}
			return nil
		}
	}
	return errProtocol
}

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return "", errProtocol
		}
		if err == nil {
			return string(line[:len(line)-1]), nil
		}
		if err != bufio.ErrBufferFull {
			return "", err
		}
	}
}

// link is one connection, shared by requests that are told apart by their ids.
type link struct {
	conn    net.Conn
	timeout time.Duration

	wmu sync.Mutex // held while writing a request

	mu      sync.Mutex
	last    uint32 // the last id given
	pending map[uint32]chan reply
	heard   time.Time // when the last line came
	leaving bool      // it ends when nothing is pending
	err     error     // why it cannot be used any more
}

type reply struct {
	verb   string
	params []string
	err    error
}

func (l *link) broken() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// retire makes the link end when nothing is pending on it.
func (l *link) retire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaving = true
	l.leave()
}

// leave ends a link that is retired and has nothing to do. l.mu is held.
func (l *link) leave() {
	if l.leaving && len(l.pending) == 0 {
		l.failLocked(errRetired)
	}
}

// fail makes the link unusable and every request on it end with err.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

func (l *link) failLocked(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	l.conn.Close()
	for id, ch := range l.pending {
		ch <- reply{err: err}
		delete(l.pending, id)
	}
}

// read hands out replies until the connection ends.
func (l *link) read(r *bufio.Reader) {
	for {
		line, err := readLine(r)
		if err == nil {
			err = l.dispatch(line)
		}
		if err != nil {
			l.fail(err)
			return
		}
	}
}

func (l *link) dispatch(line string) error {
	words := strings.Split(line, "\t")
	if len(words) < 2 {
		return errProtocol
	}
	id, err := strconv.ParseUint(words[1], 10, 32)
	if err != nil {
		return errProtocol
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = time.Now()
	if uint32(id) > l.last {
		return errProtocol
	}
	if ch := l.pending[uint32(id)]; ch != nil { // else the one who asked does not wait any more
		ch <- reply{verb: words[0], params: words[2:]}
		delete(l.pending, uint32(id))
		l.leave()
	}
	return nil
}

// do sends a request and waits for its reply.
func (l *link) do(ctx context.Context, request func(id string) string) (string, []string, error) {
	start := time.Now()
	ch := make(chan reply, 1)
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return "", nil, l.err
	}
	l.last++
	id := l.last
	l.pending[id] = ch
	l.mu.Unlock()

	if err := l.write(request(itoa(id))); err != nil {
		l.fail(err)
	}
	select {
	case r := <-ch:
		return r.verb, r.params, r.err
	case <-ctx.Done():
		l.forget(id, start)
		return "", nil, fmt.Errorf("dovecot: %w", ctx.Err())
	}
}

func (l *link) write(s string) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
		return err
	}
	_, err := io.WriteString(l.conn, s)
	return err
}

// forget gives up on a request. If nothing at all was heard since it was sent, and it had its time, the connection is given up with it.
func (l *link) forget(id uint32, start time.Time) {
	l.mu.Lock()
	delete(l.pending, id)
	l.leave()
	dead := l.heard.Before(start) && time.Since(start) >= l.timeout
	l.mu.Unlock()
	if dead {
		l.fail(errors.New("dovecot: no answer"))
	}
}
