package fault

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// rounds is how often a fault is repeated: CHASQUID_FAULT_ROUNDS; 200 with CHASQUID_FAULT=1; else just a few.
func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("CHASQUID_FAULT_ROUNDS")); err == nil && n > 0 {
		return n
	}
	if os.Getenv("CHASQUID_FAULT") != "" {
		return 200
	}
	return few
}

const (
	clients = 8
	patient = 90 * time.Second
)

// between is how many messages are acknowledged between two faults.
func between() int { return 20 + rand.IntN(100) }

// traffic is mail that flows into a server and out of it to a Maildir and another server, both outside the faulty disk.
type traffic struct {
	*harness.Server
	t       testing.TB
	ledger  *Ledger
	out     *Deliveries
	stop    chan struct{}
	senders sync.WaitGroup
	started time.Duration // the longest start
}

// newTraffic makes a server with its data in dataDir ("": anywhere), starts it, and lets mail flow.
func newTraffic(t testing.TB, dataDir, conf string) *traffic {
	t.Helper()
	sink, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	tr := &traffic{t: t, ledger: NewLedger(), out: NewDeliveries(), stop: make(chan struct{})}
	go tr.out.ServeSink(sink)
	tr.Server = harness.New(t, harness.Options{DataDir: dataDir,
		Conf: fmt.Sprintf("route: { domain: \"sink.test\" via: %q }\n", sink.Addr()) + conf,
		Domains: map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret"},
			Aliases: "away: someone@sink.test\n"}}})
	tr.start()
	for range clients {
		tr.senders.Go(func() {
			tr.ledger.Sender(tr.SMTP, []string{"user@example.test", "away@example.test"}, size, tr.stop)
		})
	}
	t.Cleanup(tr.end)
	return tr
}

// size draws the size of a body, so that messages are kept in all the ways there are: within a record, in chunks, in a file of their own.
func size() int {
	switch n := rand.IntN(100); {
	case n < 82:
		return 100 + rand.IntN(7000)
	case n < 97:
		return 50_000 + rand.IntN(100_000)
	default:
		return 1<<20 + rand.IntN(300_000)
	}
}

func (tr *traffic) end() {
	select {
	case <-tr.stop:
	default:
		close(tr.stop)
	}
	tr.senders.Wait()
}

func (tr *traffic) start() {
	tr.t.Helper()
	at := time.Now()
	tr.Start()
	tr.started = max(tr.started, time.Since(at))
}

// more waits until n more messages were acknowledged.
func (tr *traffic) more(n int) {
	tr.t.Helper()
	target := tr.ledger.Accepted() + n
	harness.WaitFor(tr.t, patient, "more messages acknowledged", func() bool { return tr.ledger.Accepted() >= target })
}

func (tr *traffic) collect() {
	tr.t.Helper()
	if err := tr.out.CollectMaildir(filepath.Join(tr.Dir, "mail", "example.test", "user")); err != nil {
		tr.t.Fatal(err)
	}
}

// kill ends the server at once; the fault that came before began at from.
func (tr *traffic) kill(from time.Time) {
	tr.Kill()
	tr.out.Ended(from, time.Now())
	tr.collect()
}

// settle ends the flow, waits for everything acknowledged to arrive, and judges.
func (tr *traffic) settle(what string) {
	tr.t.Helper()
	tr.end()
	deadline := time.Now().Add(patient)
	v := tr.out.Judge(tr.ledger)
	for len(v.Lost) > 0 && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		tr.collect()
		v = tr.out.Judge(tr.ledger)
	}
	tr.t.Logf("%s: %v; longest start %v; refusals %v", what, v, tr.started.Round(time.Millisecond), tr.ledger.Replies())
	if len(v.Lost) > 0 || len(v.Torn) > 0 || len(v.Odd) > 0 {
		tr.t.Errorf("lost %.20q, torn %.20q, twice without a reason %.20q", v.Lost, v.Torn, v.Odd)
	}
	if strings.Contains(tr.Log(), "panic") {
		tr.t.Error("the server's log has a panic")
	}
	for line := range tr.ledger.Replies() {
		if line[0] != '4' {
			tr.t.Errorf("a client was refused for good: %s", line)
		}
	}
	if corrupt, _ := filepath.Glob(filepath.Join(tr.DataDir, "queue", "corrupt", "*")); len(corrupt) > 0 {
		tr.t.Errorf("files were set aside as damaged: %q", corrupt)
	}
}

// ready reports the status of /readyz and what it says.
func (tr *traffic) ready() (bool, string) {
	resp, err := http.Get("http://" + tr.Monitor + "/readyz?verbose")
	if err != nil {
		return false, err.Error()
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, tr.Get("/readyz?verbose")
}

// refuses waits until clients are refused with a reply that begins with one of prefixes, and the server is not ready and says why.
func (tr *traffic) refuses(why string, prefixes ...string) {
	tr.t.Helper()
	count := func() (n int) {
		for line, k := range tr.ledger.Replies() {
			if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
				n += k
			}
		}
		return n
	}
	before := count()
	harness.WaitFor(tr.t, 30*time.Second, fmt.Sprintf("refusals with %q", prefixes), func() bool { return count() > before })
	said := ""
	harness.WaitFor(tr.t, 10*time.Second, "the server to be not ready", func() bool {
		ok, text := tr.ready()
		said = text
		return !ok
	})
	if !strings.Contains(said, why) {
		tr.t.Errorf("/readyz does not say %q: %s", why, said)
	}
}
