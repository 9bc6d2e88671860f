// Package command runs one external program: time limit, capped output, clean environment, no shell.
package command

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Spec is one run of a program.
type Spec struct {
	Path    string        // looked up in PATH if it holds no slash
	Args    []string      // without the program's name
	Env     []string      // the whole environment, "KEY=value"; nil gives an empty one
	Dir     string        // working directory; empty: the process's own
	Stdin   io.Reader     // nil: /dev/null
	Timeout time.Duration // 0: none; then the whole process group is killed
	MaxOut  int           // bytes of standard output kept; 0: 64 KiB. What is more is read and dropped.
}

// Result is how a run ended.
type Result struct {
	Exit     int    // exit code; -1 if killed by a signal or not started
	Stdout   []byte // at most MaxOut bytes
	Stderr   []byte // at most 4 KiB
	Cut      bool   // output was dropped
	TimedOut bool
	Started  bool  // false: the program could not be started; Err says why
	Err      error // why it failed: nil only for exit code 0 with all the input read that the program wanted
	Duration time.Duration
}

// Runner runs programs; tests substitute a function.
type Runner interface {
	Run(ctx context.Context, s Spec) Result
}

// RunnerFunc is a function as a Runner.
type RunnerFunc func(ctx context.Context, s Spec) Result

// Run calls f.
func (f RunnerFunc) Run(ctx context.Context, s Spec) Result { return f(ctx, s) }

// Program is a program that may come and go while the server runs: a hook. It is safe for concurrent use.
type Program struct {
	path   string
	start  time.Time
	absent atomic.Int64 // until when it counts as not there, since start
}

// lookEvery is how long a look that finds nothing is good for: many messages of a busy server, and less than anybody can notice who puts
// a program in its place.
const lookEvery = time.Millisecond

// NewProgram returns the program at path; with an empty one it is never there.
func NewProgram(path string) *Program { return &Program{path: path, start: time.Now()} }

// Exists reports whether there is something to run; true also if that cannot be found out, as running it tells why. That it is there is
// never remembered: what is gone is not run.
func (p *Program) Exists() bool {
	if p.path == "" {
		return false
	}
	now := time.Since(p.start)
	if int64(now) < p.absent.Load() {
		return false
	}
	if unix.Access(p.path, unix.F_OK) != unix.ENOENT {
		return true
	}
	p.absent.Store(int64(now + lookEvery))
	return false
}
