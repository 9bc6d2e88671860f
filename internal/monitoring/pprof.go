package monitoring

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime"
	rtrace "runtime/trace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/log"
)

// Bounds of profiles that cost the running server something.
const (
	maxProfileSeconds = 300
	maxTraceSeconds   = 60
	samplingTime      = 10 * time.Minute // how long mutex and block sampling, and the flight recorder, stay on
	flightAge         = 10 * time.Second // how far back the flight recorder reaches
	flightBytes       = 8 << 20
)

// profileGate admits one CPU profile or execution trace at a time.
type profileGate struct{ busy atomic.Bool }

// profiling is what is switched on for a while.
type profiling struct {
	mu       sync.Mutex
	sampling time.Time // until when
	timer    *time.Timer
	flight   *rtrace.FlightRecorder
	flightTo time.Time // zero: until it is switched off
	landing  *time.Timer
}

// profilesData is the page of profiles.
type profilesData struct {
	SamplingUntil time.Time `json:"sampling_until,omitzero"`
	Flight        bool      `json:"flight_recorder"`
	FlightUntil   time.Time `json:"flight_recorder_until,omitzero"`
	Goroutines    int       `json:"goroutines"`
	Heap          uint64    `json:"heap_bytes"`
	GC            uint32    `json:"gc_cycles"`
	CPUs          int       `json:"cpus"`
}

func (s *Server) addProfiles() {
	s.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	s.mux.HandleFunc("GET /debug/pprof/cmdline", s.cmdline)
	s.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("GET /debug/pprof/profile", s.gated(pprof.Profile, maxProfileSeconds))
	s.mux.HandleFunc("GET /debug/pprof/trace", s.gated(pprof.Trace, maxTraceSeconds))
	s.mux.HandleFunc("GET /debug/pprof/flight", s.flightSnapshot)
	s.mux.HandleFunc("POST /debug/profiles", s.switchProfiles)
	s.addView(&view{path: "/debug/profiles", title: "Profiles", about: "CPU, heap, locks and execution traces, for go tool pprof and go tool trace", group: "Process",
		load: func(*http.Request) (any, error) { return s.profilesNow(), nil }, sheet: profilesSheet})
	if s.conf.Flight {
		if err := s.startFlight(0); err != nil {
			log.Errorf("monitoring: the flight recorder does not start: %v", err)
		}
	}
}

// cmdline is the command line as pprof wants it, without secrets of -config_overrides.
func (s *Server) cmdline(w http.ResponseWriter, r *http.Request) {
	b := &memoryWriter{header: w.Header()}
	pprof.Cmdline(b, r)
	w.Write([]byte(hideSecrets(b.String())))
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

func (s *Server) profilesNow() *profilesData {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	p := &s.profiling
	p.mu.Lock()
	defer p.mu.Unlock()
	return &profilesData{SamplingUntil: p.sampling, Flight: p.flight != nil, FlightUntil: p.flightTo, Goroutines: runtime.NumGoroutine(), Heap: m.HeapAlloc,
		GC: m.NumGC, CPUs: runtime.GOMAXPROCS(0)}
}

func profilesSheet(_ *http.Request, data any) *sheet {
	d := data.(*profilesData)
	sh := &sheet{Title: "Profiles"}
	sh.add(block{Facts: []fact{{"goroutines", []cell{anchor(itoa(d.Goroutines), "/debug/goroutines")}}, oneFact("heap", txt(byteSize(int64(d.Heap)))),
		oneFact("garbage collections", txt(strconv.FormatUint(uint64(d.GC), 10))), oneFact("CPUs", txt(itoa(d.CPUs)))}})
	t := &table{Columns: columns("profile", "what it shows")}
	for _, p := range [][2]string{{"profile?seconds=10", "where CPU time goes, for 10 seconds"}, {"heap", "what memory is used for"}, {"allocs", "what has been allocated since the start"},
		{"goroutine?debug=1", "what goroutines do, counted"}, {"mutex?debug=1", "who waits for locks; empty unless sampling is on"}, {"block?debug=1", "who waits for anything; likewise"},
		{"trace?seconds=1", "everything the scheduler did, for a second; for go tool trace"}} {
		t.Rows = append(t.Rows, []cell{anchor(p[0], "/debug/pprof/"+p[0]), txt(p[1])})
	}
	sh.add(block{Table: t})
	sh.para(dim("For example: go tool pprof http://…/debug/pprof/heap."), anchor("all profiles", "/debug/pprof/"))
	sh.add(block{Heading: "Locks and waiting"})
	if d.SamplingUntil.After(time.Now()) {
		sh.para(cell{Text: "Sampling is on until " + utc(d.SamplingUntil) + ".", Class: "warn"})
	}
	sh.add(block{Form: &form{Action: "/debug/profiles", Post: true, Buttons: []button{{"do", "sampling", "Sample locks and waiting for 10 minutes", ""}, {"do", "no-sampling", "Stop", ""}}}})
	sh.add(block{Heading: "Flight recorder"})
	if d.Flight {
		sh.para(cell{Text: "It keeps the last seconds of the execution trace.", Class: "ok"}, anchor("take a snapshot", "/debug/pprof/flight"), dim("for go tool trace"))
	} else {
		sh.para(dim("It is off. While it is on, the last seconds of the execution trace can be had when something odd has just happened. It costs a few percent."))
	}
	sh.add(block{Form: &form{Action: "/debug/profiles", Post: true, Buttons: []button{{"do", "flight", "Record for 10 minutes", ""}, {"do", "no-flight", "Stop", ""}}}})
	sh.add(block{Heading: "For a report", Para: []cell{anchor("download everything a maintainer needs", "/debug/support"), dim("without secrets; takes five seconds")}})
	return sh
}

// switchProfiles switches sampling and the flight recorder on and off. On means for a while.
func (s *Server) switchProfiles(w http.ResponseWriter, r *http.Request) {
	form, err := postForm(w, r, []string{"do"})
	if err == nil {
		switch form.Get("do") {
		case "sampling":
			s.setSampling(samplingTime)
		case "no-sampling":
			s.setSampling(0)
		case "flight":
			err = s.startFlight(samplingTime)
		case "no-flight":
			s.stopFlight()
		default:
			err = badRequest("do must be sampling, no-sampling, flight or no-flight")
		}
	}
	if err != nil {
		sendError(w, err)
		return
	}
	log.Infof("monitoring: %s, asked by %q", form.Get("do"), s.operator(r))
	seeOther(w, r, "/debug/profiles", form.Get("do")+": done\n")
}

// setSampling has locks and waiting sampled for a while: the profiles are empty otherwise, and cost too much to be always on.
func (s *Server) setSampling(d time.Duration) {
	p := &s.profiling
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	if d <= 0 {
		runtime.SetMutexProfileFraction(0)
		runtime.SetBlockProfileRate(0)
		p.sampling = time.Time{}
		return
	}
	runtime.SetMutexProfileFraction(100)
	runtime.SetBlockProfileRate(int(time.Millisecond))
	until := time.Now().Add(d)
	p.sampling = until
	p.timer = time.AfterFunc(d, func() {
		if !s.profilesNow().SamplingUntil.After(until) {
			s.setSampling(0)
		}
	})
}

// startFlight starts the flight recorder; d 0 leaves it on.
func (s *Server) startFlight(d time.Duration) error {
	p := &s.profiling
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flight == nil {
		fr := rtrace.NewFlightRecorder(rtrace.FlightRecorderConfig{MinAge: flightAge, MaxBytes: flightBytes})
		if err := fr.Start(); err != nil {
			return &httpError{http.StatusServiceUnavailable, "the flight recorder does not start: " + err.Error()}
		}
		p.flight = fr
	}
	if p.landing != nil {
		p.landing.Stop()
	}
	p.flightTo = time.Time{}
	if d > 0 {
		p.flightTo = time.Now().Add(d)
		p.landing = time.AfterFunc(d, s.stopFlight)
	}
	return nil
}

func (s *Server) stopFlight() {
	p := &s.profiling
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flight != nil {
		p.flight.Stop()
	}
	p.flight, p.flightTo = nil, time.Time{}
}

// flightSnapshot sends what the flight recorder holds.
func (s *Server) flightSnapshot(w http.ResponseWriter, r *http.Request) {
	p := &s.profiling
	p.mu.Lock()
	var b bytes.Buffer
	var err error
	if p.flight == nil {
		err = notFound("the flight recorder is off; /debug/profiles switches it on")
	} else if _, werr := p.flight.WriteTo(&b); werr != nil {
		err = &httpError{http.StatusServiceUnavailable, "no snapshot: " + werr.Error()}
	}
	p.mu.Unlock()
	if err != nil {
		sendError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", "flight-"+strings.ReplaceAll(time.Now().UTC().Format("20060102-150405"), " ", "")+".trace"))
	w.Write(b.Bytes())
}
