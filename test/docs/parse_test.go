package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/test/pages"
)

// fileRE finds files in the configuration directory that settings name.
var fileRE = regexp.MustCompile(`_file: "([^"/]+)"`)

// parseSettings checks that the block is settings as chasquid.conf has them.
func parseSettings(t *testing.T, b pages.Block) {
	t.Helper()
	dir, text := t.TempDir(), b.Text
	if !strings.Contains(text, "hostname:") {
		text = "hostname: \"mail.example.org\"\n" + text
	}
	file := filepath.Join(dir, config.FileName)
	files := map[string]string{config.FileName: text}
	for _, m := range fileRE.FindAllStringSubmatch(text, -1) {
		files[m[1]] = "secret"
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := config.Load(file, ""); err != nil {
		t.Errorf("%v: %v", b, err)
	}
}
