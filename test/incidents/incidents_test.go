package incidents

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// TestMain lets all incidents happen at once, however few processors there are: they mostly wait.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// soon is how long the server and Prometheus have to notice an incident.
const soon = 60 * time.Second

// mended is how long they may take to see its end.
const mended = 90 * time.Second

// incident is one kind of trouble, in front of a server of its own.
type incident struct {
	name  string
	setup func(t *testing.T, in *incident)                      // makes in.server, which is not started yet, and what is around it
	calm  int                                                   // seconds that everything is well before
	cause func(t *testing.T, ctx context.Context, in *incident) // makes the trouble, and ends when ctx does or before

	words    []string // of the problem on the index page
	ready    []string // of one line of /readyz?verbose
	notReady bool     // mail is not taken: /readyz is 503
	alert    string   // labels of the alert in Prometheus
	example  []string // words of the page of one trace or message

	mend func(t *testing.T, ctx context.Context, in *incident) // ends the trouble, and shows the server that it is over; nil: it passes by itself
	well string                                                // the line of /readyz?verbose afterwards; "": the one above is gone

	ip     string // of its own: nothing else takes its ports before the server does
	server *harness.Server
	dns    *resolver
	peer   *peer
	data   any // of the incident's own
}

// TestIncidents makes all incidents happen at once, each to a server of its own, under the eyes of one Prometheus.
func TestIncidents(t *testing.T) {
	list := incidents()
	targets := map[string]string{}
	var starting sync.WaitGroup
	for i, in := range list {
		in.ip = fmt.Sprintf("127.%d.%d.%d", 32+os.Getpid()>>8&127, os.Getpid()&255, 1+i)
		in.setup(t, in)
		targets[in.name] = in.server.Monitor
	}
	prometheus := startPrometheus(t, targets)
	for _, in := range list {
		starting.Go(in.server.Start)
	}
	starting.Wait()
	if t.Failed() {
		return
	}
	t.Run("all", func(t *testing.T) {
		for _, in := range list {
			t.Run(in.name, func(t *testing.T) {
				t.Parallel()
				in.run(t, prometheus)
			})
		}
	})
}

func (in *incident) run(t *testing.T, prometheus *prometheus) {
	harness.WaitFor(t, soon, "scrapes", func() bool { return prometheus.samples(in.name) > 2+in.calm })
	if p := problem(page(in.server, "/"), in.words); p != "" {
		t.Fatalf("before anything happened the page says: %s", readable(p))
	}
	ctx, end := context.WithCancel(t.Context())
	var causing sync.WaitGroup
	causing.Go(func() { in.cause(t, ctx, in) })
	began := time.Now()
	in.noticed(t, prometheus, began)
	end()
	causing.Wait()
	if in.mend == nil || t.Failed() {
		return
	}
	ctx, end = context.WithCancel(t.Context())
	var mending sync.WaitGroup
	mending.Go(func() { in.mend(t, ctx, in) })
	began = time.Now()
	in.recovered(t, began)
	end()
	mending.Wait()
}

// noticed waits until the incident is told everywhere.
func (in *incident) noticed(t *testing.T, prometheus *prometheus, began time.Time) {
	what := map[string]time.Duration{}
	var shown string
	var last error
	missing := func() (list []string) {
		for _, k := range []string{"the page", "readyz", "the alert", "the example"} {
			if what[k] == 0 {
				list = append(list, k)
			}
		}
		return list
	}
	check := func(name string, f func() bool) {
		if what[name] == 0 && f() {
			what[name] = time.Since(began)
		}
	}
	for len(missing()) > 0 {
		if time.Since(began) > soon {
			t.Errorf("not within %v: %s (%v)\nthe page:\n%s\nreadyz:\n%s", soon, strings.Join(missing(), ", "), last, in.server.Get("/?format=text"), in.server.Get("/readyz?verbose"))
			return
		}
		check("the page", func() bool { return problem(page(in.server, "/"), in.words) != "" })
		check("readyz", func() bool { return in.readyz(t) })
		check("the alert", func() bool {
			ok, err := prometheus.fired(in.name, in.alert)
			if err != nil {
				t.Fatal(err)
			}
			return ok
		})
		if what["the page"] > 0 {
			check("the example", func() bool {
				shown = problem(page(in.server, "/"), in.words)
				var way []string
				if way, last = findExample(in.server, shown, in.example); last == nil {
					t.Logf("an example is at %s", strings.Join(way, " → "))
				}
				return last == nil
			})
		}
		time.Sleep(500 * time.Millisecond)
	}
	in.picture(t)
	t.Logf("%s\nnoticed: %v", strings.Join(strings.Fields(readable(shown)), " "), what)
}

// picture keeps one of the index page in the directory CHASQUID_SCREENSHOTS, if it is set, for people to judge.
func (in *incident) picture(t *testing.T) {
	dir := os.Getenv("CHASQUID_SCREENSHOTS")
	if dir == "" {
		return
	}
	harness.Run(t, "", harness.Need(t, "chromium", "chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1200,900", "--user-data-dir="+t.TempDir(),
		"--screenshot="+filepath.Join(dir, in.name+".png"), "http://"+in.server.Monitor+"/")
}

// readyz reports whether one line of /readyz?verbose has the words, and its status is right.
func (in *incident) readyz(t *testing.T) bool {
	resp, err := http.Get("http://" + in.server.Monitor + "/readyz")
	if err != nil {
		t.Error(err)
		return false
	}
	resp.Body.Close()
	if (resp.StatusCode == http.StatusServiceUnavailable) != in.notReady {
		return false
	}
	for line := range strings.Lines(in.server.Get("/readyz?verbose")) {
		if hasAll(line, in.ready) {
			return true
		}
	}
	return false
}

// recovered waits until the incident is told no more.
func (in *incident) recovered(t *testing.T, began time.Time) {
	for {
		index, ready := page(in.server, "/"), in.server.Get("/readyz?verbose")
		ok := problem(index, in.words) == "" && strings.HasPrefix(index, "200") && strings.Contains("\n"+ready, "\n"+in.well)
		for line := range strings.Lines(ready) {
			ok = ok && !hasAll(line, in.ready)
		}
		if ok {
			t.Logf("over after %v", time.Since(began))
			return
		}
		if time.Since(began) > mended {
			t.Errorf("not over within %v; the page:\n%s\nreadyz:\n%s", mended, in.server.Get("/?format=text"), ready)
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// every calls f now and then until ctx ends.
func every(ctx context.Context, d time.Duration, f func(n int)) {
	for n := 0; ; n++ {
		f(n)
		select {
		case <-ctx.Done():
			return
		case <-time.After(d):
		}
	}
}

// retry is what an operator does who believes that the trouble is over.
func retry(t *testing.T, s *harness.Server) {
	resp, err := http.Post("http://"+s.Monitor+"/debug/queue", "application/x-www-form-urlencoded", strings.NewReader("op=retry&confirm=yes"))
	if err != nil {
		t.Error(err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("retry: %s", resp.Status)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setting is a line of the configuration.
func setting(name string, v any) string { return fmt.Sprintf("%s: %v\n", name, v) }
