package spool

import (
	"os"
	"testing"

	"blitiri.com.ar/go/log"
)

// TestMain keeps the log of thousands of crashes out of the output.
func TestMain(m *testing.M) {
	log.Default.Level = log.Fatal
	os.Exit(m.Run())
}
