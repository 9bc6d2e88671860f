package courier

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// The end of the context ends the attempt at once, whatever it waits for, and leaves everybody deferred and nobody behind.
func TestCancel(t *testing.T) {
	for name, said := range map[string]string{
		"connect":  "",
		"greeting": "\n",
		"EHLO":     "220 mx\r\n",
		"MAIL":     "220 mx\r\n250 mx\r\n",
		"group":    "220 mx\r\n250-mx\r\n250 PIPELINING\r\n250 ok\r\n",
		"end":      "220 mx\r\n250 mx\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := NewSMTP(Config{Hostname: "me.test",
				Resolver: zone.MustNew("example.org MX 10 mx1.test\nexample.org MX 20 mx2.test\nmx1.test A 192.0.2.1\nmx2.test A 192.0.2.2\nmx1.test A 192.0.2.3\n"),
				Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
					if said == "" {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					ours, theirs := net.Pipe()
					go func() {
						newDrained(theirs)
						if said != "\n" {
							theirs.Write([]byte(said))
						}
					}()
					return ours, nil
				}})
			begin := time.Now()
			time.AfterFunc(20*time.Second, func() { cancel(errors.New("shutting down")) })
			out := s.Deliver(ctx, sinkJob(messageOf(100), 2))
			if d := time.Since(begin); d != 20*time.Second {
				t.Errorf("%s: returned after %v", name, d)
			}
			for _, o := range out {
				if o.Disposition != mail.Deferred || o.Reason != mail.ReasonInternal || !strings.Contains(o.Err.Error(), "shutting down") {
					t.Errorf("%s: %+v", name, o)
				}
			}
			if len(s.pool.idle) != 0 {
				t.Errorf("%s: a connection of a cancelled attempt is kept", name)
			}
			s.Close()
		})
	}
	s := NewSMTP(Config{Hostname: "me.test", Resolver: zone.MustNew("example.org A 192.0.2.1\n"), Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialled after the end")
		return nil, net.ErrClosed
	}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if o := s.Deliver(ctx, sinkJob(messageOf(100), 1))[0]; o.Disposition != mail.Deferred || o.Err == nil {
		t.Errorf("%+v", o)
	}
}
