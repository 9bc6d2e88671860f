package supervise

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// notifySocket is systemd's end: a datagram socket named in the environment.
func notifySocket(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// TestO7States: each state arrives at systemd's socket in the form of sd_notify(3).
func TestO7States(t *testing.T) {
	c := notifySocket(t)
	s := New(FromEnvironment())
	for _, step := range []struct {
		say  func()
		want string
	}{
		{func() { s.Ready("serving 3\naddresses") }, "READY=1\nSTATUS=serving 3 addresses"},
		{s.Reloading, "RELOADING=1\nMONOTONIC_USEC="},
		{func() { s.Ready("") }, "READY=1\nSTATUS="},
		{s.Stopping, "STOPPING=1\nSTATUS="},
		{func() { s.Handover(4711) }, "MAINPID=4711\nREADY=1"},
	} {
		step.say()
		if got := receive(t, c); !strings.HasPrefix(got, step.want) {
			t.Errorf("got %q, want %q", got, step.want)
		}
	}
}

// TestQuiet: who has handed over says no more, as systemd would take it for the new process's.
func TestQuiet(t *testing.T) {
	c := notifySocket(t)
	s := New(FromEnvironment())
	s.Handover(4711)
	s.Stopping()
	New(FromEnvironment()).Status("next")
	for _, want := range []string{"MAINPID=4711\nREADY=1", "STATUS=next"} {
		if got := receive(t, c); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestWatchdogEnvironment: the watchdog is fed only where systemd asks this process for it.
func TestWatchdogEnvironment(t *testing.T) {
	c := notifySocket(t)
	t.Setenv("WATCHDOG_USEC", "200000")
	t.Setenv("WATCHDOG_PID", "1")
	if got := FromEnvironment().Every; got != 0 {
		t.Errorf("fed for another process: %v", got)
	}
	os.Unsetenv("WATCHDOG_PID")
	cfg := FromEnvironment()
	if cfg.Every != 200*time.Millisecond {
		t.Fatalf("every %v", cfg.Every)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { New(cfg).Run(ctx) })
	for range 3 {
		if got := receive(t, c); got != "WATCHDOG=1" {
			t.Errorf("got %q", got)
		}
	}
	cancel()
	wg.Wait()
}

// TestNotUnderSystemd: without a socket, and with no supervisor at all, nothing happens and nothing fails.
func TestNotUnderSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	for _, s := range []*Supervisor{nil, New(Config{}), New(FromEnvironment())} {
		s.Ready("x")
		s.Reloading()
		s.Stopping()
		s.Run(t.Context())
	}
}

// TestWatchdogStarves: fed twice in the time allowed while every probe finds progress, and not at all while one is stuck or hangs.
func TestWatchdogStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fed, told atomic.Int32
		var state atomic.Value
		state.Store("well")
		s := New(Config{
			Every: time.Minute,
			Send: func(m string) error {
				if strings.Contains(m, "WATCHDOG=1") {
					fed.Add(1)
				}
				if strings.Contains(m, "STATUS=stuck: the disk makes no progress") {
					told.Add(1)
				}
				return nil
			},
			Probes: []Probe{
				{"the scheduler", func(context.Context) error { return nil }},
				{"the disk", func(ctx context.Context) error {
					switch state.Load() {
					case "stuck":
						return errors.New("no flush for a minute")
					case "hangs":
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				}},
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		for _, phase := range []struct {
			state     string
			fed, told bool
		}{{"well", true, false}, {"stuck", false, true}, {"well", true, false}, {"hangs", false, true}, {"well", true, false}} {
			state.Store(phase.state)
			time.Sleep(31 * time.Second) // until what was under way is over
			f, n := fed.Load(), told.Load()
			time.Sleep(5 * time.Minute)
			if d := fed.Load() - f; phase.fed && d != 10 || !phase.fed && d != 0 {
				t.Errorf("%s: fed %d times in five minutes", phase.state, d)
			}
			if d := told.Load() - n; (d > 0) != phase.told {
				t.Errorf("%s: told %d times", phase.state, d)
			}
		}
		cancel()
		synctest.Wait()
	})
}
