package courier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// The scripts in testdata are dialogues in which we are the client. A line is one of
//
//	zone RECORD                  a record of the DNS, as internal/dns/zone reads it
//	set NAME VALUE               a setting: see (*script).set
//	refuse ADDR, drop ADDR       connecting to the address is refused, or never answered; "flaky" refuses once
//	ledger DOMAIN LEVEL          the level that the ledger has seen
//	rule DOMAIN WORDS            a policy of the domain: source=S tls pkix mx=HOST,… error
//	hostrule HOST WORDS          a policy of the host, likewise; "ok" or "bad" verifies
//	from ADDR [PARAMS], to ADDR [PARAMS], via HOST…, body TEXT, big SIZE, binary, 8bit, utf8
//	peer ADDR                    the next connection to the address; its steps are the indented lines that follow
//	deliver                      attempts the job
//	want ADDR DISPOSITION REASON [REPLY]   its outcome for a recipient
//	err TEXT, tls TEXT, mta TEXT, took MIN MAX, level DOMAIN LEVEL, relayed, retry D   more about that outcome
//	trace TEXT, notrace TEXT     what the trace of the last attempt has, and has not
//	metric LINE                  a metric as metricLines writes it
//	new                          forgets the message, not the connections
//
// A step is "> TEXT" (we get the line), "< TEXT" (we must say the line), "raw QUOTED" (we get these bytes), "read N" (we must send
// N octets of the message), "message" (the whole message as a dot stream), "tls NAME" (a handshake with that certificate), "close",
// "hang", "eof" (nothing until we close), "wait D", "endless TEXT", "drip D" (an octet now and then until we close).
func TestSMTPScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/smtp/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { runScript(t, string(text)) })
		})
	}
}

type script struct {
	t     *testing.T
	cfg   Config
	zone  *zone.Zone
	peers map[string][]*peer
	how   map[string]string // of addresses: refuse, drop
	mu    sync.Mutex        // held by dial
	dials []string
	wg    sync.WaitGroup
	certs *testCerts

	ledger map[string]tlspolicy.Level
	rules  map[string]tlspolicy.Rule
	ruleE  map[string]error
	told   []string

	smtp     *SMTP
	local    *Local
	localCfg LocalConfig
	lmtp     string
	job      mail.Job
	env      mail.Envelope
	content  string
	out      []mail.Outcome
	last     *mail.Outcome
	took     time.Duration
	trace    string
	reg      *expvarom.Registry
}

type peer struct {
	addr  string
	steps []step
	used  bool
}

type step struct {
	line int
	word string
	arg  string
}

func runScript(t *testing.T, text string) {
	s := &script{t: t, zone: zone.MustNew(""), peers: map[string][]*peer{}, how: map[string]string{},
		ledger: map[string]tlspolicy.Level{}, rules: map[string]tlspolicy.Rule{}, ruleE: map[string]error{}}
	s.certs = &testCerts{}
	s.cfg = Config{Hostname: "me.test", Resolver: s.zone, Dial: s.dial, Ledger: s, Sources: []tlspolicy.Source{s}, HostSources: []tlspolicy.HostSource{s},
		Password: func(string) (string, error) { return "secret", nil }}
	s.reg = expvarom.New()
	s.cfg.Metrics = s.reg
	s.localCfg = LocalConfig{Metrics: s.reg, Hostname: "me.test", Dial: s.dial, DropCharacters: "."}
	s.reset()
	var p *peer
	for n, line := range strings.Split(text, "\n") {
		if trimmed := strings.TrimSpace(line); trimmed == "" || trimmed[0] == '#' {
			continue
		}
		word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		if line[0] == ' ' || line[0] == '\t' {
			p.steps = append(p.steps, step{n + 1, word, arg})
			continue
		}
		if word == "peer" {
			p = &peer{addr: arg}
			s.peers[arg] = append(s.peers[arg], p)
			continue
		}
		if err := s.line(word, arg); err != nil {
			t.Errorf("line %d: %v", n+1, err)
			break
		}
	}
	if s.smtp != nil {
		s.smtp.Close()
	}
	s.wg.Wait()
	for _, l := range s.peers {
		for _, p := range l {
			if !p.used {
				t.Errorf("nobody connected to %s (line %d)", p.addr, p.steps[0].line)
			}
		}
	}
}

func (s *script) reset() {
	s.env = mail.Envelope{Arrived: time.Now()}
	s.job = mail.Job{ID: "id1", Env: &s.env, Attempt: 1}
	s.content = "Subject: hi\r\n\r\nHello\r\n"
	s.lmtp = ""
}

func (s *script) line(word, arg string) error {
	fields := strings.Fields(arg)
	switch word {
	case "zone":
		return s.zone.Add(arg)
	case "set":
		return s.set(fields[0], strings.Join(fields[1:], " "))
	case "refuse", "drop", "flaky":
		s.how[arg] = word
	case "ledger":
		s.ledger[fields[0]] = parseLevel(fields[1])
	case "rule", "hostrule":
		return s.rule(fields[0], fields[1:])
	case "from":
		a, ps, err := addrParams(arg)
		s.job.From, s.env.From, s.env.Params = a, a, ps
		return err
	case "to":
		a, ps, err := addrParams(arg)
		s.job.Rcpts = append(s.job.Rcpts, mail.Recipient{To: a, Orig: a, Params: ps})
		return err
	case "orig":
		a, err := address.Parse(arg)
		s.job.Rcpts[len(s.job.Rcpts)-1].Orig = a
		return err
	case "via", "relay", "lmtp":
		return s.routeTo(word, fields)
	case "body":
		text, err := strconv.Unquote(arg)
		s.content = text
		return err
	case "big":
		n, err := strconv.Atoi(arg)
		s.content = bigMessage(n)
		return err
	case "8bit":
		s.env.Body = mail.Body8Bit
	case "longlines":
		s.env.LongLines = true
	case "binary":
		s.env.Body = mail.BodyBinary
	case "utf8":
		s.env.UTF8 = true
	case "new":
		s.reset()
	case "sleep":
		d, err := time.ParseDuration(arg)
		time.Sleep(d)
		return err
	case "deliver":
		s.deliver()
	default:
		return s.check(word, arg, fields)
	}
	return nil
}

func (s *script) routeTo(word string, fields []string) error {
	switch word {
	case "via":
		s.job.Route = mail.Route{Transport: mail.Relay, Hosts: fields}
	case "relay":
		r, err := viaRoute("", fields[0], "test")
		s.job.Route = r
		return err
	case "lmtp":
		s.lmtp = fields[0]
		s.job.Route = mail.Route{Transport: mail.Local, Target: "lmtp:" + fields[0]}
	}
	return nil
}

func (s *script) set(name, value string) error {
	n, _ := strconv.Atoi(value)
	switch name {
	case "hostname":
		s.cfg.Hostname = value
	case "rcpts":
		s.cfg.MaxRcpts = n
	case "messages":
		s.cfg.MaxMessages = n
	case "own":
		own := netip.MustParseAddrPort(value)
		s.cfg.Own = func(ap netip.AddrPort) bool { return ap == own }
	case "separators":
		s.localCfg.SuffixSeparators = value
	case "nopassword":
		s.cfg.Password = func(string) (string, error) { return "", errors.New("no such file") }
	default:
		return fmt.Errorf("no setting %q", name)
	}
	return nil
}

func (s *script) rule(name string, words []string) error {
	r := tlspolicy.Rule{Source: "mta-sts"}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "source":
			r.Source = v
		case "tls":
			r.RequireTLS = true
		case "pkix":
			r.RequirePKIX = true
		case "mx":
			r.AllowMX = func(host string) error {
				if slices.Contains(strings.Split(v, ","), host) {
					return nil
				}
				return errors.New("not in the policy")
			}
		case "ok":
			r.Verify = func(string, *tls.ConnectionState) error { return nil }
		case "bad":
			r.Verify = func(string, *tls.ConnectionState) error { return errors.New("no TLSA record matches") }
		case "error":
			s.ruleE[name] = errors.New("cannot know")
		default:
			return fmt.Errorf("no rule word %q", w)
		}
	}
	r.Report = func(host string, err error) {
		s.told = append(s.told, fmt.Sprintf("%s %s %v", r.Source, host, err))
	}
	s.rules[name] = r
	return nil
}

// Rule implements tlspolicy.Source.
func (s *script) Rule(_ context.Context, domain string) (tlspolicy.Rule, error) {
	return s.rules[domain], s.ruleE[domain]
}

// HostRule implements tlspolicy.HostSource.
func (s *script) HostRule(_ context.Context, _, host string) (tlspolicy.Rule, error) {
	return s.rules[host], s.ruleE[host]
}

func (s *script) CheckOutgoing(_ context.Context, domain string, l tlspolicy.Level) bool {
	return l >= s.ledger[domain]
}

func (s *script) RecordOutgoing(_ context.Context, domain string, l tlspolicy.Level) {
	s.ledger[domain] = max(l, s.ledger[domain])
}

func parseLevel(name string) tlspolicy.Level {
	for l := tlspolicy.Plain; l <= tlspolicy.TLSSecure; l++ {
		if l.String() == name {
			return l
		}
	}
	panic("no level " + name)
}

func addrParams(arg string) (address.Address, smtp.Params, error) {
	text, rest, _ := strings.Cut(arg, " ")
	ps, err := smtp.ParseParams(rest)
	if err != nil {
		return address.Address{}, nil, err
	}
	a, err := address.ParsePath(text)
	return a, ps, err
}

func (s *script) deliver() {
	if s.smtp == nil {
		if s.certs.used {
			s.cfg.Roots = s.certs.pool
		} else {
			s.certs.make()
			s.cfg.Roots = s.certs.pool
		}
		s.smtp = NewSMTP(s.cfg)
		s.local = NewLocal(s.localCfg)
	}
	job := s.job
	job.Size = int64(len(s.content))
	job.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s.content)), nil }
	if job.Route.Hosts == nil && s.lmtp == "" {
		job.Route = mail.Route{Transport: mail.SMTP, Domain: job.Rcpts[0].To.Domain}
	}
	begin := time.Now()
	mux := Mux{SMTP: s.smtp, Local: s.local, OnPanic: func() { s.t.Error("panic") }}
	rec := trace.New(trace.Config{})
	ctx, span := trace.StartMessage(trace.WithRecorder(s.t.Context(), rec), trace.DeliveryRemote, "test", trace.NewID())
	s.out = mux.Deliver(ctx, job)
	span.Fail()
	span.Finish()
	s.trace = ""
	for _, sp := range rec.Errors(trace.DeliveryRemote) {
		for _, e := range sp.Events {
			s.trace += e.Text + "\n"
		}
	}
	s.took = time.Since(begin)
	s.last = nil
	if len(s.out) != len(job.Rcpts) {
		s.t.Fatalf("%d outcomes for %d recipients", len(s.out), len(job.Rcpts))
	}
	for i, o := range s.out {
		if (o.Err == nil) != (o.Disposition == mail.Delivered) || (o.Reason == mail.ReasonNone) != (o.Disposition == mail.Delivered) {
			s.t.Errorf("outcome %d contradicts itself: %+v", i, o)
		}
	}
}

func (s *script) check(word, arg string, fields []string) error {
	if word == "want" {
		return s.want(arg, fields)
	}
	o := s.last
	switch word {
	case "level":
		if got := s.ledger[fields[0]]; got != parseLevel(fields[1]) {
			return fmt.Errorf("the ledger has %v for %s, want %s", got, fields[0], fields[1])
		}
		return nil
	case "told":
		if len(s.told) == 0 || !strings.Contains(s.told[0], arg) {
			return fmt.Errorf("the policy was told %q, want %q", s.told, arg)
		}
		s.told = s.told[1:]
		return nil
	case "toldnothing":
		if len(s.told) > 0 {
			return fmt.Errorf("the policy was told %q", s.told)
		}
		return nil
	case "dialled":
		if got := strings.Join(s.dials, " "); got != arg {
			return fmt.Errorf("dialled %s, want %s", got, arg)
		}
		return nil
	case "trace":
		if !strings.Contains(s.trace, arg) {
			return fmt.Errorf("the trace has no %q:\n%s", arg, s.trace)
		}
		return nil
	case "notrace":
		if strings.Contains(s.trace, arg) {
			return fmt.Errorf("the trace has %q:\n%s", arg, s.trace)
		}
		return nil
	case "metric":
		if all := metricLines(s.t, s.reg); !strings.Contains(all, "\n"+arg+"\n") {
			name, _, _ := strings.Cut(arg, "{")
			return fmt.Errorf("no such metric; there are%s", linesWith(all, name))
		}
		return nil
	case "took":
		lo, err1 := time.ParseDuration(fields[0])
		hi, err2 := time.ParseDuration(fields[1])
		if s.took < lo || s.took > hi {
			return fmt.Errorf("the attempt took %v, want %v to %v", s.took, lo, hi)
		}
		return errors.Join(err1, err2)
	}
	if o == nil {
		return fmt.Errorf("%q before want", word)
	}
	got := ""
	switch word {
	case "err":
		got = fmt.Sprint(o.Err)
	case "tls":
		got = o.TLS
	case "mta":
		got = o.MTA
	case "retry":
		got = o.RetryAfter.String()
	case "relayed":
		got = strconv.FormatBool(o.Relayed)
	default:
		return fmt.Errorf("no such line: %q", word)
	}
	if word == "err" && strings.Contains(got, arg) || got == arg {
		return nil
	}
	return fmt.Errorf("%s is %q, want %q", word, got, arg)
}

func (s *script) want(arg string, fields []string) error {
	to, err := address.Parse(fields[0])
	if err != nil {
		return err
	}
	for i, r := range s.job.Rcpts {
		if r.To == to && len(s.out) > i {
			s.last = &s.out[i]
			got := fmt.Sprintf("%s %s %s", fields[0], s.last.Disposition, s.last.Reason)
			if !s.last.Reply.IsZero() {
				got += " " + s.last.Reply.String()
			}
			if got != arg {
				return fmt.Errorf("got\n\t%s\nwant\n\t%s\nerror %v", got, arg, s.last.Err)
			}
			return nil
		}
	}
	return fmt.Errorf("no outcome for %s", fields[0])
}

func (s *script) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials = append(s.dials, addr)
	fail := func(err error) error { return &net.OpError{Op: "dial", Net: network, Err: err} }
	switch s.how[addr] {
	case "refuse":
		return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case "flaky":
		delete(s.how, addr)
		return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case "drop":
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return nil, fail(ctx.Err())
	}
	for _, p := range s.peers[addr] {
		if !p.used {
			p.used = true
			ours, theirs := net.Pipe()
			s.wg.Go(func() { s.play(p, theirs) })
			return ours, nil
		}
	}
	s.t.Errorf("unexpected connection to %s", addr)
	return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
}

// metricLines is every metric as "name{label="value"} value", a line each; of a histogram the count.
func metricLines(t *testing.T, reg *expvarom.Registry) string {
	families, err := reg.Gather()
	if err != nil {
		t.Error(err)
	}
	var b strings.Builder
	b.WriteString("\n")
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			v := m.GetCounter().GetValue() + m.GetUntyped().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			fmt.Fprintf(&b, "%s{%s} %v\n", f.GetName(), strings.Join(labels, ","), v)
		}
	}
	return b.String()
}

func linesWith(all, prefix string) string {
	var out string
	for l := range strings.Lines(all) {
		if strings.HasPrefix(l, prefix) && !strings.HasSuffix(l, " 0\n") {
			out += "\n" + strings.TrimSuffix(l, "\n")
		}
	}
	return out
}
