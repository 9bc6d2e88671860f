// Package handover passes the work of a running server to its successor: listening sockets, the queue's directory, and what old sessions still receive.
//
// The two processes speak over one socket that the successor inherits. Each message is a packet of its own; descriptors travel with it. The
// order is the promise that nothing is lost: there is one owner of the queue's directory at any time, which the directory's lock enforces
// besides, and the old process acknowledges nothing between giving it away and hearing that it is in good hands.
//
//	old                               new
//	hello, with the sockets     →
//	                            ←     prepared: everything is read that needs no queue
//	(starts no more deliveries; waits for running ones; stops accepting; closes the queue)
//	yours                       →
//	                            ←     serving: the queue is open, connections are accepted
//	relay, with a connection    →     one for each message that an old session receives from here on
//	rest                        →     the files that are not mail are closed too
//	(ends with its last session)
//
// If the new process fails before it serves, the old one takes everything back.
package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Version is the version of what the processes say to one another. A process refuses to succeed one of another version.
const Version = 1

// Variable is the environment variable that tells a process that it is a successor: "version:descriptor".
const Variable = "CHASQUID_HANDOVER"

// Limits of a packet.
const (
	maxPacket  = 64 << 10
	maxSockets = 200 // in one packet; the kernel allows 253
)

// Words of the conversation.
const (
	hello    = "hello"
	prepared = "prepared"
	failed   = "failed"
	yours    = "yours"
	serving  = "serving"
	relay    = "relay"
	rest     = "rest"
	stop     = "stop"
)

// packet is one message.
type packet struct {
	Say     string        `json:"say"`
	Text    string        `json:"text,omitempty"`    // of failed
	Sockets []string      `json:"sockets,omitempty"` // of hello: the names of the descriptors
	From    *Introduction `json:"from,omitempty"`    // of hello and prepared

	fds []int // that came with it
}

// Introduction is what each process tells of itself.
type Introduction struct {
	Version    string    `json:"version"` // of the program
	PID        int       `json:"pid"`
	Started    time.Time `json:"started"`
	Generation int       `json:"generation"` // 1 for a process that succeeded none
	Failed     int       `json:"failed"`     // upgrades that failed in this process and those before it
}

// link is one end of the conversation.
type link struct{ c *net.UnixConn }

// newPair makes the two ends of a socket of the type; both are closed at exec.
func newPair(typ int) (ours, theirs int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, typ, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("making a socket pair: %w", err)
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
	return fds[0], fds[1], nil
}

// connOf makes a connection of a descriptor, which it takes.
func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "handover")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, os.ErrInvalid)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is not the socket of a handover", fd)
	}
	return u, nil
}

// send sends a packet with descriptors, which stay ours.
func (l link) send(p packet, fds ...int) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(b) > maxPacket || len(fds) > maxSockets {
		return fmt.Errorf("a handover of %d sockets is too large", len(fds))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	_, _, err = l.c.WriteMsgUnix(b, oob, nil)
	return err
}

// receive returns the next packet; io.EOF says that the other process is gone.
func (l link) receive() (packet, error) {
	b, oob := make([]byte, maxPacket), make([]byte, syscall.CmsgSpace(4*maxSockets))
	n, oobn, _, _, err := l.c.ReadMsgUnix(b, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) {
			err = io.EOF
		}
		return packet{}, err
	}
	var p packet
	if p.fds, err = rights(oob[:oobn]); err == nil {
		err = json.Unmarshal(b[:n], &p)
	}
	if err != nil {
		closeFDs(p.fds)
		return packet{}, fmt.Errorf("the other process said something that is not understood: %w", err)
	}
	return p, nil
}

// rights takes the descriptors out of what came beside a packet.
func rights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		got, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	for _, fd := range fds {
		syscall.CloseOnExec(fd)
	}
	return fds, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

// parseVariable reads the environment variable.
func parseVariable(v string) (fd int, err error) {
	version, number, _ := strings.Cut(v, ":")
	if version != strconv.Itoa(Version) {
		return -1, &Error{Msg: fmt.Sprintf("the running server hands over with version %q of the protocol, this program knows %d", version, Version),
			Fix: "restart the server instead of upgrading it"}
	}
	fd, err = strconv.Atoi(number)
	if err != nil || fd < 3 {
		return -1, &Error{Msg: fmt.Sprintf("%s is %q, which is no descriptor", Variable, v), Fix: "unset it: only a running server sets it, for its successor"}
	}
	return fd, nil
}

// Error is a handover that failed, and what to do about it.
type Error struct {
	Msg string
	Fix string
	Err error
}

// Error says what failed.
func (e *Error) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Remedy says what to do.
func (e *Error) Remedy() string { return e.Fix }
