package monitoring

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/vfs"
	"blitiri.com.ar/go/log"
)

// diskAnswer is how old what is known of a disk may be: one that does not answer has no figures rather than wrong ones.
const diskAnswer = time.Minute

// diskWatch is what is known of one disk.
type diskWatch struct {
	Disk
	asking atomic.Bool // a disk that hangs is asked no second time meanwhile

	mu     sync.Mutex
	usage  vfs.Usage
	at     time.Time
	failed bool
}

// look asks the disk. It does not wait for it: one that hangs must stop neither scrapes nor the server.
func (d *diskWatch) look() {
	if !d.asking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.asking.Store(false)
		d.ask()
	}()
}

func (d *diskWatch) ask() {
	u, err := vfs.Look(d.Path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		if !d.failed && !errors.Is(err, errors.ErrUnsupported) {
			log.Errorf("monitoring: the space of the disk is not known: %v", err)
		}
		d.failed = true
		return
	}
	d.usage, d.at, d.failed = u, time.Now(), false
}

// known returns the figures, if they are fresh.
func (d *diskWatch) known() (vfs.Usage, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usage, time.Since(d.at) < diskAnswer
}

// SetDisks changes Config.Disks and Config.MinFree. What is known of disks that stay is kept. It is not for several goroutines at once.
func (s *Server) SetDisks(list []Disk, minFree int64) {
	s.minFree.Store(minFree)
	var next []*diskWatch
	for _, d := range list {
		w := &diskWatch{Disk: d}
		if old := s.disks.Load(); old != nil {
			if i := slices.IndexFunc(*old, func(w *diskWatch) bool { return w.Disk == d }); i >= 0 {
				w = (*old)[i]
			} else {
				w.look()
			}
		}
		next = append(next, w)
	}
	s.disks.Store(&next)
}

// addDisks publishes the space of the disks. Their first figures are there before the first scrape.
func (s *Server) addDisks() {
	s.SetDisks(s.conf.Disks, s.conf.MinFree)
	for _, w := range *s.disks.Load() {
		w.ask()
	}
	gauge := func(name, help string, value func(vfs.Usage) (float64, bool)) {
		s.conf.Metrics.GaugeVecFunc(name, help, []string{"path"}, func(emit func(float64, ...string)) {
			for _, d := range *s.disks.Load() {
				if u, ok := d.known(); ok {
					if v, ok := value(u); ok {
						emit(v, d.Name)
					}
				}
			}
		})
	}
	gauge("chasquid_filesystem_free_bytes", "Space left in the file system, by what is on it.", func(u vfs.Usage) (float64, bool) { return float64(u.Free), true })
	gauge("chasquid_filesystem_size_bytes", "Size of the file system, by what is on it.", func(u vfs.Usage) (float64, bool) { return float64(u.Size), true })
	gauge("chasquid_filesystem_free_inodes", "Inodes left in the file system, by what is on it, if it counts them.",
		func(u vfs.Usage) (float64, bool) { return float64(u.FreeInodes), u.Inodes > 0 })
}

func (s *Server) lookAtDisks() {
	for _, d := range *s.disks.Load() {
		d.look()
	}
}
