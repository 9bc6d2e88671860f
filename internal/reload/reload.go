// Package reload picks up changed files: it runs the reload steps regularly and on demand, and tells how it went.
package reload

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// DefaultEvery is the time between regular reloads.
const DefaultEvery = 30 * time.Second

// Trigger says why a reload runs: a value of a metric label.
type Trigger string

// The triggers.
const (
	Start    Trigger = "start"
	Periodic Trigger = "periodic"
	Signal   Trigger = "signal"
	Operator Trigger = "operator"
)

// Step is one thing to reload. Do reports what it did and returns, joined, what could not be loaded; whatever it could not load stays as
// it was.
type Step struct {
	Name string
	Do   func(ctx context.Context, r *Report) error
}

// Report is what a step tells of itself.
type Report struct {
	Trigger  Trigger  // why it runs
	Warnings []string // sentences about the present state, logged when they are new
	Changes  []string // settings that are others now, "name: old -> new"
	Restart  []string // settings that were changed and take effect at the next restart, likewise
}

// Config is what to run and how often.
type Config struct {
	Every   time.Duration // 0 is DefaultEvery
	Steps   []Step        // run in this order
	Metrics *expvarom.Registry
}

// Status is how a reload went.
type Status struct {
	At       time.Time // zero if there was none
	Trigger  Trigger
	Took     time.Duration
	Errors   []StepError
	Good     time.Time // when a reload last went without an error
	Warnings []string
	Changes  []string // what this reload changed, see Report
	Restart  []string // what waits for a restart

	ChangedAt   time.Time // when a reload last changed settings
	LastChanges []string  // what it changed then
}

// Err returns the failures, joined.
func (s Status) Err() error {
	var errs []error
	for _, e := range s.Errors {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// StepError is one failure of a step.
type StepError struct {
	Step string
	Err  error
}

// Error says which step failed and why.
func (e StepError) Error() string { return e.Step + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e StepError) Unwrap() error { return e.Err }

// Remedy says what to do, empty if the cause does not.
func (e StepError) Remedy() string {
	var r interface{ Remedy() string }
	if errors.As(e.Err, &r) {
		return r.Remedy()
	}
	return ""
}

// Runner runs reloads, one at a time.
type Runner struct {
	cfg     Config
	metrics *metrics

	running sync.Mutex
	held    bool                // no reload is to run
	told    map[string][]string // by step: what was logged of it and still holds
	bad     map[string]bool     // by step: it failed the last time

	mu   sync.Mutex
	last Status
}

// New returns a runner.
func New(cfg Config) *Runner {
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	return &Runner{cfg: cfg, metrics: newMetrics(cfg.Metrics), told: map[string][]string{}, bad: map[string]bool{}}
}

// Run reloads regularly until the context ends.
func (r *Runner) Run(ctx context.Context) {
	t := time.NewTicker(r.cfg.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			r.Now(ctx, Periodic)
		}
	}
}

// ErrHeld is what Now answers when reloads are held.
var ErrHeld = errors.New("the server is being upgraded: the new process reads everything anyway")

// Hold keeps reloads from running until release is called. One that runs ends first.
func (r *Runner) Hold() (release func()) {
	set := func(held bool) {
		r.running.Lock()
		defer r.running.Unlock()
		r.held = held
	}
	set(true)
	return func() { set(false) }
}

// Now reloads and returns how that went.
func (r *Runner) Now(ctx context.Context, why Trigger) Status {
	r.running.Lock()
	defer r.running.Unlock()
	if r.held {
		return Status{At: time.Now(), Trigger: why, Errors: []StepError{{"reload", ErrHeld}}}
	}
	ctx, span := trace.Start(ctx, trace.Reload, string(why))
	defer span.Finish()
	st := Status{At: time.Now(), Trigger: why}
	for _, s := range r.cfg.Steps {
		rep, errs := r.step(ctx, s, why)
		for _, err := range errs {
			span.Error(StepError{s.Name, err})
			st.Errors = append(st.Errors, StepError{s.Name, err})
		}
		for _, c := range rep.Changes {
			span.Printf("%s", c)
		}
		st.Warnings = append(st.Warnings, rep.Warnings...)
		st.Changes = append(st.Changes, rep.Changes...)
		st.Restart = append(st.Restart, rep.Restart...)
		r.tell(s.Name, rep, errs)
	}
	return r.finish(st)
}

// step runs one step; a panic in it is an error like any other.
func (r *Runner) step(ctx context.Context, s Step, why Trigger) (rep *Report, errs []error) {
	rep = &Report{Trigger: why}
	defer func() {
		if p := recover(); p != nil {
			r.metrics.panics.Inc()
			log.Errorf("panic while reloading %s: %v\n%s", s.Name, p, debug.Stack())
			errs = append(errs, fmt.Errorf("internal error, please report it: %v", p))
		}
	}()
	return rep, split(s.Do(ctx, rep))
}

// split takes joined errors apart.
func split(err error) []error {
	if err == nil {
		return nil
	}
	j, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var list []error
	for _, e := range j.Unwrap() {
		list = append(list, split(e)...)
	}
	return list
}

// tell logs what is new since the last time, and once when a failure is over: a bad file is not a line every half minute.
func (r *Runner) tell(step string, rep *Report, errs []error) {
	before := r.told[step]
	var now []string
	say := func(level log.Level, line string) {
		now = append(now, line)
		if !slices.Contains(before, line) {
			log.Log(level, 1, "%s", line)
		}
	}
	for _, err := range errs {
		line := fmt.Sprintf("Reload: %v; what was loaded before stays in force", StepError{step, err})
		if fix := (StepError{step, err}).Remedy(); fix != "" {
			line += ". To fix: " + fix
		}
		say(log.Error, line)
	}
	if r.bad[step] && len(errs) == 0 {
		log.Infof("Reload: %s is good again", step)
	}
	r.bad[step] = len(errs) > 0
	for _, c := range rep.Changes {
		log.Infof("Reload: %s", c)
	}
	for _, c := range rep.Restart {
		say(log.Info, "Reload: takes effect at the next restart: "+c)
	}
	for _, w := range rep.Warnings {
		say(log.Info, step+": "+w)
	}
	r.told[step] = now
}

func (r *Runner) finish(st Status) Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	st.Took = time.Since(st.At)
	st.Good, st.ChangedAt, st.LastChanges = r.last.Good, r.last.ChangedAt, r.last.LastChanges
	if len(st.Errors) == 0 {
		st.Good = st.At
	}
	if len(st.Changes) > 0 {
		st.ChangedAt, st.LastChanges = st.At, st.Changes
	}
	r.last = st
	r.metrics.done(st.Trigger, st)
	return st
}

// Last returns how the last reload went.
func (r *Runner) Last() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}
