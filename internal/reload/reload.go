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

// Step is one thing to reload. Do returns sentences worth a line in the log and, joined, what could not be loaded; whatever it
// could not load stays as it was.
type Step struct {
	Name string
	Do   func(ctx context.Context) (warnings []string, err error)
}

// Config is what to run and how often.
type Config struct {
	Every   time.Duration // 0 is DefaultEvery
	Steps   []Step        // run in this order
	Metrics *expvarom.Registry
}

// Status is how the last reload went.
type Status struct {
	At      time.Time // zero if there was none
	Trigger Trigger
	Took    time.Duration
	Errors  []StepError
	Good    time.Time // when a reload last went without an error
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

// ErrHeld is what Now returns when reloads are held.
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

// Now reloads and returns the failures, joined.
func (r *Runner) Now(ctx context.Context, why Trigger) error {
	r.running.Lock()
	defer r.running.Unlock()
	if r.held {
		return ErrHeld
	}
	ctx, span := trace.Start(ctx, trace.Reload, string(why))
	defer span.Finish()
	start := time.Now()
	var failed []StepError
	for _, s := range r.cfg.Steps {
		warnings, errs := r.step(ctx, s)
		for _, err := range errs {
			span.Error(StepError{s.Name, err})
			failed = append(failed, StepError{s.Name, err})
		}
		r.tell(s.Name, warnings, errs)
	}
	return r.finish(why, start, failed)
}

// step runs one step; a panic in it is an error like any other.
func (r *Runner) step(ctx context.Context, s Step) (warnings []string, errs []error) {
	defer func() {
		if p := recover(); p != nil {
			r.metrics.panics.Inc()
			log.Errorf("panic while reloading %s: %v\n%s", s.Name, p, debug.Stack())
			errs = append(errs, fmt.Errorf("internal error, please report it: %v", p))
		}
	}()
	warnings, err := s.Do(ctx)
	return warnings, split(err)
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
func (r *Runner) tell(step string, warnings []string, errs []error) {
	before := r.told[step]
	var now []string
	for _, err := range errs {
		line := fmt.Sprintf("Reload: %v; what was loaded before stays in force", StepError{step, err})
		if fix := (StepError{step, err}).Remedy(); fix != "" {
			line += ". To fix: " + fix
		}
		now = append(now, line)
		if !slices.Contains(before, line) {
			log.Errorf("%s", line)
		}
	}
	if r.bad[step] && len(errs) == 0 {
		log.Infof("Reload: %s is good again", step)
	}
	r.bad[step] = len(errs) > 0
	for _, w := range warnings {
		now = append(now, w)
		if !slices.Contains(before, w) {
			log.Infof("%s: %s", step, w)
		}
	}
	r.told[step] = now
}

func (r *Runner) finish(why Trigger, start time.Time, failed []StepError) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	good := r.last.Good
	var err error
	if len(failed) == 0 {
		good = start
	} else {
		var errs []error
		for _, f := range failed {
			errs = append(errs, f)
		}
		err = errors.Join(errs...)
	}
	r.last = Status{At: start, Trigger: why, Took: time.Since(start), Errors: failed, Good: good}
	r.metrics.done(why, r.last)
	return err
}

// Last returns how the last reload went.
func (r *Runner) Last() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}
