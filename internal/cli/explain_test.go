package cli

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
)

// TestO4Explain: aliases, routes and servers, by the code that delivers.
func TestO4Explain(t *testing.T) {
	dir, _ := setupDir(t, "-password=x")
	addTo("chasquid.conf", "route { domain: 'routed.example' via: 'relay.example:2525' }\n")(t, dir)
	writeFile(t, filepath.Join(dir, "domains/example.com/aliases"), "list: postmaster, far@other.example\nprog: | /bin/cat\nloop: loop\n")
	z := zone.MustNew("other.example MX 20 b.other.example\nother.example MX 10 a.other.example\na.other.example A 192.0.2.1\nb.other.example A 192.0.2.2\n" +
		"null.example MX 0 .\nrelay.example A 192.0.2.3\n")
	for _, c := range []struct {
		addr string
		says []string
	}{
		{"post.master+x@example.com", []string{"accepted from strangers: yes", "To postmaster@example.com\n  goes by local", "signed with: "}},
		{"postmaster", []string{"accepted from strangers: yes", "To postmaster@example.com\n"}},
		{"nobody@example.com", []string{"accepted from strangers: no, there is no such user"}},
		{"list@example.com", []string{"line 1 of domains/example.com/aliases: ", "To postmaster@example.com\n", "To far@other.example\n", "server a.other.example (preference 10): 192.0.2.1:25\n  server b.other.example (preference 20): 192.0.2.2:25\n"}},
		{"prog@example.com", []string{"To |/bin/cat\n"}},
		{"loop@example.com", []string{"error: ", "recursion limit exceeded"}},
		{"x@null.example", []string{"only authenticated users may send to it", "result: bounced (no_mx)"}},
		{"x@routed.example", []string{"server relay.example", "192.0.2.3:2525"}},
	} {
		r := run(t, Env{Resolver: z}, "chasquid", "explain", c.addr, "-C", dir)
		for _, w := range c.says {
			if r.exit != 0 || !strings.Contains(r.out, w) {
				t.Errorf("%s: exit %d %sdoes not say %q:\n%s", c.addr, r.exit, r.errout, w, r.out)
			}
		}
	}
	r := run(t, Env{Resolver: z}, "chasquid", "explain", "far@other.example", "-json", "-C", dir)
	var e explanation
	if err := json.Unmarshal([]byte(r.out), &e); err != nil || len(e.Recipients) != 1 || len(e.Recipients[0].Servers) != 2 {
		t.Errorf("%v: %s", err, r.out)
	}
	if r := run(t, Env{Resolver: z}, "chasquid", "explain", "<>", "-C", dir); r.exit != 2 {
		t.Errorf("the null address: exit %d", r.exit)
	}
}
