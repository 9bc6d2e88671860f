// Package pages finds the code blocks in the documents, for tests that run them.
package pages

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Block is one code block.
type Block struct {
	Page    string // file name
	Line    int    // of its first line
	Section string // the heading above it
	Note    string // the comment right before it, which nobody sees in the rendered page
	Fence   string // the language of a fenced block
	Text    string // without its indentation
}

func (b Block) String() string { return fmt.Sprintf("%s:%d", b.Page, b.Line) }

// Read returns the code blocks of a page.
func Read(t testing.TB, file string) []Block {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return Parse(filepath.Base(file), string(text))
}

// reader goes through the lines of one page.
type reader struct {
	page, section, note string
	lines               []string
	at                  int
	blocks              []Block
}

// Parse finds blocks that are fenced, and those that are indented by four columns after an empty line.
func Parse(page, text string) []Block {
	r := &reader{page: page, lines: strings.Split(text, "\n")}
	empty := true
	for r.at < len(r.lines) {
		line := r.lines[r.at]
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			r.fenced(strings.TrimPrefix(trimmed, "```"))
			empty = true
			continue
		case empty && indent(line) >= 4 && trimmed != "":
			r.indented()
			continue
		case strings.HasPrefix(trimmed, "<!--") && strings.HasSuffix(trimmed, "-->"):
			r.note = strings.TrimSpace(trimmed[4 : len(trimmed)-3])
			empty = true
		case strings.HasPrefix(line, "#"):
			r.section, r.note, empty = strings.TrimSpace(strings.TrimLeft(line, "#")), "", true
		case trimmed == "":
			empty = true
		default:
			empty, r.note = false, ""
		}
		r.at++
	}
	return r.blocks
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

func (r *reader) add(line int, fence string, lines []string) {
	least := -1
	for _, l := range lines {
		if n := indent(l); strings.TrimSpace(l) != "" && (least < 0 || n < least) {
			least = n
		}
	}
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l[min(max(least, 0), len(l)):] + "\n")
	}
	r.blocks = append(r.blocks, Block{Page: r.page, Line: line, Section: r.section, Note: r.note, Fence: fence, Text: strings.TrimRight(b.String(), "\n") + "\n"})
	r.note = ""
}

func (r *reader) fenced(language string) {
	first := r.at + 1
	for r.at++; r.at < len(r.lines) && !strings.HasPrefix(strings.TrimSpace(r.lines[r.at]), "```"); r.at++ {
	}
	r.add(first+1, strings.TrimSpace(language), r.lines[first:r.at])
	r.at++
}

func (r *reader) indented() {
	first, end := r.at, r.at
	for ; r.at < len(r.lines); r.at++ {
		switch line := r.lines[r.at]; {
		case strings.TrimSpace(line) == "":
		case indent(line) >= 4:
			end = r.at + 1
		default:
			r.add(first+1, "", r.lines[first:end])
			return
		}
	}
	r.add(first+1, "", r.lines[first:end])
}
