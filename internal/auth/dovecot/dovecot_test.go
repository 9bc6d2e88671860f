package dovecot

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// server is a scripted Dovecot: each connection gets the greeting, then what answer returns for each line read.
type server struct {
	l      net.Listener
	mu     sync.Mutex
	lines  []string // everything read
	conns  int
	answer func(conn int, line string) string // "" for silence, "close" to hang up
}

func serve(t *testing.T, greeting string, answer func(conn int, line string) string) *server {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &server{l: l, answer: answer}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = n
			s.mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer conn.Close()
				s.talk(conn, n, greeting)
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return s
}

func (s *server) talk(conn net.Conn, n int, greeting string) {
	io.WriteString(conn, greeting)
	for sc := bufio.NewScanner(conn); sc.Scan(); {
		s.mu.Lock()
		s.lines = append(s.lines, sc.Text())
		s.mu.Unlock()
		switch a := s.answer(n, sc.Text()); a {
		case "close":
			return
		default:
			io.WriteString(conn, a)
		}
	}
}

func (s *server) path() string { return s.l.Addr().String() }

func (s *server) transcript() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

const (
	masterGreeting = "VERSION\t1\t1\nSPID\t123\n"
	clientGreeting = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t123\nCUID\t1\nCOOKIE\tabc\nDONE\n"
)

// script answers a line by its verb; %s is the id.
func script(verb, reply string) func(int, string) string {
	return func(_ int, line string) string {
		if words := strings.Split(line, "\t"); words[0] == verb {
			return strings.ReplaceAll(reply, "%s", words[1])
		}
		return ""
	}
}

func client(t *testing.T, users, password *server, timeout time.Duration) *Client {
	c := New(Config{UserDB: users.path(), Client: password.path(), Timeout: timeout})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestReplies(t *testing.T) { // DOV-2, DOV-3
	for _, c := range []struct {
		exists, auth string // the reply to each
		want         string
		wantErr      bool
	}{
		{"USER\t%s\tu@d\tuid=1\n", "OK\t%s\tuser=u@d\n", "true", false},
		{"USER\t%s\tu@d\n", "OK\t%s\n", "true", false},
		{"NOTFOUND\t%s\n", "FAIL\t%s\tuser=u@d\n", "false", false},
		{"FAIL\t%s\treason=x\n", "FAIL\t%s\tuser=u@d\ttemp\n", "false", true},
		{"WHAT\t%s\n", "CONT\t%s\t\n", "false", true},
		{"garbage\n", "garbage\n", "false", true},
		{"USER\tx\n", "OK\t\n", "false", true},
		{"USER\t99\n", "OK\t99\n", "false", true},
		{"close", "close", "false", true},
		{strings.Repeat("x", maxLine+10) + "\n", strings.Repeat("x", 2*maxLine), "false", true},
	} {
		users := serve(t, masterGreeting, script("USER", c.exists))
		password := serve(t, clientGreeting, script("AUTH", c.auth))
		cl := client(t, users, password, 5*time.Second)
		ok, err := cl.Exists(t.Context(), "u@d")
		if fmt.Sprint(ok) != c.want || (err != nil) != c.wantErr {
			t.Errorf("%.20q: %v, %v", c.exists, ok, err)
		}
		ok, err = cl.Authenticate(t.Context(), "u@d", "sec\x00ret")
		if fmt.Sprint(ok) != c.want || (err != nil) != c.wantErr {
			t.Errorf("%.20q: %v, %v", c.auth, ok, err)
		}
	}
}

func TestRequests(t *testing.T) {
	users := serve(t, masterGreeting, script("USER", "USER\t%s\n"))
	password := serve(t, clientGreeting, script("AUTH", "OK\t%s\n"))
	cl := client(t, users, password, 5*time.Second)
	for _, u := range []string{"u@ñ.test", "v"} {
		if ok, err := cl.Exists(t.Context(), u); !ok || err != nil {
			t.Errorf("%s: %v, %v", u, ok, err)
		}
		if ok, err := cl.Authenticate(t.Context(), u, "p"); !ok || err != nil {
			t.Errorf("%s: %v, %v", u, ok, err)
		}
	}
	if got, want := users.transcript(), "VERSION\t1\t1\nUSER\t1\tu@ñ.test\tservice=smtp\nUSER\t2\tv\tservice=smtp"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
	resp := func(u string) string {
		return base64.StdEncoding.EncodeToString([]byte(u + "\x00" + u + "\x00p"))
	}
	got := strings.Split(password.transcript(), "\n")
	if len(got) != 4 || got[0] != "VERSION\t1\t1" || !strings.HasPrefix(got[1], "CPID\t") ||
		got[2] != "AUTH\t1\tPLAIN\tservice=smtp\tsecured\tno-penalty\tnologin\tresp="+resp("u@ñ.test") ||
		got[3] != "AUTH\t2\tPLAIN\tservice=smtp\tsecured\tno-penalty\tnologin\tresp="+resp("v") {
		t.Errorf("sent %q", got)
	}
	if users.conns != 1 || password.conns != 1 {
		t.Errorf("%d and %d connections", users.conns, password.conns)
	}
}

func TestBadUsers(t *testing.T) { // DOV-4
	cl := New(Config{Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("Dovecot was contacted")
		return nil, io.EOF
	}})
	defer cl.Close()
	for _, u := range []string{"", "a b", "a\tb", "a\nb", "a\x00b", "a\u2003b", strings.Repeat("a", 1001)} {
		if ok, err := cl.Exists(t.Context(), u); ok || err == nil {
			t.Errorf("Exists(%q) = %v, %v", u, ok, err)
		}
		if ok, err := cl.Authenticate(t.Context(), u, "p"); ok || err == nil {
			t.Errorf("Authenticate(%q) = %v, %v", u, ok, err)
		}
	}
	if ok, err := cl.Authenticate(t.Context(), "u", strings.Repeat("p", maxRequest)); ok || err != nil {
		t.Errorf("a password longer than a line: %v, %v", ok, err)
	}
}

// A server that takes one request a connection, or was restarted, is asked again over a new one.
func TestReconnect(t *testing.T) {
	users := serve(t, masterGreeting, func(n int, line string) string {
		if strings.HasPrefix(line, "USER\t2") {
			return "close"
		}
		return script("USER", "USER\t%s\n")(n, line)
	})
	cl := client(t, users, users, 5*time.Second)
	for i := range 4 {
		if ok, err := cl.Exists(t.Context(), "u"); !ok || err != nil {
			t.Errorf("request %d: %v, %v", i, ok, err)
		}
	}
	if users.conns != 4 {
		t.Errorf("%d connections", users.conns)
	}
}

// The delayed answer to a wrong password delays nobody else.
func TestNobodyWaitsBehindAFailure(t *testing.T) {
	release := make(chan string, 1)
	password := serve(t, clientGreeting, func(n int, line string) string {
		id := strings.Split(line, "\t")[1]
		switch {
		case !strings.HasPrefix(line, "AUTH"):
			return ""
		case id == "1":
			release <- id
			return ""
		}
		return "OK\t" + id + "\nFAIL\t" + <-release + "\n"
	})
	cl := client(t, password, password, 30*time.Second)
	slow := make(chan error)
	go func() {
		ok, err := cl.Authenticate(t.Context(), "bad", "guess")
		if ok && err == nil {
			err = errors.New("accepted")
		}
		slow <- err
	}()
	for len(release) == 0 {
		time.Sleep(time.Millisecond) // until the server has the first request
	}
	if ok, err := cl.Authenticate(t.Context(), "good", "secret"); !ok || err != nil {
		t.Errorf("the good one: %v, %v", ok, err)
	}
	if err := <-slow; err != nil {
		t.Errorf("the bad one: %v", err)
	}
}

func TestSilence(t *testing.T) {
	for name, s := range map[string]*server{
		"no greeting": serve(t, "", func(int, string) string { return "" }),
		"endless":     serve(t, strings.Repeat("VERSION\t1\t1\n", 2*maxHandshake), func(int, string) string { return "" }),
		"version 2":   serve(t, "VERSION\t2\t0\nSPID\t1\nDONE\n", func(int, string) string { return "" }),
		"no version":  serve(t, "SPID\t1\nDONE\n", func(int, string) string { return "" }),
		"no reply":    serve(t, "VERSION\t1\t1\nSPID\t1\nDONE\n", func(int, string) string { return "" }),
	} {
		cl := client(t, s, s, 100*time.Millisecond) // enough to connect on a busy machine
		for range 2 {
			if ok, err := cl.Exists(t.Context(), "u"); ok || err == nil {
				t.Errorf("%s: Exists %v, %v", name, ok, err)
			}
			if ok, err := cl.Authenticate(t.Context(), "u", "p"); ok || err == nil {
				t.Errorf("%s: Authenticate %v, %v", name, ok, err)
			}
		}
		if name == "no reply" && s.conns != 4 {
			t.Errorf("a connection that says nothing was kept: %d made", s.conns)
		}
	}
}

func TestContextEnds(t *testing.T) {
	started := make(chan struct{})
	s := serve(t, masterGreeting, func(_ int, line string) string {
		if strings.HasPrefix(line, "USER\t1") {
			close(started)
		} else if strings.HasPrefix(line, "USER") {
			return "USER\t1\nUSER\t2\n"
		}
		return ""
	})
	cl := client(t, s, s, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if ok, err := cl.Exists(ctx, "u"); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", ok, err)
	}
	if ok, err := cl.Exists(t.Context(), "u"); !ok || err != nil || s.conns != 1 { // a late answer confuses nobody
		t.Errorf("%v, %v, %d connections", ok, err, s.conns)
	}
}

func TestFind(t *testing.T) { // DOV-1
	users := serve(t, masterGreeting, script("USER", "USER\t%s\n"))
	password := serve(t, clientGreeting, script("AUTH", "OK\t%s\n"))
	var mu sync.Mutex
	up := map[string]bool{}
	var dialled []string
	cl := New(Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		dialled = append(dialled, filepath.Base(addr))
		if !up[addr] {
			return nil, errors.New("refused")
		}
		if slices.Contains(userdbPaths, addr) {
			return net.Dial(network, users.path())
		}
		return net.Dial(network, password.path())
	}})
	defer cl.Close()
	if _, err := cl.Exists(t.Context(), "u"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	up[userdbPaths[1]] = true
	if err := cl.Probe(t.Context()); !errors.Is(err, ErrNotFound) { // both must be found
		t.Errorf("half there: %v", err)
	}
	up[clientPaths[0]] = true
	if err := cl.Probe(t.Context()); err != nil {
		t.Errorf("both there: %v", err)
	}
	up[userdbPaths[0]] = true
	dialled = nil
	if ok, err := cl.Exists(t.Context(), "u"); !ok || err != nil || len(dialled) != 0 { // pinned, connected
		t.Errorf("%v, %v, dialled %v", ok, err, dialled)
	}
}

func TestClose(t *testing.T) {
	s := serve(t, masterGreeting, script("USER", "USER\t%s\n"))
	cl := client(t, s, s, time.Minute)
	if ok, err := cl.Exists(t.Context(), "u"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	cl.Close()
	if _, err := cl.Exists(t.Context(), "u"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzReplies(f *testing.F) {
	f.Add("VERSION\t1\t1\nSPID\t1\nDONE\n", "USER\t1\t\nOK\t1\n")
	f.Add("\n\n", "\t\t\n")
	f.Fuzz(func(t *testing.T, greeting, text string) {
		if err := readGreeting(bufio.NewReader(strings.NewReader(greeting)), "DONE"); err == nil && !strings.Contains(greeting, "VERSION\t1") {
			t.Fatalf("%q is a greeting", greeting)
		}
		a, b := net.Pipe()
		defer b.Close()
		l := &link{conn: a, pending: map[uint32]chan reply{1: make(chan reply, 1)}, last: 1}
		l.read(bufio.NewReader(strings.NewReader(text)))
		if l.broken() == nil || len(l.pending) != 0 {
			t.Fatalf("%q: still waiting", text)
		}
	})
}
