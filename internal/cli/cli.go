// Package cli is the command line besides the server's: the sub-commands of chasquid, and the tools that are the same binary by other names.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"golang.org/x/term"
)

// Exit codes of the sub-commands. The tools of existing installations have their own.
const (
	exitOK    = 0
	exitError = 1 // it was tried and failed, or something is wrong
	exitUsage = 2 // it was not tried: the command line is wrong
)

// Env is the world a command runs in. Zero values are the process's own.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// ReadPassword asks for a password without showing it; nil: on the terminal.
	ReadPassword func(prompt string) (string, error)
	// Terminal says that Stdout is watched by somebody: progress is shown there.
	Terminal bool
	Version  string       // of this binary, for the help
	Resolver dns.Resolver // nil: the one the configuration names
	// NoPorts keeps check from trying the ports, which belong to whoever runs on the machine of a test.
	NoPorts bool
	// Call asks the server on the control socket at path; nil: control.Call.
	Call Caller
}

// Caller asks the server on the control socket at path.
type Caller func(ctx context.Context, path, method string, args map[string][]string) (map[string][]string, error)

func (e *Env) setDefaults() {
	if e.Stdin == nil {
		e.Stdin = os.Stdin
	}
	if e.Stdout == nil {
		e.Stdout = os.Stdout
		e.Terminal = e.Terminal || term.IsTerminal(int(os.Stdout.Fd()))
	}
	if e.Stderr == nil {
		e.Stderr = os.Stderr
	}
	if e.ReadPassword == nil {
		e.ReadPassword = e.terminalPassword
	}
	if e.Call == nil {
		e.Call = func(ctx context.Context, path, method string, args map[string][]string) (map[string][]string, error) {
			return control.Call(ctx, path, method, args)
		}
	}
}

// terminalPassword reads a password from the terminal that standard input is.
func (e *Env) terminalPassword(prompt string) (string, error) {
	fmt.Fprint(e.Stdout, prompt)
	f, ok := e.Stdin.(*os.File)
	if !ok {
		return "", errors.New("standard input is not a terminal")
	}
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(e.Stdout)
	return string(b), err
}

// newPassword asks twice.
func (e *Env) newPassword() (string, error) {
	p, err := e.ReadPassword("Password: ")
	if err != nil {
		return "", fmt.Errorf("Error reading password: %w (give it with --password=…, or run this on a terminal)", err)
	}
	again, err := e.ReadPassword("Confirm password: ")
	if err != nil {
		return "", fmt.Errorf("Error reading password: %w", err)
	}
	if p != again {
		return "", errors.New("Passwords don't match")
	}
	return p, nil
}

// Main runs the tool or the sub-command that the process was called for: name is how it was called (argv[0]), args what follows.
// Handled is false if that is neither, and the server is meant.
func Main(name string, args []string, env Env) (exit int, handled bool) {
	env.setDefaults()
	switch filepath.Base(name) {
	case "chasquid-util":
		return utilMain(&env, args), true
	case "mda-lmtp":
		return lmtpMain(&env, args), true
	case "smtp-check":
		return smtpCheckMain(&env, args), true
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return 0, false
	}
	switch args[0] {
	case "util":
		return utilMain(&env, args[1:]), true
	case "mda-lmtp":
		return lmtpMain(&env, args[1:]), true
	case "smtp-check":
		return smtpCheckMain(&env, args[1:]), true
	}
	return runCommand(&env, args), true
}

// command is one sub-command: what it is called, and the text that help, completion and manual pages are made of.
type command struct {
	name  string // one or two words
	args  string // of the usage line
	short string // a sentence without full stop
	long  string // paragraphs
	// prepare declares the options and returns what to do once they are parsed.
	prepare func(fs *flag.FlagSet) func(c *call) error
}

// call is one run of a command.
type call struct {
	*Env
	ctx       context.Context
	args      []string // without options
	configDir string
}

// usageError says that the command line is wrong.
type usageError string

func (e usageError) Error() string { return string(e) }

// quiet is an error that was told already.
type quiet struct{ exit int }

func (quiet) Error() string { return "" }

// commands are the sub-commands, in the order of the help.
func commands() []*command {
	l := []*command{checkCommand(), setupCommand(), explainCommand(), historyCommand(), traceCommand(), reloadCommand(), upgradeCommand()}
	l = append(l, queueCommands()...)
	l = append(l, levelCommands()...)
	return append(l, completionCommand(), manCommand(), helpCommand())
}

// find returns the command that args begin with, and the rest of them.
func find(args []string) (*command, []string) {
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if len(args) >= len(words) && strings.Join(args[:len(words)], " ") == c.name {
			return c, args[len(words):]
		}
	}
	return nil, nil
}

// flagSet is the options of a command, with those that all have.
func (c *command) flagSet(configDir *string) (*flag.FlagSet, func(*call) error) {
	fs := flag.NewFlagSet("chasquid "+c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(configDir, "config_dir", "/etc/chasquid", "configuration `directory`")
	fs.StringVar(configDir, "C", "/etc/chasquid", "short for -config_dir: `directory`")
	return fs, c.prepare(fs)
}

// parseInterspersed parses options wherever they stand; after "--" there are none.
func parseInterspersed(fs *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		left := fs.Args()
		if used := len(args) - len(left); used > 0 && args[used-1] == "--" {
			return append(rest, left...), nil
		}
		if len(left) == 0 {
			return rest, nil
		}
		rest, args = append(rest, left[0]), left[1:]
	}
}

func runCommand(env *Env, args []string) int {
	cmd, rest := find(args)
	if cmd == nil {
		fmt.Fprintf(env.Stderr, "chasquid: there is no sub-command %q; \"chasquid help\" lists them.\n", strings.Join(args, " "))
		return exitUsage
	}
	c := &call{Env: env, ctx: context.Background()}
	fs, run := cmd.flagSet(&c.configDir)
	var err error
	if c.args, err = parseInterspersed(fs, rest); errors.Is(err, flag.ErrHelp) {
		cmd.help(env.Stdout)
		return exitOK
	} else if err != nil {
		err = usageError(err.Error())
	} else {
		err = run(c)
	}
	return report(env, cmd, err)
}

// report tells the error and turns it into an exit code.
func report(env *Env, cmd *command, err error) int {
	var q quiet
	var u usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &q):
		return q.exit
	case errors.As(err, &u):
		fmt.Fprintf(env.Stderr, "chasquid %s: %v\nUsage: %s\n", cmd.name, err, cmd.usage())
		return exitUsage
	}
	fmt.Fprintf(env.Stderr, "chasquid %s: %v\n", cmd.name, err)
	return exitError
}

// wantArgs checks how many arguments there are.
func (c *call) wantArgs(min, max int) error {
	switch {
	case len(c.args) < min:
		return usageError("an argument is missing")
	case len(c.args) > max:
		return usageError(fmt.Sprintf("unexpected argument %q", c.args[max]))
	}
	return nil
}

// timeout bounds what waits for the server or the network.
const timeout = 30 * time.Second
