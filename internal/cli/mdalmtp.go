package cli

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"golang.org/x/net/idna"
)

// Exit codes of mda-lmtp, from sysexits.h: what mail servers understand.
const (
	exitTempFail    = 75 // EX_TEMPFAIL: try again later
	exitUnavailable = 69 // EX_UNAVAILABLE: never
)

// lmtpTimeout bounds one step of the dialog; the server that runs us bounds all of it.
const lmtpTimeout = 5 * time.Minute

// lmtpOptions are the command line of mda-lmtp.
type lmtpOptions struct {
	addr, network, from, to string
	toPuny                  bool
}

func (o *lmtpOptions) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("mda-lmtp", flag.ContinueOnError)
	fs.StringVar(&o.addr, "addr", "", "`address` of the LMTP server: a socket's path, or host:port")
	fs.StringVar(&o.network, "addr_network", "", "`network` of the address: unix or tcp; from the address unless given")
	fs.StringVar(&o.from, "f", "", "envelope `sender`")
	fs.StringVar(&o.to, "d", "", "envelope `recipient`")
	fs.BoolVar(&o.toPuny, "to_puny", false, "convert sender and recipient to ASCII (IDNA)")
	return fs
}

// parseFlags parses like Go's standard tools: help exits with 0, an unknown option with 2. Ok is false if that is the end.
func parseFlags(env *Env, fs *flag.FlagSet, args []string) (exit int, ok bool) {
	fs.SetOutput(env.Stderr)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitOK, false
	} else if err != nil {
		return exitUsage, false
	}
	return 0, true
}

func lmtpMain(env *Env, args []string) int {
	o := &lmtpOptions{}
	fs := o.flags()
	fs.Usage = func() {
		fmt.Fprint(env.Stderr, "Usage: mda-lmtp --addr=<address> -f <sender> -d <recipient>\n\n"+
			"Delivers the message on standard input to an LMTP server. It exits with 0 when the message was delivered, 75 when it may be\n"+
			"tried again later, 69 when the server refused it for good, and 2 when the command line is wrong.\n\n")
		fs.PrintDefaults()
	}
	if exit, ok := parseFlags(env, fs, args); !ok {
		return exit
	}
	if o.addr == "" {
		fmt.Fprintln(env.Stdout, "No LMTP server given: say which with --addr, as in --addr=/run/dovecot/lmtp")
		return exitUsage
	}
	if o.network == "" {
		o.network = "tcp"
		if strings.HasPrefix(o.addr, "/") {
			o.network = "unix"
		}
	}
	if o.toPuny {
		var err error
		if o.from, err = idna.ToASCII(o.from); err != nil {
			fmt.Fprintf(env.Stdout, "cannot puny-encode from: %v\n", err)
			return exitUsage
		}
		if o.to, err = idna.ToASCII(o.to); err != nil {
			fmt.Fprintf(env.Stdout, "cannot puny-encode recipient: %v\n", err)
			return exitUsage
		}
	}
	for _, a := range []string{o.from, o.to} {
		if strings.ContainsAny(a, "\r\n\x00") {
			fmt.Fprintln(env.Stdout, "sender and recipient must not contain line breaks")
			return exitUsage
		}
	}
	return lmtpExit(env.Stdout, o.deliver(env.Stdin))
}

// refusal is what the server said instead of what was expected.
type refusal struct {
	code    int
	text    string
	verdict bool // about this message, not about the server
}

func (r *refusal) Error() string { return fmt.Sprintf("%d %q", r.code, r.text) }

// lmtpExit tells the error and finds the exit code for it.
func lmtpExit(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var r *refusal
	if !errors.As(err, &r) {
		fmt.Fprintf(w, "Delivery failed: %v\n", err)
		return exitTempFail
	}
	fmt.Fprintf(w, "Delivery failed remotely: %v\n", r)
	// Only what is said of the message is permanent: a server that cannot serve us today will tomorrow.
	if r.verdict && r.code >= 500 {
		return exitUnavailable
	}
	return exitTempFail
}

// lmtpConn is the client's side of a dialog.
type lmtpConn struct {
	conn net.Conn
	w    *bufio.Writer
	r    *smtp.ReplyReader
}

// expect reads a reply and checks its code.
func (c *lmtpConn) expect(code int, verdict bool) error {
	c.conn.SetDeadline(time.Now().Add(lmtpTimeout))
	if err := c.w.Flush(); err != nil {
		return err
	}
	got, err := c.r.Next()
	if err != nil {
		return fmt.Errorf("reading the server's reply: %w", err)
	}
	if got == code {
		return nil
	}
	var lines []string
	c.r.Lines(func(line []byte) { lines = append(lines, string(line)) })
	return &refusal{code: got, text: strings.Join(lines, "\n"), verdict: verdict}
}

// command sends a line and expects the code.
func (c *lmtpConn) command(code int, verdict bool, format string, args ...any) error {
	fmt.Fprintf(c.w, format+"\r\n", args...)
	return c.expect(code, verdict)
}

// deliver has the dialog of RFC 2033 for one recipient.
func (o *lmtpOptions) deliver(body io.Reader) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("finding out the host name: %w", err)
	}
	conn, err := net.DialTimeout(o.network, o.addr, 30*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := &lmtpConn{conn: conn, w: bufio.NewWriter(conn), r: smtp.NewReplyReader(conn)}
	if err := c.expect(220, false); err != nil {
		return err
	}
	if err := c.command(250, false, "LHLO %s", host); err != nil {
		return err
	}
	if err := c.command(250, true, "MAIL FROM:<%s>", bare(o.from)); err != nil {
		return err
	}
	if err := c.command(250, true, "RCPT TO:<%s>", bare(o.to)); err != nil {
		return err
	}
	if err := c.command(354, true, "DATA"); err != nil {
		return err
	}
	if err := c.data(body); err != nil {
		return err
	}
	// What the server says to QUIT changes nothing: it has the message.
	_ = c.command(221, false, "QUIT")
	return nil
}

// data sends the message and waits for the one reply that its one recipient gets.
func (c *lmtpConn) data(body io.Reader) error {
	w := smtp.NewDotWriter(c.w)
	buf := make([]byte, 32<<10)
	for r := message.ToCRLF(body); ; {
		n, err := r.Read(buf)
		c.conn.SetDeadline(time.Now().Add(lmtpTimeout))
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("reading the message: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.expect(250, true)
}

// bare takes the angle brackets off "<>", which is how the null address is given.
func bare(a string) string {
	if a == "<>" {
		return ""
	}
	return a
}
