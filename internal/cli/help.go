package cli

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// usage is the first line of a command's help.
func (c *command) usage() string {
	return strings.TrimSpace("chasquid " + c.name + " " + c.args)
}

// option is one option of a command, for people.
type option struct {
	name, arg, text, def string
}

// optionsOf lists the options of a flag set by name.
func optionsOf(fs *flag.FlagSet) (l []option) {
	fs.VisitAll(func(f *flag.Flag) {
		arg, text := flag.UnquoteUsage(f)
		o := option{name: f.Name, arg: arg, text: text, def: f.DefValue}
		if o.def == "0" || o.def == "0s" || o.def == "false" {
			o.def = ""
		}
		l = append(l, o)
	})
	return l
}

// String is the option as it is written.
func (o option) String() string {
	if o.arg == "" {
		return "-" + o.name
	}
	return "-" + o.name + " " + o.arg
}

// sentence is what the option does, with its default.
func (o option) sentence() string {
	if o.def == "" {
		return upperFirst(o.text) + "."
	}
	return fmt.Sprintf("%s (default %s).", upperFirst(o.text), o.def)
}

func (c *command) help(w io.Writer) {
	var dir string
	fs, _ := c.flagSet(&dir)
	fmt.Fprintf(w, "Usage: %s\n\n%s.\n", c.usage(), c.short)
	if c.long != "" {
		fmt.Fprintf(w, "\n%s\n", wrap(c.long, 100))
	}
	fmt.Fprint(w, "\nOptions:\n")
	for _, o := range optionsOf(fs) {
		fmt.Fprintf(w, "  %s\n        %s\n", o, o.sentence())
	}
}

// wrap breaks the lines of paragraphs.
func wrap(text string, width int) string {
	var out strings.Builder
	for i, para := range strings.Split(text, "\n\n") {
		if i > 0 {
			out.WriteString("\n\n")
		}
		n := 0
		for _, word := range strings.Fields(para) {
			switch {
			case n == 0:
			case n+1+len(word) > width:
				out.WriteByte('\n')
				n = 0
			default:
				out.WriteByte(' ')
				n++
			}
			out.WriteString(word)
			n += len(word)
		}
	}
	return out.String()
}

func helpCommand() *command {
	return &command{name: "help", args: "[<sub-command>]", short: "List the sub-commands, or explain one", prepare: func(*flag.FlagSet) func(*call) error {
		return func(c *call) error {
			if len(c.args) == 0 {
				overview(c.Stdout, c.Version)
				return nil
			}
			cmd, _ := find(c.args)
			if cmd == nil {
				return usageError(fmt.Sprintf("there is no sub-command %q", strings.Join(c.args, " ")))
			}
			cmd.help(c.Stdout)
			return nil
		}
	}}
}

func overview(w io.Writer, version string) {
	if version != "" {
		fmt.Fprintf(w, "chasquid %s\n\n", version)
	}
	fmt.Fprint(w, "Usage: chasquid [options]\n       chasquid <sub-command> [options] [arguments]\n\n"+
		"Without a sub-command, chasquid is the mail server; \"chasquid -help\" shows its options.\n\nSub-commands:\n")
	t := newTable(w)
	for _, c := range commands() {
		t.row("  "+c.name, c.short)
	}
	for _, tool := range tools() {
		t.row("  "+tool.name, tool.short)
	}
	t.flush()
	fmt.Fprint(w, "\n\"chasquid help <sub-command>\" explains one of them.\n")
}

// tool is one of the programs that existing installations know.
type tool struct{ name, short string }

func tools() []tool {
	return []tool{
		{"util", "Manage users and DKIM keys, as chasquid-util"},
		{"mda-lmtp", "Deliver the message on standard input over LMTP"},
		{"smtp-check", "Check the mail servers of a domain"},
	}
}
