package incidents

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
	"golang.org/x/sys/unix"
)

func incidents() []*incident {
	return []*incident{deadResolver(), hungHook(), fullDisk(), expiredCertificate(), provider(), stolenAccount(), wrongMDA(), deadSmarthost(), storm(), clockJump()}
}

// world is a zone in which everything that is named leads to the peer.
const world = `
dest.test MX 10 mx.dest.test
mx.dest.test A 127.0.0.1
gmail.test MX 10 aspmx.l.google.com
aspmx.l.google.com A 127.0.0.1
`

// make makes the server, which asks the incident's DNS and sends to the incident's peer.
func (in *incident) make(t *testing.T, o harness.Options) {
	if in.dns == nil {
		in.dns = newResolver(t, world)
	}
	port := "1" // nobody listens there
	if in.peer != nil {
		port = in.peer.port
	}
	o.Conf += setting("dns_server", fmt.Sprintf("%q", in.dns.addr))
	o.IP = in.ip
	o.Args = append(o.Args, "-testing__outgoing_smtp_port="+port, "-testing__reload_every=1s")
	in.server = harness.New(t, o)
}

// deadResolver: the DNS server does not answer any more.
func deadResolver() *incident {
	in := &incident{name: "resolver",
		words:   []string{"The DNS fails", "got no answer", "do they run"},
		ready:   []string{"[!] resolver: The DNS fails"},
		alert:   `alertname="ChasquidDNSFailing"`,
		example: []string{"-lost.test", "timeout"},
		well:    "[+] resolver: ok",
	}
	in.setup = func(t *testing.T, in *incident) {
		in.peer = newPeer(t, "127.0.0.1:0", "")
		in.make(t, harness.Options{})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		must(t, submit(in.server, "user@example.test", "somebody@dest.test"))
		in.dns.dead.Store(true)
		every(ctx, 3*time.Second, func(n int) {
			for i := range 4 {
				must(t, submit(in.server, "user@example.test", fmt.Sprintf("somebody@d%d-%d-lost.test", n, i)))
			}
		})
	}
	in.mend = func(t *testing.T, ctx context.Context, in *incident) {
		in.dns.dead.Store(false)
		every(ctx, 2*time.Second, func(n int) {
			must(t, submit(in.server, "user@example.test", fmt.Sprintf("somebody@d%d.found.test", n)))
		})
	}
	return in
}

// hungHook: the filter waits for something that does not come.
func hungHook() *incident {
	in := &incident{name: "hook",
		words:   []string{"A hook hangs: post-data has been running for"},
		ready:   []string{"[!] hooks: A hook hangs"},
		alert:   `alertname="ChasquidHookHung",hook="post_data"`,
		example: []string{"post-data", "under way"},
		well:    "[+] hooks: ok",
	}
	in.setup = func(t *testing.T, in *incident) {
		in.make(t, harness.Options{Conf: "timeouts: { post_data_hook: \"5m\" }\n"})
		in.server.WriteFile("hooks/post-data", "#!/bin/sh\nwhile [ -e "+in.server.Dir+"/hang ]; do sleep 0.2; done\n")
		must(t, os.Chmod(filepath.Join(in.server.Dir, "hooks/post-data"), 0755))
	}
	in.cause = func(t *testing.T, _ context.Context, in *incident) {
		in.server.WriteFile("hang", "")
		for range 2 {
			go arrive(in.server, "stranger@dest.test", "user@example.test") // it returns when the hook does
		}
	}
	in.mend = func(t *testing.T, _ context.Context, in *incident) {
		must(t, os.Remove(filepath.Join(in.server.Dir, "hang")))
		must(t, arrive(in.server, "stranger@dest.test", "user@example.test"))
	}
	return in
}

// fullDisk: something else fills the disk the queue is on.
func fullDisk() *incident {
	const size, reserve = 128 << 20, 8 << 20
	in := &incident{name: "disk", notReady: true,
		words:   []string{"The disk is full", "free where the queue is", "452 4.3.1", "Free some space"},
		ready:   []string{"[-] queue_space: not enough disk space in", "min_free_disk_mb"},
		alert:   `alertname="ChasquidNotReady",check="queue_space"`,
		example: []string{"452 4.3.1"},
		well:    "[+] queue_space: ok",
	}
	in.setup = func(t *testing.T, in *incident) {
		if os.Getuid() != 0 {
			t.Skip("mounting file systems needs root")
		}
		dir := filepath.Join(t.TempDir(), "disk")
		must(t, os.Mkdir(dir, 0700))
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		in.data = filepath.Join(dir, "something-else")
		in.make(t, harness.Options{DataDir: filepath.Join(dir, "data"), Conf: setting("min_free_disk_mb", reserve>>20)})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		f, err := os.Create(in.data.(string))
		must(t, err)
		defer f.Close()
		var st unix.Statfs_t
		must(t, unix.Statfs(filepath.Dir(f.Name()), &st))
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-reserve/2))
		every(ctx, 2*time.Second, func(n int) {
			err := arrive(in.server, "stranger@dest.test", "user@example.test")
			if err == nil && n == 0 {
				return // what is free is not asked for each message
			}
			if err == nil || !strings.HasPrefix(err.Error(), "452") {
				t.Errorf("a message to a full disk: %v", err)
			}
		})
	}
	in.mend = func(t *testing.T, _ context.Context, in *incident) {
		must(t, os.Remove(in.data.(string)))
		harness.WaitFor(t, 10*time.Second, "mail to be taken", func() bool {
			return arrive(in.server, "stranger@dest.test", "user@example.test") == nil
		})
	}
	return in
}

// expiredCertificate: what renews it did not run.
func expiredCertificate() *incident {
	in := &incident{name: "certificate",
		words:   []string{"The certificate mail.example.test expired", "Renew it"},
		ready:   []string{"[!] certificates: the certificate in", "expired on", "UTC: renew it"},
		alert:   `alertname="ChasquidCertExpires2d",name="mail.example.test"`,
		example: []string{"TLS handshake", "certificate"},
		well:    "[+] certificates: ok",
	}
	in.setup = func(t *testing.T, in *incident) {
		in.make(t, harness.Options{})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		in.server.WriteCert("mail.example.test", "mail.example.test", time.Now().Add(4*time.Second))
		every(ctx, time.Second, func(int) {
			conn, err := tls.Dial("tcp", in.server.SubmissionTLS, &tls.Config{RootCAs: in.server.CA, ServerName: "mail.example.test"})
			if err == nil {
				conn.Close()
			}
		})
	}
	in.mend = func(t *testing.T, _ context.Context, in *incident) {
		in.server.WriteCert("mail.example.test", "mail.example.test", time.Now().Add(90*24*time.Hour))
	}
	return in
}

// provider: one of the large ones finds that we send too much.
func provider() *incident {
	const reply = "451 4.7.28 Our system has detected an unusual rate of mail from you"
	in := &incident{name: "provider",
		words:   []string{"google puts us off", "4.7.28", "unusual rate"},
		ready:   []string{"[!] ChasquidProviderDeferring: google puts us off"},
		alert:   `alertname="ChasquidProviderDeferring",provider="google"`,
		example: []string{"4.7.28", "@gmail.test"},
	}
	in.setup = func(t *testing.T, in *incident) {
		in.peer = newPeer(t, "127.0.0.1:0", reply)
		in.make(t, harness.Options{})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		for n := range 3 {
			var to []string
			for i := range 15 {
				to = append(to, fmt.Sprintf("u%d-%d@gmail.test", n, i))
			}
			must(t, submit(in.server, "user@example.test", to...))
		}
	}
	return in
}

// stolenAccount: somebody has the password of a user, and sends.
func stolenAccount() *incident {
	in := &incident{name: "stolen", calm: 30,
		words:   []string{"eve@example.test sent to", "the account may be stolen"},
		ready:   []string{"[!] ChasquidSubmissionSpike: eve@example.test"},
		alert:   `alertname="ChasquidSubmissionSpike"`,
		example: []string{"eve@example.test"},
	}
	in.setup = func(t *testing.T, in *incident) {
		in.peer = newPeer(t, "127.0.0.1:0", "")
		in.make(t, harness.Options{Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret", "eve": "secret"}}}})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		for n := range 4 {
			var to []string
			for i := range 100 {
				to = append(to, fmt.Sprintf("victim%d-%d@dest.test", n, i))
			}
			must(t, submit(in.server, "eve@example.test", to...))
		}
	}
	return in
}

// wrongMDA: the program that delivers to users is not where the settings say.
func wrongMDA() *incident {
	in := &incident{name: "mda",
		words:   []string{"Users do not get their mail", "no such file", "Mail waits in the queue"},
		ready:   []string{"[!] mda: mail for local users waits", "cannot be run", "set mail_delivery_agent_bin"},
		alert:   `alertname="ChasquidLocalDeliveryFailing",type="local"`,
		example: []string{"user@example.test", "no such file"},
		well:    "[+] mda: ok",
	}
	in.setup = func(t *testing.T, in *incident) {
		program := filepath.Join(t.TempDir(), "deliver")
		in.data = program
		in.make(t, harness.Options{Local: setting("mail_delivery_agent_bin", fmt.Sprintf("%q", program))})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		every(ctx, 2*time.Second, func(int) {
			must(t, arrive(in.server, "stranger@dest.test", "user@example.test"))
		})
	}
	in.mend = func(t *testing.T, ctx context.Context, in *incident) {
		program := in.data.(string)
		must(t, os.WriteFile(program+".new", []byte("#!/bin/sh\ncat >/dev/null\n"), 0755))
		must(t, os.Rename(program+".new", program))
		retry(t, in.server)
		every(ctx, 2*time.Second, func(int) {
			must(t, arrive(in.server, "stranger@dest.test", "user@example.test"))
		})
	}
	return in
}

// deadSmarthost: the relay that everything leaves through is down.
func deadSmarthost() *incident {
	in := &incident{name: "smarthost",
		words:   []string{"The relay 127.", "which mail leaves through, cannot be used", "refused"},
		ready:   []string{"[!] relay: The relay 127."},
		alert:   `alertname="ChasquidNotReady",check="relay"`,
		example: []string{"@dest.test", "connection refused"},
		well:    "[+] relay: ok",
	}
	in.setup = func(t *testing.T, in *incident) {
		relay := net.JoinHostPort(in.ip, harness.FreePort(t, in.ip))
		in.data = relay
		in.make(t, harness.Options{Conf: setting("relay_via", `"smtp://`+relay+`"`)})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		for i := range 6 {
			must(t, submit(in.server, "user@example.test", fmt.Sprintf("u%d@dest.test", i)))
		}
	}
	in.mend = func(t *testing.T, ctx context.Context, in *incident) {
		newPeer(t, in.data.(string), "")
		retry(t, in.server)
	}
	return in
}

// storm: very much mail for one place, which puts it all off.
func storm() *incident {
	const messages, clients = 10_000, 20
	in := &incident{name: "storm",
		words:   []string{"The queue grew from", "of the deferrals", "the other server refuses for now"},
		ready:   []string{"[!] ChasquidQueueGrows: The queue grew from"},
		alert:   `alertname="ChasquidQueueGrows"`,
		example: []string{"451 4.3.2", "@dest.test"},
	}
	in.setup = func(t *testing.T, in *incident) {
		in.peer = newPeer(t, "127.0.0.1:0", "451 4.3.2 System not accepting messages")
		in.make(t, harness.Options{Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret"}, Aliases: "list: far@dest.test\n"}}})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		begin := time.Now()
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				if err := flood(in.server, messages/clients, "stranger@dest.test", "list@example.test"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		t.Logf("%d messages sent in %v", messages, time.Since(begin))
		harness.WaitFor(t, soon, "all to be put off", func() bool {
			n := 0.0
			for name, v := range in.server.Metrics() {
				if strings.HasPrefix(name, "chasquid_delivery_attempts_total") && strings.Contains(name, `"deferred"`) {
					n += v
				}
			}
			return n >= messages
		})
		t.Logf("all put off after %v", time.Since(begin))
	}
	return in
}

// clockJump: the clock of the machine is set while the server runs. Go asks the kernel for the time, which cannot be told another one; so the
// server runs in an emulator that asks the C library, which can.
func clockJump() *incident {
	in := &incident{name: "clock",
		words:   []string{"The clock of this machine was set forward by 24 h", "Times of retries"},
		ready:   []string{"[!] ChasquidClockJump: The clock of this machine was set forward by 24 h"},
		alert:   `alertname="ChasquidClockJump"`,
		example: []string{"@dest.test", "451 4.3.2"},
	}
	in.setup = func(t *testing.T, in *incident) {
		emulator := harness.Need(t, "qemu-x86_64", "qemu-user")
		harness.Need(t, "faketime", "faketime")
		libs, err := filepath.Glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
		if err != nil || len(libs) == 0 {
			t.Skip("libfaketimeMT.so.1 is not installed; install it with: apt-get install libfaketime")
		}
		in.data = filepath.Join(t.TempDir(), "time")
		write(t, in.data.(string), "+0")
		in.peer = newPeer(t, "127.0.0.1:0", "451 4.3.2 System not accepting messages")
		in.make(t, harness.Options{Wrap: []string{emulator}, Env: []string{"LD_PRELOAD=" + libs[0], "FAKETIME_TIMESTAMP_FILE=" + in.data.(string),
			"FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"}})
	}
	in.cause = func(t *testing.T, ctx context.Context, in *incident) {
		must(t, submit(in.server, "user@example.test", "somebody@dest.test"))
		harness.WaitFor(t, soon, "the message to be put off", func() bool { return strings.Contains(in.server.Get("/debug/queue?format=json"), "4.3.2") })
		write(t, in.data.(string)+".new", "+1d")
		must(t, os.Rename(in.data.(string)+".new", in.data.(string)))
	}
	return in
}
