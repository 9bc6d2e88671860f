package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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

// sending is everything on the way out.
type sending struct {
	router    atomic.Pointer[courier.Router]
	smtp      *courier.SMTP
	rewriter  *srs.Rewriter // nil: senders are not rewritten
	passwords atomic.Pointer[map[string]string]
}

func (s *server) makeSending(ctx context.Context) error {
	out := &sending{}
	s.sending = out
	router, err := courier.NewRouter(s.routes(s.conf))
	if err != nil {
		return err
	}
	out.router.Store(router)
	passwords := s.conf.RelayPasswords()
	out.passwords.Store(&passwords)
	panics := s.reg.CounterVec("chasquid_panics_total", "Panics recovered, by component: each is a bug worth reporting.",
		[]string{"component"}, monitoring.PanicComponents).With("courier")
	port, err := strconv.ParseUint(s.flags.smtpPort, 10, 16)
	if err != nil {
		return fmt.Errorf("-testing__outgoing_smtp_port: %w", err)
	}
	out.smtp = courier.NewSMTP(courier.Config{Hostname: s.conf.GetHostname(), Resolver: s.dns, Port: uint16(port), SourceAddrs: s.conf.OutgoingIPs,
		Own: s.ownAddress, Sources: s.tlsSources(), HostSources: s.tlsHostSources(), Ledger: s.ledger(), Password: out.password,
		SendLongLines: s.conf.GetLongLines() == "send", Timeouts: courier.Timeouts{Connect: s.conf.Time.Dial}, Metrics: s.reg})
	local := courier.LocalConfig{Hostname: s.conf.GetHostname(), MDA: s.conf.GetMailDeliveryAgentBin(), Args: s.conf.GetMailDeliveryAgentArgs(),
		Env: os.Environ(), Timeout: s.conf.Time.LocalDelivery, SuffixSeparators: s.conf.GetSuffixSeparators(),
		DropCharacters: s.conf.GetDropCharacters(), OnPanic: panics.Inc, Metrics: s.reg}
	mux := &courier.Mux{Local: courier.NewLocal(local), SMTP: out.smtp, Pipe: courier.NewPipe(local), OnPanic: panics.Inc}
	if s.conf.SRS {
		secrets, err := srsSecrets(s.conf.SRSSecretFile)
		if err != nil {
			return err
		}
		out.rewriter = srs.New(secrets...)
	}
	s.slot = &queue.Slot{}
	s.queue = queue.New(s.queueConfig(mux, out))
	s.intake = handover.NewIntake(s.queue, s.conf.GetDataDir())
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
	conf := spool.Config{FS: s.queueDisk(), Dir: filepath.Join(s.conf.GetDataDir(), "queue"), MinFree: int64(s.conf.GetMinFreeDiskMb()) << 20, Metrics: s.reg}
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

func (s *server) queueConfig(mux *courier.Mux, out *sending) queue.Config {
	bounceTo, err := address.ParsePath(s.conf.GetDoubleBounceTo())
	if err != nil { // config has checked it
		bounceTo = address.Address{}
	}
	delay := s.conf.DelayNotice
	if delay == 0 {
		delay = -1
	}
	return queue.Config{Store: s.slot, Courier: mux, Expand: s.aliases.Expand,
		Route: func(ctx context.Context, r mail.Recipient, env *mail.Envelope) (mail.Route, error) {
			return out.router.Load().Route(ctx, r, env)
		},
		Sites: func(ctx context.Context, domain string) (string, error) {
			return out.smtp.Site(ctx, mail.Route{Transport: mail.SMTP, Domain: domain}), nil
		},
		LocalDomain: s.domains.IsLocal, Sign: s.signNotice, SRS: out.rewriter, Observer: s.observer, Metrics: s.reg,
		Hostname: s.conf.GetHostname(), DoubleBounceTo: bounceTo, MaxItems: int(s.conf.GetMaxQueueItems()),
		GiveUpAfter: s.conf.GiveUp, DelayNoticeAfter: delay, Grace: s.conf.Time.Drain,
		Workers: int(s.conf.GetMaxDeliveries()), SiteWorkers: int(s.conf.GetMaxDeliveriesPerDestination())}
}

// routes is the router's configuration.
func (s *server) routes(conf *config.Config) courier.RouterConfig {
	return courier.RouterConfig{Local: s.domains.IsLocal, LocalTarget: conf.LocalTarget(), RelayVia: conf.RelayURL(), Routes: conf.RouteTable()}
}

func (out *sending) password(target string) (string, error) {
	p, ok := (*out.passwords.Load())[target]
	if !ok {
		return "", errors.New("no password is configured for " + target)
	}
	return p, nil
}

// close ends the idle connections.
func (out *sending) close() { out.smtp.Close() }

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
