package aliases

import (
	"blitiri.com.ar/go/chasquid/internal/address"
	"strings"
	"testing"
	"testing/fstest"
)

// TestN2OtherRules: other suffix and drop characters read the files anew, all of them or none; a transaction keeps those it began with.
func TestN2OtherRules(t *testing.T) {
	w := &world{users: []string{"user@d.test"}, files: map[string]string{"d.test": "a.b: user\nx: user"},
		cfg: Config{Settings: Settings{SuffixSeparators: "+"}}}
	r := w.resolver(t)
	resolve := func(addr string) string { return exists(t, r, addr) }
	before := Pin(t.Context())
	if ok, _ := r.Exists(before, address.MustParse("x+tag@d.test")); !ok {
		t.Error("x+tag is not known at first")
	}
	w.fsys["domains/d.test/aliases"] = &fstest.MapFile{Data: []byte("bad")}
	if _, err := r.Prepare(t.Context(), Settings{SuffixSeparators: "-", DropCharacters: "."}); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Fatalf("with a bad file: %v", err)
	}
	if got := resolve("x+tag@d.test") + resolve("ab@d.test"); got != "yesno" {
		t.Errorf("after the failure: %s", got)
	}
	if apply, err := r.Prepare(t.Context(), Settings{SuffixSeparators: "+"}); err != nil {
		t.Errorf("rules that stay need no good file: %v", err)
	} else {
		apply()
	}
	w.fsys["domains/d.test/aliases"] = &fstest.MapFile{Data: []byte("a.b: user\nx: user")}
	apply, err := r.Prepare(t.Context(), Settings{SuffixSeparators: "-", DropCharacters: "."})
	if err != nil {
		t.Fatal(err)
	}
	if got := resolve("x+tag@d.test") + resolve("x-tag@d.test"); got != "yesno" {
		t.Errorf("before apply: %s", got)
	}
	apply()
	if got := resolve("x+tag@d.test") + resolve("x-tag@d.test") + resolve("ab@d.test"); got != "noyesyes" {
		t.Errorf("after apply: %s", got)
	}
	if ok, _ := r.Exists(before, address.MustParse("x+tag@d.test")); !ok {
		t.Error("the transaction that began before does not see what it saw")
	}
	if err := r.Reload(t.Context()); err != nil || resolve("ab@d.test") != "yes" {
		t.Errorf("after a reload of the files: %v, %s", err, resolve("ab@d.test"))
	}
}
