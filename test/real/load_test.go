package real

import (
	"bytes"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// D34: a hundred large messages that arrive at the same moment cost a hundred times little memory, whatever their size.
func TestD34ManyLargeMessages(t *testing.T) {
	const clients, half = 100, 2 << 20
	s := harness.New(t, harness.Options{})
	s.Start()
	var begun, all sync.WaitGroup
	begun.Add(clients)
	finish := make(chan struct{})
	errs := make(chan error, clients)
	for i := range clients {
		all.Go(func() {
			errs <- largeMessage(s.SMTP, i, half, begun.Done, finish)
		})
	}
	begun.Wait()
	peak := peakRSS(t, s.PID())
	close(finish)
	all.Wait()
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	inbox := filepath.Join(s.Dir, "mail", "example.test", "user", "new")
	harness.WaitFor(t, 60*time.Second, "all delivered", func() bool {
		names, _ := os.ReadDir(inbox)
		return len(names) >= clients
	})
	end := peakRSS(t, s.PID())
	t.Logf("%d MB with %d messages half received, %d MB at most until they were delivered", peak>>20, clients, end>>20)
	if end > 256<<20 {
		t.Errorf("the process grew to %d MB", end>>20)
	}
}

// largeMessage sends a message of twice half octets, waits in its middle for finish, and wants it to be taken.
func largeMessage(addr string, n, half int, begun func(), finish <-chan struct{}) error {
	told := sync.OnceFunc(begun)
	defer told()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(90 * time.Second))
	c := textproto.NewConn(nc)
	if _, _, err := c.ReadResponse(220); err != nil {
		return err
	}
	for _, cmd := range []struct {
		line string
		code int
	}{{"EHLO client.test", 250}, {"MAIL FROM:<a@sender.test>", 250}, {"RCPT TO:<user@example.test>", 250}, {"DATA", 354}} {
		if err := c.PrintfLine("%s", cmd.line); err != nil {
			return err
		}
		if _, _, err := c.ReadResponse(cmd.code); err != nil {
			return fmt.Errorf("%s: %w", cmd.line, err)
		}
	}
	if _, err := fmt.Fprintf(nc, "Subject: %d\r\n\r\n", n); err != nil {
		return err
	}
	part := bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), half/64)
	if _, err := nc.Write(part); err != nil {
		return err
	}
	told()
	<-finish
	if _, err := nc.Write(append(part, ".\r\n"...)); err != nil {
		return err
	}
	_, _, err = c.ReadResponse(250)
	return err
}
