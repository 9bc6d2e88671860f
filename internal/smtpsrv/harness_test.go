package smtpsrv

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/policy"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// memIntake keeps messages in memory.
type memIntake struct {
	mu       sync.Mutex
	messages []*memDraft
	open     int // drafts begun and not ended
	n        int

	beginErr, writeErr, commitErr error
}

type memDraft struct {
	in     *memIntake
	id     mail.ID
	buf    bytes.Buffer
	env    *mail.Envelope
	prefix string
	ended  bool
}

func (in *memIntake) Begin(context.Context) (mail.Draft, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.beginErr != nil {
		return nil, in.beginErr
	}
	in.n++
	in.open++
	return &memDraft{in: in, id: mail.ID(fmt.Sprintf("id%d", in.n))}, nil
}

func (d *memDraft) ID() mail.ID { return d.id }
func (d *memDraft) Write(p []byte) (int, error) {
	if d.in.writeErr != nil {
		return 0, d.in.writeErr
	}
	return d.buf.Write(p)
}
func (d *memDraft) Size() int64            { return int64(d.buf.Len()) }
func (d *memDraft) Content() io.ReadSeeker { return bytes.NewReader(d.buf.Bytes()) }

func (d *memDraft) Commit(_ context.Context, env *mail.Envelope, prefix []byte) (mail.ID, error) {
	if d.in.commitErr != nil {
		return "", d.in.commitErr
	}
	d.in.mu.Lock()
	defer d.in.mu.Unlock()
	d.end()
	d.env, d.prefix = new(mail.Envelope), string(prefix)
	*d.env = *env
	d.env.Rcpts = slices.Clone(env.Rcpts)
	d.in.messages = append(d.in.messages, d)
	return d.id, nil
}

func (d *memDraft) Discard() {
	d.in.mu.Lock()
	defer d.in.mu.Unlock()
	d.end()
}

func (d *memDraft) end() {
	if !d.ended {
		d.ended = true
		d.in.open--
	}
}

func (in *memIntake) all() []*memDraft {
	in.mu.Lock()
	defer in.mu.Unlock()
	return append([]*memDraft(nil), in.messages...)
}

// fakeAuth knows one user.
type fakeAuth struct{}

func (fakeAuth) Authenticate(_ context.Context, user address.Address, password string) (bool, string, error) {
	switch {
	case user.Local == "broken":
		return false, "dovecot", errors.New("/run/secret/socket: connection refused")
	case user.Local == "panic":
		panic("on purpose")
	}
	return user.String() == "user@example.test" && password == "secret", "userdb", nil
}

// fakeRcpts accepts users of example.test and, when logged in, everybody.
type fakeRcpts struct{}

func (fakeRcpts) Name() string { return "recipients" }
func (fakeRcpts) Rcpt(_ context.Context, t *policy.Transaction, r *mail.Recipient) policy.Verdict {
	refuse := func(code int, enh, text, reason, label string) policy.Verdict {
		reply := smtp.NewReply(code, enh, text)
		return policy.Verdict{Refuse: &reply, Reason: reason, Label: label}
	}
	if r.To.Domain == "" {
		r.To = address.Address{Local: "postmaster", Domain: "example.test"}
		return policy.Verdict{}
	}
	if r.To.Domain != "example.test" && r.To.Domain != "ñ.test" {
		if t.Session.Authenticated() {
			return policy.Verdict{}
		}
		return refuse(503, "5.7.1", "Relay not allowed", "relay not allowed", "relay_denied")
	}
	n, err := r.To.Normalize()
	if err != nil {
		return refuse(550, "5.1.3", "Destination address is invalid", "invalid address", "other")
	}
	r.To = n
	switch {
	case strings.HasPrefix(n.Local, "nobody"):
		return refuse(550, "5.1.1", "Destination address is unknown (user does not exist)", "local user does not exist", "unknown_user")
	case n.Local == "later":
		return refuse(451, "4.4.3", "Temporary error checking address", "error checking if user exists: boom", "other")
	}
	return policy.Verdict{}
}

// fakeSPF refuses senders of spf.test and vouches for others.
type fakeSPF struct{}

func (fakeSPF) Name() string { return "spf" }
func (fakeSPF) Mail(_ context.Context, t *policy.Transaction) policy.Verdict {
	switch t.Env.From.Domain {
	case "spf.test":
		r := smtp.NewReply(550, "5.7.23", "SPF check failed: matched all")
		return policy.Verdict{Refuse: &r, Reason: "failed SPF: matched all", Label: "spf_fail"}
	case "panic.test":
		panic("on purpose")
	case "pass.test":
		t.Results.SPF = "pass"
		t.Results.AuthRes = append(t.Results.AuthRes, "spf=pass (matched ip)")
		return policy.Verdict{Header: []byte("Received-SPF: pass (matched ip)\r\n"), Note: "spf=pass"}
	}
	return policy.Verdict{}
}

// fakeHook refuses what says so and adds headers to what says so.
type fakeHook struct{ seen *lastSeen }

// lastSeen is the last message a hook saw.
type lastSeen struct {
	mu   sync.Mutex
	text string
}

func (fakeHook) Name() string { return "hook" }
func (f fakeHook) Body(_ context.Context, t *policy.Transaction, c policy.Content) policy.Verdict {
	b, err := io.ReadAll(c.Content())
	if err != nil || int64(len(b)) != c.Size() {
		panic(fmt.Sprintf("content: %d bytes, size %d, %v", len(b), c.Size(), err))
	}
	if f.seen != nil {
		f.seen.mu.Lock()
		f.seen.text = string(t.ID) + "\n" + string(t.Prefix()) + string(b)
		f.seen.mu.Unlock()
	}
	var add []byte
	if bytes.Contains(b, []byte("ADD")) {
		t.Results.AuthRes = append(t.Results.AuthRes, "dkim=none")
		add = []byte("X-Hook: yes\n")
	}
	switch {
	case bytes.Contains(b, []byte("REJECT")):
		r := smtp.Reply{Code: 554, Text: "no\x1b[0m \xff" + strings.Repeat("long ", 200)}
		return policy.Verdict{Refuse: &r, Label: "hook_reject", Header: add}
	case bytes.Contains(b, []byte("DEFER")):
		r := smtp.Reply{Code: 451, Text: "later"}
		return policy.Verdict{Refuse: &r, Label: "hook_reject"}
	case bytes.Contains(b, []byte("BROKEN")):
		r := smtp.Reply{Code: 250, Text: "fine"}
		return policy.Verdict{Refuse: &r}
	case bytes.Contains(b, []byte("SIGN")):
		return policy.Verdict{Below: []byte("DKIM-Signature: v=1;\r\n\tb=abc\r\n")}
	case add != nil:
		return policy.Verdict{Header: add, Note: "added"}
	}
	return policy.Verdict{}
}

// events remembers what an observer sees.
type events struct {
	mu   sync.Mutex
	list []timeline.Event
}

func (es *events) Observe(e *timeline.Event) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.list = append(es.list, *e)
}

func (es *events) texts(k timeline.Kind) (texts []string) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.list {
		if e.Kind == k {
			texts = append(texts, e.Text)
		}
	}
	return texts
}

// queueListener hands out connections that a test makes.
type queueListener struct {
	ch   chan net.Conn
	once sync.Once
	done chan struct{}
}

func newQueueListener() *queueListener {
	return &queueListener{ch: make(chan net.Conn), done: make(chan struct{})}
}

func (l *queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *queueListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *queueListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 25), Port: 25} }

// addressed is a pipe with the address of a client.
type addressed struct {
	net.Conn
	remote net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.remote }

// bench is a server with everything faked around it.
type testServer struct {
	t      testing.TB
	srv    *Server
	cfg    Config
	intake *memIntake
	events *events
	reg    *expvarom.Registry
	l      [numModes]*queueListener
	wg     sync.WaitGroup
	cancel context.CancelFunc
	hooked lastSeen
}

func newTestServer(t testing.TB, change func(*Config)) *testServer {
	ts := &testServer{t: t, intake: &memIntake{}, events: &events{}, reg: expvarom.New()}
	ts.cfg = Config{
		Hostname: "mx.example.test", Auth: fakeAuth{}, Intake: ts.intake, TLS: testTLS,
		OwnName:    func(n string) bool { return n == "other.example.test" },
		MailChecks: []policy.MailCheck{fakeSPF{}}, RcptChecks: []policy.RcptCheck{fakeRcpts{}},
		BodyChecks: []policy.BodyCheck{fakeHook{&ts.hooked}}, Observer: ts.events, Metrics: ts.reg,
	}
	if change != nil {
		change(&ts.cfg)
	}
	ts.srv = New(ts.cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ts.cancel = cancel
	for m := range ts.l {
		l := newQueueListener()
		ts.l[m] = l
		ts.wg.Go(func() { ts.srv.Serve(ctx, l, Mode(m)) })
	}
	return ts
}

// dial connects a client.
func (ts *testServer) dial(mode Mode, ip string) *client {
	near, far := net.Pipe()
	remote := &net.TCPAddr{IP: net.ParseIP(ip), Port: 4321}
	ts.l[mode].ch <- addressed{far, remote}
	return newClient(ts.t, near)
}

// close stops the server and checks that nothing is left behind.
func (ts *testServer) close() {
	ts.t.Helper()
	ts.cancel()
	ts.wg.Wait()
	if n := ts.srv.Open(); n != 0 {
		ts.t.Errorf("%d connections left", n)
	}
	ts.intake.mu.Lock()
	defer ts.intake.mu.Unlock()
	if ts.intake.open != 0 {
		ts.t.Errorf("%d drafts neither committed nor discarded", ts.intake.open)
	}
}

// client is the other end: a goroutine reads all the time, so that neither side ever waits for the other to read.
type client struct {
	t  testing.TB
	nc net.Conn

	mu   sync.Mutex
	cond *sync.Cond
	in   []byte
	err  error
	stop bool // the reader ends after what it reads next
	idle chan struct{}
}

func newClient(t testing.TB, nc net.Conn) *client {
	c := &client{t: t, nc: nc}
	c.cond = sync.NewCond(&c.mu)
	go c.read(nc)
	return c
}

func (c *client) read(nc net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := nc.Read(b)
		c.mu.Lock()
		c.in = append(c.in, b[:n]...)
		if err != nil {
			c.err = err
		}
		stop := c.stop
		c.cond.Broadcast()
		c.mu.Unlock()
		if err != nil || stop {
			if c.idle != nil {
				close(c.idle)
			}
			return
		}
	}
}

// line returns the next line without CRLF, ok is false at the end of the connection.
func (c *client) line() (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if i := bytes.IndexByte(c.in, '\n'); i >= 0 {
			l := string(c.in[:i])
			c.in = c.in[i+1:]
			if !strings.HasSuffix(l, "\r") {
				c.t.Errorf("line without CR: %q", l)
			}
			return strings.TrimSuffix(l, "\r"), true
		}
		if c.err != nil {
			if len(c.in) > 0 {
				c.t.Errorf("the last line is not whole: %q", c.in)
			}
			return "", false
		}
		c.cond.Wait()
	}
}

// reply returns the lines of the next reply, nil at the end of the connection. It checks their form (C26).
func (c *client) reply() []string {
	var lines []string
	for {
		l, ok := c.line()
		if !ok {
			if lines != nil {
				c.t.Errorf("the connection ended within a reply: %q", lines)
			}
			return nil
		}
		lines = append(lines, l)
		if err := checkReplyLine(l, lines[0]); err != nil {
			c.t.Errorf("%v: %q", err, l)
		}
		if len(l) < 4 || l[3] == ' ' {
			return lines
		}
	}
}

// checkReplyLine: C26, C47.
func checkReplyLine(l, first string) error {
	switch {
	case len(l) < 4 || l[3] != ' ' && l[3] != '-':
		return errors.New("malformed reply line")
	case l[:3] != first[:3]:
		return errors.New("the code changes within a reply")
	case len(l)+2 > 512:
		return errors.New("reply line over 512 octets")
	}
	for i := 0; i < len(l); i++ {
		if l[i] < ' ' || l[i] > '~' {
			return errors.New("reply line is not printable ASCII")
		}
	}
	word, _, _ := strings.Cut(l[4:], " ")
	if e, ok := smtp.ParseEnhancedCode(word); ok && byte('0'+e[0]) != l[0] {
		return errors.New("the class of the enhanced code differs")
	}
	return nil
}

func (c *client) send(s string) error {
	_, err := io.WriteString(c.nc, s)
	return err
}

// cmd sends a line and returns the last line of the reply, "" at the end of the connection.
func (c *client) cmd(line string) string {
	c.send(line + "\r\n")
	r := c.reply()
	if r == nil {
		return ""
	}
	return r[len(r)-1]
}

// startTLS shakes hands over what has been plain so far. The reader is blocked in a read: it is taken out of it with a deadline.
func (c *client) startTLS(conf *tls.Config) error {
	c.mu.Lock()
	c.stop = true
	idle := make(chan struct{})
	c.idle = idle
	c.mu.Unlock()
	c.nc.SetReadDeadline(time.Unix(1, 0))
	<-idle
	c.nc.SetReadDeadline(time.Time{})
	c.mu.Lock()
	c.stop, c.err, c.idle = false, nil, nil
	c.mu.Unlock()
	tc := tls.Client(c.nc, conf)
	if err := tc.Handshake(); err != nil {
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		return err
	}
	c.nc = tc
	go c.read(tc)
	return nil
}

func clientTLS(sni string, alpn ...string) *tls.Config {
	return &tls.Config{ServerName: sni, InsecureSkipVerify: true, NextProtos: alpn}
}

var testCert = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.test"}, DNSNames: []string{"mx.example.test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
})

func testTLS(*tls.ClientHelloInfo) (*tls.Config, error) { return testCert(), nil }
