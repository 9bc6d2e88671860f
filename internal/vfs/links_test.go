package vfs

import (
	"os"
	"path/filepath"
	"testing"
)

// D17: a link that somebody planted in the place of a file of ours is never written through.
func TestD17PlantedLinks(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	plant := func(name string) string {
		t.Helper()
		must(t, os.WriteFile(victim, []byte("precious"), 0600))
		path := filepath.Join(dir, name)
		must(t, os.Symlink(victim, path))
		return path
	}
	spared := func() {
		t.Helper()
		if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
			t.Errorf("the file behind the link: %q, %v", b, err)
		}
	}

	plant(".state.tmp")
	must(t, WriteFile(OS, filepath.Join(dir, "state"), []byte("ours"), 0600))
	spared()
	if got := content(t, OS, filepath.Join(dir, "state")); got != "ours" {
		t.Errorf("the file holds %q", got)
	}

	if f, err := OS.OpenFile(plant("segment"), os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("a link was opened for writing")
	}
	if f, err := OS.OpenFile(plant("new"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0600); err == nil {
		f.Close()
		t.Error("a file was created behind a link")
	}
	if l, err := OS.Lock(plant("lock")); err == nil {
		l.Close()
		t.Error("a link was locked")
	}
	spared()

	f, err := CreateNew(OS, plant("fresh"), 0600)
	must(t, err)
	_, err = f.WriteAt([]byte("ours"), 0)
	must(t, err)
	must(t, f.Close())
	spared()
}
