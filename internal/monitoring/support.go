package monitoring

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"runtime/pprof"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Limits of the bundle.
const (
	supportCPU    = 5 * time.Second
	supportTraces = 50
)

// localPart is the part of a mail address before the @.
var localPart = regexp.MustCompile(`[^\s<>@"'(),:;=\[\]{}|/\\]+@([\pL\pN])`)

// hideAddresses keeps only the domains of mail addresses.
func hideAddresses(s string) string { return localPart.ReplaceAllString(s, "…@$1") }

const supportReadme = `This is what a maintainer of chasquid needs to look into a problem.

Passwords are not in it, nor are messages. Of mail addresses only the domain is shown. Names of domains, host names, IP addresses and replies
of other servers are in it: look through it before you give it to others.
`

// supportFile is one file of the bundle and how it is made.
type supportFile struct {
	name string
	make func(ctx context.Context, w io.Writer) error
	raw  bool // no text: not to be searched for secrets
}

func (s *Server) addSupport() {
	s.mux.HandleFunc("GET /debug/support", s.support)
	s.more = append(s.more, Page{Path: "/debug/support", Title: "Report", About: "download everything a maintainer needs, without secrets", Group: "Process"})
}

// support sends everything a bug report needs as one archive.
func (s *Server) support(w http.ResponseWriter, r *http.Request) {
	if q, err := query(r); err != nil || len(q) > 0 {
		http.Error(w, "this page takes no parameters", http.StatusBadRequest)
		return
	}
	if !s.profiles.busy.CompareAndSwap(false, true) {
		http.Error(w, "a profile is being taken; try again when it is done", http.StatusServiceUnavailable)
		return
	}
	defer s.profiles.busy.Store(false)
	var b bytes.Buffer
	if err := s.writeSupport(r.Context(), &b); err != nil {
		sendError(w, err)
		return
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/gzip")
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", "chasquid-support-"+time.Now().UTC().Format("20060102-150405")+".tar.gz"))
	w.Write(b.Bytes())
	log.Infof("monitoring: a support bundle was made for %s", s.operator(r))
}

func (s *Server) writeSupport(ctx context.Context, w io.Writer) error {
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	for _, f := range s.supportFiles() {
		var b bytes.Buffer
		if err := f.make(ctx, &b); err != nil {
			fmt.Fprintf(&b, "\nnot complete: %v\n", err)
		}
		content := b.Bytes()
		if !f.raw {
			content = []byte(hideAddresses(hideSecrets(b.String())))
		}
		h := &tar.Header{Name: "chasquid-support/" + f.name, Mode: 0o600, Size: int64(len(content)), ModTime: time.Now()}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(content); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return zip.Close()
}

func (s *Server) supportFiles() []supportFile {
	page := func(path string) func(context.Context, io.Writer) error {
		return func(ctx context.Context, w io.Writer) error { return s.renderTo(ctx, w, path) }
	}
	files := []supportFile{
		{name: "README", make: func(_ context.Context, w io.Writer) error { _, err := io.WriteString(w, supportReadme); return err }},
		{name: "index.txt", make: page("/?format=text")}, {name: "index.json", make: page("/index.json")},
		{name: "config.txt", make: page("/debug/config?format=text")}, {name: "settings.json", make: page("/debug/config.json")},
		{name: "flags.txt", make: page("/debug/flags?format=text")}, {name: "metrics.txt", make: page("/metrics")},
		{name: "vars.json", make: s.supportVars}, {name: "queue.json", make: s.supportQueue}, {name: "destinations.txt", make: page("/debug/destinations?format=text")},
		{name: "domains.json", make: page("/debug/domains.json")}, {name: "certs.json", make: page("/debug/certs.json")}, {name: "dns.json", make: page("/debug/dns.json")},
		{name: "sts.json", make: page("/debug/sts.json")}, {name: "log.txt", make: page("/debug/log?format=text&limit=2000")},
		{name: "goroutines.txt", make: page("/debug/goroutines?format=text")}, {name: "traces.txt", make: s.supportTraces},
		{name: "heap.pb.gz", raw: true, make: func(_ context.Context, w io.Writer) error { return pprof.WriteHeapProfile(w) }},
		{name: "cpu.pb.gz", raw: true, make: func(ctx context.Context, w io.Writer) error { return cpuProfile(ctx, w, s.cpuTime) }},
	}
	return files
}

// renderTo makes a page as the server itself sees it.
func (s *Server) renderTo(ctx context.Context, w io.Writer, path string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	b := &memoryWriter{header: http.Header{}, code: http.StatusOK}
	s.mux.ServeHTTP(b, r)
	if b.code != http.StatusOK && b.code != http.StatusNotFound {
		fmt.Fprintf(w, "(status %d)\n", b.code)
	}
	_, err = b.WriteTo(w)
	return err
}

// supportVars are the variables without the command line, which may hold settings.
func (s *Server) supportVars(ctx context.Context, w io.Writer) error {
	var b bytes.Buffer
	if err := s.renderTo(ctx, &b, "/debug/vars"); err != nil {
		return err
	}
	var vars map[string]json.RawMessage
	if err := json.Unmarshal(b.Bytes(), &vars); err != nil {
		return err
	}
	delete(vars, "cmdline")
	return json.NewEncoder(w).Encode(vars)
}

// supportQueue sums up the queue: no message by itself, and no sender.
func (s *Server) supportQueue(ctx context.Context, w io.Writer) error {
	if s.conf.Queue == nil {
		return errNotHere
	}
	sum := map[string]any{"stats": s.conf.Queue.Stats(), "destinations": s.conf.Queue.Destinations(ctx, shownDestinations)}
	for _, by := range []string{"destination", "reason"} {
		g, err := s.conf.Queue.Groups(ctx, queueAll, by, manyGroups)
		if err != nil {
			return err
		}
		sum["by_"+by] = g
	}
	return json.NewEncoder(w).Encode(sum)
}

// supportTraces are the latest failed traces.
func (s *Server) supportTraces(_ context.Context, w io.Writer) error {
	if s.conf.Traces == nil {
		return errNotHere
	}
	seen := map[trace.ID]bool{}
	for _, x := range s.conf.Traces.Search(trace.Query{Failed: true, Limit: supportTraces}) {
		if t, ok := s.conf.Traces.Trace(x.Trace); ok && !seen[x.Trace] {
			seen[x.Trace] = true
			traceSheet(nil, &t).writeText(w)
		}
	}
	if len(seen) == 0 {
		fmt.Fprintln(w, "no failed trace is kept")
	}
	return nil
}

// cpuProfile profiles the CPU for the time, or until ctx ends.
func cpuProfile(ctx context.Context, w io.Writer, d time.Duration) error {
	if err := pprof.StartCPUProfile(w); err != nil {
		return err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	pprof.StopCPUProfile()
	return ctx.Err()
}
