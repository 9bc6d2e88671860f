package cli

import (
	"flag"
	"fmt"
	"time"

	"blitiri.com.ar/go/chasquid/internal/opctl"
)

func levelCommands() []*command {
	return []*command{
		{name: "level ls", args: "[options] [<domain>]", short: "Show the best TLS level seen with domains", prepare: levelLs,
			long: "Lists the domains that were reached, or sent mail, over TLS. Mail to a domain is not sent at a lower level than its outgoing one, " +
				"unless an exception allows it."},
		{name: "level allow", args: "[-for duration] <domain>", short: "Allow mail to a domain at any TLS level for a while", prepare: levelAllow,
			long: "Lets mail to a domain go at a lower TLS level than was seen, for when its servers lost their certificate or TLS. The exception ends by itself; " +
				"-for=0s ends it now."},
		{name: "level forget", args: "<domain>", short: "Forget the TLS level seen with a domain", prepare: levelForget,
			long: "Sets both levels of a domain to plain, as \"chasquid-util domaininfo-remove\" does. They rise again with the next mail."},
	}
}

func levelLs(fs *flag.FlagSet) func(*call) error {
	asJSON := fs.Bool("json", false, "write JSON")
	limit := fs.Int("limit", 1000, "at most this many domains")
	return func(c *call) error {
		if err := c.wantArgs(0, 1); err != nil {
			return err
		}
		args := map[string][]string{"limit": {fmt.Sprint(*limit)}}
		if len(c.args) == 1 {
			args["domain"] = c.args
		}
		l := []opctl.Level{}
		if err := c.ask(timeout, opctl.LevelList, args, &l); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.Stdout, l)
		}
		now := time.Now()
		t := newTable(c.Stdout, "DOMAIN", "INCOMING", "OUTGOING", "ANY LEVEL ALLOWED")
		for _, e := range l {
			until := ""
			if e.Override.After(now) {
				until = "until " + e.Override.Local().Format(time.DateTime)
			}
			t.row(e.Domain, e.Incoming, e.Outgoing, until)
		}
		return t.flush()
	}
}

func levelAllow(fs *flag.FlagSet) func(*call) error {
	d := fs.Duration("for", 24*time.Hour, "`duration` of the exception")
	return func(c *call) error {
		if err := c.wantArgs(1, 1); err != nil {
			return err
		}
		if *d < 0 {
			return usageError("-for must not be negative")
		}
		if err := c.ask(timeout, opctl.LevelAllow, map[string][]string{"domain": c.args, "for": {d.String()}}, nil); err != nil {
			return err
		}
		if *d == 0 {
			fmt.Fprintln(c.Stdout, "The exception is over.")
		} else {
			fmt.Fprintf(c.Stdout, "Mail to %s may go at any TLS level until %s.\n", c.args[0], time.Now().Add(*d).Format(time.DateTime))
		}
		return nil
	}
}

func levelForget(*flag.FlagSet) func(*call) error {
	return func(c *call) error {
		if err := c.wantArgs(1, 1); err != nil {
			return err
		}
		if err := c.ask(timeout, "DomaininfoClear", map[string][]string{"Domain": c.args}, nil); err != nil {
			return err
		}
		fmt.Fprintf(c.Stdout, "Forgot the TLS level of %s.\n", c.args[0])
		return nil
	}
}
