package main

import (
	"strings"
	"testing"
)

// TestSummary feeds recorded forms of events: passing, failing, skipped, crashed and not building.
func TestSummary(t *testing.T) {
	const in = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"all well\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"b_test.go:1: bad\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestC","Output":"c_test.go:1: no swaks\n"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"fail","Package":"p","Elapsed":1.5}
{"Action":"pass","Package":"q","Test":"TestD"}
{"Action":"output","Package":"q","Test":"TestE","Output":"panic: boom\n"}
{"Action":"output","Package":"q","Output":"exit status 2\n"}
{"Action":"fail","Package":"q","Elapsed":0.1}
{"Action":"build-output","ImportPath":"r","Output":"r.go:1: undefined: x\n"}
{"Action":"build-fail","ImportPath":"r"}
{"Action":"fail","Package":"r"}
{"Action":"skip","Package":"no-tests"}
go: a line of its own
`
	var out strings.Builder
	s := &summary{out: &out, output: map[string][]string{}, failedIn: map[string]bool{}}
	if err := s.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	if s.passed != 2 || s.failed != 4 {
		t.Errorf("%d passed, %d failed", s.passed, s.failed)
	}
	for _, want := range []string{"FAIL  p TestB\n    b_test.go:1: bad", "SKIP  p TestC\n    c_test.go:1: no swaks", "FAIL  p 1.5s",
		"FAIL  q TestE did not end\n    panic: boom", "FAIL  r does not build\n    r.go:1: undefined: x", "go: a line of its own"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("missing %q in:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "all well") {
		t.Error("output of a passing test is shown")
	}
}
