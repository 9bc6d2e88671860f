// Package docs keeps the pages that describe the code true: what can be read off the code is generated, and tests fail when it is stale.
package docs

import (
	"fmt"
	"strings"
)

// What is generated in a page stands between these lines.
const (
	begin = "<!-- generated: go test ./test/docs -update -->\n"
	end   = "<!-- end of what is generated -->\n"
)

// replace returns the page with other text between its markers, and the text that was there.
func replace(page, text string) (now, was string, err error) {
	head, rest, ok := strings.Cut(page, begin)
	was, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", "", fmt.Errorf("the page lacks the line %q or %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return head + begin + text + end + tail, was, nil
}
