package monitoring

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
)

// sheet is a page as blocks, from which both its HTML and its text are made. Texts may come from strangers: they are escaped where they
// are written.
type sheet struct {
	Title  string
	Blocks []block
}

// block is one piece of a sheet; what is not set is left out.
type block struct {
	Heading string
	ID      string // to link to
	Para    []cell
	Facts   []fact
	Table   *table
	Pre     string
	Fold    string // the text is folded away under this summary
	Water   *waterfall
	Form    *form
}

// cell is a piece of text, perhaps with a link.
type cell struct {
	Text  string
	Href  string  // a path of this server
	Class string  // n (number), ok, bad, warn, dim, b (bold), mono
	Small string  // a second line
	Bar   float64 // 0 to 1: how long a bar behind the text is
}

// Empty reports a cell that says nothing.
func (c cell) Empty() bool { return (c.Text == "" || c.Text == "–") && c.Small == "" }

// fact is one line of a list of names and values.
type fact struct {
	Name  string
	Value []cell
}

type column struct {
	Name  string
	Class string
	Href  string // sorts by this column
}

type table struct {
	Columns []column
	Rows    [][]cell
	Empty   string // said instead of no rows
	Wide    bool   // stays a table on a narrow screen
	Style   string // "even": columns of one width; "tight": many short lines after a narrow column; "flow": lines of text where it is narrow
}

// Class is the table's class in HTML.
func (t *table) Class() string {
	if t.Wide && t.Style != "flow" {
		return strings.TrimSpace("keep " + t.Style)
	}
	return t.Style
}

// dots puts a dot between links that follow each other.
func dots(cells []cell) []cell {
	var out []cell
	for i, c := range cells {
		if i > 0 && c.Href != "" && cells[i-1].Href != "" {
			out = append(out, dim("·"))
		}
		out = append(out, c)
	}
	return out
}

type form struct {
	Action  string
	Post    bool
	Fields  []field
	Buttons []button
}

// field is an input of a form.
type field struct {
	Name, Label, Value, Hint string
	Hidden                   bool
	Options                  []string // a choice; the empty one means "any"
	Wide                     bool
}

type button struct{ Name, Value, Label, Class string }

func (s *sheet) add(b block) { s.Blocks = append(s.Blocks, b) }

// para adds a line made of pieces.
func (s *sheet) para(cells ...cell) { s.add(block{Para: cells}) }

// columns makes columns from their names; those that begin with "#" hold numbers.
func columns(names ...string) []column {
	cs := make([]column, len(names))
	for i, n := range names {
		if rest, ok := strings.CutPrefix(n, "#"); ok {
			cs[i] = column{Name: rest, Class: "n"}
		} else {
			cs[i] = column{Name: n}
		}
	}
	return cs
}

func txt(s string) cell                { return cell{Text: s} }
func dim(s string) cell                { return cell{Text: s, Class: "dim"} }
func num[T ~int | ~int64](n T) cell    { return cell{Text: strconv.FormatInt(int64(n), 10), Class: "n"} }
func anchor(text, href string) cell    { return cell{Text: text, Href: href} }
func itoa(n int) string                { return strconv.Itoa(n) }
func oneFact(name string, v cell) fact { return fact{name, []cell{v}} }

// printable replaces what is no text, such as escape sequences of terminals and marks that turn the direction of writing.
func printable(s string) string {
	bad := func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if bad(r) && r != unicode.ReplacementChar {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// writeText writes the sheet as plain text.
func (s *sheet) writeText(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s\n\n", printable(s.Title), strings.Repeat("=", len([]rune(printable(s.Title)))))
	for i := range s.Blocks {
		s.Blocks[i].writeText(w)
	}
}

func (b *block) writeText(w io.Writer) {
	if b.Heading != "" {
		fmt.Fprintf(w, "## %s\n\n", printable(b.Heading))
	}
	if len(b.Para) > 0 {
		fmt.Fprintf(w, "%s\n\n", pieces(b.Para))
	}
	if len(b.Facts) > 0 {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, f := range b.Facts {
			fmt.Fprintf(tw, "%s:\t%s\n", printable(f.Name), pieces(f.Value))
		}
		tw.Flush()
		fmt.Fprintln(w)
	}
	if b.Table != nil {
		b.Table.writeText(w)
	}
	if b.Pre != "" {
		io.WriteString(w, multiline(b.Pre))
		fmt.Fprintln(w)
	}
}

func pieces(cells []cell) string {
	var b strings.Builder
	for i, c := range cells {
		if i > 0 && b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(printable(c.Text))
		if c.Small != "" {
			b.WriteString(" (" + printable(c.Small) + ")")
		}
	}
	return b.String()
}

func (t *table) writeText(w io.Writer) {
	if len(t.Rows) == 0 {
		fmt.Fprintf(w, "%s\n\n", printable(t.Empty))
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	write := func(texts []string) { fmt.Fprintln(tw, strings.Join(texts, "\t")) }
	var heads []string
	for _, c := range t.Columns {
		heads = append(heads, strings.ToUpper(c.Name))
	}
	write(heads)
	for _, r := range t.Rows {
		var texts []string
		for _, c := range r {
			texts = append(texts, pieces([]cell{c}))
		}
		write(slices.Clip(texts))
	}
	tw.Flush()
	fmt.Fprintln(w)
}
