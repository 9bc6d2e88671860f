package sandbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// systemctl stands in for systemd's: it runs what units say, as far as the units of mail servers need it. Services with Type=notify
// have to say that they are ready, sockets are passed, the user is the unit's. It knows no dependencies and restarts nothing.
func systemctl(args []string) error {
	now := slices.Contains(args, "--now")
	args = slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") })
	if len(args) == 0 {
		return errors.New("no verb")
	}
	verb, units := args[0], args[1:]
	for _, name := range units {
		if !strings.Contains(name, ".") {
			name += ".service"
		}
		if err := unitVerb(verb, name, now); err != nil {
			return fmt.Errorf("%s %s: %w", verb, name, err)
		}
	}
	return nil
}

func unitVerb(verb, name string, now bool) error {
	u, err := loadUnit(name)
	if err != nil {
		return err
	}
	switch verb {
	case "enable", "disable":
		link := filepath.Join("/etc/systemd/system/multi-user.target.wants", name)
		os.MkdirAll(filepath.Dir(link), 0o755)
		os.Remove(link)
		if verb == "enable" {
			if err := os.Symlink(u.path, link); err != nil {
				return err
			}
		}
		if now {
			return unitVerb(map[string]string{"enable": "start", "disable": "stop"}[verb], name, false)
		}
		return nil
	case "start":
		return u.start()
	case "stop":
		return u.stop()
	case "restart":
		return errors.Join(u.stop(), u.start())
	case "reload":
		return u.signal(syscall.SIGHUP)
	case "is-active", "status":
		return u.signal(0)
	}
	return errors.New("the stand-in does not know this")
}

// unit is one unit file, with its drop-ins.
type unit struct {
	name, path string
	values     map[string][]string
	open       []io.Closer // its sockets
}

func loadUnit(name string) (*unit, error) {
	u := &unit{name: name, values: map[string][]string{}}
	for _, dir := range []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/lib/systemd/system"} {
		u.path = filepath.Join(dir, name)
		if _, err := os.Stat(u.path); err != nil {
			continue
		}
		dropIns, _ := filepath.Glob("/etc/systemd/system/" + name + ".d/*.conf")
		for _, f := range append([]string{u.path}, dropIns...) {
			if err := u.read(f); err != nil {
				return nil, err
			}
		}
		return u, nil
	}
	return nil, fmt.Errorf("Unit %s not found", name)
}

func (u *unit) read(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			u.values[k] = append(u.values[k], v)
		}
	}
	return nil
}

func (u *unit) get(key string) string {
	if l := u.values[key]; len(l) > 0 {
		return l[len(l)-1]
	}
	return ""
}

func (u *unit) pidFile() string { return "/run/" + u.name + ".pid" }

func (u *unit) notifySocket() string { return "/run/" + u.name + ".notify" }
func (u *unit) readyFile() string    { return "/run/" + u.name + ".ready" }

// start runs the process that runs the service, and waits until the service is ready. A socket unit is opened when its service starts.
func (u *unit) start() error {
	if strings.HasSuffix(u.name, ".socket") || u.signal(0) == nil {
		return nil
	}
	os.Remove(u.readyFile())
	cmd := exec.Command(exe, u.name)
	cmd.Env = append(os.Environ(), roleVar+"=unit")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		select {
		case err := <-exited:
			return fmt.Errorf("the service ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		if _, err := os.Stat(u.readyFile()); err == nil {
			return nil
		}
	}
	return errors.New("the service does not become ready")
}

// listenNotify takes what the service tells systemd, and notes when it is ready.
func (u *unit) listenNotify() error {
	os.Remove(u.notifySocket())
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: u.notifySocket()})
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			if slices.Contains(strings.Split(string(b[:n]), "\n"), "READY=1") {
				os.WriteFile(u.readyFile(), nil, 0o644)
			}
		}
	}()
	return os.Chmod(u.notifySocket(), 0o777)
}

func (u *unit) signal(sig syscall.Signal) error {
	text, err := os.ReadFile(u.pidFile())
	if err != nil {
		return errors.New("not running")
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

// stop waits until the service has ended, and its sockets are closed.
func (u *unit) stop() error {
	if u.signal(syscall.SIGTERM) != nil {
		return nil
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(u.pidFile()); err != nil {
			return nil
		}
	}
	return errors.Join(u.signal(syscall.SIGKILL), errors.New("the service does not stop"))
}

// unitMain runs a service until it ends. Its output is kept where the test finds it.
func unitMain(name string) error {
	u, err := loadUnit(name)
	if err != nil {
		return err
	}
	log, err := os.OpenFile("/var/log/"+name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	who, err := user.Lookup(u.get("User"))
	if err != nil {
		return err
	}
	if d := u.get("StateDirectory"); d != "" {
		if err := sh(fmt.Sprintf("mkdir -p -m 0700 /var/lib/%s; chown %s: /var/lib/%s", d, who.Username, d)); err != nil {
			return err
		}
	}
	cmd := exec.Command("setpriv", "--reuid="+who.Uid, "--regid="+who.Gid, "--init-groups", "--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service",
		"--", "sh", "-c", "[ -z \"$LISTEN_FDS\" ] || export LISTEN_PID=$$; exec "+u.get("ExecStart"))
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.Env = []string{"PATH=" + path, "LANG=C.UTF-8", "USER=" + who.Username, "HOME=" + who.HomeDir, "SHELL=" + "/bin/sh", "NOTIFY_SOCKET=" + u.notifySocket()}
	if err := errors.Join(u.passSockets(cmd), u.listenNotify()); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(u.pidFile(), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		return err
	}
	if u.get("Type") != "notify" && u.get("Type") != "notify-reload" {
		os.WriteFile(u.readyFile(), nil, 0o644)
	}
	err = cmd.Wait()
	for _, c := range u.open {
		c.Close()
	}
	os.Remove(u.pidFile())
	return err
}

// passSockets opens the sockets that the service requires, or that are enabled for it.
func (u *unit) passSockets(cmd *exec.Cmd) error {
	var sockets []string
	for _, r := range u.values["Requires"] {
		sockets = append(sockets, strings.Fields(r)...)
	}
	enabled, _ := filepath.Glob("/etc/systemd/system/*.wants/*.socket")
	for _, e := range enabled {
		sockets = append(sockets, filepath.Base(e))
	}
	slices.Sort(sockets)
	var names []string
	for _, s := range slices.Compact(sockets) {
		if !strings.HasSuffix(s, ".socket") {
			continue
		}
		su, err := loadUnit(s)
		if err != nil {
			return err
		}
		if su.get("Service") != u.name {
			continue
		}
		for _, addr := range su.values["ListenStream"] {
			if !strings.Contains(addr, ":") {
				addr = ":" + addr
			}
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			f, err := l.(*net.TCPListener).File()
			if err != nil {
				return err
			}
			u.open = append(u.open, l, f)
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			names = append(names, su.get("FileDescriptorName"))
		}
	}
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return nil
}
