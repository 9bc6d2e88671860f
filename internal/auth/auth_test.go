package auth

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// fallback is a Backend that knows some passwords, and notes who was asked about.
type fallback struct {
	passwords map[string]string
	err       error
	asked     []string
}

func (f *fallback) Exists(_ context.Context, user string) (bool, error) {
	f.asked = append(f.asked, user)
	_, ok := f.passwords[user]
	return ok, f.err
}

func (f *fallback) Authenticate(_ context.Context, user, password string) (bool, error) {
	f.asked = append(f.asked, user)
	p, ok := f.passwords[user]
	return ok && p == password && f.err == nil, f.err
}

func (f *fallback) take() string {
	s := strings.Join(f.asked, " ")
	f.asked = nil
	return s
}

const usersText = `
	users: { key: "plain" value: { plain: { password: "secret" } } }
	users: { key: "deaf" value: { denied: {} } }
	users: { key: "ñandú" value: { plain: { password: "secret" } } }`

func fixture(t *testing.T, cfg Config) (*Authenticator, fstest.MapFS) {
	t.Helper()
	fsys := fstest.MapFS{"domains/d/users": &fstest.MapFile{Data: []byte(usersText)}}
	cfg.FS = fsys
	a := New(cfg)
	if err := a.Load(t.Context(), []File{{"d.test", "domains/d/users"}, {"empty.test", "domains/e/users"}}); err != nil {
		t.Fatal(err)
	}
	return a, fsys
}

func TestAuthenticate(t *testing.T) {
	dc := &fallback{passwords: map[string]string{
		"plain@d.test": "other", "deaf@d.test": "secret", "only@dovecot.test": "secret", "naked": "secret", "only@d.test": "secret",
	}}
	a, _ := fixture(t, Config{Fallback: dc})
	alone, _ := fixture(t, Config{})
	for _, c := range []struct {
		user, password string
		want           string // ok, backend; without the fallback; who the fallback was asked about
	}{
		{"plain@d.test", "secret", "true userdb; true userdb; "},
		{"plain@d.test", "wrong", "false userdb; false userdb; plain@d.test"}, // SMTP-27
		{"plain@d.test", "other", "true dovecot; false userdb; plain@d.test"},
		{"ñandú@d.test", "secret", "true userdb; true userdb; "},
		{"deaf@d.test", "secret", "false userdb; false userdb; deaf@d.test"}, // never a success by the fallback
		{"deaf@d.test", "", "false userdb; false userdb; deaf@d.test"},
		{"nobody@d.test", "secret", "false dovecot; false userdb; nobody@d.test"},
		{"only@d.test", "secret", "true dovecot; false userdb; only@d.test"},
		{"only@dovecot.test", "secret", "true dovecot; false none; only@dovecot.test"},
		{"x@empty.test", "secret", "false dovecot; false none; x@empty.test"},
		{"naked", "secret", "true dovecot; false none; naked"}, // SMTP-26
	} {
		ok, backend, err := a.Authenticate(t.Context(), address.MustParse(c.user), c.password)
		ok2, backend2, err2 := alone.Authenticate(t.Context(), address.MustParse(c.user), c.password)
		got := fmt.Sprintf("%v %s; %v %s; %s", ok, backend, ok2, backend2, dc.take())
		if got != c.want || err != nil || err2 != nil {
			t.Errorf("%s, %q: %s, %v, %v; want %s", c.user, c.password, got, err, err2, c.want)
		}
	}
}

func TestBackendErrors(t *testing.T) {
	down := errors.New("backend down")
	a, fsys := fixture(t, Config{Fallback: &fallback{err: down}})
	for _, u := range []string{"plain@d.test", "nobody@d.test", "x@other.test"} {
		if ok, _, err := a.Authenticate(t.Context(), address.MustParse(u), "wrong"); ok || !errors.Is(err, down) {
			t.Errorf("%s: %v, %v", u, ok, err)
		}
	}
	if ok, _, err := a.Authenticate(t.Context(), address.MustParse("plain@d.test"), "secret"); !ok || err != nil {
		t.Errorf("the file says yes, nobody else is needed: %v, %v", ok, err)
	}
	if ok, err := a.Exists(t.Context(), address.MustParse("nobody@d.test")); ok || !errors.Is(err, down) {
		t.Errorf("Exists: %v, %v", ok, err)
	}
	// A new domain with a bad file: we cannot say that its users do not exist.
	fsys["domains/n/users"] = &fstest.MapFile{Data: []byte("bad")}
	if err := a.Load(t.Context(), []File{{"n.test", "domains/n/users"}}); err == nil {
		t.Error("no error")
	}
	if _, err := a.Exists(t.Context(), address.MustParse("x@n.test")); err == nil {
		t.Error("Exists says something")
	}
	if _, _, err := a.Authenticate(t.Context(), address.MustParse("x@n.test"), "p"); err == nil {
		t.Error("Authenticate says something")
	}
}

func TestExists(t *testing.T) { // SMTP-36 d, e
	dc := &fallback{passwords: map[string]string{"only@d.test": "", "deaf@d.test": ""}}
	a, _ := fixture(t, Config{Fallback: dc})
	for user, want := range map[string]string{
		"plain@d.test": "true ", "deaf@d.test": "true ", "ñandú@d.test": "true ", "only@d.test": "true only@d.test",
		"nobody@d.test": "false nobody@d.test", "x@elsewhere.test": "false x@elsewhere.test",
	} {
		ok, err := a.Exists(t.Context(), address.MustParse(user))
		if got := fmt.Sprint(ok, " ", dc.take()); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", user, got, err, want)
		}
	}
	if u, ok := a.First("d.test"); !ok || u.String() != "deaf@d.test" {
		t.Errorf("First: %v, %v", u, ok)
	}
	if _, ok := a.First("empty.test"); ok || a.Count("d.test") != 3 || a.Count("none.test") != 0 {
		t.Error("First or Count of an empty domain")
	}
}

// N-2: a bad file keeps the last good users, says file and line, and disturbs no other domain.
func TestReload(t *testing.T) {
	a, fsys := fixture(t, Config{})
	fsys["domains/d/users"] = &fstest.MapFile{Data: []byte("users: {\n key: 'new'\n value: { nonsense: 1 } }")}
	fsys["domains/e/users"] = &fstest.MapFile{Data: []byte("users: { key: 'new' value: { denied: {} } }")}
	err := a.Reload(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), `users file error: "domains/d/users" line 3: unknown field`) {
		t.Errorf("error: %v", err)
	}
	if a.Count("d.test") != 3 || a.Count("empty.test") != 1 {
		t.Errorf("%d and %d users", a.Count("d.test"), a.Count("empty.test"))
	}
	delete(fsys, "domains/d/users")
	if err := a.Reload(t.Context()); err != nil || a.Count("d.test") != 0 {
		t.Errorf("file gone: %v, %d users", err, a.Count("d.test"))
	}
	fsys["domains/d/users"] = &fstest.MapFile{Data: []byte(usersText)}
	if err := a.Reload(t.Context()); err != nil || a.Count("d.test") != 3 {
		t.Errorf("file back: %v, %d users", err, a.Count("d.test"))
	}
}

func TestParseIdentity(t *testing.T) { // SMTP-26, C80
	for in, want := range map[string]address.Address{
		"User@D.TEST": {Local: "user", Domain: "d.test"}, "user": {Local: "user"}, "ÑANDÚ@Ñ.test": {Local: "ñandú", Domain: "ñ.test"},
	} {
		if got, err := ParseIdentity(in); got != want || err != nil {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "@d.test", "u@", "a b@d.test", "u@a@b", "u\x00@d.test", "\xff"} {
		if got, err := ParseIdentity(in); err == nil || got != (address.Address{}) {
			t.Errorf("%q: %v", in, got)
		}
	}
}

// D21: however many try at once, few hashes are computed at once, and who gives up waiting costs nothing.
func TestD21HashesAreBounded(t *testing.T) {
	a, _ := fixture(t, Config{Hashes: 1})
	a.hashes <- struct{}{} // the only slot is taken
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var failed atomic.Int32
	for range 64 {
		wg.Go(func() {
			if ok, _, err := a.Authenticate(ctx, address.MustParse("plain@d.test"), "secret"); !ok && errors.Is(err, context.Canceled) {
				failed.Add(1)
			}
		})
	}
	cancel()
	wg.Wait()
	if failed.Load() != 64 {
		t.Errorf("%d of 64 waited", failed.Load())
	}
	<-a.hashes
	if ok, _, err := a.Authenticate(t.Context(), address.MustParse("plain@d.test"), "secret"); !ok || err != nil {
		t.Errorf("afterwards: %v, %v", ok, err)
	}
	if b, _ := fixture(t, Config{}); cap(b.hashes) != 2*runtime.GOMAXPROCS(0) {
		t.Errorf("%d at once by default", cap(b.hashes))
	}
}
