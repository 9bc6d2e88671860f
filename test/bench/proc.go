package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const clockTick = time.Second / 100 // USER_HZ, fixed on Linux for /proc

// processTree lists pid and its descendants.
func processTree(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		fields := statFields(path)
		if len(fields) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		id, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		children[parent] = append(children[parent], id)
	}
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	return tree
}

// statFields are the fields of /proc/PID/stat after the command name: state is the first.
func statFields(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	if !ok {
		return nil
	}
	return strings.Fields(rest)
}

// cpuOf is the CPU time of the tree, with that of children that ended.
func cpuOf(pid int) time.Duration {
	var ticks int64
	for _, p := range processTree(pid) {
		f := statFields(fmt.Sprintf("/proc/%d/stat", p))
		if len(f) < 15 {
			continue
		}
		for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * clockTick
}

// ownCPU is the CPU time of this process: of the source and the sink.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// switchesOf counts how often threads of the tree went to sleep by themselves. Threads that ended are not counted.
func switchesOf(pid int) int64 {
	var sum int64
	for _, p := range processTree(pid) {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p))
		for _, path := range tasks {
			b, _ := os.ReadFile(path)
			if _, rest, ok := strings.Cut(string(b), "\nvoluntary_ctxt_switches:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				sum += n
			}
		}
	}
	return sum
}

// rssOf is the resident memory of the tree, shared pages counted once per process that owns them proportionally (PSS) if the kernel says.
func rssOf(pid int) int64 {
	var sum int64
	for _, p := range processTree(pid) {
		sum += rssOne(p)
	}
	return sum
}

func rssOne(pid int) int64 {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				return n << 10
			}
		}
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if f := strings.Fields(string(b)); len(f) > 1 {
		n, _ := strconv.ParseInt(f[1], 10, 64)
		return n * int64(os.Getpagesize())
	}
	return 0
}

// watchRSS samples the tree's memory until stop is closed and returns the peak. A sample takes milliseconds of the CPU that the servers
// could use, so there are few.
func watchRSS(pid int, stop <-chan struct{}) int64 {
	var peak int64
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		peak = max(peak, rssOf(pid))
		select {
		case <-stop:
			return max(peak, rssOf(pid))
		case <-t.C:
		}
	}
}
