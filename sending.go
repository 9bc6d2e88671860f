package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/courier"
	"blitiri.com.ar/go/chasquid/internal/handover"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/spool"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/chasquid/internal/srs"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// sending is everything on the way out. What settings change of it is swapped as a whole.
type sending struct {
	local func(domain string) bool // ours
	now   atomic.Pointer[outbound]
}

// outbound is the way out by one state of the settings. It is not changed once made.
type outbound struct {
	router    *courier.Router
	mux       *courier.Mux
	local     *courier.Local
	smtp      *courier.SMTP
	secrets   [][]byte      // of rewritten senders, the one in use first
	rewriter  *srs.Rewriter // nil: senders are not rewritten
	passwords map[string]string
	before    map[string]string // the passwords before, for deliveries that were routed then
}

func (s *server) makeSending(context.Context) error {
	conf := s.conf()
	s.sending = &sending{local: s.domains.IsLocal}
	out, err := s.newOutbound(nil, nil, conf)
	if err != nil {
		return err
	}
	s.sending.now.Store(out)
	s.slot = &queue.Slot{}
	s.queue = queue.New(s.queueConfig(conf, out))
	s.intake = handover.NewIntake(s.queue, conf.GetDataDir())
	return nil
}

// openQueue opens the queue's directory, unless another process has it for now, and takes messages from then on.
func (s *server) openQueue(ctx context.Context) error {
	if s.up.pred != nil {
		return nil
	}
	return s.openStore(ctx, 0)
}

// openStore opens the queue's directory. Patience is how long to wait for its lock.
func (s *server) openStore(ctx context.Context, patience time.Duration) error {
	conf := spool.Config{FS: s.queueDisk(), Dir: filepath.Join(s.conf().GetDataDir(), "queue"), MinFree: minFree(s.conf()), Metrics: s.reg}
	store, err := spool.Open(conf)
	for end := time.Now().Add(patience); errors.Is(err, vfs.ErrLocked) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		store, err = spool.Open(conf)
	}
	if err != nil {
		return queueError(err)
	}
	s.slot.Put(store)
	s.store.Store(store)
	if err := s.importItems(ctx); err != nil {
		return err
	}
	s.intake.Resume()
	return nil
}

func queueError(err error) error {
	fix := ""
	if errors.Is(err, vfs.ErrLocked) {
		fix = "another chasquid uses this data_dir: stop it, or set another"
	}
	return remedy.With(fmt.Errorf("Error initializing queue: %w", err), fix)
}

func minFree(conf *config.Config) int64 { return int64(conf.GetMinFreeDiskMb()) << 20 }

// newOutbound makes the way out. was is the present one with its settings, nil at the start: what stays the same, and what remembers
// something, is taken from there.
func (s *server) newOutbound(was *outbound, old, conf *config.Config) (*outbound, error) {
	out := &outbound{passwords: conf.RelayPasswords()}
	var err error
	if out.router, err = courier.NewRouter(s.routes(conf)); err != nil {
		return nil, err
	}
	if err := out.useSecret(was, old, conf); err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(s.flags.smtpPort, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("-testing__outgoing_smtp_port: %w", err)
	}
	panics := s.reg.CounterVec("chasquid_panics_total", "Panics recovered, by component: each is a bug worth reporting.",
		[]string{"component"}, monitoring.PanicComponents).With("courier")
	local := courier.LocalConfig{Hostname: conf.GetHostname(), MDA: conf.GetMailDeliveryAgentBin(), Args: conf.GetMailDeliveryAgentArgs(),
		Env: os.Environ(), Timeout: conf.Time.LocalDelivery, SuffixSeparators: conf.GetSuffixSeparators(),
		DropCharacters: conf.GetDropCharacters(), OnPanic: panics.Inc, Metrics: s.reg}
	switch {
	case was == nil:
		out.local = courier.NewLocal(local)
	default:
		out.local, out.before = was.local.With(local), was.passwords
	}
	if was != nil && sameSMTP(old, conf) {
		out.smtp = was.smtp // with its open connections
	} else {
		out.smtp = courier.NewSMTP(courier.Config{Hostname: conf.GetHostname(), Resolver: s.dns, Port: uint16(port), SourceAddrs: conf.OutgoingIPs,
			Own: s.ownAddress, Sources: s.tlsSources(), HostSources: s.tlsHostSources(), Ledger: s.ledger(), Password: s.sending.password,
			SendLongLines: conf.GetLongLines() == "send", Timeouts: courier.Timeouts{Connect: conf.Time.Dial}, Metrics: s.reg})
	}
	out.mux = &courier.Mux{Local: out.local, SMTP: out.smtp, Pipe: courier.NewPipe(local), OnPanic: panics.Inc}
	return out, nil
}

// sameSMTP reports whether two configurations speak with other servers in the same way.
func sameSMTP(a, b *config.Config) bool {
	return a.GetHostname() == b.GetHostname() && slices.Equal(a.OutgoingIPs, b.OutgoingIPs) && a.Time.Dial == b.Time.Dial && a.GetLongLines() == b.GetLongLines()
}

func sameSecrets(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

// useSecret reads the secret of rewritten senders if they are to be rewritten.
func (out *outbound) useSecret(was *outbound, old, conf *config.Config) (err error) {
	if !conf.SRS {
		return nil
	}
	_, missing := os.Stat(conf.SRSSecretFile)
	if was != nil && was.secrets != nil && old.SRSSecretFile == conf.SRSSecretFile && errors.Is(missing, os.ErrNotExist) {
		out.secrets = was.secrets // a new one would make strangers of all bounces that are still to come
	} else if out.secrets, err = srsSecrets(conf.SRSSecretFile); err != nil {
		return err
	}
	if was != nil && was.rewriter != nil && sameSecrets(was.secrets, out.secrets) {
		out.rewriter = was.rewriter
	} else {
		out.rewriter = srs.New(out.secrets...)
	}
	return nil
}

// prepareSending makes the way out by the new settings.
func (s *server) prepareSending(c *change) (secretChanged bool, err error) {
	was := s.sending.now.Load()
	out, err := s.newOutbound(was, c.old, c.new)
	if err != nil {
		return false, err
	}
	c.onSwap(func() {
		s.sending.now.Store(out)
		s.queue.Configure(s.queueConfig(c.new, out))
		if out.smtp != was.smtp {
			was.smtp.Close() // deliveries under way go on
		}
	}, nil)
	return was.secrets != nil && out.secrets != nil && !sameSecrets(was.secrets, out.secrets), nil
}

// Deliver delivers by the settings of this moment. It is the queue's courier.
func (out *sending) Deliver(ctx context.Context, job mail.Job) []mail.Outcome {
	return out.now.Load().mux.Deliver(ctx, job)
}

// route says where a recipient goes next.
func (out *sending) route(ctx context.Context, r mail.Recipient, env *mail.Envelope) (mail.Route, error) {
	return out.now.Load().router.Route(ctx, r, env)
}

// site names the set of hosts that take the mail of a domain.
func (out *sending) site(ctx context.Context, domain string) (string, error) {
	return out.now.Load().smtp.Site(ctx, mail.Route{Transport: mail.SMTP, Domain: domain}), nil
}

var errNotRewritten = errors.New("senders are not rewritten")

// reverse returns whom a rewritten address stands for.
func (out *sending) reverse(a address.Address) (address.Address, error) {
	rw := out.now.Load().rewriter
	if rw == nil {
		return a, errNotRewritten
	}
	return rw.Original(a, out.local, time.Now())
}

// queueDisk is the file system of the queue. For tests, it flushes slowly, one flush after the other, as disks do, or hangs.
func (s *server) queueDisk() vfs.FS {
	delay, hang := s.flags.flushDelay, s.flags.flushHang
	if delay == 0 && hang == "" {
		return vfs.OS
	}
	var mu sync.Mutex
	return vfs.Hook(vfs.OS, func(op vfs.Op) error {
		if op.Verb != vfs.OpSync && op.Verb != vfs.OpSyncDir {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		time.Sleep(delay)
		for hang != "" {
			if _, err := os.Stat(hang); err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	})
}

func (s *server) queueConfig(conf *config.Config, out *outbound) queue.Config {
	bounceTo, err := address.ParsePath(conf.GetDoubleBounceTo())
	if err != nil { // config has checked it
		bounceTo = address.Address{}
	}
	delay := conf.DelayNotice
	if delay == 0 {
		delay = -1
	}
	return queue.Config{Store: s.slot, Courier: s.sending, Expand: s.aliases.Expand, Route: s.sending.route, Sites: s.sending.site,
		LocalDomain: s.domains.IsLocal, Sign: s.signNotice, SRS: out.rewriter, Observer: s.observer, Metrics: s.reg,
		Hostname: conf.GetHostname(), DoubleBounceTo: bounceTo, MaxItems: int(conf.GetMaxQueueItems()),
		GiveUpAfter: conf.GiveUp, DelayNoticeAfter: delay, Grace: conf.Time.Drain,
		Workers: int(conf.GetMaxDeliveries()), SiteWorkers: int(conf.GetMaxDeliveriesPerDestination())}
}

// routes is the router's configuration.
func (s *server) routes(conf *config.Config) courier.RouterConfig {
	return courier.RouterConfig{Local: s.domains.IsLocal, LocalTarget: conf.LocalTarget(), RelayVia: conf.RelayURL(), Routes: conf.RouteTable()}
}

// password is what to say to the relay of a route.
func (out *sending) password(target string) (string, error) {
	now := out.now.Load()
	for _, passwords := range []map[string]string{now.passwords, now.before} {
		if p, ok := passwords[target]; ok {
			return p, nil
		}
	}
	return "", errors.New("no password is configured for " + target)
}

// close ends the idle connections.
func (out *sending) close() { out.now.Load().smtp.Close() }

// ownAddress reports whether we listen there: mail for it would come back to us.
func (s *server) ownAddress(ap netip.AddrPort) bool {
	if s.listeners == nil {
		return false
	}
	for _, l := range s.listeners.Listeners() {
		t, ok := l.Addr().(*net.TCPAddr)
		if !ok || t.Port != int(ap.Port()) {
			continue
		}
		ip, _ := netip.AddrFromSlice(t.IP)
		if ip = ip.Unmap(); ip == ap.Addr().Unmap() || ip.IsUnspecified() && isOwnIP(ap.Addr().Unmap()) {
			return true
		}
	}
	return false
}

// isOwnIP reports whether the address is one of this machine.
func isOwnIP(ip netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && (p.Addr().Unmap() == ip || ip.IsLoopback() && p.Addr().IsLoopback()) {
			return true
		}
	}
	return false
}

// srsSecrets reads the secrets of rewritten senders, one a line: the first is used, those below are accepted in what was rewritten with
// them. One is made at the first start.
func srsSecrets(path string) (secrets [][]byte, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line != "" {
				secrets = append(secrets, []byte(line))
			}
		}
		return secrets, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("SRS secret: %w", err)
	}
	secret := rand.Text()
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(secret+"\n"), 0600); err != nil {
		return nil, fmt.Errorf("SRS secret: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, fmt.Errorf("SRS secret: %w", err)
	}
	return [][]byte{[]byte(secret)}, nil
}
