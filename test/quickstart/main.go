// Command quickstart makes a configuration in a directory, runs the server there and sends it one message, to see mail flow.
//
// It is what "make run" does. Nothing outside the directory is touched, and running it again keeps what is there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// startTime is how long the server may take to become ready, and the message to arrive.
const startTime = 30 * time.Second

// site is what is made and run.
type site struct {
	bin, dir                                    string
	smtp, submission, submissionTLS, monitoring string
	user, password                              string
}

func main() {
	var s site
	var once bool
	flag.StringVar(&s.bin, "bin", "./chasquid", "the server")
	flag.StringVar(&s.dir, "dir", "run", "directory for everything that is made")
	flag.StringVar(&s.smtp, "smtp", "127.0.0.1:1025", "SMTP address")
	flag.StringVar(&s.submission, "submission", "127.0.0.1:1587", "submission address")
	flag.StringVar(&s.submissionTLS, "submission_tls", "127.0.0.1:1465", "submission address for TLS from the first byte")
	flag.StringVar(&s.monitoring, "monitoring", "127.0.0.1:1099", "monitoring address")
	flag.BoolVar(&once, "once", false, "stop after the first message")
	flag.Parse()
	if err := run(&s, once, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(s *site, once bool, out io.Writer) error {
	var err error
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		return err
	}
	if err := s.prepare(); err != nil {
		return err
	}
	if err := s.portsFree(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	srv, err := s.start(out)
	if err != nil {
		return err
	}
	go srv.forwardSignals(ctx)
	if err := s.firstMessage(ctx, srv, out); err != nil {
		srv.stop()
		return fmt.Errorf("%w\nThe server's log is %s", err, s.logFile())
	}
	if once {
		srv.stop()
	}
	<-srv.exited
	fmt.Fprintln(out, "Stopped.")
	return srv.err
}

// firstMessage waits for the server, sends a message and tells where it arrived.
func (s *site) firstMessage(ctx context.Context, srv *server, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := s.waitReady(ctx, srv); err != nil {
		return err
	}
	id, err := s.send(ctx)
	if err != nil {
		return fmt.Errorf("sending a message: %w", err)
	}
	path, err := s.waitDelivered(ctx, id)
	if err != nil {
		return err
	}
	s.tell(out, path)
	return nil
}

func (s *site) logFile() string { return filepath.Join(s.dir, "chasquid.log") }

// portsFree finds out beforehand what would keep the server from starting, to say it better.
func (s *site) portsFree() error {
	for _, a := range []string{s.smtp, s.submission, s.submissionTLS, s.monitoring} {
		l, err := net.Listen("tcp", a)
		if err == nil {
			l.Close()
			continue
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		c := http.Client{Timeout: time.Second}
		if resp, err := c.Get("http://" + s.monitoring + "/healthz"); err == nil {
			resp.Body.Close()
			return fmt.Errorf("%s is in use: it seems to be running already, see http://%s/", a, s.monitoring)
		}
		return fmt.Errorf("%s is in use by another program", a)
	}
	return nil
}

// server is the running server.
type server struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of its end; valid once exited is closed
}

// start runs the server in a process group of its own: a Ctrl-C reaches it once, through us.
func (s *site) start(out io.Writer) (*server, error) {
	srv := &server{exited: make(chan struct{})}
	srv.cmd = exec.Command(s.bin, "-config_dir="+s.dir, "-logfile="+s.logFile())
	srv.cmd.Stdout, srv.cmd.Stderr = out, out
	srv.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := srv.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w (make build makes the server)", err)
	}
	go func() {
		srv.err = srv.cmd.Wait()
		close(srv.exited)
	}()
	return srv, nil
}

// forwardSignals passes the signals that end us on to the server, which drains; a second one makes it hurry.
func (srv *server) forwardSignals(ctx context.Context) {
	c := make(chan os.Signal, 2)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(c)
	for {
		select {
		case sig := <-c:
			srv.cmd.Process.Signal(sig)
		case <-ctx.Done():
			return
		}
	}
}

func (srv *server) stop() {
	srv.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-srv.exited:
	case <-time.After(startTime):
		srv.cmd.Process.Kill()
		<-srv.exited
	}
}

// waitReady polls the server until it says that it is ready.
func (s *site) waitReady(ctx context.Context, srv *server) error {
	c := http.Client{Timeout: 2 * time.Second}
	last := "no answer"
	for {
		if resp, err := c.Get("http://" + s.monitoring + "/readyz?verbose"); err == nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = string(body)
		}
		select {
		case <-srv.exited:
			return fmt.Errorf("the server ended at its start: %v", srv.err)
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready after %v: %s", startTime, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tell prints what one would want to know next.
func (s *site) tell(out io.Writer, path string) {
	rel := func(p string) string {
		if wd, err := os.Getwd(); err == nil {
			if r, err := filepath.Rel(wd, p); err == nil && len(r) < len(p) {
				return r
			}
		}
		return p
	}
	fmt.Fprintf(out, `
chasquid runs in %[1]s. Ctrl-C stops it.

A message went through submission with STARTTLS and AUTH, and landed in
  %[2]s

Look inside:  http://%[3]s/
User:         %[4]s, password %[5]s
Ports:        %[6]s SMTP, %[7]s submission, %[8]s submission over TLS
Log:          %[9]s; the mail log is below

Send more, from another terminal:
  swaks --server %[7]s -tls --auth-user %[4]s --auth-password %[5]s --from %[4]s --to %[4]s
  printf 'From: <%[4]s>\r\nSubject: hello\r\n\r\nfrom curl\r\n' | curl smtp://%[7]s --ssl-reqd --cacert %[10]s -u %[4]s:%[5]s --mail-from %[4]s --mail-rcpt %[4]s -T -

`, rel(s.dir), rel(path), s.monitoring, s.user, s.password, s.smtp, s.submission, s.submissionTLS, rel(s.logFile()), rel(s.certFile()))
}
