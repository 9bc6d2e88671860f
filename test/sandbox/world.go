package sandbox

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	pebbleExe  = "/usr/lib/sandbox/pebble"
	pebbleAddr = "127.0.0.1:14000"
	acmeHost   = "acme-v02.api.letsencrypt.org"
	caFile     = "/etc/ssl/certs/ca-certificates.crt"
)

// worldMain is the internet: a mail server, a web server and an authority. The box trusts what it signs.
func worldMain() error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	w, err := newWorld()
	if err == nil && os.Getenv("PEBBLE") != "" {
		err = w.startPebble()
	}
	state := "ready"
	if err != nil {
		state = err.Error()
	}
	if err := errors.Join(os.WriteFile("/world/ready.new", []byte(state), 0o644), os.Rename("/world/ready.new", "/world/ready")); err != nil {
		return err
	}
	select {}
}

type world struct {
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	mu    sync.Mutex
	count int
}

func newWorld() (*world, error) {
	w := &world{}
	if err := sh(fmt.Sprintf("ip link set lo up; ip addr add %s/24 dev world0; ip link set world0 up; ip addr add %s/32 dev lo; ip addr add %s/32 dev lo; "+
		"ip route replace 192.0.2.0/24 dev world0 src %s", gateway, sinkIP, webIP, sinkIP)); err != nil {
		return nil, err
	}
	if err := w.makeCA(); err != nil {
		return nil, err
	}
	smtp, err := net.Listen("tcp", sinkIP+":25")
	if err != nil {
		return nil, err
	}
	web, err := net.Listen("tcp", webIP+":443")
	if err != nil {
		return nil, err
	}
	go w.serveMail(smtp)
	go http.Serve(tls.NewListener(web, w.tlsConfig()), w.site())
	return w, nil
}

func (w *world) makeCA() (err error) {
	if w.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Authority of the sandbox"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, w.key.Public(), w.key)
	if err != nil {
		return err
	}
	if w.ca, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(caFile), 0o755); err != nil {
		return err
	}
	return os.WriteFile(caFile, certPEM(der), 0o644)
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// sign makes a certificate for a name.
func (w *world) sign(name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(23 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, w.ca, key.Public(), w.key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func (w *world) tlsConfig() *tls.Config {
	return &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return w.sign(h.ServerName) }}
}

// site answers for every name: the authority, or what stands in /var/www/NAME.
func (w *world) site() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Host != acmeHost {
			http.FileServer(http.Dir("/var/www/"+filepath.Base(r.Host))).ServeHTTP(rw, r)
			return
		}
		if r.URL.Path == "/directory" {
			r.URL.Path = "/dir"
		}
		p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: pebbleAddr})
		p.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		p.ServeHTTP(rw, r)
	})
}

// startPebble starts the authority, which validates on the usual ports, and lets everybody trust it.
func (w *world) startPebble() error {
	cert, err := w.sign("localhost")
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`{"pebble": {"listenAddress": %q, "managementListenAddress": "127.0.0.1:15000", "certificate": "/world/pebble.crt",
"privateKey": "/world/pebble.key", "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "profiles": {"default": {"description": "default", "validityPeriod": 7776000}}}}`, pebbleAddr)
	if err := errors.Join(os.WriteFile("/world/pebble.json", []byte(conf), 0o644), os.WriteFile("/world/pebble.crt", certPEM(cert.Certificate[0]), 0o644),
		os.WriteFile("/world/pebble.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600)); err != nil {
		return err
	}
	log, err := os.Create("/world/pebble.log")
	if err != nil {
		return err
	}
	cmd := exec.Command(pebbleExe, "-config", "/world/pebble.json", "-dnsserver", dnsIP+":53")
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get("https://127.0.0.1:15000/roots/0")
		if err != nil {
			continue
		}
		root, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		return os.WriteFile(caFile, append(certPEM(w.ca.Raw), root...), 0o644)
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("pebble does not answer:\n%s", text)
}

// serveMail takes every message and keeps it, unless it is down.
func (w *world) serveMail(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go w.session(c)
	}
}

// session is one SMTP session, as much of it as a well-behaved client needs.
func (w *world) session(c net.Conn) {
	defer func() { c.Close() }()
	c.SetDeadline(time.Now().Add(time.Minute))
	say := func(s string) { io.WriteString(c, s+"\r\n") }
	down := func() bool {
		_, err := os.Stat(sinkDown)
		if err == nil {
			say("421 4.3.2 mx.example.net is down for maintenance")
		}
		return err == nil
	}
	if down() {
		return
	}
	say("220 mx.example.net ESMTP")
	r := bufio.NewReader(c)
	var m Mail
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		switch verb {
		case "EHLO":
			say("250-mx.example.net\r\n250-SIZE 100000000")
			if _, ok := c.(*tls.Conn); !ok {
				say("250-STARTTLS")
			}
			say("250 8BITMIME")
		case "STARTTLS":
			say("220 go ahead")
			c = tls.Server(c, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return w.sign("mx.example.net") }})
			r = bufio.NewReader(c)
		case "MAIL":
			if down() {
				return
			}
			m = Mail{From: between(line)}
			say("250 2.1.0 ok")
		case "RCPT":
			m.To = append(m.To, between(line))
			say("250 2.1.5 ok")
		case "DATA":
			say("354 go ahead")
			if m.Data, err = readData(r); err != nil {
				return
			}
			if err := w.keep(m); err != nil {
				say("451 4.3.0 " + err.Error())
				continue
			}
			say("250 2.0.0 kept")
		case "QUIT":
			say("221 2.0.0 bye")
			return
		case "RSET", "NOOP":
			say("250 2.0.0 ok")
		default:
			say("502 5.5.1 unknown")
		}
	}
}

// between is the address of a command, without its brackets.
func between(line string) string {
	_, rest, _ := strings.Cut(line, "<")
	addr, _, _ := strings.Cut(rest, ">")
	return addr
}

func readData(r *bufio.Reader) (string, error) {
	var b bytes.Buffer
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if line == ".\r\n" {
			return b.String(), nil
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
}

func (w *world) keep(m Mail) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	w.count++
	name := fmt.Sprintf("%s/%d", sinkDir, w.count)
	return errors.Join(os.WriteFile(name+".new", text, 0o644), os.Rename(name+".new", name))
}
