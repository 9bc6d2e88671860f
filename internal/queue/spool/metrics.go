package spool

import (
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
)

// diskOp is an operation on the disk as metrics name it.
type diskOp int

const (
	diskWrite diskOp = iota
	diskFsync
	diskRename
	diskDirFsync
	diskRemove
	diskRead
	diskParse // damaged data; counted, not timed
	numDiskOps
)

var diskOpNames = []string{"write", "fsync", "rename", "dir_fsync", "remove", "read", "parse"}

type metrics struct {
	itemsWritten *expvarom.Int
	seconds      [diskParse]*expvarom.Histogram
	errors       [numDiskOps]*expvarom.Counter
}

func newMetrics(r *expvarom.Registry) *metrics {
	m := &metrics{itemsWritten: r.Int("chasquid/queue/itemsWritten", "count of messages the queue wrote to disk")}
	seconds := r.HistogramVec("chasquid_queue_disk_operation_duration_seconds", "Time of the queue's disk operations, by operation.",
		expvarom.Fast, []string{"op"}, diskOpNames[:diskParse])
	errors := r.CounterVec("chasquid_queue_disk_errors_total",
		"Failed disk operations of the queue, by operation; parse counts damaged records.", []string{"op"}, diskOpNames)
	for op, name := range diskOpNames {
		m.errors[op] = errors.With(name)
		if diskOp(op) < diskParse {
			m.seconds[op] = seconds.With(name)
		}
	}
	return m
}

// done counts an operation that began at start.
func (m *metrics) done(op diskOp, start time.Time, err error) error {
	m.seconds[op].Observe(time.Since(start).Seconds())
	if err != nil {
		m.errors[op].Inc()
	}
	return err
}
