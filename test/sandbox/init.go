package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
)

const (
	exe      = "/usr/lib/sandbox/exe"
	sinkDir  = "/world/mail"
	sinkDown = "/world/down"
)

// initMain is the first process of a box.
func initMain() error {
	in := bufio.NewReader(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	var p plan
	if err := readLine(in, &p); err != nil {
		return err
	}
	i := &initProcess{env: append([]string{"PATH=" + path, "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb", "USER=root", "LOGNAME=root", "SHELL=/bin/bash", "GORACE=atexit_sleep_ms=0"}, p.Env...)}
	if err := i.boot(p); err != nil {
		return answers.Encode(answer{Err: err.Error()})
	}
	answers.Encode(answer{})
	for {
		var r request
		if err := readLine(in, &r); err != nil {
			return err
		}
		var a answer
		if r.Zone != "" {
			if err := i.zone.Add(r.Zone); err != nil {
				a.Err = err.Error()
			}
		} else {
			a = i.run(r)
		}
		answers.Encode(a)
	}
}

func readLine(in *bufio.Reader, to any) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, to)
}

type initProcess struct {
	env   []string
	zone  *zone.Zone
	world int // pid of the process whose network the internet is
}

// run runs a script. What it leaves in the background does not hold it up, as its output goes to a file.
func (i *initProcess) run(r request) (a answer) {
	file, err := os.CreateTemp("/run", "out")
	if err != nil {
		return answer{Err: err.Error()}
	}
	defer os.Remove(file.Name())
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.Seconds*float64(time.Second)))
	defer cancel()
	args := []string{"bash", "-c", r.Script}
	if r.Outside {
		args = append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", i.world)}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/root", i.env, file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Run()
	text, _ := os.ReadFile(file.Name())
	a.Output = string(text)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		a.Err = fmt.Sprintf("%.0f s were not enough for\n%s\nwhich printed\n%s", r.Seconds, r.Script, text)
	case errors.As(err, &exit):
		a.Exit = exit.ExitCode()
	case err != nil:
		a.Err = err.Error()
	}
	return a
}

// boot makes the root and the network, and starts what is outside.
func (i *initProcess) boot(p plan) error {
	for _, step := range []func(plan) error{makeRoot, fill, enter, syslog, i.network, i.internet} {
		if err := step(p); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mounting %s (%s): %w", target, kind, err)
	}
	return nil
}

// makeRoot mounts what the root consists of. Changes to /usr stay in memory; /usr/local is empty.
func makeRoot(p plan) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", p.Root, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, d := range []string{".upper", ".work", "root", "home", "tmp", "run", "var/lib", "var/log", "var/mail", "etc", "dev", "world/mail", "src", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(p.Root, d), 0o755); err != nil {
			return err
		}
	}
	os.Chmod(filepath.Join(p.Root, "tmp"), 0o777|os.ModeSticky)
	os.Chmod(filepath.Join(p.Root, "world/mail"), 0o777)
	if err := mount("overlay", filepath.Join(p.Root, "usr"), "overlay", 0,
		fmt.Sprintf("lowerdir=/usr,upperdir=%s/.upper,workdir=%s/.work", p.Root, p.Root)); err != nil {
		return err
	}
	for _, d := range []string{"local", "share/chasquid"} {
		if err := mount("tmpfs", filepath.Join(p.Root, "usr", d), "tmpfs", 0, "mode=0755"); err != nil {
			return err
		}
	}
	for _, d := range p.Binds {
		if err := mount(d, filepath.Join(p.Root, d), "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+l, filepath.Join(p.Root, l)); err != nil {
			return err
		}
	}
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		file := filepath.Join(p.Root, "dev", d)
		if err := os.WriteFile(file, nil, 0o666); err != nil {
			return err
		}
		if err := syscall.Mount("/dev/"+d, file, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mount("devpts", filepath.Join(p.Root, "dev/pts"), "devpts", 0, "newinstance,ptmxmode=0666"); err != nil {
		return err
	}
	if err := os.Symlink("pts/ptmx", filepath.Join(p.Root, "dev/ptmx")); err != nil {
		return err
	}
	return mount("proc", filepath.Join(p.Root, "proc"), "proc", 0, "")
}

// etc is what stands in /etc, besides copies of a few files of the machine.
var etc = map[string]string{
	"passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\nmail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n" +
		"dovecot:x:105:105::/:/usr/sbin/nologin\ndovenull:x:106:106::/:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
	"group":         "root:x:0:\ndaemon:x:1:\nmail:x:8:\nadm:x:4:\ndovecot:x:105:\ndovenull:x:106:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"resolv.conf":   "nameserver " + dnsIP + "\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n",
}

// fill writes the files that are there from the start.
func fill(p plan) error {
	at := func(name string) string { return filepath.Join(p.Root, name) }
	for name, text := range etc {
		if err := os.WriteFile(at("etc/"+name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"/etc/services", "/etc/protocols", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf", "/etc/alternatives", "/etc/fail2ban"} {
		if out, err := exec.Command("sh", "-c", `[ ! -e "$1" ] || { mkdir -p "$2" && cp -a "$1" "$2"; }`, "sh", name, at(filepath.Dir(name))).CombinedOutput(); err != nil {
			return fmt.Errorf("copying %s: %w\n%s", name, err, out)
		}
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	copies := map[string]string{self: exe}
	if p.Pebble != "" {
		copies[p.Pebble] = pebbleExe
	}
	for _, f := range p.Files {
		copies[f] = "/root/" + filepath.Base(f)
	}
	for _, f := range p.Source {
		copies[filepath.Join(p.Top, f)] = "/src/" + f
	}
	for from, to := range copies {
		if err := copyFile(from, at(to)); err != nil {
			return err
		}
	}
	if p.Binary != "" {
		if err := install(p, at); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(at("usr/local/bin"), 0o755); err != nil {
		return err
	}
	return errors.Join(os.Symlink(exe, at("usr/local/bin/systemctl")),
		os.WriteFile(at("usr/local/bin/sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755))
}

// install does what make install does, with a binary that is there already.
func install(p plan, at func(string) string) error {
	if err := copyFile(p.Binary, at("usr/local/bin/chasquid")); err != nil {
		return err
	}
	for _, l := range []string{"chasquid-util", "mda-lmtp", "smtp-check"} {
		if err := os.Symlink("chasquid", at("usr/local/bin/"+l)); err != nil {
			return err
		}
	}
	if out, err := exec.Command(filepath.Join(p.Top, "scripts/install-config.sh"), p.Root).CombinedOutput(); err != nil {
		return fmt.Errorf("install-config.sh: %w\n%s", err, out)
	}
	return copyFile(filepath.Join(p.Top, "etc/systemd/strict.conf"), at("usr/local/share/doc/chasquid/strict.conf"))
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	st, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a file of the source tree that was just removed
	} else if err != nil {
		return err
	}
	if st.Mode()&os.ModeSymlink != 0 {
		l, err := os.Readlink(from)
		return errors.Join(err, os.Symlink(l, to))
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// enter makes the root the root.
func enter(p plan) error {
	return errors.Join(syscall.Chroot(p.Root), os.Chdir("/"), syscall.Sethostname([]byte(p.Hostname)))
}

// syslog keeps what is logged in /var/log/syslog.
func syslog(plan) error {
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: "/dev/log"})
	if err != nil {
		return err
	}
	if err := os.Chmod("/dev/log", 0o666); err != nil {
		return err
	}
	file, err := os.Create("/var/log/syslog")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintf(file, "%s\n", strings.TrimSpace(string(b[:n])))
		}
	}()
	return nil
}

// sh runs a script of ours.
func sh(script string) error {
	if out, err := exec.Command("bash", "-e", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return nil
}

// network starts the process whose network is the internet, connects it, and starts the DNS.
func (i *initProcess) network(p plan) error {
	world := exec.Command(exe)
	world.Env = append(i.env, roleVar+"=world", "PEBBLE="+p.Pebble)
	world.Stderr = os.Stderr
	world.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := world.StdinPipe()
	if err != nil {
		return err
	}
	if err := world.Start(); err != nil {
		return err
	}
	i.world = world.Process.Pid
	if err := sh(fmt.Sprintf("ip link set lo up; ip link add box0 type veth peer name world0 netns %d; ip addr add %s/24 dev box0; ip addr add %s/24 dev box0; "+
		"ip link set box0 up; ip route add default via %s || true", i.world, IP, dnsIP, gateway)); err != nil {
		return err
	}
	if i.zone, err = zone.New(p.Zone); err != nil {
		return err
	}
	if _, _, err := i.zone.Listen(dnsIP + ":53"); err != nil {
		return err
	}
	fmt.Fprintln(in, "connected")
	return nil
}

// internet waits until what is outside answers.
func (i *initProcess) internet(p plan) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile("/world/ready")
		if err == nil && strings.TrimSpace(string(text)) == "ready" {
			return nil
		} else if err == nil && len(text) > 0 {
			return errors.New(string(text))
		}
	}
	return errors.New("the internet does not come up")
}
