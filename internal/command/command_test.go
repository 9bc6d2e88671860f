package command

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// CFG-23: a program that is put in its place is seen within a millisecond, one that is gone at once.
func TestProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hook")
	synctest.Test(t, func(t *testing.T) {
		p := NewProgram(path)
		want := func(when string, want bool) {
			t.Helper()
			if got := p.Exists(); got != want {
				t.Errorf("%s: %t", when, got)
			}
		}
		want("at first", false)
		for range 3 {
			if err := os.WriteFile(path, nil, 0o700); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond - time.Nanosecond)
			want("nobody looks so soon", false)
			time.Sleep(time.Nanosecond)
			want("made", true)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			want("removed", false)
		}
		if err := os.WriteFile(path, nil, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		want("made", true)
	})
	if !NewProgram(path + "/under/a/file").Exists() { // ENOTDIR: running it tells why
		t.Error("what cannot be found out counts as absent")
	}
	if NewProgram("").Exists() {
		t.Error("no path")
	}
}

func BenchmarkAbsent(b *testing.B) {
	p := NewProgram(filepath.Join(b.TempDir(), "hook"))
	b.ReportAllocs()
	for b.Loop() {
		p.Exists()
	}
}
