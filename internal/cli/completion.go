package cli

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

func completionCommand() *command {
	return &command{name: "completion", args: "bash|zsh|fish", short: "Write a completion script for a shell",
		long: "Writes a script that completes sub-commands and options. For bash: chasquid completion bash > /etc/bash_completion.d/chasquid",
		prepare: func(*flag.FlagSet) func(*call) error {
			return func(c *call) error {
				if err := c.wantArgs(1, 1); err != nil {
					return err
				}
				write, ok := map[string]func(io.Writer){"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.args[0]]
				if !ok {
					return usageError(fmt.Sprintf("no completion for %q", c.args[0]))
				}
				write(c.Stdout)
				return nil
			}
		}}
}

// firstWords are the words that can follow "chasquid", secondWords those that can follow one of them.
func firstWords() (l []string) {
	for _, c := range commands() {
		if w := strings.Fields(c.name)[0]; !slices.Contains(l, w) {
			l = append(l, w)
		}
	}
	for _, t := range tools() {
		l = append(l, t.name)
	}
	return l
}

func secondWords(first string) (l []string) {
	for _, c := range commands() {
		if w := strings.Fields(c.name); len(w) == 2 && w[0] == first {
			l = append(l, w[1])
		}
	}
	return l
}

// optionWords are the options of a command.
func optionWords(c *command) (l []string) {
	var dir string
	fs, _ := c.flagSet(&dir)
	for _, o := range optionsOf(fs) {
		l = append(l, "-"+o.name)
	}
	return l
}

func bashCompletion(w io.Writer) {
	fmt.Fprint(w, "# bash completion for chasquid\n_chasquid() {\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} words=\n\tCOMPREPLY=()\n\tcase \"${COMP_WORDS[1]} ${COMP_WORDS[2]}\" in\n")
	for _, c := range commands() {
		pattern := c.name
		if !strings.Contains(pattern, " ") {
			pattern += "\\ *"
		} else {
			pattern = strings.ReplaceAll(pattern, " ", "\\ ")
		}
		fmt.Fprintf(w, "\t%s) words=%q ;;\n", pattern, strings.Join(optionWords(c), " "))
	}
	fmt.Fprintf(w, "\tesac\n\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n\t\twords=%q\n", strings.Join(firstWords(), " "))
	for _, first := range firstWords() {
		if second := secondWords(first); len(second) > 0 {
			fmt.Fprintf(w, "\telif [ \"$COMP_CWORD\" -eq 2 ] && [ \"${COMP_WORDS[1]}\" = %s ]; then\n\t\twords=%q\n", first, strings.Join(second, " "))
		}
	}
	fmt.Fprint(w, "\tfi\n")
	fmt.Fprint(w, "\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -o default -F _chasquid chasquid\n")
}

func zshCompletion(w io.Writer) {
	fmt.Fprint(w, "#compdef chasquid\nautoload -U +X bashcompinit && bashcompinit\n")
	bashCompletion(w)
}

func fishCompletion(w io.Writer) {
	quote := func(s string) string { return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'" }
	fmt.Fprint(w, "# fish completion for chasquid\n")
	for _, c := range commands() {
		words := strings.Fields(c.name)
		seen := "'__fish_seen_subcommand_from " + words[0] + "'"
		if len(words) == 1 {
			fmt.Fprintf(w, "complete -c chasquid -n __fish_use_subcommand -f -a %s -d %s\n", words[0], quote(c.short))
		} else {
			fmt.Fprintf(w, "complete -c chasquid -n __fish_use_subcommand -f -a %s\n", words[0])
			fmt.Fprintf(w, "complete -c chasquid -n %s -f -a %s -d %s\n", seen, words[1], quote(c.short))
			seen = fmt.Sprintf("'__fish_seen_subcommand_from %s; and __fish_seen_subcommand_from %s'", words[0], words[1])
		}
		var dir string
		fs, _ := c.flagSet(&dir)
		for _, o := range optionsOf(fs) {
			fmt.Fprintf(w, "complete -c chasquid -n %s -o %s -d %s\n", seen, o.name, quote(o.sentence()))
		}
	}
	for _, t := range tools() {
		fmt.Fprintf(w, "complete -c chasquid -n __fish_use_subcommand -f -a %s -d %s\n", t.name, quote(t.short))
	}
}
