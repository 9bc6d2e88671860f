package cli

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/config"
)

func manCommand() *command {
	return &command{name: "man", args: "<directory>", short: "Write the manual pages",
		long: "Writes the manual pages into a directory, from the text that the commands themselves show and the reference of the settings.",
		prepare: func(*flag.FlagSet) func(*call) error {
			return func(c *call) error {
				if err := c.wantArgs(1, 1); err != nil {
					return err
				}
				for name, write := range manPages() {
					var b strings.Builder
					write(&manPage{&b})
					if err := os.WriteFile(filepath.Join(c.args[0], name), []byte(b.String()), 0o644); err != nil {
						return err
					}
				}
				return nil
			}
		}}
}

// manPages are the pages by file name.
func manPages() map[string]func(*manPage) {
	return map[string]func(*manPage){
		"chasquid.1": manChasquid, "chasquid-util.1": manUtil, "mda-lmtp.1": manLMTP, "smtp-check.1": manSMTPCheck, "chasquid.conf.5": manConf,
	}
}

// manPage writes one page in the man macros.
type manPage struct{ w io.Writer }

// roff escapes text: backslashes, hyphens that are to be copied as such, and what looks like a macro.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func (p *manPage) title(name, section, short string) {
	fmt.Fprintf(p.w, ".TH %s %s \"\" \"chasquid\" \"chasquid\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(name), section, roff(name), roff(short))
}

func (p *manPage) section(title string)    { fmt.Fprintf(p.w, ".SH %s\n", roff(title)) }
func (p *manPage) subsection(title string) { fmt.Fprintf(p.w, ".SS %s\n", roff(title)) }

func (p *manPage) paragraphs(text string) {
	for _, para := range strings.Split(text, "\n\n") {
		fmt.Fprintf(p.w, ".PP\n%s\n", roff(wrap(para, 100)))
	}
}

// entry is a term and what it means.
func (p *manPage) entry(term, text string) {
	fmt.Fprintf(p.w, ".TP\n.B %s\n%s\n", roff(term), roff(wrap(text, 100)))
}

func (p *manPage) options(fs *flag.FlagSet) {
	for _, o := range optionsOf(fs) {
		p.entry(o.String(), o.sentence())
	}
}

// serverOptions are the options of the server itself, which are not declared here.
var serverOptions = []option{
	{"config_dir", "directory", "configuration directory", "/etc/chasquid"},
	{"config_overrides", "settings", "settings that override those of the file, in the same syntax", ""},
	{"version", "", "show the version and exit", ""},
	{"logfile", "path", "append the log to this file, with the time of each line", ""},
	{"logtosyslog", "tag", "write the log to syslog under this tag", ""},
	{"alsologtostderr", "", "write the log to standard error, too", ""},
	{"logtime", "", "write the time of each line", ""},
	{"v", "level", "verbosity: 1 for debugging", ""},
}

func manChasquid(p *manPage) {
	p.title("chasquid", "1", "SMTP server")
	p.section("SYNOPSIS")
	p.paragraphs("chasquid [options]\n\nchasquid <sub-command> [options] [arguments]")
	p.section("DESCRIPTION")
	p.paragraphs("chasquid is a mail server: it receives mail, delivers it to the mailboxes of its domains and to other servers, and explains what it does. " +
		"Without a sub-command it runs in the foreground until SIGTERM or SIGINT; SIGHUP makes it open its logs again and read its files again.")
	p.section("OPTIONS")
	for _, o := range serverOptions {
		p.entry(o.String(), o.sentence())
	}
	p.section("SUB-COMMANDS")
	p.paragraphs("Options of sub-commands may stand anywhere behind their names. Exit status is 0 for success, 1 for failure, and 2 for a wrong command line.")
	for _, c := range commands() {
		p.subsection(c.usage())
		p.paragraphs(c.short + ".")
		if c.long != "" {
			p.paragraphs(c.long)
		}
		var dir string
		fs, _ := c.flagSet(&dir)
		p.options(fs)
	}
	p.section("SIGNALS")
	p.entry("SIGTERM, SIGINT", "Stop: transactions and deliveries under way may finish; a second signal ends the process at once.")
	p.entry("SIGHUP", "Open the logs again, and read certificates, domains, users, aliases and keys again.")
	p.entry("SIGUSR2", "Start the program that is installed now and hand over to it, as the sub-command upgrade does; the log says what became of it.")
	p.section("SEE ALSO")
	p.paragraphs("chasquid.conf(5), chasquid-util(1), mda-lmtp(1), smtp-check(1)")
}

func manUtil(p *manPage) {
	p.title("chasquid-util", "1", "manage users, aliases and DKIM keys of chasquid")
	p.section("SYNOPSIS")
	p.paragraphs("chasquid-util [options] <sub-command> [arguments]")
	p.section("SUB-COMMANDS")
	for _, c := range utilCommands() {
		p.entry(strings.TrimSpace(c.name+" "+c.args), c.short+".")
	}
	p.section("OPTIONS")
	p.paragraphs("Every word that begins with a dash is an option, wherever it stands. A value is written with '=' behind the option.")
	p.entry("-C=<directory>, --config_dir=<directory>", "Configuration directory, /etc/chasquid unless given.")
	p.entry("--password=<password>", "The password; asked for on the terminal unless given. Others on this machine may see it while the command runs.")
	p.entry("--receive_only", "The user receives mail, and never logs in.")
	p.entry("-v", "Say more, in dkim-sign and dkim-verify.")
	p.entry("--help", "Show a summary.")
	p.section("EXIT STATUS")
	p.paragraphs("0 for success, 1 for failure.")
	p.section("SEE ALSO")
	p.paragraphs("chasquid(1), chasquid.conf(5)")
}

func manLMTP(p *manPage) {
	p.title("mda-lmtp", "1", "deliver a message over LMTP")
	p.section("SYNOPSIS")
	p.paragraphs("mda-lmtp --addr=<address> -f <sender> -d <recipient>")
	p.section("DESCRIPTION")
	p.paragraphs("Delivers the message on standard input to an LMTP server, such as Dovecot. Errors are told on standard output.")
	p.section("OPTIONS")
	p.options((&lmtpOptions{}).flags())
	p.section("EXIT STATUS")
	p.entry("0", "The message was delivered.")
	p.entry("75", "It was not, and may be tried again later.")
	p.entry("69", "The server refused the message for good.")
	p.entry("2", "The command line is wrong.")
	p.section("SEE ALSO")
	p.paragraphs("chasquid(1)")
}

func manSMTPCheck(p *manPage) {
	p.title("smtp-check", "1", "check the mail servers of a domain")
	p.section("SYNOPSIS")
	p.paragraphs("smtp-check [options] <domain>")
	p.section("DESCRIPTION")
	p.paragraphs("Finds the mail servers of a domain, and checks that they can be reached, that they do TLS with valid certificates, " +
		"and that the domain's SPF record and MTA-STS policy fit them.")
	p.section("OPTIONS")
	p.options((&smtpCheck{}).flags())
	p.section("EXIT STATUS")
	p.paragraphs("0 if all is well, 1 otherwise.")
	p.section("SEE ALSO")
	p.paragraphs("chasquid(1)")
}

func manConf(p *manPage) {
	p.title("chasquid.conf", "5", "settings of chasquid")
	p.section("DESCRIPTION")
	p.paragraphs("chasquid.conf in the configuration directory holds the settings of the server, one \"name: value\" a line. Text stands in quotes; " +
		"what follows # is a comment; a list repeats its name. Every setting has a default, so an empty file is valid. \"chasquid check\" says what is wrong.")
	section := ""
	for _, f := range config.Fields() {
		if f.Section != section {
			section = f.Section
			p.section(strings.ToUpper(section))
		}
		text := strings.Join(f.Doc, " ") + " Type: " + f.Type
		if f.List {
			text += ", may be given several times"
		}
		text += "."
		if f.Unit != "" {
			text += " Unit: " + f.Unit + "."
		}
		if f.Default != "" {
			text += " Default: " + f.Default + "."
		}
		if f.Example != "" {
			text += " Example: " + f.Example + "."
		}
		p.entry(f.Name, text)
	}
	p.section("SEE ALSO")
	p.paragraphs("chasquid(1), chasquid-util(1)")
}
