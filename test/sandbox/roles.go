package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// roleVar says what a process that is the test program again is to be.
const roleVar = "CHASQUID_SANDBOX_ROLE"

// path is the search path in the box.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Main is for TestMain of the packages that use boxes: the test program is also what runs inside them.
func Main(m *testing.M) {
	var err error
	switch {
	case filepath.Base(os.Args[0]) == "systemctl":
		err = systemctl(os.Args[1:])
	case os.Getenv(roleVar) == "init":
		err = initMain()
	case os.Getenv(roleVar) == "world":
		err = worldMain()
	case os.Getenv(roleVar) == "unit":
		err = unitMain(os.Args[1])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}
