package monitoring

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/test/patience"
)

// TestOperations checks that nothing is done without confirmation, that the number is told before, and what is done then.
func TestOperations(t *testing.T) {
	s := newSite(t, "", false)
	s.settle(t)
	count := func(state string) int {
		n, err := s.queue.Count(context.Background(), queue.Filter{State: state, Destination: "dead.example.com"})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	at := s.url + "/debug/queue"
	form := func(pairs ...string) url.Values {
		v := url.Values{"destination": {"dead.example.com"}}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v
	}
	all := count("")
	if all == 0 {
		t.Fatal("nothing is queued for dead.example.com")
	}
	if got := post(t, at, form("op", "hold"), "text/html"); !strings.Contains(got, "Hold: all "+itoa(all)) || count("held") != 0 {
		t.Errorf("without confirmation: %s; %d held", got, count("held"))
	}
	if got := post(t, at, form("op", "hold", "confirm", itoa(all-1)), "*/*"); !strings.Contains(got, "more messages now") || count("held") != 0 {
		t.Errorf("there are more than were confirmed: %s; %d held", got, count("held"))
	}
	if got := post(t, at, form("op", "hold", "confirm", itoa(all)), "*/*"); !strings.Contains(got, "hold: "+itoa(all)+" messages") || count("held") != all {
		t.Errorf("confirmed: %s; %d held", got, count("held"))
	}
	if post(t, at, form("op", "release", "confirm", "yes"), "*/*"); count("held") != 0 {
		t.Errorf("%d still held after the release", count("held"))
	}
	for _, bad := range []url.Values{form("op", "explode", "confirm", "yes"), form("op", "drop", "confirm", "yes", "nonsense", "1"), form("op", "drop", "state", "x", "confirm", "yes")} {
		if got := post(t, at, bad, "*/*"); !strings.HasPrefix(got, "400") || count("") != all {
			t.Errorf("%v: %s", bad, got)
		}
	}
	if got := post(t, at+"?destination=dead.example.com", url.Values{"op": {"drop"}, "confirm": {"yes"}}, "*/*"); !strings.HasPrefix(got, "400") || count("") != all {
		t.Errorf("a filter in the address was ignored: %s", got)
	}
	if got := post(t, at, form("op", "drop", "confirm", itoa(all)), "*/*"); !strings.Contains(got, "drop: "+itoa(all)) {
		t.Errorf("drop: %s", got)
	}
	for deadline := time.Now().Add(5 * time.Second); count("") > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d messages left after the drop", count(""))
		}
		time.Sleep(10 * time.Millisecond)
	}
	found, _, err := s.history.Search(context.Background(), history.Query{Text: "dead.example.com"})
	if err != nil || len(found) == 0 {
		t.Fatalf("the history has none of them: %v", err)
	}
	if m, _, _ := s.history.Get(context.Background(), string(found[0].ID)); !slices.ContainsFunc(m.Events, func(e history.Event) bool {
		return e.Kind == "operator" && e.Text == "drop by the monitoring page, 127.0.0.1"
	}) {
		t.Errorf("the history does not say who did it: %+v", m.Events)
	}
}

// TestDump checks that clients which do not ask for HTML get the text existing tools read.
func TestDump(t *testing.T) {
	s := newSite(t, "", false)
	s.settle(t)
	_, body := get(t, s.url+"/debug/queue")
	for _, want := range []string{"# Queue status\n\ndate: ", "\nlength: ", "\n## Item ", "\ncreated at: ", "\nfrom: alice@example.org\n", "\nPENDING bob0@", " (EMAIL)\n\toriginal address: bob0@", "\tlast failure: \"450 4.7.1"} {
		if !strings.Contains(body, want) {
			t.Errorf("the dump lacks %q:\n%s", want, body)
		}
	}
	for _, path := range []string{"/debug/config", "/debug/flags"} {
		if _, body := get(t, s.url+path); strings.Contains(body, "<html") || strings.Count(body, "\n") < 11 {
			t.Errorf("%s for curl: %s", path, body)
		}
		if _, body := fetch(t, s.url+path); !strings.Contains(body, "<html") {
			t.Errorf("%s for a browser: %s", path, body)
		}
	}
}

// bigQueue is a queue with very many messages.
type bigQueue struct {
	n       int
	started chan bool // told of an operation
}

func (q bigQueue) Stats() queue.Stats { return queue.Stats{Messages: q.n, Capacity: 1_000_000} }
func (q bigQueue) List(_ context.Context, f queue.Filter, p queue.Page) (queue.List, error) {
	l := queue.List{Total: q.n}
	for i := range p.Limit {
		l.Items = append(l.Items, queue.Item{ID: mail.ID("3q" + itoa(i)), From: "a@b.example", Rcpts: slices.Repeat([]queue.ItemRcpt{{To: "c@d.example", LastFailure: strings.Repeat("x", 300)}}, 1000)})
	}
	return l, nil
}
func (q bigQueue) Count(context.Context, queue.Filter) (int, error) { return q.n, nil }
func (q bigQueue) Groups(_ context.Context, _ queue.Filter, by string, limit int) ([]queue.Group, error) {
	return make([]queue.Group, limit), nil
}
func (q bigQueue) Item(mail.ID) (queue.Item, error) { return queue.Item{}, queue.ErrNotFound }
func (q bigQueue) Operate(ctx context.Context, _ queue.Op, _ queue.Filter, _ string) (int, error) {
	q.started <- true
	<-ctx.Done()
	return 0, ctx.Err()
}
func (q bigQueue) Destinations(context.Context, int) []queue.Destination {
	return make([]queue.Destination, 50)
}
func (q bigQueue) WriteDump(_ context.Context, w io.Writer, _ int) error {
	for range q.n {
		if _, err := w.Write([]byte("## Item\n" + strings.Repeat("x", 500) + "\n")); err != nil {
			return err
		}
	}
	return nil
}

// bigHistory finds very many messages.
type bigHistory struct{ n int }

func (h bigHistory) Search(_ context.Context, q history.Query) ([]history.Message, bool, error) {
	l := make([]history.Message, min(q.Limit, h.n))
	for i := range l {
		l[i] = history.Message{ID: "3q", From: "a@b.example", Rcpts: slices.Repeat([]string{"c@d.example"}, 1000), Events: make([]history.Event, 1000)}
	}
	return l, true, nil
}
func (h bigHistory) Get(context.Context, string) (history.Message, bool, error) {
	return history.Message{}, false, nil
}

// TestBigPages checks that pages of very much stay small and quick, whatever form is asked for.
func TestBigPages(t *testing.T) {
	s := newSite(t, "", true)
	conf := s.config()
	conf.Queue, conf.History = bigQueue{n: 100_000}, bigHistory{100_000}
	_, at := serve(t, conf)
	for path, most := range map[string]int{"/debug/queue": 150 << 10, "/debug/messages": 150 << 10, "/debug/queue?format=text": 4 << 20, "/debug/messages.json": 2 << 20, "/debug/destinations": 64 << 10, "/": 20 << 10} {
		fetch(t, at+path)
		start := time.Now()
		resp, body := fetch(t, at+path)
		took := time.Since(start)
		if resp.StatusCode != 200 || len(body) > most {
			t.Errorf("%s: %s, %d bytes, want at most %d", path, resp.Status, len(body), most)
		}
		limit := 200 * time.Millisecond
		if path == "/" {
			limit = 50 * time.Millisecond
		}
		t.Logf("%s: %d bytes in %v", path, len(body), took)
		if took > patience.Limit(limit) {
			t.Errorf("%s took %v", path, took)
		}
	}
}

// TestStopWhileOperating checks that an operation that takes long does not keep the server from stopping.
func TestStopWhileOperating(t *testing.T) {
	started := make(chan bool, 1)
	s := New(Config{Queue: bigQueue{5, started}})
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	answered := make(chan bool, 1)
	go func() {
		resp, err := http.PostForm("http://"+l.Addr().String()+"/debug/queue", url.Values{"op": {"retry"}, "confirm": {"yes"}})
		if err == nil {
			resp.Body.Close()
		}
		answered <- true
	}()
	<-started
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not stop")
	}
	<-answered
}
