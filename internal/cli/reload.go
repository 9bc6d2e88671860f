package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/opctl"
)

func reloadCommand() *command {
	return &command{name: "reload", short: "Make the server read its files again",
		long: "Asks the running server to read chasquid.conf, certificates, domains, users, aliases and keys again, as it does by itself every half minute, " +
			"and shows which settings are others now. What cannot be read keeps its last good state; the reason is shown with what to do, and the exit status is 1.",
		prepare: func(fs *flag.FlagSet) func(*call) error {
			asJSON := fs.Bool("json", false, "write JSON")
			return func(c *call) error {
				if err := c.wantArgs(0, 0); err != nil {
					return err
				}
				return c.reload(*asJSON)
			}
		}}
}

func (c *call) reload(asJSON bool) error {
	// The file may be just what is wrong; the server shall say so.
	path := filepath.Join(config.FindDataDir(filepath.Join(c.configDir, config.FileName)), control.SocketName)
	ctx, cancel := context.WithTimeout(c.ctx, operationTimeout)
	defer cancel()
	values, err := c.Call(ctx, path, opctl.Reload, nil)
	var remote control.RemoteError
	if err != nil && !errors.As(err, &remote) {
		return fmt.Errorf("the server does not answer on %s: %w (is it running, and may you use its socket? A new data_dir is used from the next restart on)", path, err)
	} else if err != nil {
		return err
	}
	var r opctl.Reloaded
	if err := opctl.Decode(values, &r); err != nil {
		return err
	}
	if asJSON {
		err = printJSON(c.Stdout, r)
	} else {
		c.printReloaded(r)
	}
	if len(r.Errors) > 0 {
		return quiet{exitError}
	}
	return err
}

func (c *call) printReloaded(r opctl.Reloaded) {
	for _, e := range r.Errors {
		fmt.Fprintf(c.Stderr, "chasquid reload: %s: %s\n", e.What, printable(e.Error))
		if e.Remedy != "" {
			fmt.Fprintf(c.Stderr, "  To fix: %s\n", printable(e.Remedy))
		}
	}
	if len(r.Errors) > 0 {
		fmt.Fprintln(c.Stderr, "What was loaded before stays in force.")
	} else {
		fmt.Fprintln(c.Stdout, "Reloaded.")
	}
	list := func(title string, texts []string) {
		if len(texts) > 0 {
			fmt.Fprintln(c.Stdout, title)
		}
		for _, text := range texts {
			fmt.Fprintf(c.Stdout, "  %s\n", printable(text))
		}
	}
	list("Changed:", r.Changes)
	list("Takes effect at the next restart:", r.Restart)
	list("Worth a look:", r.Warnings)
}
