// Command chasquid is a mail server: one binary that receives, queues and delivers mail, and explains what it does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/cli"
	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/log"
	"golang.org/x/term"
)

// Set by the linker: the version, and the time of the source in unix seconds.
var (
	version      = ""
	sourceDateTs = ""
)

// flags are the command line of the server.
type flags struct {
	configDir, overrides string
	showVersion          bool

	// For tests of this and existing installations.
	maxReceived int
	smtpPort    string
	reloadEvery time.Duration
	flushDelay  time.Duration
	flushHang   string
	upgradeTime time.Duration
	crashAt     string
}

// at is a step of an upgrade, at which tests have the process end.
func (f *flags) at(step string) {
	if f.crashAt == step {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

func parseFlags() *flags {
	f := &flags{}
	flag.StringVar(&f.configDir, "config_dir", "/etc/chasquid", "configuration directory")
	flag.StringVar(&f.overrides, "config_overrides", "", "settings that override those of the file, in the same syntax")
	flag.BoolVar(&f.showVersion, "version", false, "show the version and exit")
	flag.IntVar(&f.maxReceived, "testing__max_received_headers", 0, "Received headers before a message is in a loop, for tests")
	flag.StringVar(&f.smtpPort, "testing__outgoing_smtp_port", "25", "port of other servers, for tests")
	flag.DurationVar(&f.reloadEvery, "testing__reload_every", 30*time.Second, "time between reloads, for tests")
	flag.DurationVar(&f.flushDelay, "testing__flush_delay", 0, "time that each flush of the queue's disk takes longer, one after the other, for tests")
	flag.StringVar(&f.flushHang, "testing__flush_hang", "", "while this `file` exists, flushes of the queue's disk do not end, for tests")
	flag.DurationVar(&f.upgradeTime, "testing__upgrade_time", prepareTime, "time that a new process may take to get ready, for tests")
	flag.StringVar(&f.crashAt, "testing__crash_at", "", "`step` of an upgrade at which the process kills itself, for tests")
	flag.Parse()
	return f
}

func main() {
	v, date := versionInfo()
	if exit, handled := cli.Main(os.Args[0], os.Args[1:], cli.Env{Version: v, Terminal: term.IsTerminal(int(os.Stdout.Fd()))}); handled {
		os.Exit(exit)
	}
	f := parseFlags()
	log.Init()
	if f.showVersion {
		fmt.Printf("chasquid %s (source date: %s)\n", v, date)
		return
	}
	log.Infof("chasquid starting (version %s)", v)
	o, err := findOrigin()
	if err == nil {
		err = run(f, build{v, date}, o)
	}
	if err != nil {
		o.pred.Fail(errors.New(describe(err)))
		fatal(err)
	}
	log.Infof("chasquid stopped")
}

// toSyslog reports whether the process log goes to syslog, by a flag of package log.
func toSyslog() bool {
	f := flag.Lookup("logtosyslog")
	return f != nil && f.Value.String() != ""
}

// build is what was built.
type build struct {
	version string
	date    time.Time
}

// run serves until a signal or POST /exit asks it to stop, and returns when everything has stopped.
func run(f *flags, b build, o origin) error {
	// Sockets and flags are relative to where we were started, everything else to the configuration directory.
	path := filepath.Join(f.configDir, config.FileName)
	conf, err := config.Load(path, f.overrides)
	if err != nil {
		var errs []error
		for _, e := range flatten(err) {
			errs = append(errs, fmt.Errorf("Error loading config: %w", e))
		}
		return errors.Join(errs...)
	}
	log.Infof("Configuration:")
	for _, line := range conf.Lines() {
		log.Infof("  %s", line)
	}
	for _, w := range conf.Warnings {
		log.Infof("Warning: %s", w)
	}
	if err := os.Chdir(f.configDir); err != nil {
		return fmt.Errorf("Error changing to the configuration directory: %w", err)
	}
	for _, err := range cli.Warnings(conf) {
		log.Infof("Warning: %v%s", err, remedy.Text(err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s, err := newServer(ctx, f, conf, b, o)
	if err != nil {
		return err
	}
	return s.serve(ctx, stop)
}

// fatal logs every error that was joined into err, each with what to do about it, and exits.
func fatal(err error) {
	errs := flatten(err)
	for _, e := range errs[:len(errs)-1] {
		log.Errorf("%v%s", e, remedy.Text(e))
	}
	last := errs[len(errs)-1]
	log.Fatalf("%v%s", last, remedy.Text(last))
}

// describe is fatal's text in one line.
func describe(err error) string {
	var lines []string
	for _, e := range flatten(err) {
		lines = append(lines, e.Error()+remedy.Text(e))
	}
	return strings.Join(lines, "; ")
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// versionInfo is what the linker set, or what the build recorded.
func versionInfo() (string, time.Time) {
	v, date := version, time.Time{}
	if sec, err := strconv.ParseInt(sourceDateTs, 10, 64); err == nil {
		date = time.Unix(sec, 0)
	}
	info, _ := debug.ReadBuildInfo()
	settings := map[string]string{}
	if info != nil {
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
	}
	if t, err := time.Parse(time.RFC3339, settings["vcs.time"]); err == nil && date.IsZero() {
		date = t
	}
	if v == "" {
		v = date.UTC().Format("20060102")
		if rev := settings["vcs.revision"]; len(rev) >= 9 {
			v += "-" + rev[:9]
		}
		if settings["vcs.modified"] == "true" {
			v += "-dirty"
		}
	}
	return v, date.UTC()
}
