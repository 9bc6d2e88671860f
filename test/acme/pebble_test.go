// Package acme runs the server against a real ACME authority, Pebble.
package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/test/harness"
	"blitiri.com.ar/go/chasquid/test/patience"
)

// limit is how long anything may take.
var limit = patience.Limit(10 * time.Second)

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(filepath.Dir(pebblePath))
	os.Exit(code)
}

var (
	pebbleOnce sync.Once
	pebblePath string
	pebbleErr  error
)

// pebbleBinary builds the authority once for the test process; its module names the version.
func pebbleBinary(t *testing.T) string {
	t.Helper()
	pebbleOnce.Do(func() {
		dir, err := os.MkdirTemp("", "pebble")
		if err != nil {
			pebbleErr = err
			return
		}
		pebblePath = filepath.Join(dir, "pebble")
		cmd := exec.Command("go", "build", "-o", pebblePath, "github.com/letsencrypt/pebble/v2/cmd/pebble")
		cmd.Dir = "pebble"
		if out, err := cmd.CombinedOutput(); err != nil {
			pebbleErr = fmt.Errorf("building pebble: %w\n%s", err, out)
		}
	})
	if pebbleErr != nil {
		t.Fatal(pebbleErr)
	}
	return pebblePath
}

// authority is one Pebble, with a DNS in which names lead to this machine.
type authority struct {
	Directory     string // URL
	CAFile        string // to trust its own server
	HTTP, TLSALPN string // where it looks for challenges
	t             *testing.T
	dir, manage   string
	dns           string
	cmd           *exec.Cmd
	exited        chan struct{}
	mu            sync.Mutex
	out           strings.Builder
}

func (a *authority) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.Write(p)
}

func (a *authority) log() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.String()
}

// orders is how many certificates it was asked for; requests that it refuses for an old nonce are none.
func (a *authority) orders() int { return strings.Count(a.log(), "Added order ") }

const ip = "127.0.0.1"

// newAuthority makes its files; life is that of its certificates. more are further lines of its configuration.
func newAuthority(t *testing.T, life time.Duration, more map[string]any) *authority {
	t.Helper()
	z := zone.MustNew("mail.example.test A 127.0.0.1\nother.example.test A 127.0.0.1\nelsewhere.example.test A 127.0.0.7\n")
	dns, stop, err := z.Listen(ip + ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	addr := func() string { return net.JoinHostPort(ip, harness.FreePort(t, ip)) }
	a := &authority{t: t, dir: t.TempDir(), dns: dns, manage: addr(), HTTP: addr(), TLSALPN: addr()}
	listen := addr()
	a.Directory, a.CAFile = "https://"+listen+"/dir", filepath.Join(a.dir, "cert.pem")
	key := filepath.Join(a.dir, "key.pem")
	selfSigned(t, a.CAFile, key)
	port := func(s string) int {
		_, p, _ := net.SplitHostPort(s)
		n, _ := strconv.Atoi(p)
		return n
	}
	conf := map[string]any{"listenAddress": listen, "managementListenAddress": a.manage, "certificate": a.CAFile, "privateKey": key,
		"httpPort": port(a.HTTP), "tlsPort": port(a.TLSALPN), "domainBlocklist": []string{"blocked.test"}, "retryAfter": map[string]int{"authz": 1, "order": 1},
		"keyAlgorithm": "ecdsa", "profiles": map[string]any{"default": map[string]any{"description": "for tests", "validityPeriod": int(life.Seconds())}}}
	for k, v := range more {
		conf[k] = v
	}
	b, err := json.Marshal(map[string]any{"pebble": conf})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.stop()
		if t.Failed() {
			t.Logf("pebble:\n%s", a.log())
		}
	})
	return a
}

// start runs it. Each time it has a new root, and has forgotten all accounts.
func (a *authority) start() {
	a.t.Helper()
	a.cmd = exec.Command(pebbleBinary(a.t), "-config", filepath.Join(a.dir, "config.json"), "-dnsserver", a.dns)
	// It does not sleep, looks at every challenge anew, and refuses some nonces, as real ones do.
	a.cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=20")
	a.cmd.Stdout, a.cmd.Stderr = a, a
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	exited := make(chan struct{})
	a.exited = exited
	cmd := a.cmd
	go func() {
		cmd.Wait()
		close(exited)
	}()
	harness.WaitFor(a.t, limit, "pebble to answer", func() bool {
		resp, err := a.client().Get(a.Directory)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
}

func (a *authority) stop() {
	if a.cmd != nil {
		a.cmd.Process.Kill()
		<-a.exited
		a.cmd = nil
	}
}

func (a *authority) client() *http.Client {
	return &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: trust(readPool(a.t, a.CAFile))}}
}

// roots are those of the certificates it gives.
func (a *authority) roots() *x509.CertPool {
	a.t.Helper()
	resp, err := a.client().Get("https://" + a.manage + "/roots/0")
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	pem, err := io.ReadAll(resp.Body)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		a.t.Fatalf("%v: %s", err, pem)
	}
	return pool
}

func readPool(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	b, err := os.ReadFile(file)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatalf("%s: %v", file, err)
	}
	return pool
}

// selfSigned makes the certificate of the authority's own server.
func selfSigned(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pebble"}, IPAddresses: []net.IP{net.ParseIP(ip)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
