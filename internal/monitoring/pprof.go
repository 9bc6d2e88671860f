package monitoring

import (
	"net/http"
	"net/http/pprof"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

// Bounds of profiles that cost the running server something.
const (
	maxProfileSeconds = 300
	maxTraceSeconds   = 60
	samplingTime      = 10 * time.Minute // how long mutex and block sampling stay on
)

// profileGate admits one CPU profile or execution trace at a time.
type profileGate struct{ busy atomic.Bool }

func (s *Server) addProfiles() {
	s.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	s.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	s.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("GET /debug/pprof/profile", s.gated(pprof.Profile, maxProfileSeconds))
	s.mux.HandleFunc("GET /debug/pprof/trace", s.gated(pprof.Trace, maxTraceSeconds))
	s.mux.HandleFunc("POST /debug/pprof/sampling", s.sampling)
}

func (s *Server) gated(h http.HandlerFunc, max int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if text := r.FormValue("seconds"); text != "" {
			if n, err := strconv.ParseFloat(text, 64); err != nil || !(n > 0 && n <= float64(max)) {
				http.Error(w, "seconds must be a number up to "+strconv.Itoa(max), http.StatusBadRequest)
				return
			}
		}
		if !s.profiles.busy.CompareAndSwap(false, true) {
			http.Error(w, "another profile is being taken; try again when it is done", http.StatusServiceUnavailable)
			return
		}
		defer s.profiles.busy.Store(false)
		h(w, r)
	}
}

// sampling turns the mutex and block profiles on for a while: they are empty otherwise, and cost too much to be always on.
func (s *Server) sampling(w http.ResponseWriter, r *http.Request) {
	runtime.SetMutexProfileFraction(100)
	runtime.SetBlockProfileRate(int(time.Millisecond))
	time.AfterFunc(samplingTime, func() {
		runtime.SetMutexProfileFraction(0)
		runtime.SetBlockProfileRate(0)
	})
	w.Write([]byte("mutex and block sampling is on for " + samplingTime.String() + "\n"))
}
