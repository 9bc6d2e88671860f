package main

import (
	"os"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/config"
)

// TestCurrent: docs/configuration.md is what the generator writes now.
func TestCurrent(t *testing.T) {
	b, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != render() {
		t.Error("docs/configuration.md is out of date: run make docs")
	}
}

// TestComplete: every setting is documented in a section, and says more than its name.
func TestComplete(t *testing.T) {
	fields := (&config.Settings{}).ProtoReflect().Descriptor().Fields()
	byName := map[string]config.Field{}
	for _, f := range config.Fields() {
		byName[f.Name] = f
		if f.Section == "" || len(strings.Join(f.Doc, " ")) < 10 {
			t.Errorf("%s is not documented: %+v", f.Name, f)
		}
	}
	for i := range fields.Len() {
		if _, ok := byName[string(fields.Get(i).Name())]; !ok {
			t.Errorf("%s is missing", fields.Get(i).Name())
		}
	}
}
