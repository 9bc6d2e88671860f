package queue_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/queue/memstore"
	"blitiri.com.ar/go/chasquid/internal/queue/spool"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

func TestMain(m *testing.M) {
	log.Default.Level = log.Fatal
	os.Exit(m.Run())
}

// ledger is what the world outside saw: what was acknowledged, delivered and told. It survives crashes.
type ledger struct {
	mu        sync.Mutex
	acked     map[string]bool // recipients
	delivered map[string]int
	told      map[string]int  // failures in notices that were delivered
	recorded  map[string]bool // delivered, and the store had said that it will remember
	dead      bool            // the machine has no power: nothing more happens
	late      []string        // delivered though that was recorded before
}

func newLedger() *ledger {
	return &ledger{acked: map[string]bool{}, delivered: map[string]int{}, told: map[string]int{}, recorded: map[string]bool{}}
}

// fate tells how a recipient answers: some take the mail, some take it at the third attempt, some never do.
func fate(to string, attempt int) mail.Outcome {
	h := 0
	for _, c := range to {
		h = h*31 + int(c)
	}
	switch h % 5 {
	case 0:
		return mail.Outcome{Disposition: mail.Failed, Reason: mail.ReasonMailbox, Reply: smtp.NewReply(550, "5.1.1", "no"), Err: errors.New("550 no")}
	case 1:
		if attempt < 3 {
			return mail.Outcome{Reason: mail.ReasonGreylist, Reply: smtp.NewReply(450, "4.7.1", "later"), Err: errors.New("450 later")}
		}
	}
	return mail.Outcome{Disposition: mail.Delivered}
}

// Deliver implements queue.Courier.
func (l *ledger) Deliver(_ context.Context, job mail.Job) []mail.Outcome {
	time.Sleep(100 * time.Millisecond)
	out := make([]mail.Outcome, len(job.Rcpts))
	notice := l.read(&job)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range out {
		to := job.Rcpts[i].To.String()
		switch {
		case l.dead:
			out[i] = mail.Outcome{Reason: mail.ReasonInternal, Err: errors.New("dead")}
		case job.From.IsNull():
			out[i] = mail.Outcome{Disposition: mail.Delivered}
			for _, r := range notice {
				l.told[r]++
			}
		default:
			if out[i] = fate(to, job.Attempt); out[i].Disposition == mail.Delivered {
				l.delivered[to]++
				if l.recorded[to] {
					l.late = append(l.late, to)
				}
			}
		}
	}
	return out
}

// read returns the recipients that a notice tells of.
func (l *ledger) read(job *mail.Job) (rcpts []string) {
	r, err := job.Open()
	if err != nil {
		return nil
	}
	defer r.Close()
	if !job.From.IsNull() {
		io.Copy(io.Discard, r)
		return nil
	}
	for sc := bufio.NewScanner(r); sc.Scan(); {
		if a, ok := strings.CutPrefix(sc.Text(), "Final-Recipient: utf-8; "); ok {
			rcpts = append(rcpts, a)
		}
	}
	return rcpts
}

// recorder is a store that notes in the ledger what it promised to remember.
type recorder struct {
	queue.Store
	l *ledger
}

func (r *recorder) note(id mail.ID, e queue.Entry, i int) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if !r.l.dead {
		r.l.recorded[e.Env.Rcpts[i].To.String()] = true
	}
}

func (r *recorder) Update(id mail.ID, us ...queue.RcptUpdate) error {
	e, _ := r.Store.Load(id)
	err := r.Store.Update(id, us...)
	for _, u := range us {
		if err == nil && u.State.Status == queue.Sent && !e.Env.From.IsNull() {
			r.note(id, e, u.Rcpt)
		}
	}
	return err
}

func (r *recorder) Remove(id mail.ID) error {
	e, _ := r.Store.Load(id)
	err := r.Store.Remove(id)
	for i := range e.Env.Rcpts {
		if err == nil && !e.Env.From.IsNull() {
			r.note(id, e, i)
		}
	}
	return err
}

// life runs a queue over the store for a time, and puts messages into it meanwhile. Each recipient is another.
func (l *ledger) life(t *testing.T, store queue.Store, messages int, d time.Duration, rng *rand.Rand, name string) {
	q := queue.New(queue.Config{Store: &recorder{store, l}, Courier: l, Grace: time.Second, Hostname: "us.test"})
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { q.Run(ctx) })
	for m := range messages {
		time.Sleep(time.Duration(rng.IntN(30)) * time.Second)
		env := &mail.Envelope{From: address.MustParse("sender@them.test")}
		for r := range 1 + rng.IntN(4)*rng.IntN(2) {
			a := address.MustParse(fmt.Sprintf("%s-m%d-r%d@d%d.test", name, m, r, rng.IntN(3)))
			env.Rcpts = append(env.Rcpts, mail.Recipient{To: a, Orig: a})
		}
		dr, err := q.Begin(ctx)
		if err != nil {
			continue
		}
		io.WriteString(dr, "Subject: x\r\n\r\n"+strings.Repeat("text\r\n", rng.IntN(2000)))
		if _, err := dr.Commit(ctx, env, []byte("Received: x\r\n")); err != nil {
			continue
		}
		l.mu.Lock()
		for _, r := range env.Rcpts {
			if !l.dead {
				l.acked[r.To.String()] = true
			}
		}
		l.mu.Unlock()
	}
	time.Sleep(d)
	cancel()
	wait.Wait()
}

// verify checks the promises once everything has run its course.
func (l *ledger) verify(t *testing.T, store queue.Store, crashed bool) {
	t.Helper()
	for range store.All() {
		t.Error("something is left in the queue")
	}
	twice := 0
	for to := range l.acked {
		failed := fate(to, 3).Disposition == mail.Failed
		switch {
		case failed && (l.told[to] == 0 || l.told[to] > 2 || l.told[to] > 1 && !crashed):
			t.Errorf("the failure of %s was told %d times", to, l.told[to])
		case failed && l.delivered[to] > 0:
			t.Errorf("%s failed and was delivered", to)
		case !failed && l.delivered[to] == 0:
			t.Errorf("%s was acknowledged and is lost", to)
		case !failed && l.told[to] > 0:
			t.Errorf("%s was delivered and called failed", to)
		}
		if l.delivered[to] > 1 {
			twice++
		}
	}
	if len(l.late) > 0 {
		t.Errorf("delivered again though their delivery was recorded: %v", l.late)
	}
	if twice > 0 && !crashed {
		t.Errorf("%d delivered twice without a crash", twice)
	}
	if len(l.acked) == 0 {
		t.Error("nothing was acknowledged")
	}
}

func TestLifeOverMemstore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, store := newLedger(), memstore.New()
		l.life(t, store, 60, 24*time.Hour, rand.New(rand.NewPCG(1, 1)), "a")
		l.verify(t, store, false)
	})
}

// The power goes at a random operation of the disk, again and again. Everything acknowledged is delivered or its failure told, nothing that
// was recorded as delivered is delivered again, and what failed is not told twice but where the power went in between.
func TestX8PowerCuts(t *testing.T) {
	lives := 60
	if testing.Short() {
		lives = 10
	}
	for seed := range lives {
		runtime.GC() // twice empties the pools of the store, whose channels belong to the bubble they were made in
		runtime.GC()
		synctest.Test(t, func(t *testing.T) { powerCuts(t, uint64(seed)) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func powerCuts(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	l, mem := newLedger(), vfs.NewMem()
	open := func(fsys vfs.FS) *spool.Store {
		s, err := spool.Open(spool.Config{Dir: "/queue", FS: fsys, SegmentSize: 256 << 10, MinFree: -1, NoPrefill: true})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		return s
	}
	for cut := range 3 {
		left := 20 + rng.IntN(150)
		var next *vfs.Mem
		var mu sync.Mutex
		store := open(vfs.Hook(mem, func(op vfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if !op.Verb.Changes() && next == nil {
				return nil
			}
			if left--; left == 0 {
				l.mu.Lock()
				l.dead = true
				next = mem.PowerCut(rand.New(rand.NewPCG(seed, uint64(cut))))
				l.mu.Unlock()
			}
			if next != nil {
				return errors.New("no power")
			}
			return nil
		}))
		l.life(t, store, 12, time.Minute, rng, fmt.Sprintf("s%dc%d", seed, cut))
		mu.Lock()
		if next == nil { // it ended before
			left = -1
			l.dead = true
			next = mem.PowerCut(rand.New(rand.NewPCG(seed, uint64(cut))))
		}
		mu.Unlock()
		store.Close()
		l.mu.Lock()
		mem, l.dead = next, false
		l.mu.Unlock()
	}
	store := open(mem)
	before := maps.Clone(l.acked)
	l.life(t, store, 3, 24*time.Hour, rng, fmt.Sprintf("s%dz", seed))
	if len(before) == 0 {
		t.Logf("seed %d: nothing was acknowledged before the cuts", seed)
	}
	l.verify(t, store, true)
	store.Close()
}
