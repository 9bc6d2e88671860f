package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"
)

// checkIdle measures the resident memory that connections take which do nothing, or stand in the middle of a message.
func checkIdle(ctx context.Context, o options, s *sink, dir string) ([]string, error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	srv := server{"chasquid", chasquidServer(bin, "max_connections: 20000\n"+o.extra)}
	var out []string
	for i, c := range []struct {
		name   string
		n      int
		open   func(addr string) (net.Conn, error)
		wanted float64 // KiB
	}{
		{"idle, plaintext", 5000, openPlain, 10},
		{"idle, TLS", 5000, openTLS, 35},
		{"in DATA after 100 KB", 500, openData(100 << 10), 128},
		{"in DATA after 4 MB", 200, openData(4 << 20), 128},
	} {
		kb, err := memoryPer(ctx, srv, filepath.Join(dir, fmt.Sprint(i)), c.n, c.open)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		out = append(out, verdict("KiB of memory a connection", fmt.Sprintf("%d %s", c.n, c.name), kb, c.wanted, true))
	}
	return out, nil
}

// memoryPer opens n connections, 50 at a time, and returns by how many KiB the server grew for each.
func memoryPer(ctx context.Context, srv server, dir string, n int, open func(addr string) (net.Conn, error)) (float64, error) {
	r, err := measureStart(ctx, srv, dir)
	if err != nil {
		return 0, err
	}
	defer r.stop()
	time.Sleep(time.Second)
	before := rssOf(r.pid)
	conns := make([]net.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	next := make(chan int)
	for range 50 {
		wg.Go(func() {
			for i := range next {
				c, err := open(r.addr)
				mu.Lock()
				conns[i] = c
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	if first != nil {
		return 0, first
	}
	time.Sleep(3 * time.Second)
	return float64(rssOf(r.pid)-before) / 1024 / float64(n), nil
}

// measureStart starts a server and sends it one message, so that what is made once is there.
func measureStart(ctx context.Context, srv server, dir string) (*running, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	r, err := srv.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	warm := &source{addr: r.addr, from: "from@sender.test", to: r.to, load: load{Clients: 1, PerConn: 1, Size: 100, Recipients: 1, Max: 1, Duration: 10 * time.Second}}
	if out := warm.run(ctx); out.firstErr != nil {
		r.stop()
		return nil, fmt.Errorf("first message: %w", out.firstErr)
	}
	return r, nil
}

// openPlain greets and then says nothing.
func openPlain(addr string) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(c, 512)
	if err := expect(r, "220"); err != nil {
		return c, err
	}
	return c, say(c, r, "EHLO client.test", "250")
}

func say(c net.Conn, r *bufio.Reader, line, code string) error {
	if _, err := io.WriteString(c, line+"\r\n"); err != nil {
		return err
	}
	if err := expect(r, code); err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	return nil
}

// openTLS goes on to TLS and greets again.
func openTLS(addr string) (net.Conn, error) {
	c, err := openPlain(addr)
	if err != nil {
		return c, err
	}
	if err := say(c, bufio.NewReaderSize(c, 512), "STARTTLS", "220"); err != nil {
		return c, err
	}
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // the certificate is not what is measured
	if err := tc.Handshake(); err != nil {
		return c, err
	}
	return tc, say(tc, bufio.NewReaderSize(tc, 512), "EHLO client.test", "250")
}

// openData sends size bytes of a message and does not end it.
func openData(size int) func(string) (net.Conn, error) {
	body := makeBody(size)
	return func(addr string) (net.Conn, error) {
		c, err := openPlain(addr)
		if err != nil {
			return c, err
		}
		r := bufio.NewReaderSize(c, 512)
		for _, l := range [][2]string{{"MAIL FROM:<from@sender.test>", "250"}, {"RCPT TO:<u0@bench.test>", "250"}, {"DATA", "354"}} {
			if err := say(c, r, l[0], l[1]); err != nil {
				return c, err
			}
		}
		if _, err := io.WriteString(c, "Subject: long\r\n\r\n"); err != nil {
			return c, err
		}
		_, err = c.Write(body)
		return c, err
	}
}
