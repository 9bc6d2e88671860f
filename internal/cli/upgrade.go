package cli

import (
	"errors"
	"flag"
	"fmt"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/opctl"
)

func upgradeCommand() *command {
	return &command{name: "upgrade", args: "[options]", short: "Replace the running server by the program that is installed now, without dropping a connection",
		long: "Makes the running server start the program that is now at the path it was started by, with the same arguments, and hand over to it: sockets, queue and files. " +
			"Connections that are open are served to their end by the old process, for as long as timeouts { drain } says; new ones wait for some milliseconds. " +
			"Waits for the end of the handover, which is not before running deliveries end or the same time is over.\n\n" +
			"If the new program cannot be started, ends, finds its configuration wrong or does not get ready within 30 seconds, the old server goes on as before; " +
			"the message says why, and the exit status is 1. It is 0 when the new one serves, and 2 when the command line is wrong.",
		prepare: func(fs *flag.FlagSet) func(*call) error {
			asJSON := fs.Bool("json", false, "write JSON")
			return func(c *call) error {
				if err := c.wantArgs(0, 0); err != nil {
					return err
				}
				var u opctl.Upgraded
				err := c.ask(operationTimeout, opctl.Upgrade, nil, &u)
				var remote control.RemoteError
				if errors.As(err, &remote) && remote == "unknown method" {
					return errors.New("the running server is of a version that cannot hand over; restart it instead")
				}
				if err != nil {
					return err
				}
				if *asJSON {
					return printJSON(c.Stdout, u)
				}
				fmt.Fprintf(c.Stdout, "Version %s, process %d, serves now, in place of version %s. It took %v; mail waited for %v.\n",
					u.To, u.PID, u.From, u.Took.Round(time.Millisecond), u.Paused.Round(time.Millisecond))
				return nil
			}
		}}
}
