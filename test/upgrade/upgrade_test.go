// Package upgrade replaces the running server by another build of it while mail flows, and counts what became of the mail.
package upgrade

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/fault"
	"blitiri.com.ar/go/chasquid/test/harness"
)

const patient = 60 * time.Second

// builds are two builds with different versions, made once.
var builds = sync.OnceValue(func() string {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("chasquid-upgrade-%d", os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(err)
	}
	return dir
})

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(builds())
	os.Exit(code)
}

// The two versions. Their names have the same length: the second is the first with another name in it, which is quicker than linking twice.
const (
	v1 = "upgrade-test-1"
	v2 = "upgrade-test-2"
)

var building sync.Mutex

// build returns the program of a version.
func build(t testing.TB, version string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	file := filepath.Join(builds(), version)
	if _, err := os.Stat(file); err == nil {
		return file
	}
	first := filepath.Join(builds(), v1)
	if _, err := os.Stat(first); err != nil {
		harness.BuildVersion(t, v1, first)
	}
	if version == v1 {
		return first
	}
	b, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(b, []byte(v1), []byte(version)), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// site is a server whose program can be replaced, with mail flowing through it.
type site struct {
	*harness.Server
	t       testing.TB
	program string // the path it was started by
	ledger  *fault.Ledger
	out     *fault.Deliveries
	stop    chan struct{}
	clients sync.WaitGroup
}

func newSite(t testing.TB, o harness.Options) *site {
	t.Helper()
	sink, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	s := &site{t: t, ledger: fault.NewLedger(), out: fault.NewDeliveries(), stop: make(chan struct{})}
	go s.out.ServeSink(sink)
	dir := t.TempDir()
	s.program = filepath.Join(dir, "chasquid")
	s.install(v1)
	o.Binary, o.LogFile = s.program, filepath.Join(dir, "log")
	o.Conf += fmt.Sprintf("route: { domain: \"sink.test\" via: %q }\n", sink.Addr())
	o.Domains = map[string]harness.Domain{"example.test": {Users: map[string]string{"user": "secret", "other": "secret"}, Aliases: "away: someone@sink.test\nslow: someone@slow.test\n"}}
	s.Server = harness.New(t, o)
	t.Cleanup(s.end)
	return s
}

// install puts a build in the place that the server was started from, in one step, as a package does.
func (s *site) install(version string) { s.put(build(s.t, version)) }

func (s *site) put(file string) {
	s.t.Helper()
	tmp := s.program + ".new"
	os.Remove(tmp)
	if err := os.Link(file, tmp); err != nil {
		if out, cerr := exec.Command("cp", file, tmp).CombinedOutput(); cerr != nil {
			s.t.Fatalf("%v, %v: %s", err, cerr, out)
		}
	}
	if err := os.Rename(tmp, s.program); err != nil {
		s.t.Fatal(err)
	}
}

// flow starts a client.
func (s *site) flow(c fault.Client) {
	c.Rcpts, c.Size = []string{"user@example.test", "away@example.test"}, size
	if c.TLS != nil || c.Addr != s.SMTP {
		c.User, c.Password = "user@example.test", "secret"
	}
	s.clients.Go(func() { s.ledger.Run(c, s.stop) })
}

// size draws the size of a body: small, in chunks, more than is kept in memory during a handover.
func size() int {
	switch n := rand.IntN(100); {
	case n < 85:
		return 100 + rand.IntN(4000)
	case n < 97:
		return 50_000 + rand.IntN(100_000)
	default:
		return 300_000 + rand.IntN(200_000)
	}
}

func (s *site) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.clients.Wait()
}

// more waits until n more messages were acknowledged.
func (s *site) more(n int) {
	s.t.Helper()
	target := s.ledger.Accepted() + n
	harness.WaitFor(s.t, patient, "more messages acknowledged", func() bool { return s.ledger.Accepted() >= target })
}

func (s *site) collect() {
	s.t.Helper()
	if err := s.out.CollectMaildir(filepath.Join(s.Dir, "mail", "example.test", "user")); err != nil {
		s.t.Fatal(err)
	}
}

// result is what "chasquid upgrade" says.
type result struct {
	From, To string
	PID      int
	Took     time.Duration `json:"took_ns"`
	Paused   time.Duration `json:"paused_ns"`
}

// upgrade asks for an upgrade and returns what the command says, and its exit code.
func (s *site) upgrade() (result, string, int) {
	s.t.Helper()
	cmd := exec.Command(build(s.t, v1), "upgrade", "-json", "-C", s.Dir)
	out, err := cmd.CombinedOutput()
	var r result
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil && cmd.ProcessState.ExitCode() <= 0 {
		s.t.Fatalf("chasquid upgrade: %v\n%s", err, out)
	}
	return r, string(out), cmd.ProcessState.ExitCode()
}

// settle ends the flow, waits for everything acknowledged to arrive, and judges.
func (s *site) settle(what string) fault.Verdict {
	s.t.Helper()
	s.end()
	deadline := time.Now().Add(patient)
	s.collect()
	v := s.out.Judge(s.ledger)
	for len(v.Lost) > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
		s.collect()
		v = s.out.Judge(s.ledger)
	}
	s.t.Logf("%s: %v; refusals %v; broken sessions %v", what, v, s.ledger.Replies(), s.ledger.Broken())
	if len(v.Lost) > 0 || len(v.Torn) > 0 || len(v.Odd) > 0 {
		s.t.Errorf("lost %.20q, torn %.20q, twice without a reason %.20q", v.Lost, v.Torn, v.Odd)
	}
	for _, bad := range []string{"panic", "DATA RACE"} {
		if strings.Contains(s.Log(), bad) {
			s.t.Errorf("the server's log has %q", bad)
		}
	}
	return v
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil && !zombie(pid) }

// zombie reports a process that has ended; only its parent can remove it.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && regexp.MustCompile(`\) [ZX] `).Match(b)
}

// terminate stops a process that is not our child.
func terminate(t testing.TB, pid int) {
	t.Helper()
	syscall.Kill(pid, syscall.SIGTERM)
	harness.WaitFor(t, patient, fmt.Sprintf("the end of process %d", pid), func() bool { return !alive(pid) })
}

// TestUnderLoad upgrades three times in a row while clients of all kinds send: over connections of one message and of a hundred, plain
// and TLS. Nobody notices.
func TestUnderLoad(t *testing.T) {
	s := newSite(t, harness.Options{Conf: "timeouts: { drain: \"50s\" }\n"})
	s.Start()
	pids := []int{s.PID()}
	secure := &tls.Config{RootCAs: s.CA, ServerName: "mail.example.test"}
	for _, n := range []int{1, 100} {
		for range 2 {
			s.flow(fault.Client{Addr: s.SMTP, PerSession: n})
			s.flow(fault.Client{Addr: s.SubmissionTLS, TLS: secure, PerSession: n})
		}
	}
	for _, version := range []string{v2, v1, v2} {
		s.more(100)
		s.install(version)
		r, out, exit := s.upgrade()
		if exit != 0 || r.To != version {
			t.Fatalf("exit %d: %s", exit, out)
		}
		t.Logf("%+v", r)
		pids = append(pids, r.PID)
	}
	s.more(100)
	index := s.Get("/?format=text")
	if !strings.Contains(index, "chasquid "+v2+" on") || !strings.Contains(index, fmt.Sprintf("took over from version %s, process %d", v1, pids[2])) {
		t.Errorf("the index does not say who serves since when:\n%.500s", index)
	}
	if n := s.Metrics()[`chasquid_upgrades_total{result="ok"}`]; n != 3 {
		t.Errorf("%v upgrades counted", n)
	}
	v := s.settle("three upgrades")
	if s.ledger.Failures() > 0 {
		t.Errorf("clients noticed: %v, %v", s.ledger.Replies(), s.ledger.Broken())
	}
	if v.Twice > 0 {
		t.Errorf("%d messages came twice", v.Twice)
	}
	for _, pid := range pids[:3] {
		harness.WaitFor(t, patient, fmt.Sprintf("the end of process %d", pid), func() bool { return !alive(pid) })
	}
	s.checkRest(v)
	terminate(t, pids[3])
	s.checkLog(len(pids))
}

// checkLog looks at the log of all processes: lines are whole, and there is one for each recipient that the mail log knows to be served.
func (s *site) checkLog(processes int) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir, "mail.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	served := regexp.MustCompile(`(?m)(?:from=|: )\S+ (?:to=\S+ )?sent$`)
	log := s.Log()
	if got, want := len(served.FindAllString(log, -1)), len(served.FindAll(b, -1)); got != want || want == 0 {
		s.t.Errorf("the mail log has %d deliveries, the log %d", want, got)
	}
	for line := range strings.Lines(log) {
		if !regexp.MustCompile(`^[_E.] \S+:\d+ +\S.*\n$`).MatchString(line) {
			s.t.Errorf("line %q of the log is not whole", line)
		}
	}
	if n := strings.Count(log, " chasquid stopped\n"); n != processes || !strings.HasSuffix(log, " chasquid stopped\n") {
		s.t.Errorf("%d processes ended, the log has the end of %d, or goes on: %.500s", processes, n, log[max(0, len(log)-500):])
	}
}

// checkRest looks at what is not mail: the history knows every message, and the mail log has each just once.
func (s *site) checkRest(v fault.Verdict) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir, "mail.log"))
	if err != nil {
		s.t.Fatal(err)
	}
	ids := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)(\S+) from=\S* queued `).FindAllStringSubmatch(string(b), -1) {
		ids[m[1]]++
	}
	if len(ids) != v.Accepted {
		s.t.Errorf("%d messages were acknowledged, the mail log has %d", v.Accepted, len(ids))
	}
	out, err := exec.Command(s.program, "history", "-C", s.Dir, "-limit", strconv.Itoa(2*v.Accepted), "-json").Output()
	if err != nil {
		s.t.Fatal(err)
	}
	n := strings.Count(string(out), `"state": "delivered"`)
	if n != v.Accepted {
		s.t.Errorf("%d messages were acknowledged, the history has %d as delivered", v.Accepted, n)
	}
}
