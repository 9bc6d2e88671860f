// Command summary reads the output of go test -json and tells what failed, what was skipped and why, and how many passed.
//
// A skipped test counts as a failure: where it runs, everything that tests need is installed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// event is one line of go test -json (go doc test2json).
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

// maxShown bounds what is shown of one failure.
const maxShown = 200

type summary struct {
	out            io.Writer
	passed, failed int
	output         map[string][]string // of tests and packages under way
	failedIn       map[string]bool     // packages with a failed or skipped test
}

func main() {
	s := &summary{out: os.Stdout, output: map[string][]string{}, failedIn: map[string]bool{}}
	if err := s.read(os.Stdin); err != nil {
		fmt.Println("summary:", err)
		s.failed++
	}
	// A file takes the counts for whoever adds them up.
	if len(os.Args) > 1 {
		if err := os.WriteFile(os.Args[1], fmt.Appendf(nil, "%d %d\n", s.passed, s.failed), 0o644); err != nil {
			fmt.Println("summary:", err)
			os.Exit(1)
		}
	}
	if s.failed > 0 || s.passed == 0 {
		os.Exit(1)
	}
}

func (s *summary) read(r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			fmt.Fprintln(s.out, sc.Text()) // not of the test runner: messages of the go command itself
			continue
		}
		s.take(e)
	}
	return sc.Err()
}

func (s *summary) take(e event) {
	pkg := e.Package
	if pkg == "" {
		pkg = e.ImportPath
	}
	key := pkg + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		s.output[key] = append(s.output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test != "" {
			s.test(pkg, e, s.output[key])
		} else {
			s.pkg(pkg, e, s.output[key])
		}
		delete(s.output, key)
	case "build-fail":
		s.failedIn[pkg] = true
		s.failed++
		s.show("FAIL  "+short(pkg)+" does not build", s.output[key])
	}
}

func (s *summary) test(pkg string, e event, output []string) {
	if e.Action == "pass" {
		s.passed++
		return
	}
	s.failed++
	s.failedIn[pkg] = true
	word := map[string]string{"fail": "FAIL", "skip": "SKIP"}[e.Action]
	s.show(fmt.Sprintf("%s  %s %s", word, short(pkg), e.Test), output)
}

// pkg tells of a package that is done. One that failed without a failing test crashed, timed out or does not build.
func (s *summary) pkg(pkg string, e event, output []string) {
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(10 * time.Millisecond)
	switch {
	case e.Action == "pass":
		fmt.Fprintf(s.out, "ok    %s %v\n", short(pkg), took)
	case e.Action == "fail" && !s.failedIn[pkg]:
		s.failed++
		s.show("FAIL  "+short(pkg), output)
	case e.Action == "fail":
		fmt.Fprintf(s.out, "FAIL  %s %v\n", short(pkg), took)
	}
	for key := range s.output { // of tests that were cut short
		if strings.HasPrefix(key, pkg+" ") && key != pkg+" " {
			if e.Action == "fail" {
				s.show("FAIL  "+short(key)+" did not end", s.output[key])
			}
			delete(s.output, key)
		}
	}
}

func (s *summary) show(title string, output []string) {
	fmt.Fprintln(s.out, title)
	if n := len(output) - maxShown; n > 0 {
		output = append([]string{fmt.Sprintf("(%d lines before)\n", n)}, output[n:]...)
	}
	for _, l := range output {
		fmt.Fprint(s.out, "    ", l)
	}
}

func short(pkg string) string { return strings.TrimPrefix(pkg, "blitiri.com.ar/go/") }
