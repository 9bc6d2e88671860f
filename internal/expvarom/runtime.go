package expvarom

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
)

// RegisterRuntime adds what the process says of itself: the Go runtime and scheduler, the process's memory and files, and what was built:
// chasquid_build_info and the legacy chasquid/version, chasquid/sourceDateStr and chasquid/sourceDateTimestamp. sourceDate is the time of
// the source as text; RFC 3339, "2006-01-02 15:04:05 -0700" and seconds since 1970 are understood, others leave the timestamp 0.
func (r *Registry) RegisterRuntime(version, revision, sourceDate string) {
	r.String("chasquid/version", "Version of the server.", version)
	r.String("chasquid/sourceDateStr", "Time of the source the server was built from.", sourceDate)
	r.Int("chasquid/sourceDateTimestamp", "Time of the source the server was built from, in seconds since 1970.").Set(parseDate(sourceDate))
	r.GaugeVecFunc("chasquid_build_info", "What is running: always 1.", []string{"version", "revision", "goversion", "source_date"},
		func(emit func(float64, ...string)) { emit(1, version, revision, runtime.Version(), sourceDate) })
	r.MustRegister(collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsScheduler, collectors.MetricsGC)))
	r.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.MustRegister(collectors.NewBuildInfoCollector())
}

func parseDate(s string) int64 {
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05 -0700"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.Unix()
		}
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n
	}
	return 0
}
