// Package monitoring is the HTTP server that explains the mail server: index, metrics, traces, queue, profiles and health.
package monitoring

import (
	"context"
	"errors"
	stdlog "log"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"blitiri.com.ar/go/chasquid/internal/monitoring/vitals"
	"blitiri.com.ar/go/log"
	"golang.org/x/net/netutil"
)

// Limits of the server, so that a flood or a hung client of the monitor never touches mail.
const (
	maxConnections    = 64
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 16 << 10
	shutdownTimeout   = 2 * time.Second
	retireTimeout     = time.Minute // for the requests on a listener that is left
)

// Server serves the pages.
type Server struct {
	conf      Config // but for the names, which may change
	names     atomic.Pointer[names]
	mux       *http.ServeMux
	m         *metrics
	exiting   atomic.Bool
	handler   http.Handler
	profiles  profileGate
	views     []*view
	more      []Page // built-in ones that are no views, for the index
	rendering chan struct{}
	checks    []*checkRun
	disks     atomic.Pointer[[]*diskWatch]
	minFree   atomic.Int64
	vitals    *vitals.Sampler
	problems  atomic.Pointer[[]vitals.Problem]
	began     time.Time
	ages      atomic.Pointer[map[string]float64] // of the queue, as sampled last

	headerTime time.Duration // for the header of a request
	cpuTime    time.Duration // of the CPU profile in the support bundle

	life    context.Context // ends when the server is to stop
	endLife context.CancelFunc
	workMu  sync.Mutex // held to start work, so that none starts once it is waited for
	work    sync.WaitGroup

	goroutines goroutineWatch
	debug      debugSwitch
	profiling  profiling
	dry        diagnoseGate
}

// names are the host names of the server.
type names struct {
	hostname string
	allowed  []string
}

// SetNames changes Config.Hostname and Config.AllowedHosts.
func (s *Server) SetNames(hostname string, allowed []string) {
	s.names.Store(&names{hostname, allowed})
}

// New makes a server; Run and ServeOn, or Serve, make it work.
func New(conf Config) *Server {
	s := &Server{conf: conf, mux: http.NewServeMux(), m: newMetrics(conf.Metrics), rendering: make(chan struct{}, maxRendering),
		vitals: vitals.New(), began: time.Now(), headerTime: readHeaderTimeout, cpuTime: supportCPU}
	conf.Metrics.CounterFunc("chasquid_clock_jumps_total", "Times the clock of the machine was set while the server ran.",
		func() float64 { return float64(s.vitals.Jumps()) })
	s.SetNames(conf.Hostname, conf.AllowedHosts)
	s.life, s.endLife = context.WithCancel(context.Background())
	s.addIndex()
	s.addHealth()
	s.addProfiles()
	s.addQueue()
	s.addMessages()
	s.addDestinations()
	s.addTraces()
	s.addTail()
	s.addDiagnose()
	s.addSupport()
	s.addInfo()
	s.addMetrics()
	s.addLog()
	s.addGoroutines()
	s.addDisks()
	s.addSettings()
	s.mux.Handle("POST /exit", http.HandlerFunc(s.exit))
	for _, p := range conf.Pages {
		s.add(p)
	}
	s.handler = s.guard(s.mux)
	return s
}

func (s *Server) add(p Page) {
	method := p.Method
	if method == "" {
		method = http.MethodGet
	}
	s.mux.Handle(method+" "+p.Path, p.Handler)
	if p.Subtree {
		s.mux.Handle(method+" "+p.Path+"/", p.Handler)
	}
}

// ServeHTTP serves one request, with all checks.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve does the work of Run and ServeOn with one listener, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	err := s.ServeOn(ctx, l, s.conf.WebConfig)
	cancel()
	wg.Wait()
	return err
}

// Run watches the mail server until ctx ends; then the pages end as well.
func (s *Server) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { s.watch(ctx) })
	wg.Go(func() { s.watchHealth(ctx) })
	wg.Go(func() { s.goroutines.run(ctx) })
	<-ctx.Done()
	s.endLife()
	wg.Wait()
	s.waitForWork()
	s.switchOff()
}

// ServeOn answers on l, with the TLS and the passwords of the file web, unless that is empty. When ctx ends it takes no more requests and
// returns once those under way are answered; when Run ends they have to hurry. Whoever ends ctx may close l himself. It may run several
// times, on different listeners.
func (s *Server) ServeOn(ctx context.Context, l net.Listener, web string) error {
	srv := &http.Server{
		Handler:           &entrance{s, web},
		ReadHeaderTimeout: s.headerTime,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          stdlog.New(serverLog{}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(s.life, cancel)()
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		s.shutdown(srv)
	})
	defer l.Close()
	var err error
	if l = netutil.LimitListener(l, maxConnections); web != "" {
		err = serveWeb(l, srv, web)
	} else {
		err = srv.Serve(l)
	}
	wanted := ctx.Err() != nil && errors.Is(err, net.ErrClosed) // by whoever ended ctx
	cancel()
	wg.Wait()
	if wanted || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// shutdown lets the requests of srv end: for a while, or a moment if the server is to stop.
func (s *Server) shutdown(srv *http.Server) {
	end, cancel := context.WithTimeout(context.Background(), retireTimeout)
	defer cancel()
	defer context.AfterFunc(s.life, func() {
		select {
		case <-time.After(shutdownTimeout):
			cancel()
		case <-end.Done():
		}
	})()
	if err := srv.Shutdown(end); err != nil {
		srv.Close()
	}
}

// entrance is the pages as one listener serves them.
type entrance struct {
	s   *Server
	web string // the file with its passwords
}

// webKey is where the context of a request has the file with the passwords that were asked for; "" or nothing: there are none.
type webKey struct{}

// ServeHTTP serves one request.
func (t *entrance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if t.web != "" {
		r = r.WithContext(context.WithValue(r.Context(), webKey{}, t.web))
	}
	t.s.ServeHTTP(w, r)
}

// serverLog takes what net/http complains of. Strangers cause most of it: that is no news.
type serverLog struct{}

func (serverLog) Write(b []byte) (int, error) {
	if text := strings.TrimSpace(string(b)); strings.HasPrefix(text, "http: Accept error") {
		log.Errorf("monitoring: %q", text)
	} else {
		log.Debugf("monitoring: %q", text)
	}
	return len(b), nil
}

// switchOff ends what was switched on for a while.
func (s *Server) switchOff() {
	s.setSampling(0)
	s.stopFlight()
	if s.conf.Traces != nil && s.conf.Log != nil {
		s.setDebug(0)
	}
}

// background runs f, which Run waits for and which ends when s.life does. It reports false when it is too late for that.
func (s *Server) background(f func()) bool {
	s.workMu.Lock()
	defer s.workMu.Unlock()
	if s.life.Err() != nil {
		return false
	}
	s.work.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				s.m.panics.Inc()
				log.Errorf("monitoring: panic: %v\n%s", p, debug.Stack())
			}
		}()
		f()
	})
	return true
}

// waitForWork returns when all work has ended. Whoever is just starting some holds workMu; after that, none starts, as life has ended.
func (s *Server) waitForWork() {
	func() {
		s.workMu.Lock()
		defer s.workMu.Unlock()
	}()
	s.work.Wait()
}

// guard wraps the mux with everything that is the same for all pages.
func (s *Server) guard(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				s.m.panics.Inc()
				log.Errorf("monitoring: panic serving %q: %v\n%s", r.URL.Path, p, debug.Stack())
				http.Error(rec, "this page failed; the log has the details", http.StatusInternalServerError)
			}
			s.m.count(r, rec.code)
		}()
		setSecurityHeaders(w.Header())
		if reason := s.refuse(r); reason != "" {
			http.Error(rec, reason, http.StatusForbidden)
			return
		}
		cross.ServeHTTP(rec, r)
	})
}

// recorder remembers the status code. Unwrap lets handlers reach the connection's deadlines, as profiles need.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// exit answers first and stops the server afterwards, so that the client sees the reply.
func (s *Server) exit(w http.ResponseWriter, r *http.Request) {
	if s.conf.Exit == nil {
		http.Error(w, "stopping over HTTP is not available", http.StatusNotImplemented)
		return
	}
	w.Header().Set("Connection", "close")
	w.Write([]byte("OK exiting\n"))
	if err := http.NewResponseController(w).Flush(); err != nil {
		log.Errorf("monitoring: answering /exit: %v", err)
	}
	if s.exiting.CompareAndSwap(false, true) {
		log.Infof("monitoring: stopping as asked by POST /exit from %s", r.RemoteAddr)
		s.conf.Exit()
	}
}
