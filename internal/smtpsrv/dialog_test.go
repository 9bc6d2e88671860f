package smtpsrv

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
)

// TestDialogs runs testdata/*.txt, each in a bubble of its own. A line is one of
//
//	C: text           the client sends the line with CRLF
//	C! "text" "text"  it sends these bytes, in Go's notation; 3*"x" repeats
//	S: pattern        the next line of the server; * stands for anything
//	S+ pattern        all lines of the next reply, one of which matches
//	S= pattern        all lines of the next reply, the last of which matches
//	S- pattern        all lines of the next reply, none of which matches
//	S$                the server closes the connection
//	@ words           see (*dialog).directive
func TestDialogs(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no dialogs")
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { runDialog(t, string(b)) })
		})
	}
}

type dialog struct {
	t     *testing.T
	ts    *testServer
	c     *client
	mode  Mode
	ip    string
	cfg   []func(*Config)
	line  int
	mark  time.Time
	reply []string // what S+ and S- look at, until another line begins
}

func runDialog(t *testing.T, text string) {
	d := &dialog{t: t, ip: "192.0.2.1", mark: time.Now()}
	defer func() {
		if d.c != nil {
			d.c.nc.Close()
		}
		if d.ts != nil {
			d.ts.close()
		}
	}()
	for i, l := range strings.Split(text, "\n") {
		d.line = i + 1
		op, rest, _ := strings.Cut(l, " ")
		if op == "" || strings.HasPrefix(op, "#") {
			continue
		}
		if op != "S+" && op != "S-" && op != "S=" {
			d.reply = nil
		}
		if op[0] != '@' && d.c == nil {
			d.connect()
		}
		if err := d.step(op, rest); err != nil {
			t.Fatalf("line %d: %s: %v", d.line, l, err)
		}
	}
}

func (d *dialog) connect() {
	if d.ts == nil {
		d.ts = newTestServer(d.t, func(c *Config) {
			for _, f := range d.cfg {
				f(c)
			}
		})
		for _, f := range d.cfg {
			f(&d.ts.cfg)
		}
	}
	d.c = d.ts.dial(d.mode, d.ip)
}

func (d *dialog) step(op, rest string) error {
	switch op {
	case "C:":
		return d.c.send(rest + "\r\n")
	case "C!":
		s, err := unquoteAll(rest)
		if err != nil {
			return err
		}
		d.c.send(s) // the server may have closed
		return nil
	case "S:":
		l, ok := d.c.line()
		if !ok {
			return errors.New("the connection is closed")
		}
		if !match(rest, l) {
			return fmt.Errorf("got %q", l)
		}
		return nil
	case "S+", "S-", "S=":
		if d.reply == nil {
			if d.reply = d.c.reply(); d.reply == nil {
				return errors.New("the connection is closed")
			}
		}
		lines := d.reply
		if op == "S=" {
			lines, d.reply = lines[len(lines)-1:], nil
		}
		for _, l := range lines {
			if match(rest, l) {
				if op == "S-" {
					return fmt.Errorf("got %q", l)
				}
				return nil
			}
		}
		if op == "S-" {
			return nil
		}
		return fmt.Errorf("got %q", lines)
	case "S$":
		if l, ok := d.c.line(); ok {
			return fmt.Errorf("got %q", l)
		}
		return nil
	case "@":
		return d.directive(strings.Fields(rest))
	}
	return errors.New("unknown kind of line")
}

// directive does what stands after "@":
//
//	mode submission        the listener to connect to: smtp, submission, submission_tls
//	from 2001:db8::1       the client's address
//	set NAME VALUE         a field of the server's Config
//	connect                another connection
//	tls [SNI [ALPN]]       TLS handshake; tls-fails if it must not succeed
//	auth                   STARTTLS and login
//	wait 5m                time passes
//	took 100ms 120ms       how long the time since the last wait or took was
//	drain                  the server begins to stop
//	intake begin|write|commit full|broken|ok
//	queued N               so many messages were taken
//	content "…"            of the last message, without what was put on top
//	prefix "pattern"       a line of what was put on top of it
//	top "…"                all that was put on top, with * in it
//	env FIELD VALUE        of the envelope: from, rcpts, auth, body, utf8, id, params, source
//	refused "pattern"      the reason of the last refusal in the timeline
//	metric VALUE NAME…     of a metric with its labels, NAME{a="b"}
//	hooked "pattern"       a line of what the hook saw
func (d *dialog) directive(w []string) error {
	arg := func(i int) string {
		if i < len(w) {
			return w[i]
		}
		return ""
	}
	rest := func(i int) string { return strings.Join(w[min(i, len(w)):], " ") }
	switch w[0] {
	case "mode":
		for i, l := range modeLabels {
			if l == arg(1) {
				d.mode = Mode(i)
				return nil
			}
		}
		return errors.New("unknown mode")
	case "from":
		d.ip = arg(1)
	case "set":
		return d.set(arg(1), arg(2))
	case "connect":
		if d.c != nil {
			d.c.nc.Close()
		}
		d.connect()
	case "tls", "tls-fails":
		if d.c == nil {
			d.connect()
		}
		err := d.c.startTLS(clientTLS(arg(1), w[min(2, len(w)):]...))
		if w[0] == "tls-fails" {
			if err == nil {
				return errors.New("the handshake succeeded")
			}
			return nil
		}
		return err
	case "auth":
		return d.auth()
	case "wait":
		dur, err := time.ParseDuration(arg(1))
		time.Sleep(dur)
		synctest.Wait()
		d.mark = time.Now()
		return err
	case "took":
		least, err1 := time.ParseDuration(arg(1))
		most, err2 := time.ParseDuration(arg(2))
		took := time.Since(d.mark)
		d.mark = time.Now()
		if took < least || took > most {
			return fmt.Errorf("it took %v", took)
		}
		return errors.Join(err1, err2)
	case "drain":
		go d.ts.srv.Drain(d.t.Context())
		synctest.Wait()
	case "intake":
		return d.intake(arg(1), arg(2))
	case "refused":
		return expect(last(d.ts.events.texts(timeline.Refused)), rest(1))
	case "metric":
		return d.metric(rest(2), arg(1))
	case "hooked":
		return d.lines(d.ts.hooked.text, rest(1))
	default:
		return d.message(w[0], rest(1), arg(1), rest(2))
	}
	return nil
}

func (d *dialog) set(name, value string) error {
	n, _ := strconv.Atoi(value)
	dur, _ := time.ParseDuration(value)
	f, ok := map[string]func(*Config){
		"MaxSize":        func(c *Config) { c.MaxSize = int64(n) },
		"MaxRecipients":  func(c *Config) { c.MaxRecipients = n },
		"MaxMails":       func(c *Config) { c.MaxMails = n },
		"MaxReceived":    func(c *Config) { c.MaxReceived = n },
		"MaxConns":       func(c *Config) { c.MaxConns = n },
		"MaxConnsPerIP":  func(c *Config) { c.MaxConnsPerIP = n },
		"GreetingDelay":  func(c *Config) { c.GreetingDelay = dur },
		"SessionTimeout": func(c *Config) { c.SessionTimeout = dur },
		"NoTLS":          func(c *Config) { c.TLS = nil },
		"NoAuth":         func(c *Config) { c.Auth = nil },
	}[name]
	if !ok {
		return errors.New("unknown setting")
	}
	d.cfg = append(d.cfg, f)
	return nil
}

// auth brings the client to where it may submit.
func (d *dialog) auth() error {
	if d.c == nil {
		d.connect()
	}
	d.c.reply()
	d.c.cmd("EHLO client.test")
	if r := d.c.cmd("STARTTLS"); !strings.HasPrefix(r, "220 ") {
		return fmt.Errorf("STARTTLS: %s", r)
	}
	if err := d.c.startTLS(clientTLS("")); err != nil {
		return err
	}
	d.c.cmd("EHLO client.test")
	if r := d.c.cmd("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00user@example.test\x00secret"))); !strings.HasPrefix(r, "235 ") {
		return fmt.Errorf("AUTH: %s", r)
	}
	return nil
}

func (d *dialog) intake(what, how string) error {
	var err error
	switch how {
	case "full":
		err = fmt.Errorf("spool: %w", smtp.NewReply(452, "4.3.1", "The disk is full, please try again later"))
	case "broken":
		err = errors.New("write /var/lib/secret: input/output error")
	}
	if d.ts == nil {
		d.connect()
	}
	in := d.ts.intake
	in.mu.Lock()
	defer in.mu.Unlock()
	switch what {
	case "begin":
		in.beginErr = err
	case "write":
		in.writeErr = err
	case "commit":
		in.commitErr = err
	default:
		return errors.New("unknown step")
	}
	return nil
}

// message looks at the last message taken.
func (d *dialog) message(what, rest, field, value string) error {
	all := d.ts.intake.all()
	if what == "queued" {
		return expect(strconv.Itoa(len(all)), rest)
	}
	if len(all) == 0 {
		return errors.New("no message was taken")
	}
	m := all[len(all)-1]
	switch what {
	case "content":
		want, err := unquoteAll(rest)
		if err == nil && m.buf.String() != want {
			return fmt.Errorf("got %q", m.buf.String())
		}
		return err
	case "prefix":
		return d.lines(m.prefix, rest)
	case "top":
		want, err := strconv.Unquote(rest)
		if err == nil && !match(want, m.prefix) {
			return fmt.Errorf("got %q", m.prefix)
		}
		return err
	case "env":
		var rcpts []string
		for _, r := range m.env.Rcpts {
			rcpts = append(rcpts, strings.TrimSpace(r.Orig.String()+" "+r.Params.String()))
		}
		got, ok := map[string]string{
			"from": m.env.From.LogString(), "rcpts": strings.Join(rcpts, ","), "auth": m.env.Auth, "body": strconv.Itoa(int(m.env.Body)),
			"utf8": strconv.FormatBool(m.env.UTF8), "id": m.env.MessageID, "params": m.env.Params.String(), "source": m.env.Source.String(),
			"client": m.env.Client, "longlines": strconv.FormatBool(m.env.LongLines),
		}[field]
		if !ok {
			return errors.New("unknown field")
		}
		return expect(got, value)
	}
	return errors.New("unknown directive")
}

// lines looks for a line that matches the quoted pattern.
func (d *dialog) lines(text, quoted string) error {
	pattern, err := strconv.Unquote(quoted)
	if err != nil {
		return err
	}
	for _, l := range strings.Split(text, "\r\n") {
		if match(pattern, l) {
			return nil
		}
	}
	return fmt.Errorf("got %q", text)
}

func (d *dialog) metric(name, want string) error {
	synctest.Wait()
	mfs, err := d.ts.reg.Gather()
	if err != nil {
		return err
	}
	var all []string
	for _, mf := range mfs {
		for _, m := range mf.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			full := mf.GetName()
			if labels != nil {
				full += "{" + strings.Join(labels, ",") + "}"
			}
			v := m.GetUntyped().GetValue() + m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if full == name {
				return expect(strconv.FormatFloat(v, 'f', -1, 64), want)
			}
			if strings.HasPrefix(full, strings.SplitN(name, "{", 2)[0]) && v != 0 {
				all = append(all, fmt.Sprint(full, " ", v))
			}
		}
	}
	return fmt.Errorf("no such metric; there are %q", all)
}

func expect(got, want string) error {
	if !match(want, got) {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

func last(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[len(s)-1]
}

// match reports whether s matches the pattern, in which * stands for anything.
func match(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// unquoteAll joins strings in Go's notation, each optionally repeated: 3*"x" "y".
func unquoteAll(s string) (string, error) {
	var b strings.Builder
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		n := 1
		if digits, rest, ok := strings.Cut(s, "*"); ok && s[0] != '"' {
			var err error
			if n, err = strconv.Atoi(digits); err != nil {
				return "", err
			}
			s = rest
		}
		q, err := strconv.QuotedPrefix(s)
		if err != nil {
			return "", err
		}
		u, err := strconv.Unquote(q)
		if err != nil {
			return "", err
		}
		b.WriteString(strings.Repeat(u, n))
		s = s[len(q):]
	}
	return b.String(), nil
}
