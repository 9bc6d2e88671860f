package cli

import (
	"context"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
	"blitiri.com.ar/go/chasquid/internal/opctl"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// TestLevel shows what is known of a domain, and makes and ends an exception.
func TestLevel(t *testing.T) {
	dir := configDir(t, "data_dir: \".\"\n")
	db, err := domaininfo.Open(t.Context(), domaininfo.Config{Dir: filepath.Join(dir, "domaininfo")})
	if err != nil {
		t.Fatal(err)
	}
	db.RecordOutgoing(t.Context(), "example.org", tlspolicy.TLSSecure)
	methods := opctl.Methods(someQueue(), nil, nil)
	maps.Copy(methods, opctl.LevelMethods(db))
	srv, err := control.Listen(control.Config{Path: filepath.Join(dir, control.SocketName), Methods: methods})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx) })
	defer func() { stop(); wg.Wait() }()

	for _, c := range []struct {
		line string
		exit int
		says string
	}{
		{"level ls", 0, "example.org  PLAIN     TLS_SECURE"},
		{"level ls Example.ORG -json", 0, `"outgoing": "TLS_SECURE"`},
		{"level ls other.example", 1, "does not exist"},
		{"level allow example.org -for=2h", 0, "may go at any TLS level until"},
		{"level allow bad/domain", 1, "invalid domain name"},
		{"level ls", 0, "until 2"},
	} {
		r := run(t, Env{}, append([]string{"chasquid"}, append(strings.Fields(c.line), "-C="+dir)...)...)
		if r.exit != c.exit || !strings.Contains(r.out+r.errout, c.says) {
			t.Errorf("%s: exit %d\n%s%s", c.line, r.exit, r.out, r.errout)
		}
	}
	if e, _ := db.Lookup("example.org"); time.Until(e.Override) < time.Hour || time.Until(e.Override) > 2*time.Hour {
		t.Errorf("the exception ends at %v", e.Override)
	}
	if r := run(t, Env{}, "chasquid", "level", "allow", "example.org", "-for=0s", "-C", dir); r.exit != 0 {
		t.Errorf("exit %d: %s", r.exit, r.errout)
	}
	if e, _ := db.Lookup("example.org"); !e.Override.IsZero() {
		t.Errorf("the exception goes on until %v", e.Override)
	}
}
