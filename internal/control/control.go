// Package control is the local control socket: one request and one answer a connection, over a UNIX socket in the data directory.
package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// SocketName is the name of the socket in the data directory.
const SocketName = "localrpc-v1"

// Limits of one connection.
const (
	timeout    = 5 * time.Second // for the methods of existing installations
	maxRequest = 64 << 10        // bytes of a request line
	maxServing = 32              // connections at once; more wait
)

// Method answers one request. The error's text is what the client is told.
type Method func(ctx context.Context, args url.Values) (url.Values, error)

// Config of a Server.
type Config struct {
	Path    string
	Methods map[string]Method
	// Listener is the socket at Path, if another process had it open; nil: it is made.
	Listener net.Listener
	// Slow are methods that may take longer than five seconds; their client decides how long it waits.
	Slow    map[string]bool
	Metrics *expvarom.Registry
	Trace   func(context.Context) context.Context // puts the recorder into the context; nil: none
}

// Server answers on the socket.
type Server struct {
	conf   Config
	l      net.Listener
	panics *expvarom.Counter
}

// Listen makes the socket, in place of one that an earlier run left behind. It is for the owner and group only.
func Listen(conf Config) (*Server, error) {
	l := conf.Listener
	if l == nil {
		var err error
		if l, err = listen(conf.Path); err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
	}
	return &Server{conf: conf, l: l, panics: conf.Metrics.CounterVec("chasquid_panics_total",
		"Panics recovered, by component: each is a bug worth reporting.", []string{"component"},
		[]string{"smtp_in", "queue", "courier", "monitoring", "reload", "other"}).With("other")}, nil
}

// Path is where the socket is.
func (s *Server) Path() string { return s.conf.Path }

// Socket is the listener, to hand it to another process.
func (s *Server) Socket() net.Listener { return s.l }

func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0660); err != nil {
		l.Close()
		return nil, err
	}
	// The path may belong to our successor when we stop; it is left behind, as the next start replaces it.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// Serve answers until ctx ends, and returns when the last answer is out.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxServing)
	for {
		c, err := s.l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			log.Errorf("control socket: %v", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, c)
		})
	}
}

func (s *Server) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	r := bufio.NewReaderSize(io.LimitReader(c, maxRequest), 4<<10)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	name, query, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	if s.conf.Slow[name] {
		c.SetDeadline(time.Time{})
	}
	values, err := s.call(ctx, name, query)
	if err != nil {
		text := strings.NewReplacer("\r", " ", "\n", " ").Replace(err.Error())
		fmt.Fprintf(c, "500 %s\r\n", text)
		return
	}
	fmt.Fprintf(c, "200 %s\r\n", values.Encode())
}

func (s *Server) call(ctx context.Context, name, query string) (values url.Values, err error) {
	method, ok := s.conf.Methods[name]
	if !ok {
		return nil, errors.New("unknown method")
	}
	args, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	if s.conf.Trace != nil {
		ctx = s.conf.Trace(ctx)
	}
	ctx, span := trace.Start(ctx, trace.RPC, name)
	defer span.Finish()
	defer func() {
		if p := recover(); p != nil {
			s.panics.Inc()
			log.Errorf("control socket: panic in %s: %v\n%s", name, p, debug.Stack())
			err = errors.New("internal error; the log has the details")
		}
	}()
	if !s.conf.Slow[name] {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	values, err = method(ctx, args)
	return values, span.Error(err)
}

// RemoteError is what the server answered instead of a result.
type RemoteError string

// Error returns the server's words.
func (e RemoteError) Error() string { return string(e) }

// Call asks the server on the socket at path. An error is a RemoteError if the server gave it.
func Call(ctx context.Context, path, method string, args url.Values) (url.Values, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		c.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(c, "%s %s\n", method, args.Encode()); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("reading the server's answer: %w", err)
	}
	code, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	if code != "200" {
		return nil, RemoteError(rest)
	}
	return url.ParseQuery(rest)
}
