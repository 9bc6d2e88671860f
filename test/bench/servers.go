package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/test/debs"
)

// server is one program under test. start makes its files below dir and runs it until stop.
type server struct {
	name  string
	start func(ctx context.Context, dir string) (*running, error)
}

type running struct {
	addr string
	to   []string      // recipients it relays to the sink
	took time.Duration // from its start to its first greeting
	room int           // messages it takes at a time; 0: any number
	pid  int
	stop func()
}

const maxRecipients = 100

// aliasNames are the recipients of domain, each of which ends at the sink.
func aliasNames(domain string) []string {
	to := make([]string, maxRecipients)
	for i := range to {
		to[i] = fmt.Sprintf("u%d@%s", i, domain)
	}
	return to
}

// launch starts a command in its own process group and waits until addr answers with a greeting.
func launch(ctx context.Context, addr, logPath string, cmd *exec.Cmd) (*running, error) {
	logFile, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stop := func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		select {
		case err := <-exited:
			out, _ := os.ReadFile(logPath)
			return nil, fmt.Errorf("%s ended: %v\n%s", cmd.Path, err, out)
		default:
		}
		if greets(addr) {
			return &running{addr: addr, pid: cmd.Process.Pid, stop: stop, took: time.Since(begin)}, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			stop()
			out, _ := os.ReadFile(logPath)
			return nil, fmt.Errorf("%s does not answer on %s\n%s", cmd.Path, addr, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func greets(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 3)
	n, _ := c.Read(b)
	if n == 3 && string(b) == "220" {
		c.Write([]byte("QUIT\r\n"))
		return true
	}
	return false
}

// floorServer runs the floor with further arguments.
func floorServer(args ...string) func(context.Context, string) (*running, error) {
	return func(ctx context.Context, dir string) (*running, error) {
		const addr = "127.0.0.1:2501"
		cmd := exec.Command("/proc/self/exe", append([]string{"-floor", addr, "-floor-next", sinkIP + ":25", "-floor-file", filepath.Join(dir, "floor.data")}, args...)...)
		r, err := launch(ctx, addr, filepath.Join(dir, "log"), cmd)
		if err == nil {
			r.to = aliasNames("sink.test")
		}
		return r, err
	}
}

// packagedRoom is how many messages the packaged chasquid is given at a time. It refuses more than 200, which cannot be configured, and
// refusing costs it time that no server under a real load would waste.
const packagedRoom = 180

// packagedServer runs the packaged chasquid.
func packagedServer(bin string) func(context.Context, string) (*running, error) {
	start := chasquidServer(bin, "")
	return func(ctx context.Context, dir string) (*running, error) {
		r, err := start(ctx, dir)
		if err == nil {
			r.room = packagedRoom
		}
		return r, err
	}
}

// chasquidServer runs a chasquid binary (ours, or the packaged original) with a configuration both understand.
func chasquidServer(bin, extra string, args ...string) func(context.Context, string) (*running, error) {
	return func(ctx context.Context, dir string) (*running, error) {
		const addr = "127.0.0.1:2502"
		conf := fmt.Sprintf("hostname: \"bench.test\"\nsmtp_address: %q\ndata_dir: %q\nmail_log_path: %q\n"+
			"monitoring_address: \"127.0.0.1:2503\"\nmail_delivery_agent_bin: \"/bin/true\"\n%s", addr, filepath.Join(dir, "data"), filepath.Join(dir, "mail.log"), extra)
		var aliases strings.Builder
		for i := range maxRecipients {
			fmt.Fprintf(&aliases, "u%d: u%d@sink.test\n", i, i)
		}
		for name, content := range map[string]string{"chasquid.conf": conf, "domains/bench.test/aliases": aliases.String(), "data/.keep": ""} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0755); err != nil {
				return nil, err
			}
			if err := os.WriteFile(path, []byte(content), 0644); err != nil {
				return nil, err
			}
		}
		if err := writeCert(filepath.Join(dir, "certs", "bench.test")); err != nil {
			return nil, err
		}
		r, err := launch(ctx, addr, filepath.Join(dir, "log"), exec.Command(bin, append([]string{"-config_dir=" + dir}, args...)...))
		if err == nil {
			r.to = aliasNames("bench.test")
		}
		return r, err
	}
}

func writeCert(dir string) error {
	if err := os.MkdirAll(dir, 0755); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench.test"}, DNSNames: []string{"bench.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "fullchain.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0644),
		os.WriteFile(filepath.Join(dir, "privkey.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0600))
}

// postfixServer runs Postfix with its stock settings, as a relay for loopback clients, from its installed or unpacked files.
// The brake that slows clients when the queue grows (in_flow_delay) is off, in its favour.
func postfixServer(ctx context.Context, dir string) (*running, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("Postfix needs root")
	}
	master := "/usr/lib/postfix/sbin/master"
	if _, err := os.Stat(master); err != nil {
		return nil, errors.New("Postfix is not installed (apt-get install postfix)")
	}
	const addr = "127.0.0.1:2504"
	conf, queue, data := filepath.Join(dir, "etc"), filepath.Join(dir, "spool"), filepath.Join(dir, "lib")
	for _, d := range []string{conf, queue, data} {
		if err := os.MkdirAll(d, 0755); err != nil {
			return nil, err
		}
	}
	main := fmt.Sprintf("compatibility_level = 3.6\nqueue_directory = %s\ndata_directory = %s\nmail_owner = postfix\nsetgid_group = postdrop\n"+
		"myhostname = bench.test\nmydestination =\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\n"+
		"in_flow_delay = 0\nmaillog_file = %s/maillog\nmaillog_file_prefixes = %s\nsmtpd_banner = $myhostname ESMTP\nalias_maps =\nalias_database =\n", queue, data, dir, dir)
	if err := os.WriteFile(filepath.Join(conf, "main.cf"), []byte(main), 0644); err != nil {
		return nil, err
	}
	stock, err := os.ReadFile("/usr/share/postfix/master.cf.dist")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(stock), "\n")
	for i, l := range lines {
		f := strings.Fields(l)
		if len(f) < 8 || strings.HasPrefix(l, "#") || strings.HasPrefix(l, " ") {
			continue
		}
		if f[0] == "smtp" && f[1] == "inet" {
			f[0] = addr
		}
		f[4] = "n" // no chroot: its files are not there
		lines[i] = strings.Join(f, " ")
	}
	lines = append(lines, "postlog unix-dgram n - n - 1 postlogd")
	if err := os.WriteFile(filepath.Join(conf, "master.cf"), []byte(strings.Join(lines, "\n")+"\n"), 0644); err != nil {
		return nil, err
	}
	if out, err := exec.Command("postfix", "-c", conf, "post-install", "set-permissions", "create-missing").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("preparing Postfix: %w\n%s", err, out)
	}
	if err := exec.Command("chown", "postfix", data).Run(); err != nil {
		return nil, err
	}
	r, err := launch(ctx, addr, filepath.Join(dir, "log"), exec.Command(master, "-c", conf, "-d"))
	if err == nil {
		r.to = aliasNames("sink.test")
	}
	return r, err
}

// packagedChasquid returns the binary of Debian's chasquid, unpacked below dir without installing it.
func packagedChasquid(dir string) (string, error) {
	if path := os.Getenv("PACKAGED_CHASQUID"); path != "" {
		return path, nil
	}
	root, err := debs.Unpack(dir, "chasquid")
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "usr", "bin", "chasquid"), nil
}
