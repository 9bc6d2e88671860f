package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/control"
)

// utilCommand is one sub-command of chasquid-util.
type utilCommand struct {
	name, args, short string
	options           []string // besides the global ones; "--name=" takes a value, "--name" does not
	max               int      // arguments
	run               func(u *util) error
}

func utilCommands() []utilCommand {
	return []utilCommand{
		{"user-add", "<user@domain> [--password=<password>] [--receive_only]", "Add a user, or change its password", []string{"--password=", "--receive_only"}, 1, (*util).userAdd},
		{"user-remove", "<user@domain>", "Remove a user", nil, 1, (*util).userRemove},
		{"authenticate", "<user@domain> [--password=<password>]", "Check a user's password", []string{"--password="}, 1, (*util).authenticate},
		{"check-userdb", "<domain>", "Read the users of a domain and count them", nil, 1, (*util).checkUserDB},
		{"aliases-resolve", "<address>", "Show where mail for an address ends; asks the running server", nil, 1, (*util).aliasesResolve},
		{"domaininfo-remove", "<domain>", "Forget the TLS level seen with a domain; asks the running server", nil, 1, (*util).domaininfoRemove},
		{"print-config", "", "Show the effective configuration", nil, 0, (*util).printConfig},
		{"dkim-keygen", "<domain> [<selector> [<key file>]] [--algo=rsa3072|rsa4096|ed25519]", "Make a DKIM key", []string{"--algo="}, 3, (*util).dkimKeygen},
		{"dkim-dns", "<domain> [<selector> [<key file>]]", "Show the DNS record of a DKIM key", nil, 3, (*util).dkimDNS},
		{"dkim-sign", "[<domain> [<selector> [<key file>]]]", "Sign the message on standard input and show the signature", nil, 3, (*util).dkimSign},
		{"dkim-verify", "[--txt=<record>]", "Verify the signatures of the message on standard input", []string{"--txt="}, 0, (*util).dkimVerify},
	}
}

// utilGlobals are the options of all sub-commands. Those without "=" take no value.
var utilGlobals = []string{"-C=", "--config_dir=", "--configdir=", "-v", "--help"}

// util is one run of chasquid-util.
type util struct {
	*Env
	ctx       context.Context
	configDir string
	verbose   bool
	options   map[string]string // by name with its dashes
	args      []string
}

// arg returns an argument, "" if it is not there.
func (u *util) arg(i int) string {
	if i < len(u.args) {
		return u.args[i]
	}
	return ""
}

// splitArgs tells options from arguments: every word that starts with a dash is an option, wherever it stands.
func splitArgs(words []string) (options map[string]string, args []string) {
	options = map[string]string{}
	for _, w := range words {
		if !strings.HasPrefix(w, "-") {
			args = append(args, w)
			continue
		}
		name, value, _ := strings.Cut(w, "=")
		options[name] = value
	}
	return options, args
}

func utilMain(env *Env, words []string) int {
	options, args := splitArgs(words)
	if _, ok := options["--help"]; ok {
		utilUsage(env.Stdout)
		return exitOK
	}
	u := &util{Env: env, ctx: context.Background(), options: options, configDir: "/etc/chasquid"}
	for _, o := range []string{"--config_dir", "-C", "--configdir"} {
		if v := options[o]; v != "" {
			u.configDir = v
		}
	}
	if _, ok := options["--configdir"]; ok {
		fmt.Fprintln(env.Stderr, "The option --configdir is deprecated: use --config_dir instead.")
	}
	_, u.verbose = options["-v"]
	if len(args) > 0 {
		u.args = args[1:]
		for _, c := range utilCommands() {
			if c.name == args[0] {
				return u.run(c)
			}
		}
	} else {
		args = []string{""}
	}
	fmt.Fprintf(env.Stdout, "Unknown argument %q\n", args[0])
	utilUsage(env.Stderr)
	return exitError
}

func (u *util) run(c utilCommand) int {
	err := u.checkOptions(c)
	if err == nil {
		err = c.run(u)
	}
	if err != nil {
		fmt.Fprintln(u.Stderr, strings.ReplaceAll(err.Error(), "\n", "; "))
		return exitError
	}
	return exitOK
}

// checkOptions refuses options and arguments that the sub-command does not know, rather than doing something else than was meant.
func (u *util) checkOptions(c utilCommand) error {
	known := slices.Concat(utilGlobals, c.options)
	for _, o := range slices.Sorted(maps.Keys(u.options)) {
		if !slices.Contains(known, o) && !slices.Contains(known, o+"=") {
			return fmt.Errorf("Unknown option %q for %s; --help shows the options", o, c.name)
		}
	}
	if len(u.args) > c.max {
		return fmt.Errorf("Unexpected argument %q for %s (values of options are written with '=', as in --option=value)", u.args[c.max], c.name)
	}
	return nil
}

func utilUsage(w io.Writer) {
	fmt.Fprint(w, "\nUsage:\n  chasquid-util [options] <sub-command> [arguments]\n\nSub-commands:\n")
	for _, c := range utilCommands() {
		fmt.Fprintf(w, "  %s\n        %s.\n", strings.TrimSpace(c.name+" "+c.args), c.short)
	}
	fmt.Fprint(w, `
Options, anywhere on the line; values are written with '=':
  -C=<directory>, --config_dir=<directory>
        Configuration directory, /etc/chasquid unless given.
  -v
        Say more, in dkim-sign and dkim-verify.
  --help
        Show this.
`)
}

func (u *util) loadConfig() (*config.Config, error) {
	conf, err := config.Load(filepath.Join(u.configDir, config.FileName), "")
	if err != nil {
		return nil, fmt.Errorf("Error loading config: %w", err)
	}
	return conf, nil
}

func (u *util) printConfig() error {
	conf, err := u.loadConfig()
	if err != nil {
		return err
	}
	fmt.Fprintln(u.Stdout, conf.Text())
	return nil
}

// ask calls a method of the running server. A relative data directory is relative to where we are, not to the configuration.
func (u *util) ask(method, key, value string) (map[string][]string, error) {
	conf, err := u.loadConfig()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(u.ctx, timeout)
	defer cancel()
	return u.Call(ctx, filepath.Join(conf.GetDataDir(), control.SocketName), method, map[string][]string{key: {value}})
}

// isConfigError reports that the error is of loadConfig.
func isConfigError(err error) bool {
	return len(config.Errors(err)) > 0 && strings.HasPrefix(err.Error(), "Error loading config: ")
}

func (u *util) aliasesResolve() error {
	if u.arg(0) == "" {
		return errors.New("Error: missing address parameter")
	}
	found, err := u.ask("AliasResolve", "Address", u.arg(0))
	if isConfigError(err) {
		return err
	} else if err != nil {
		return fmt.Errorf("Error resolving: %w", err)
	}
	for _, kind := range slices.Sorted(maps.Keys(found)) {
		for _, a := range found[kind] {
			fmt.Fprintf(u.Stdout, "%s  %s\n", kind, a)
		}
	}
	return nil
}

func (u *util) domaininfoRemove() error {
	if u.arg(0) == "" {
		return errors.New("Error: missing domain parameter")
	}
	_, err := u.ask("DomaininfoClear", "Domain", u.arg(0))
	if isConfigError(err) || err == nil {
		return err
	}
	return fmt.Errorf("Error removing domaininfo entry: %w", err)
}
