package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/test/pages"
)

// parseSettings checks that the block is settings as chasquid.conf has them.
func parseSettings(t *testing.T, b pages.Block) {
	t.Helper()
	dir, text := t.TempDir(), b.Text
	if !strings.Contains(text, "hostname:") {
		text = "hostname: \"mail.example.org\"\n" + text
	}
	file := filepath.Join(dir, config.FileName)
	for name, text := range map[string]string{config.FileName: text, "relay-password": "x", "partner-password": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := config.Load(file, ""); err != nil {
		t.Errorf("%v: %v", b, err)
	}
}
