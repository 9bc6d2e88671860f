package dns

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestFirstLook: whoever asks while the system's files are read for the first time waits for them, and does not go on with nothing.
func TestFirstLook(t *testing.T) {
	dir := t.TempDir()
	resolv, hosts := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	for file, text := range map[string]string{resolv: "nameserver 192.0.2.1\n", hosts: "192.0.2.2 here.test\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		l := newServerList(Config{ResolvConf: resolv})
		h := &hostsFile{path: hosts}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 8 {
			wg.Go(func() {
				<-start
				if s := l.current().servers; len(s) != 1 || s[0].addr != "192.0.2.1:53" {
					t.Errorf("asked %v", s)
				}
				if ips := h.lookup("here.test"); len(ips) != 1 {
					t.Errorf("the hosts file has %v", ips)
				}
			})
		}
		close(start)
		wg.Wait()
	}
}
