package queue

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
	"blitiri.com.ar/go/chasquid/internal/srs"
	"blitiri.com.ar/go/chasquid/internal/timeline"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Courier delivers. It returns one outcome per recipient of the job, in their order, and does so soon after ctx ends.
type Courier interface {
	Deliver(ctx context.Context, job mail.Job) []mail.Outcome
}

// Config is what a queue needs of the world. Store and Courier must be set.
type Config struct {
	Store   Store
	Courier Courier

	// Expand replaces the recipients as accepted by the final ones. An error that is an smtp.Reply is what the client is told; any other
	// one is a 451. Nil: they are final.
	Expand func(ctx context.Context, rcpts []mail.Recipient) ([]mail.Recipient, error)
	// Route says where a recipient goes next. It is asked at every attempt, and must be quick: no look-ups on the network. An error defers
	// the attempt. Nil: everything goes by MX of its domain.
	Route func(ctx context.Context, r mail.Recipient, env *mail.Envelope) (mail.Route, error)
	// Sites finds out which hosts take the mail of a domain and returns a name for the set, the same for every domain that has it. It is
	// called in the background and may take its time. Nil: every domain is a site of its own.
	Sites func(ctx context.Context, domain string) (string, error)
	// LocalDomain reports whether we are responsible for the domain. Nil: for none.
	LocalDomain func(domain string) bool
	// Sign returns the header lines to put on top of a notice of ours from the domain: its DKIM signature. Nil: notices are not signed.
	Sign func(ctx context.Context, domain string, content io.Reader) ([]byte, error)
	// SRS rewrites the sender of mail that an alias sends on. Nil: the sender stays.
	SRS *srs.Rewriter

	Observer timeline.Observer // nil: nobody
	Metrics  *expvarom.Registry

	Hostname       string          // ours, for notices
	DoubleBounceTo address.Address // gets notices about notices that fail; null: those are logged only

	MaxItems         int           // messages at once, but for notices; default 1,000,000
	GiveUpAfter      time.Duration // default 5 days
	DelayNoticeAfter time.Duration // default 4 hours, negative: no such notices
	Grace            time.Duration // how long running attempts may go on when Run is to end; default 30 s

	Workers      int // remote attempts at once; default 256
	SiteWorkers  int // of these, for one site at most; default 20
	LocalWorkers int // local deliveries at once; default 20
	PipeWorkers  int // commands at once; default 10
	MaxBatch     int // recipients of one remote transaction; default 1000
}

// Defaults of Config, and limits that are not settings.
const (
	defaultMaxItems = 1_000_000
	defaultGiveUp   = 5 * 24 * time.Hour
	defaultDelay    = 4 * time.Hour
	defaultGrace    = 30 * time.Second
	defaultMaxBatch = 1000
	localBatch      = 50  // recipients of one local delivery job: small, as they are often delivered one by one
	maxRecording    = 256 // outcomes being written at once; the store commits them together
	maxIdle         = 32  // workers kept without work
	keepUnsent      = 2000
	maxText         = 1 << 10 // bytes of a failure kept with a recipient
	tendEvery       = time.Minute
	slice           = 1024 // records looked at without letting others have the lock
)

// tellAges are the ages of a message with several recipients at which its sender is told of those who are done with, while others take
// longer: soon, but with few notices however many recipients there are.
var tellAges = [...]time.Duration{2 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour, 24 * time.Hour, 48 * time.Hour, 72 * time.Hour}

func (c Config) withDefaults() Config {
	if c.MaxItems <= 0 {
		c.MaxItems = defaultMaxItems
	}
	if c.MaxBatch <= 0 {
		c.MaxBatch = defaultMaxBatch
	}
	setDuration(&c.GiveUpAfter, defaultGiveUp)
	setDuration(&c.Grace, defaultGrace)
	if c.DelayNoticeAfter == 0 {
		c.DelayNoticeAfter = defaultDelay
	}
	if c.LocalDomain == nil {
		c.LocalDomain = func(string) bool { return false }
	}
	if c.Route == nil {
		c.Route = func(_ context.Context, r mail.Recipient, _ *mail.Envelope) (mail.Route, error) {
			return mail.Route{Transport: mail.SMTP, Domain: r.To.Domain}, nil
		}
	}
	if c.Observer == nil {
		c.Observer = timeline.Observers(nil)
	}
	return c
}

func setDuration(d *time.Duration, def time.Duration) {
	if *d <= 0 {
		*d = def
	}
}

// Queue takes messages, keeps them in its store, and has them delivered while Run runs. It is safe for concurrent use.
//
// Memory holds a small record of each message (see record) and the schedule; envelopes are read back from the store for an attempt. All of
// it is guarded by mu, which is never held while something is read, written, delivered or observed, nor for a walk over all records.
type Queue struct {
	settings atomic.Pointer[Config]

	m     *metrics
	items atomic.Int64 // messages taken responsibility for, and those about to be
	ready atomic.Bool  // everything the store held is loaded

	mu    sync.Mutex
	index index
	sched *sched.Schedule
	live  map[uint32]*live

	running bool                 // workers may start
	workers int                  // that exist
	idle    []chan struct{}      // workers without work
	waking  int                  // workers told to look for work that have not looked yet
	ours    map[mail.ID]struct{} // committed by this process; nil once everything is loaded

	wake   chan struct{} // tells Run that something is due earlier than it thought
	ticked chan struct{} // closed, and made anew, when Run has looked at the schedule; guarded by mu
	sites  chan string   // domains whose site is to be found out
	tokens chan struct{} // one for each outcome being written
	work   sync.WaitGroup
	ctx    context.Context // of attempts, which end with the time of grace; set by Run
	own    context.Context // of what follows from them, which does not end; set by Run

	complaints struct{ minute, n atomic.Int64 }
	sent       trace.Place // the line of the log that each delivery makes
}

// New returns a queue. Messages can be put into it at once; Run loads what the store holds and delivers.
func New(conf Config) *Queue {
	q := &Queue{index: newIndex(), live: map[uint32]*live{}, ctx: context.Background(), own: context.Background(),
		ours: map[mail.ID]struct{}{}, wake: make(chan struct{}, 1), ticked: make(chan struct{}), sites: make(chan string, 1024), tokens: make(chan struct{}, maxRecording)}
	conf = conf.withDefaults()
	q.settings.Store(&conf)
	q.sched = sched.New(conf.limits())
	q.m = newMetrics(conf.Metrics, q)
	return q
}

// conf is the configuration in force. What needs more than one value of it asks once.
func (q *Queue) conf() *Config { return q.settings.Load() }

// Config returns the configuration in force.
func (q *Queue) Config() Config { return *q.conf() }

// Configure replaces the configuration, but for the store and the metrics, which stay. It counts from the next decision on: messages that
// wait are given up, told of and attempted by the new one.
func (q *Queue) Configure(conf Config) {
	conf = conf.withDefaults()
	old := q.conf()
	conf.Store, conf.Metrics = old.Store, old.Metrics
	q.mu.Lock()
	defer q.mu.Unlock()
	q.settings.Store(&conf)
	q.sched.Configure(conf.limits(), time.Now())
	q.kick()
}

// limits is what the schedule needs of the configuration.
func (c *Config) limits() sched.Config {
	return sched.Config{Workers: c.Workers, PerSite: c.SiteWorkers, Local: c.LocalWorkers, Pipe: c.PipeWorkers}
}

func (q *Queue) observe(e *timeline.Event) {
	e.At = time.Now()
	q.conf().Observer.Observe(e)
}
