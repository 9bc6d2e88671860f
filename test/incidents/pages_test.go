package incidents

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// clicks is how many are allowed from the index to an example.
const clicks = 3

var (
	problemRE = regexp.MustCompile(`(?s)<div class="prob [a-z]+">.*?</div>`)
	hrefRE    = regexp.MustCompile(`href="([^"#]+)`)
	tagRE     = regexp.MustCompile(`<[^>]*>`)
)

// page is a page of the monitoring server as a browser gets it.
func page(s *harness.Server, path string) string {
	req, err := http.NewRequest(http.MethodGet, "http://"+s.Monitor+path, nil)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Accept", "text/html")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var b strings.Builder
	fmt.Fprint(&b, resp.Status, "\n")
	buf := make([]byte, 1<<20)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}

// readable is what a person sees of a page.
func readable(page string) string {
	return html.UnescapeString(tagRE.ReplaceAllString(page, " "))
}

// problem finds the problem on the index page that has all the words; "" if there is none.
func problem(index string, words []string) string {
	for _, p := range problemRE.FindAllString(index, -1) {
		if hasAll(readable(p), words) {
			return p
		}
	}
	return ""
}

func hasAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// links are those of a piece of a page, made absolute.
func links(base, page string) (list []string) {
	b, err := url.Parse(base)
	if err != nil {
		return nil
	}
	for _, m := range hrefRE.FindAllStringSubmatch(page, -1) {
		if u, err := b.Parse(html.UnescapeString(m[1])); err == nil && u.Host == "" {
			list = append(list, u.String())
		}
	}
	return list
}

// findExample follows the links of a problem, and of the pages they lead to, until it finds the page of one trace or one message with all the
// words. It returns the way there.
func findExample(s *harness.Server, problem string, words []string) (way []string, err error) {
	type step struct {
		path string
		way  []string
	}
	var todo []step
	seen := map[string]bool{}
	var other string
	add := func(from step, l string) {
		path, _, _ := strings.Cut(l, "?")
		if !seen[l] && !strings.HasSuffix(path, ".json") && (strings.HasPrefix(l, "/debug/traces") || strings.HasPrefix(l, "/debug/messages") || strings.HasPrefix(l, "/debug/queue")) {
			seen[l] = true
			todo = append(todo, step{l, append(from.way[:len(from.way):len(from.way)], l)})
		}
	}
	for _, l := range links("/", problem) {
		add(step{}, l)
	}
	for n := 0; len(todo) > 0 && n < 150; n++ {
		at := todo[0]
		todo = todo[1:]
		text := page(s, at.path)
		if strings.Count(strings.SplitN(at.path, "?", 2)[0], "/") == 3 {
			if strings.HasPrefix(text, "200") && hasAll(readable(text), words) {
				return at.way, nil
			}
			other = strings.Join(strings.Fields(readable(mainPart(text))), " ")
		}
		if len(at.way) < clicks {
			for _, l := range links(at.path, mainPart(text)) {
				add(at, l)
			}
		}
	}
	return nil, fmt.Errorf("none of %d pages within %d clicks shows an example with %q; the last one: %.900s", len(seen), clicks, words, other)
}

// mainPart leaves out the navigation, which leads everywhere.
func mainPart(page string) string {
	if i := strings.Index(page, "</nav>"); i >= 0 {
		return page[i:]
	}
	return page
}
