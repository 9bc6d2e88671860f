package fault

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

const smallReserve = "min_free_disk_mb: 8\n"

// TestPowerCut cuts the power of the disk at random moments while mail flows: what was not flushed is gone.
func TestPowerCut(t *testing.T) {
	for _, typ := range []string{"ext4", "xfs"} {
		t.Run(typ, func(t *testing.T) {
			v := newVolume(t, typ, 512<<20, "")
			tr := newTraffic(t, filepath.Join(v.dir, "data"), smallReserve)
			n := rounds(5)
			for range n {
				tr.more(between())
				time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
				at := time.Now()
				v.cut()
				time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond) // nothing it says now may be a promise it cannot keep
				tr.kill(at)
				v.remount()
				tr.start()
			}
			tr.settle(fmt.Sprintf("%d power cuts on %s", n, typ))
		})
	}
}

// TestFullDisk takes the space away and gives it back: clients are asked to come again, and the server recovers by itself.
func TestFullDisk(t *testing.T) {
	for _, typ := range []string{"tmpfs", "ext4"} {
		for name, left := range map[string]int64{"reserve": 4 << 20, "everything": 0} {
			t.Run(typ+"/"+name, func(t *testing.T) {
				v := newVolume(t, typ, 160<<20, "")
				tr := newTraffic(t, filepath.Join(v.dir, "data"), smallReserve)
				tr.more(between())
				pid := tr.PID()
				giveBack := v.fill(left)
				tr.refuses("disk space", "452 4.3.1")
				giveBack()
				harness.WaitFor(t, 10*time.Second, "the server to be ready again", func() bool { ok, _ := tr.ready(); return ok })
				tr.more(between())
				if syscall.Kill(pid, 0) != nil || tr.PID() != pid {
					t.Error("the server did not live through it")
				}
				tr.settle("full " + typ + ", " + name)
			})
		}
	}
}

// TestFailedFlush lets every flush fail, as a dying disk does, and then cuts the power: nothing that was not flushed may have been
// acknowledged, and a server that cannot know what its disk has accepts nothing until it is started again.
func TestFailedFlush(t *testing.T) {
	strace := harness.Need(t, "strace", "strace")
	v := newVolume(t, "ext4", 512<<20, "")
	tr := newTraffic(t, filepath.Join(v.dir, "data"), smallReserve)
	for range max(1, rounds(1)/20) {
		tr.more(between())
		at := time.Now()
		inject := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO",
			"-p", strconv.Itoa(tr.PID()))
		var said strings.Builder
		inject.Stderr = &said
		if err := inject.Start(); err != nil {
			t.Fatal(err)
		}
		refused := make(chan struct{})
		go func() { inject.Wait(); close(refused) }()
		tr.refuses("disk failed", "451")
		inject.Process.Signal(syscall.SIGTERM)
		<-refused
		if strings.Contains(said.String(), "not permitted") {
			t.Skipf("strace cannot trace here: %s", said.String())
		}
		// The disk works again, but a restart is needed.
		accepted, refusals := tr.ledger.Accepted(), tr.ledger.Refusals()
		harness.WaitFor(t, 30*time.Second, "further refusals", func() bool { return tr.ledger.Refusals() > refusals+20 })
		if n := tr.ledger.Accepted(); n != accepted {
			t.Errorf("%d messages were accepted after a failed flush", n-accepted)
		}
		v.cut()
		tr.kill(at)
		v.remount()
		tr.start()
	}
	tr.more(between())
	tr.settle("failed flushes")
}

// TestReadOnly makes the file system read-only under the server, as ext4 does when it finds itself damaged.
func TestReadOnly(t *testing.T) {
	v := newVolume(t, "ext4", 512<<20, "errors=remount-ro")
	tr := newTraffic(t, filepath.Join(v.dir, "data"), smallReserve)
	tr.more(between())
	trigger := filepath.Join("/sys/fs/ext4", v.device(), "trigger_fs_error")
	at := time.Now()
	if err := os.WriteFile(trigger, []byte("injected\n"), 0); err != nil {
		t.Skipf("a file system error cannot be injected here: %v", err)
	}
	tr.refuses("failed", "451", "452")
	tr.kill(at)
	v.unmount()
	// Exit status 1: errors were corrected.
	if out, err := harness.TryRun(t, "", harness.Need(t, "e2fsck", "e2fsprogs"), "-f", "-y", v.image); err != nil && !strings.Contains(err.Error(), "status 1") {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	v.remount()
	tr.start()
	tr.more(between())
	tr.settle("read-only ext4")
}
