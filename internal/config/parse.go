package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/prototext"
)

// source is a text of settings and where it comes from.
type source struct {
	what string // "config" or "override", as error messages name it
	file string // empty for overrides
	text string
}

func parse(src source) (*Settings, error) {
	s := &Settings{}
	if err := prototext.Unmarshal([]byte(src.text), s); err != nil {
		return nil, parseError(src, err)
	}
	return s, nil
}

var (
	positionRE = regexp.MustCompile(`\(line (\d+):(\d+)\):\s*(.*)$`)
	unknownRE  = regexp.MustCompile(`^unknown field: (.*)$`)
	valueRE    = regexp.MustCompile(`^invalid value for (\w+) type: (.*)$`)
	repeatedRE = regexp.MustCompile(`^non-repeated field "(\w+)" is repeated$`)
	nameRE     = regexp.MustCompile(`(\w+)\s*:?\s*\[?[^:]*$`)
)

// parseError turns an error of the text format's parser into one that an administrator can act on.
func parseError(src source, err error) error {
	e := &Error{File: src.file, prefix: "parsing " + src.what, err: err,
		Fix: `each setting is written name: value, texts in double quotes; docs/configuration.md lists them all`}
	m := positionRE.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\u00a0", " "))
	if m == nil {
		e.Line, e.Msg, e.Fix = unclosed(src.text)
		return e
	}
	e.Line, _ = strconv.Atoi(m[1])
	col, _ := strconv.Atoi(m[2])
	e.Msg = m[3]
	line := lineAt(src.text, e.Line)
	if n := nameRE.FindStringSubmatch(line[:min(max(col-1, 0), len(line))]); n != nil {
		e.Field = n[1]
	}
	switch {
	case unknownRE.MatchString(e.Msg):
		name := unknownRE.FindStringSubmatch(e.Msg)[1]
		e.Field, e.Msg = name, fmt.Sprintf("unknown setting %q", name)
		e.Fix = "remove it, or check whether it belongs to a newer version"
		if s := nearest(name); s != "" {
			e.Fix = fmt.Sprintf("did you mean %q? Otherwise remove it, or check whether it belongs to a newer version", s)
		}
	case repeatedRE.MatchString(e.Msg):
		e.Field = repeatedRE.FindStringSubmatch(e.Msg)[1]
		e.Msg, e.Fix = fmt.Sprintf("%s is given twice", e.Field), "keep one of them"
	case valueRE.MatchString(e.Msg):
		v := valueRE.FindStringSubmatch(e.Msg)
		e.Value = v[2]
		e.Msg = fmt.Sprintf("%s takes %s, not %s", e.Field, typeWords(v[1]), v[2])
		e.Fix = fmt.Sprintf("write it as in %s: %s", e.Field, typeExample(v[1]))
	case strings.HasPrefix(e.Msg, "invalid scalar value: "):
		e.Value = strings.TrimPrefix(e.Msg, "invalid scalar value: ")
		e.Msg, e.Fix = fmt.Sprintf("%s: %s is not in quotes", e.Field, e.Value), fmt.Sprintf("write %s: %q", e.Field, e.Value)
	case strings.Contains(e.Msg, `'\n' in string`):
		e.Msg, e.Fix = "a text is not closed on its line", "write its closing quote"
	case strings.HasPrefix(e.Msg, "cannot specify field by number"):
		e.Msg, e.Fix = "settings are written by name, not by number", "write the setting's name"
	case strings.HasPrefix(e.Msg, "invalid field name"):
		e.Msg, e.Fix = fmt.Sprintf("%q does not begin a setting", strings.TrimPrefix(e.Msg, "invalid field name: ")), "remove it, or write name: value"
	case strings.Contains(e.Msg, "missing field separator"):
		e.Field, _, _ = strings.Cut(strings.TrimSpace(line), " ")
		e.Msg, e.Fix = "a colon is missing after the setting's name", "write name: value"
	case strings.Contains(e.Msg, "invalid UTF-8"):
		e.Fix = "save the file as UTF-8"
	}
	return e
}

func typeWords(kind string) string {
	switch kind {
	case "string":
		return "a text in quotes"
	case "bool":
		return "true or false"
	case "uint32", "uint64":
		return "a whole number, zero or more"
	}
	return "a whole number"
}

func typeExample(kind string) string {
	switch kind {
	case "string":
		return `"text"`
	case "bool":
		return "true"
	}
	return "100"
}

// lineAt returns line n (from 1) of text, empty if there is none.
func lineAt(text string, n int) string {
	lines := strings.Split(text, "\n")
	if n < 1 || n > len(lines) {
		return ""
	}
	return lines[n-1]
}

// unclosed finds the quote or bracket that was never closed, or the setting without a value at the end.
func unclosed(text string) (line int, msg, fix string) {
	type open struct {
		c    byte
		line int
	}
	var stack []open
	line = 1
	last := 1
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '\n':
			line++
			continue
		case '#':
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
			continue
		case '"', '\'':
			end := closingQuote(text, i)
			if end < 0 {
				return line, "a text is not closed on its line", "write its closing quote"
			}
			i = end
		case '{', '[', '<':
			stack = append(stack, open{c, line})
		case '}', ']', '>':
			if len(stack) > 0 {
				stack = stack[:len(stack)-1]
			}
		}
		if c := text[i]; c != ' ' && c != '\t' && c != '\r' {
			last = line
		}
	}
	if len(stack) > 0 {
		o := stack[len(stack)-1]
		return o.line, "a " + string(o.c) + " is opened and never closed", "close it"
	}
	return last, "a setting has no value", "write its value, or remove it"
}

func closingQuote(text string, i int) int {
	for j := i + 1; j < len(text) && text[j] != '\n'; j++ {
		switch text[j] {
		case '\\':
			j++
		case text[i]:
			return j
		}
	}
	return -1
}

// lineOf finds the line where a setting is written, 0 if it is not. Good enough for messages: it looks at line starts only.
func lineOf(text, field string) int {
	re := regexp.MustCompile(`^(?:.*[{,;\s])?` + regexp.QuoteMeta(field) + `\s*[:{\[<]`)
	for i, l := range strings.Split(text, "\n") {
		if code, _, _ := strings.Cut(l, "#"); re.MatchString(code) {
			return i + 1
		}
	}
	return 0
}

// nearest returns the known setting closest to a misspelt one, if any is close.
func nearest(name string) string {
	best, bestDist := "", len(name)/3+2
	for _, f := range Fields() {
		plain := f.Name[strings.LastIndexByte(f.Name, '.')+1:]
		if d := editDistance(name, plain); d < bestDist {
			best, bestDist = plain, d
		}
	}
	return best
}

// editDistance is the number of single-character edits between two names.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diag
			if a[i-1] != b[j-1] {
				cost++
			}
			diag, row[j] = row[j], min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
