package acmecert

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"golang.org/x/crypto/acme"
)

// authority gives certificates without asking anybody.
type authority struct {
	t     *testing.T
	life  time.Duration
	asked []time.Time
	keys  []crypto.PublicKey
	fail  error
	host  string // gives it for this one instead
	wait  time.Duration

	panics bool

	mu sync.Mutex // the manager's goroutine holds it while it uses the fields
}

func (a *authority) obtain(ctx context.Context, req request) ([][]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked, a.keys = append(a.asked, time.Now()), append(a.keys, req.key.Public())
	if a.wait > 0 {
		a.mu.Unlock()
		timer := time.NewTimer(a.wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		a.mu.Lock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if a.panics {
		panic("of the library")
	}
	if a.fail != nil {
		return nil, a.fail
	}
	host := req.host
	if a.host != "" {
		host = a.host
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(len(a.asked))), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(a.life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, req.key.Public(), req.key)
	return [][]byte{der}, err
}

// world is a manager with a fake authority, for a bubble.
type world struct {
	authority
	fs      vfs.FS
	reg     *expvarom.Registry
	m       *Manager
	covered bool
	got     []Certificate
	stop    context.CancelFunc
}

func newWorld(t *testing.T) *world {
	return &world{authority: authority{t: t, life: 90 * 24 * time.Hour}, fs: vfs.NewMem()}
}

// start runs a manager until stop or the end of the test.
func (w *world) start(names ...string) {
	w.t.Helper()
	w.reg = expvarom.New()
	var err error
	w.m, err = New(Config{Dir: "data/acme", Names: names, DirectoryURL: "https://ca.test/", FS: w.fs, Metrics: w.reg, obtain: w.obtain,
		Covered: func(string) bool { defer w.locked()(); return w.covered }, Changed: func(l []Certificate) { defer w.locked()(); w.got = l }})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { w.m.Run(ctx); close(done) }()
	w.stop = func() { cancel(); <-done }
	w.t.Cleanup(w.stop)
	synctest.Wait()
}

func (w *world) locked() (unlock func()) {
	w.mu.Lock()
	return w.mu.Unlock
}

func (w *world) pass(d time.Duration) {
	w.locked()() // what the test has read and written stands before what happens now
	time.Sleep(d)
	synctest.Wait()
}

// gaps are the times between the requests.
func (w *world) gaps() (list []time.Duration) {
	for i := 1; i < len(w.asked); i++ {
		list = append(list, w.asked[i].Sub(w.asked[i-1]).Round(time.Second))
	}
	return list
}

// TestRenewal: a certificate is got at once, renewed after two thirds of its time, kept over restarts, and has the same key for good.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start("a.test", "b.test")
		if len(w.got) != 2 || w.got[0].Name != "a.test" || len(w.asked) != 2 {
			t.Fatalf("%v after %d requests", w.got, len(w.asked))
		}
		w.pass(59 * 24 * time.Hour)
		if len(w.asked) != 2 {
			t.Fatalf("asked %d times", len(w.asked))
		}
		w.stop()
		w.start("a.test", "b.test")
		if len(w.got) != 2 || len(w.asked) != 2 {
			t.Fatalf("after a restart: %d certificates, asked %d times", len(w.got), len(w.asked))
		}
		w.pass(2 * 24 * time.Hour)
		if len(w.asked) != 4 || !w.got[0].TLS.Leaf.NotAfter.After(time.Now().Add(85*24*time.Hour)) {
			t.Fatalf("asked %d times, %v", len(w.asked), w.got[0].TLS.Leaf.NotAfter)
		}
		if same := w.keys[0].(interface{ Equal(crypto.PublicKey) bool }); !same.Equal(w.keys[2]) || same.Equal(w.keys[1]) {
			t.Error("the key of a name changed, or two names have the same")
		}
	})
}

// TestBackoff: failures are told with what to do, and the longer they last the less is asked; the certificate in use stays.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail = &acme.AuthorizationError{Identifier: "a.test", Errors: []error{&acme.Error{StatusCode: 403, ProblemType: "urn:ietf:params:acme:error:unauthorized", Detail: "no\nproof"}}}
		w.start("a.test")
		w.pass(30 * time.Hour)
		want := "[1m0s 10m0s 1h0m0s 2h0m0s 6h0m0s 6h0m0s 6h0m0s 6h0m0s]"
		if got := fmt.Sprint(w.gaps()); got != want {
			t.Errorf("asked at intervals of %s, want %s", got, want)
		}
		st := w.m.Status()[0]
		if st.Err == nil || !strings.Contains(st.Err.Error(), "no proof") || !strings.Contains(remedy.Text(st.Err), "port 80 of a.test has to lead here") || st.Failures != 9 {
			t.Errorf("%+v %s", st, remedy.Text(st.Err))
		}
		// An operator need not wait. When it works, it works.
		n := len(w.asked)
		w.fail = nil
		w.m.Retry()
		w.pass(0)
		if st := w.m.Status()[0]; len(w.asked) != n+1 || st.Err != nil || st.Failures != 0 || len(w.got) != 1 {
			t.Errorf("asked %d times more, %+v", len(w.asked)-n, st)
		}
		// An outage at the time of the renewal: the old one is used, and asked for ever more often near its end.
		w.asked, w.fail = nil, errors.New("no route to host")
		old := w.got[0].TLS
		w.pass(89 * 24 * time.Hour)
		if n := len(w.asked); n < 100 || n > 150 || w.got[0].TLS != old {
			t.Errorf("asked %d times in the last third of the certificate's life", n)
		}
		for _, g := range w.gaps()[2:] {
			if g < 10*time.Minute {
				t.Errorf("after only %v", g)
			}
		}
	})
}

// TestRateLimit: what the authority asks for is done, whatever an operator or a restart wants.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail = fmt.Errorf("ordering: %w", &acme.Error{StatusCode: 429, ProblemType: "urn:ietf:params:acme:error:rateLimited", Detail: "too many", Header: http.Header{"Retry-After": {"36000"}}})
		w.start("a.test")
		if got := remedy.Text(w.m.Status()[0].Err); !strings.Contains(got, "wants us to wait") {
			t.Error(got)
		}
		w.m.Retry()
		w.pass(5 * time.Hour)
		w.stop()
		w.start("a.test")
		w.pass(4 * time.Hour)
		if len(w.asked) != 1 {
			t.Fatalf("asked %d times", len(w.asked))
		}
		w.pass(61 * time.Minute)
		if len(w.asked) != 2 {
			t.Errorf("asked %d times", len(w.asked))
		}
	})
}

// TestRestarts: a server that is restarted all the time asks once a minute at most.
func TestRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail = errors.New("no")
		for range 60 {
			w.start("a.test")
			w.pass(4 * time.Second)
			w.stop()
		}
		if n := len(w.asked); n < 3 || n > 5 {
			t.Errorf("asked %d times in 4 minutes", n)
		}
		// The same when it is killed while it asks.
		w.asked, w.fail, w.wait = nil, nil, time.Hour
		for range 60 {
			w.start("b.test")
			w.pass(4 * time.Second)
			w.stop()
		}
		if n := len(w.asked); n < 3 || n > 5 {
			t.Errorf("asked %d times in 4 minutes", n)
		}
	})
}

// TestCovered: nothing is asked for while certs/ has a certificate, and it is once that ends.
func TestCovered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.covered = true
		w.start("a.test")
		w.pass(time.Hour)
		if len(w.asked) != 0 || !w.m.Status()[0].Covered {
			t.Errorf("asked %d times, %+v", len(w.asked), w.m.Status())
		}
		w.covered = false
		w.pass(time.Minute)
		if len(w.asked) != 1 || len(w.got) != 1 {
			t.Errorf("asked %d times, got %v", len(w.asked), w.got)
		}
	})
}

// TestBadCertificates: what is for another name or time is not taken.
func TestBadCertificates(t *testing.T) {
	for _, c := range []struct {
		name, want string
		spoil      func(*world)
	}{
		{"other name", "for another name", func(w *world) { w.host = "b.test" }},
		{"ended", "is valid from", func(w *world) { w.life = time.Second }},
		{"panic", "panic: ", func(w *world) { w.panics = true }},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			c.spoil(w)
			w.start("a.test")
			if err := w.m.Status()[0].Err; err == nil || !strings.Contains(err.Error(), c.want) || len(w.got) != 0 {
				t.Errorf("%s: %v, %v", c.name, err, w.got)
			}
		})
	}
}

// TestOtherAuthority: a certificate of a test authority is replaced, and used until then.
func TestOtherAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start("a.test")
		w.stop()
		w.pass(time.Hour)
		m, err := New(Config{Dir: "data/acme", Names: []string{"a.test"}, DirectoryURL: "https://other.test/", FS: w.fs, obtain: w.obtain, Changed: func(l []Certificate) { w.got = l }})
		if err != nil || len(w.got) != 1 {
			t.Fatal(err, w.got)
		}
		if next := m.Status()[0].Next; next.After(time.Now()) {
			t.Errorf("asked only on %v", next)
		}
	})
}

// TestFiles: keys are for the server's user alone, and damaged files do not stop it.
func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "acme")
	a := &authority{t: t, life: time.Hour}
	run := func() (got []Certificate) {
		m, err := New(Config{Dir: dir, Names: []string{"a.test"}, DirectoryURL: "https://ca.test/", obtain: a.obtain, Changed: func(l []Certificate) { got = l }})
		if err != nil {
			t.Fatal(err)
		}
		m.names[0].try = attempts{}
		m.consider(t.Context(), m.names[0])
		return got
	}
	if got := run(); len(got) != 1 {
		t.Fatal(got)
	}
	err := filepath.WalkDir(filepath.Dir(dir), func(path string, d fs.DirEntry, err error) error {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, f := range []string{"a.test.pem", "attempts.json"} {
		if err := os.Truncate(filepath.Join(dir, f), 20); err != nil {
			t.Fatal(err)
		}
	}
	if got := run(); len(got) != 1 || len(a.asked) != 2 {
		t.Errorf("%v after %d requests", got, len(a.asked))
	}
	// A damaged account key is the operator's: making a new account by itself would lose the old one's.
	os.Remove(filepath.Join(dir, "a.test.pem"))
	if err := os.WriteFile(filepath.Join(dir, "account.key"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Dir: dir, Names: []string{"a.test"}, DirectoryURL: "https://ca.test/", obtain: a.obtain})
	if err != nil {
		t.Fatal(err)
	}
	m.names[0].try = attempts{}
	m.consider(t.Context(), m.names[0])
	if err := m.Status()[0].Err; err == nil || !strings.Contains(remedy.Text(err), "or remove it") {
		t.Errorf("%v%s", err, remedy.Text(err))
	}
}

// TestDirectory: a data directory that cannot be written to is told at start.
func TestDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{Dir: filepath.Join(file, "acme"), Names: []string{"a.test"}})
	if err == nil || remedy.Text(err) == "" {
		t.Errorf("%v%s", err, remedy.Text(err))
	}
}
