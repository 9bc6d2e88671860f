package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// fakeStore keeps messages in memory, as a disk would: nothing it holds is shared with who gave it. Operations can be made to fail or wait.
type fakeStore struct {
	mu    sync.Mutex
	msgs  map[mail.ID]*stored
	order []mail.ID
	log   []string                          // operations done, "commit ID", "update ID 0=SENT", "remove ID"
	fail  func(op string, id mail.ID) error // nil: nothing fails
	loads int
	flush time.Duration // how long commit, update and remove take
}

type stored struct {
	entry Entry
	body  []byte
}

func newFakeStore() *fakeStore { return &fakeStore{msgs: map[mail.ID]*stored{}} }

func (s *fakeStore) failing(op string, id mail.ID) error {
	if s.fail != nil {
		return s.fail(op, id)
	}
	return nil
}

// setFail changes what fails.
func (s *fakeStore) setFail(f func(op string, id mail.ID) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

func (s *fakeStore) note(format string, a ...any) { s.log = append(s.log, fmt.Sprintf(format, a...)) }

func cloneEntry(e *Entry) Entry {
	c := *e
	c.Env.Rcpts = slices.Clone(e.Env.Rcpts)
	c.Status = slices.Clone(e.Status)
	return c
}

type fakeIncoming struct {
	s *fakeStore
	b bytes.Buffer
}

func (s *fakeStore) Create() (Incoming, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("create", ""); err != nil {
		return nil, err
	}
	return &fakeIncoming{s: s}, nil
}

func (in *fakeIncoming) Write(b []byte) (int, error) { return in.b.Write(b) }
func (in *fakeIncoming) Size() int64                 { return int64(in.b.Len()) }
func (in *fakeIncoming) Content() io.ReadSeeker      { return bytes.NewReader(in.b.Bytes()) }
func (in *fakeIncoming) Discard()                    {}

func (in *fakeIncoming) Commit(e *Entry, prefix []byte) error {
	s := in.s
	time.Sleep(s.flush)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("commit", e.ID); err != nil {
		return err
	}
	if s.msgs[e.ID] != nil {
		return ErrExists
	}
	if want := int64(len(prefix) + in.b.Len()); e.Size != want {
		return fmt.Errorf("size %d, want %d", e.Size, want)
	}
	s.msgs[e.ID] = &stored{cloneEntry(e), append(slices.Clone(prefix), in.b.Bytes()...)}
	s.order = append(s.order, e.ID)
	s.note("commit %s", e.ID)
	return nil
}

func (s *fakeStore) All() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		s.mu.Lock()
		order := slices.Clone(s.order)
		s.mu.Unlock()
		for _, id := range order {
			if e, err := s.Load(id); err == nil && !yield(e, nil) {
				return
			}
		}
	}
}

func (s *fakeStore) Load(id mail.ID) (Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads++
	if err := s.failing("load", id); err != nil {
		return Entry{}, err
	}
	m := s.msgs[id]
	if m == nil {
		return Entry{}, ErrNotFound
	}
	return cloneEntry(&m.entry), nil
}

func (s *fakeStore) Open(id mail.ID) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("open", id); err != nil {
		return nil, err
	}
	m := s.msgs[id]
	if m == nil {
		return nil, ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(m.body)), nil
}

func (s *fakeStore) Update(id mail.ID, us ...RcptUpdate) error {
	time.Sleep(s.flush)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("update", id); err != nil {
		return err
	}
	m := s.msgs[id]
	if m == nil {
		return ErrNotFound
	}
	text := ""
	for _, u := range us {
		m.entry.Status[u.Rcpt] = u.State
		text += fmt.Sprintf(" %d=%s", u.Rcpt, u.State.Status)
		if u.State.Notified != 0 {
			text += fmt.Sprintf("+%d", u.State.Notified)
		}
	}
	s.note("update %s%s", id, text)
	return nil
}

func (s *fakeStore) Remove(id mail.ID) error {
	time.Sleep(s.flush)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing("remove", id); err != nil {
		return err
	}
	if s.msgs[id] == nil {
		return ErrNotFound
	}
	delete(s.msgs, id)
	s.order = slices.DeleteFunc(s.order, func(o mail.ID) bool { return o == id })
	s.note("remove %s", id)
	return nil
}

func (s *fakeStore) Close() error { return nil }

// ids returns what the store holds, in order of arrival.
func (s *fakeStore) ids() []mail.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

func (s *fakeStore) has(id mail.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.msgs[id] != nil
}

// status returns the stored states of a message.
func (s *fakeStore) status(id mail.ID) []RcptStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.msgs[id].entry.Status)
}

// lose changes a message as a crash would: what was written last is not there.
func (s *fakeStore) lose(id mail.ID, f func(e *Entry)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.msgs[id].entry)
}

// operations returns the log, with the given ids replaced by names: "commit A".
func (s *fakeStore) operations(names map[mail.ID]string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, l := range s.log {
		for id, name := range names {
			l = strings.ReplaceAll(l, string(id), name)
		}
		out = append(out, l)
	}
	return out
}

// fakeCourier delivers as the test says.
type fakeCourier struct {
	mu   sync.Mutex
	jobs []mail.Job
	at   []time.Time
	// deliver decides for one recipient; nil: delivered.
	deliver func(ctx context.Context, job *mail.Job, r *mail.Recipient) mail.Outcome
	took    time.Duration // of a job
}

func (c *fakeCourier) Deliver(ctx context.Context, job mail.Job) []mail.Outcome {
	c.mu.Lock()
	c.jobs = append(c.jobs, job)
	c.at = append(c.at, time.Now())
	c.mu.Unlock()
	if c.took > 0 {
		select {
		case <-time.After(c.took):
		case <-ctx.Done():
		}
	}
	out := make([]mail.Outcome, len(job.Rcpts))
	for i := range out {
		out[i] = delivered
		if c.deliver != nil {
			out[i] = c.deliver(ctx, &job, &job.Rcpts[i])
		}
	}
	return out
}

func (c *fakeCourier) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.jobs)
}

// times returns when jobs for the recipient were made.
func (c *fakeCourier) times(to string) (ts []time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.jobs {
		for _, r := range c.jobs[i].Rcpts {
			if r.Target() == to {
				ts = append(ts, c.at[i])
			}
		}
	}
	return ts
}

var (
	delivered = mail.Outcome{Disposition: mail.Delivered, MTA: "mx.test [192.0.2.1]:25", TLS: "plain"}
	greylist  = mail.Outcome{Reason: mail.ReasonGreylist, Reply: smtp.NewReply(450, "4.7.1", "later"), MTA: "mx.test [192.0.2.1]:25", Err: errors.New("450 later")}
	noUser    = mail.Outcome{Disposition: mail.Failed, Reason: mail.ReasonMailbox, Reply: smtp.NewReply(550, "5.1.1", "no such user"), MTA: "mx.test [192.0.2.1]:25", Err: errors.New("550 no such user")}
	timeout   = mail.Outcome{Reason: mail.ReasonConnectTimeout, Err: errors.New("dialing: i/o timeout")}
)

// events records the timeline.
type events struct {
	mu  sync.Mutex
	all []timeline.Event
}

func (es *events) Observe(e *timeline.Event) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.all = append(es.all, *e)
}

// of returns the names of the events of a message.
func (es *events) of(id mail.ID) (names []string) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.all {
		if e.ID == id {
			names = append(names, e.Kind.String())
		}
	}
	return names
}

// world is a queue with everything around it, in a bubble.
type world struct {
	testing.TB
	*Queue
	store   *fakeStore
	courier *fakeCourier
	events  *events
	stop    func()          // ends Run and waits for it
	rec     *trace.Recorder // nil: no traces
}

// local is the domain we are responsible for in tests.
const local = "us.test"

func testConfig(s Store, c Courier) Config {
	return Config{Store: s, Courier: c, Hostname: "mx.us.test", LocalDomain: func(d string) bool { return d == local },
		Route: func(_ context.Context, r mail.Recipient, _ *mail.Envelope) (mail.Route, error) {
			switch {
			case r.Kind == mail.Pipe:
				return mail.Route{Transport: mail.Command, Target: r.Command}, nil
			case r.Kind == mail.Forward:
				return mail.Route{Transport: mail.Relay, Hosts: r.Via}, nil
			case r.To.Domain == local:
				return mail.Route{Transport: mail.Local, Domain: local}, nil
			}
			return mail.Route{Transport: mail.SMTP, Domain: r.To.Domain}, nil
		}}
}

// newWorld makes a queue and runs it. Changes to the configuration are made by edit.
func newWorld(t testing.TB, edit ...func(*Config)) *world {
	w := &world{TB: t, store: newFakeStore(), courier: &fakeCourier{}, events: &events{}}
	w.start(edit...)
	return w
}

// start makes a new queue over the store, as after a restart.
func (w *world) start(edit ...func(*Config)) {
	conf := testConfig(w.store, w.courier)
	conf.Observer = w.events
	for _, f := range edit {
		f(&conf)
	}
	w.Queue = New(conf)
	ctx, cancel := context.WithCancel(trace.WithRecorder(context.Background(), w.rec))
	done := make(chan struct{})
	go func() {
		if err := w.Queue.Run(ctx); err != nil {
			w.Errorf("Run: %v", err)
		}
		close(done)
	}()
	w.stop = func() { cancel(); <-done }
}

func addr(s string) address.Address { return address.MustParse(s) }

func envelope(from string, to ...string) *mail.Envelope {
	env := &mail.Envelope{From: addr(from), Client: "192.0.2.7:1234"}
	for _, t := range to {
		env.Rcpts = append(env.Rcpts, mail.Recipient{To: addr(t), Orig: addr(t)})
	}
	return env
}

const content = "Subject: x\r\n\r\nbody\r\n"

// put commits a message.
func (w *world) put(env *mail.Envelope) mail.ID {
	w.Helper()
	id, err := w.try(env)
	if err != nil {
		w.Fatalf("commit: %v", err)
	}
	return id
}

func (w *world) try(env *mail.Envelope) (mail.ID, error) {
	d, err := w.Begin(context.Background())
	if err != nil {
		return "", err
	}
	if _, err := d.Write([]byte(content)); err != nil {
		return "", err
	}
	id, err := d.Commit(context.Background(), env, []byte("Received: x\r\n"))
	if err == nil && id != d.(interface{ ID() mail.ID }).ID() {
		w.Errorf("the draft said it would be %s, it is %s", d.(interface{ ID() mail.ID }).ID(), id)
	}
	return id, err
}

// mustBeEmpty fails unless nothing is left in memory and on disk.
func (w *world) mustBeEmpty() {
	w.Helper()
	if ids := w.store.ids(); len(ids) > 0 {
		w.Errorf("the store still holds %v", ids)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	x := &w.index
	if len(x.ids) != 0 || x.n != 0 || len(w.live) != 0 || len(x.many) != 0 || len(x.odd) != 0 || len(x.giveUp) != 0 || x.size != 0 || len(x.ages) != 0 ||
		x.rcpts != [4][3]int64{} || x.states[waiting]+x.states[sending]+x.states[held] != 0 || w.items.Load() != 0 {
		w.Errorf("memory still holds: ids %d, live %d, many %d, giveUp %d, size %d, ages %v, rcpts %v, states %v, items %d",
			len(x.ids), len(w.live), len(x.many), len(x.giveUp), x.size, x.ages, x.rcpts, x.states, w.items.Load())
	}
}
