package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"
)

// Sizes and times of Exec.
const (
	defaultMaxOut = 64 << 10
	maxStderr     = 4 << 10

	// After the program is gone, a child it left behind may still hold the pipes: so long is waited for them.
	pipeDelay = time.Second

	// A program file that was just written may be busy for the moment another fork holds its descriptor (golang.org/issue/22315).
	busyTries = 8
)

// ErrTimeout is the Err of a run that was killed because its time was up.
var ErrTimeout = errors.New("operation timed out")

// Exec runs real programs, each in a process group of its own.
//
// The group is killed when the time is up or the context ends. Output over the caps is read and dropped, so that a talkative program
// neither blocks nor costs memory. Err is nil only if the program exited with 0 and its input could be read to the end or as far
// as it wanted it.
type Exec struct{}

// Run runs the program and waits for its end. It never panics, whatever the Spec or the program do.
func (Exec) Run(ctx context.Context, s Spec) (res Result) {
	start := time.Now()
	defer func() { res.Duration = time.Since(start) }()
	if err := ctx.Err(); err != nil {
		return Result{Exit: -1, Err: err}
	}
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.Timeout, ErrTimeout)
		defer cancel()
	}
	r := &run{spec: s, in: input{r: s.Stdin}, out: capped{max: s.MaxOut}, errOut: capped{max: maxStderr}}
	if s.MaxOut == 0 {
		r.out.max = defaultMaxOut
	}
	cmd, err := r.start(ctx)
	if err != nil {
		return Result{Exit: -1, Err: err}
	}
	err = cmd.Wait()
	return r.result(ctx, cmd, err)
}

type run struct {
	spec   Spec
	in     input
	out    capped
	errOut capped
}

func (r *run) start(ctx context.Context) (*exec.Cmd, error) {
	for try := 0; ; try++ {
		cmd := r.command(ctx)
		err := cmd.Start()
		if err == nil {
			return cmd, nil
		}
		if !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			return nil, err
		}
		select {
		case <-time.After(time.Millisecond << try):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (r *run) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.spec.Path, r.spec.Args...)
	cmd.Dir = r.spec.Dir
	cmd.Env = r.spec.Env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	if r.spec.Stdin != nil {
		cmd.Stdin = &r.in
	}
	cmd.Stdout, cmd.Stderr = &r.out, &r.errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
			return cmd.Process.Kill()
		}
		return nil
	}
	cmd.WaitDelay = pipeDelay
	return cmd
}

func (r *run) result(ctx context.Context, cmd *exec.Cmd, err error) Result {
	res := Result{Started: true, Exit: -1, Stdout: r.out.b, Stderr: r.errOut.b, Cut: r.out.cut || r.errOut.cut}
	if cmd.ProcessState != nil {
		res.Exit = cmd.ProcessState.ExitCode()
	}
	killed := cmd.ProcessState == nil || res.Exit == -1
	switch {
	case killed && ctx.Err() != nil:
		res.Err = context.Cause(ctx)
		res.TimedOut = errors.Is(res.Err, ErrTimeout) || errors.Is(res.Err, context.DeadlineExceeded)
	case res.Exit == 0 && r.in.err != nil:
		res.Err = fmt.Errorf("reading the program's input: %w", r.in.err)
	case res.Exit == 0:
		// What is left of err is that a child held the pipes, or that the context ended after the program had.
	default:
		res.Err = err
	}
	return res
}

// input is the program's standard input. It remembers a read error and turns a panic of the reader into one: it is read by a
// goroutine of os/exec, where nobody else would recover it.
type input struct {
	r   io.Reader
	err error
}

func (in *input) Read(p []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			n, err = 0, fmt.Errorf("panic: %v", v)
		}
		if err != nil && err != io.EOF {
			in.err = err
		}
	}()
	return in.r.Read(p)
}

// capped keeps the first max bytes written to it.
type capped struct {
	b   []byte
	max int
	cut bool
}

func (c *capped) Write(p []byte) (int, error) {
	keep := min(len(p), c.max-len(c.b))
	c.b = append(c.b, p[:keep]...)
	c.cut = c.cut || keep < len(p)
	return len(p), nil
}
