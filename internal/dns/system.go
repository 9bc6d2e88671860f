package dns

import (
	"bufio"
	"bytes"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/log"
	miekg "github.com/miekg/dns"
)

// server is one recursive resolver.
type server struct {
	addr    string // host:port
	trusted bool   // its AD bit is believed
}

// serverList is the list of servers, read again from resolv.conf when that file changes.
type serverList struct {
	fixed    bool
	trustAll bool
	file     watched
	state    atomic.Pointer[serverState]
	first    atomic.Int32 // index of the server that answered last
}

type serverState struct {
	servers []server
	suffix  []string // the search list
}

func newServerList(cfg Config) *serverList {
	l := &serverList{trustAll: cfg.TrustAD, fixed: len(cfg.Servers) > 0}
	l.file.path = cfg.ResolvConf
	if l.fixed {
		l.set(cfg.Servers, nil)
	}
	return l
}

func (l *serverList) set(addrs, suffix []string) {
	st := &serverState{suffix: suffix}
	for _, a := range addrs {
		if len(st.servers) == maxServers {
			break
		}
		if host, _, err := net.SplitHostPort(a); err != nil || host == "" {
			a = net.JoinHostPort(strings.Trim(a, "[]"), "53")
		}
		st.servers = append(st.servers, server{a, l.trustAll || isLoopback(a)})
	}
	l.state.Store(st)
	l.first.Store(0)
}

// isLoopback reports an address whose answers nobody on the network can change on their way.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// current returns the state, after reading resolv.conf again if it changed. A file that cannot be read keeps the old state.
func (l *serverList) current() *serverState {
	if l.fixed {
		return l.state.Load()
	}
	l.file.refresh(func(data []byte) {
		conf, err := miekg.ClientConfigFromReader(bytes.NewReader(data))
		if err != nil || len(conf.Servers) == 0 {
			log.Errorf("dns: no servers in %s: %v", l.file.path, err)
			return
		}
		for i, s := range conf.Servers {
			conf.Servers[i] = net.JoinHostPort(s, conf.Port)
		}
		l.set(conf.Servers, conf.Search)
	})
	if st := l.state.Load(); st != nil {
		return st
	}
	return &serverState{servers: []server{{"127.0.0.1:53", true}}} // as resolv.conf(5) says
}

// list returns the servers and the index of the one to ask first.
func (l *serverList) list() ([]server, int) {
	st := l.current()
	return st.servers, int(l.first.Load()) % max(len(st.servers), 1)
}

func (l *serverList) prefer(n int) { l.first.Store(int32(n)) }

// search returns the names to try before the name itself: a host without dots is completed from the search list.
func (l *serverList) search(host string) (names []string) {
	if strings.IndexByte(host, '.') >= 0 {
		return nil
	}
	for _, s := range l.current().suffix {
		if len(names) < maxSearch {
			names = append(names, host+"."+s)
		}
	}
	return names
}

// maxSearch is how many domains of the search list are tried, as resolv.conf(5) limits it.
const maxSearch = 6

// watched is a file that is looked at again at most every few seconds.
type watched struct {
	path string
	mu   sync.Mutex
	next time.Time
	mod  time.Time
	size int64
}

const watchEvery = 5 * time.Second

// refresh calls use with the content if it is new since the last call. Whoever comes meanwhile waits for that: at the start, nobody may
// go on with nothing.
func (w *watched) refresh(use func(data []byte)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if now.Before(w.next) {
		return
	}
	w.next = now.Add(watchEvery)
	fi, err := os.Stat(w.path)
	if err != nil || fi.ModTime().Equal(w.mod) && fi.Size() == w.size {
		return
	}
	data, err := os.ReadFile(w.path)
	if err != nil {
		return
	}
	w.mod, w.size = fi.ModTime(), fi.Size()
	use(data)
}

// hostsFile is the hosts file, as far as it concerns where mail is sent.
type hostsFile struct {
	path  string
	once  sync.Once
	file  watched
	names atomic.Pointer[map[string][]netip.Addr]
}

// local returns the addresses of names that are not looked up in DNS: localhost (RFC 6761 section 6.3) and the hosts file.
func (c *Client) local(host string) []netip.Addr {
	host, ok := canonical(host)
	if !ok {
		return nil
	}
	if ips := c.hosts.lookup(host); ips != nil {
		return ips
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	return nil
}

func (h *hostsFile) lookup(host string) []netip.Addr {
	if h.path == "-" {
		return nil
	}
	h.once.Do(func() { h.file.path = h.path })
	h.file.refresh(func(data []byte) {
		m := parseHosts(data)
		h.names.Store(&m)
	})
	if m := h.names.Load(); m != nil {
		return (*m)[host]
	}
	return nil
}

// maxHosts bounds how many names of a hosts file are used; block lists put there have hundreds of thousands.
const maxHosts = 10000

func parseHosts(data []byte) map[string][]netip.Addr {
	m := map[string][]netip.Addr{}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() && len(m) < maxHosts {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, name := range f[1:] {
			if n, ok := canonical(name); ok {
				m[n] = append(m[n], ip.Unmap())
			}
		}
	}
	return m
}
