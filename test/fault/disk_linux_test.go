package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
	"golang.org/x/sys/unix"
)

// volume is a file system of its own, which can lose power.
type volume struct {
	t       testing.TB
	typ     string
	image   string
	dir     string
	options string
	mounted bool
	size    int64
}

// newVolume makes and mounts a file system of the type in a file. A "tmpfs" has no file.
func newVolume(t testing.TB, typ string, size int64, options string) *volume {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting file systems needs root")
	}
	v := &volume{t: t, typ: typ, size: size, options: options, dir: filepath.Join(t.TempDir(), "disk")}
	if err := os.Mkdir(v.dir, 0700); err != nil {
		t.Fatal(err)
	}
	if typ != "tmpfs" {
		v.image = v.dir + ".img"
		f, err := os.Create(v.image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		pkg := map[string]string{"ext4": "e2fsprogs", "xfs": "xfsprogs"}[typ]
		harness.Run(t, "", harness.Need(t, "mkfs."+typ, pkg), "-q", v.image)
	}
	if err := v.mount(); err != nil {
		t.Skipf("a %s cannot be mounted here: %v", typ, err)
	}
	t.Cleanup(func() { v.unmount() })
	return v
}

func (v *volume) mount() error {
	args := []string{"-t", v.typ}
	source := "tmpfs"
	options := []string{}
	if v.image != "" {
		source, options = v.image, append(options, "loop")
	} else {
		options = append(options, fmt.Sprintf("size=%d", v.size))
	}
	if v.options != "" {
		options = append(options, v.options)
	}
	out, err := exec.Command("mount", append(args, "-o", strings.Join(options, ","), source, v.dir)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	v.mounted = true
	return nil
}

// unmount waits for the last user of the file system to be gone.
func (v *volume) unmount() {
	v.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); v.mounted; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(v.dir, 0)
		v.mounted = err != nil
		if err != nil && (!errors.Is(err, unix.EBUSY) || time.Now().After(deadline)) {
			v.t.Fatalf("unmounting %s: %v", v.dir, err)
		}
	}
}

// remount mounts the file system again, as after a new start of the machine.
func (v *volume) remount() {
	v.t.Helper()
	v.unmount()
	if err := v.mount(); err != nil {
		v.t.Fatal(err)
	}
}

const (
	shutdownRequest = 0x8004587d // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
	noLogFlush      = 2          // not even the journal's last part gets written
)

// cut takes the power away: from now on nothing gets to the disk, and what was not flushed is lost with the next unmount.
func (v *volume) cut() {
	v.t.Helper()
	f, err := os.Open(v.dir)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdownRequest, noLogFlush); err != nil {
		v.t.Fatalf("cutting the power of %s: %v", v.typ, err)
	}
}

// free is how many bytes can be written.
func (v *volume) free() int64 {
	v.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(v.dir, &st); err != nil {
		v.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fill takes space away until left bytes are free, or as many as can be had; what it returns gives it back.
func (v *volume) fill(left int64) (giveBack func()) {
	v.t.Helper()
	path := filepath.Join(v.dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for v.free() > left {
		if _, err := f.Write(block); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				v.t.Fatal(err)
			}
			if len(block) == 512 {
				break
			}
			block = block[:len(block)/2]
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			v.t.Fatal(err)
		}
	}
}

// device is the name of the block device below the file system.
func (v *volume) device() string {
	out := harness.Run(v.t, "", "findmnt", "-n", "-o", "SOURCE", v.dir)
	return filepath.Base(strings.TrimSpace(out))
}
