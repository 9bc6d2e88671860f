package control

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), SocketName)
	s, err := Listen(Config{Path: path, Methods: map[string]Method{
		"Echo": func(_ context.Context, v url.Values) (url.Values, error) { return v, nil },
		"Fail": func(context.Context, url.Values) (url.Values, error) {
			return nil, errors.New("does not exist\r\n200 ok")
		},
		"Panic": func(context.Context, url.Values) (url.Values, error) { panic("boom") },
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

// TestRPC2 pins the bytes on the socket that existing scripts exchange.
func TestRPC2(t *testing.T) {
	path := serve(t)
	for request, want := range map[string]string{
		"Echo Address=a%40b&Address=c\n": "200 Address=a%40b&Address=c\r\n",
		"Echo z=1&a=%28email%29\r\n":     "200 a=%28email%29&z=1\r\n",
		"Echo\n":                         "200 \r\n",
		"Echo a;b\n":                     "500 invalid semicolon separator in query\r\n",
		"Nothing x=1\n":                  "500 unknown method\r\n",
		"Fail\n":                         "500 does not exist  200 ok\r\n",
		"Panic\n":                        "500 internal error; the log has the details\r\n",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write([]byte(request))
		got, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", request, got, err, want)
		}
		c.Close()
	}
}

// TestHostile sends an endless line and garbage; the server must go on answering.
func TestHostile(t *testing.T) {
	path := serve(t)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write([]byte(strings.Repeat("x", 2*maxRequest)))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("an endless line was answered with %d bytes", n)
	}
	if v, err := Call(t.Context(), path, "Echo", url.Values{"a": {"b"}}); err != nil || v.Get("a") != "b" {
		t.Errorf("Call: %v %v", v, err)
	}
	var remote RemoteError
	if _, err := Call(t.Context(), path, "Fail", nil); !errors.As(err, &remote) {
		t.Errorf("Call of a failing method: %v", err)
	}
}

// TestSocket checks the mode, and that a socket left behind is replaced but a directory is not.
func TestSocket(t *testing.T) {
	path := serve(t)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0660 {
		t.Errorf("socket: %v %v", st.Mode(), err)
	}
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.MkdirAll(filepath.Join(dir, "x"), 0755); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Config{Path: dir}); err == nil {
		t.Error("a directory was replaced by a socket")
	}
}
