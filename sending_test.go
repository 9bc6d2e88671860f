package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSRSSecrets: a secret is made once, and former ones may stand below the one in use.
func TestSRSSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "srs-secret")
	first, err := srsSecrets(path)
	if err != nil || len(first) != 1 || len(first[0]) < 16 {
		t.Fatalf("%q, %v", first, err)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte("a new secret of some length\n\n"), old...), 0o600); err != nil {
		t.Fatal(err)
	}
	both, err := srsSecrets(path)
	if err != nil || len(both) != 2 || string(both[0]) != "a new secret of some length" || string(both[1]) != string(first[0]) {
		t.Errorf("%q, %v", both, err)
	}
}
