// Command gendoc writes docs/configuration.md from the comments of config.proto and the built-in defaults.
package main

import (
	_ "embed"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/config"
)

//go:embed intro.md
var intro string

func main() {
	out := flag.String("out", "", "file to write; standard output if empty")
	flag.Parse()
	if *out == "" {
		fmt.Print(render())
		return
	}
	if err := os.WriteFile(*out, []byte(render()), 0o644); err != nil {
		log.Fatal(err)
	}
}

func render() string {
	var b strings.Builder
	b.WriteString(strings.TrimSpace(intro) + "\n")
	for _, section := range config.Sections() {
		fmt.Fprintf(&b, "\n## %s\n", section)
		for _, f := range config.Fields() {
			if f.Section == section {
				field(&b, f)
			}
		}
	}
	return b.String()
}

func field(b *strings.Builder, f config.Field) {
	level := "###"
	if strings.Contains(f.Name, ".") {
		level = "####"
	}
	fmt.Fprintf(b, "\n%s `%s`\n\n", level, f.Name)
	facts := []string{f.Type}
	if f.List {
		facts[0] += ", may be given several times"
	}
	if f.Unit != "" {
		facts = append(facts, "unit: "+f.Unit)
	}
	if d := defaultOf(f); d != "" {
		facts = append(facts, "default: "+d)
	}
	doc := strings.ReplaceAll(strings.Join(f.Doc, "\n"), "<", `\<`)
	fmt.Fprintf(b, "%s\n\n%s\n", strings.Join(facts, "; "), doc)
	if f.Restart != "" {
		fmt.Fprintf(b, "\nA change takes effect at the next restart: %s\n", f.Restart)
	}
	if f.Example != "" {
		example := f.Example
		if !strings.HasPrefix(example, f.Name) {
			example = f.Name + ": " + example
		}
		fmt.Fprintf(b, "\n    %s\n", example)
	}
}

// defaultOf renders a default, empty where there is nothing to say: blocks, and settings within them.
func defaultOf(f config.Field) string {
	switch {
	case f.Default != "" && strings.ContainsAny(f.Default[:1], `"0123456789`):
		return "`" + f.Default + "`"
	case f.Default != "":
		return f.Default
	case f.Type == "block" || strings.Contains(f.Name, "."):
		return ""
	case f.Type == "true or false":
		return "false"
	}
	return "empty"
}
