package dovecot

import (
	"strings"
	"testing"
	"time"
)

// TestN2SetPaths: requests go to the new sockets from then on, and what was asked at the old ones is answered.
func TestN2SetPaths(t *testing.T) {
	asked, release := make(chan string, 1), make(chan struct{})
	old := serve(t, clientGreeting, func(_ int, line string) string {
		if !strings.HasPrefix(line, "AUTH") {
			return ""
		}
		asked <- strings.Split(line, "\t")[1]
		<-release
		return "OK\t1\n"
	})
	next := serve(t, clientGreeting, script("AUTH", "FAIL\t%s\n"))
	cl := client(t, old, old, 30*time.Second)
	slow := make(chan bool)
	go func() {
		ok, err := cl.Authenticate(t.Context(), "user", "secret")
		slow <- ok && err == nil
	}()
	<-asked
	cl.SetPaths(next.path(), next.path())
	if ok, err := cl.Authenticate(t.Context(), "user", "secret"); ok || err != nil {
		t.Errorf("after the change: %v, %v, want the new server's no", ok, err)
	}
	cl.Rest()
	if ok, err := cl.Authenticate(t.Context(), "user", "secret"); ok || err != nil {
		t.Errorf("after a rest: %v, %v", ok, err)
	}
	close(release)
	if !<-slow {
		t.Error("the request under way at the old server got no answer")
	}
}
