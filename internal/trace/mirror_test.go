package trace

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	xtrace "golang.org/x/net/trace"
)

func get(h http.Handler, query string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/debug/requests?"+query, nil))
	return w.Code, w.Body.String()
}

// TestMirror checks that /debug/requests shows finished and active spans as people know them.
func TestMirror(t *testing.T) {
	xtrace.DebugUseAfterFinish = true
	defer func() { xtrace.DebugUseAfterFinish = false }()
	ctx, r := recording(Config{Mirror: true})
	title := "mirror-" + NewID().Short()
	_, done := Start(ctx, DeliveryRemote, title+"-done")
	for i := range 200 {
		done.Printf("event %d <b>", i)
	}
	done.Set("key", "va\xfflue")
	done.Errorf("it failed")
	done.Finish()
	done.Printf("after the end")
	_, active := Start(ctx, DeliveryRemote, title+"-active")
	active.Printf("still here")
	_, unmirrored := Start(ctx, DNS, title)
	defer unmirrored.Finish()

	h := r.RequestsHandler()
	// 8 is the errors' bucket, -1 the active ones; the family page appears in the background the first time.
	var page string
	for range 1000 {
		if _, page = get(h, "fam=Courier.SMTP&b=8&exp=1"); strings.Contains(page, title+"-done") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for _, want := range []string{title + "-done " + done.ID().Short(), "event 0 &lt;b&gt;", "event 96", "/debug/traces/" + done.ID().String(), "more events"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page of errors lacks %q", want)
		}
	}
	if strings.Contains(page, "after the end") || strings.Contains(page, "<b>") {
		t.Error("a late event, or markup, is on the page")
	}
	_, page = get(h, "fam=Courier.SMTP&b=-1&exp=1")
	if !strings.Contains(page, title+"-active "+active.ID().Short()) || !strings.Contains(page, "still here") {
		t.Errorf("the active span is not on the page: %s", page)
	}
	active.Finish()
	if code, _ := get(h, "fam=stranger&b=0"); code != http.StatusNotFound {
		t.Errorf("a family that does not exist: %d", code)
	}
	if code, page := get(r.EventsHandler(), "fam=stranger&b=0"); code != http.StatusNotFound || strings.Contains(page, "<html") {
		t.Errorf("a family that does not exist: %d", code)
	}
}

// TestMirrorLimit checks that of many spans few are mirrored, and those that matter all the same.
func TestMirrorLimit(t *testing.T) {
	ctx, r := recording(Config{Mirror: true, Mirrors: 1})
	var plain *Span
	for plain == nil || plain.mirror.on() { // a second may begin in between
		_, plain = Start(ctx, QueuePut, "plain")
	}
	plain.Printf("before")
	plain.Errorf("failed")
	if !plain.mirror.on() {
		t.Error("a failed span is not mirrored")
	}
	title := "limit-" + NewID().Short()
	var quiet *Span
	for quiet == nil || quiet.mirror.on() {
		_, quiet = Start(ctx, QueuePut, title)
	}
	quiet.Printf("before anybody looked")
	if _, page := get(r.RequestsHandler(), "fam=Queue.Put&b=-1&exp=1"); !strings.Contains(page, title) || !strings.Contains(page, "before anybody looked") {
		t.Errorf("an active span is not shown: %s", page)
	}
	quiet.Finish()
	plain.Finish()
	limit := mirrorLimit{max: 3}
	n := 0
	for range 10 {
		if limit.allow(time.Unix(1, 0)) {
			n++
		}
	}
	if n != 3 || !limit.urgent(time.Unix(1, 0)) || !limit.allow(time.Unix(2, 0)) {
		t.Errorf("%d of 10 allowed", n)
	}
}

func TestEventLog(t *testing.T) {
	_, r := recording(Config{Mirror: true})
	title := "log-" + NewID().Short()
	l := r.EventLog(Reload, title)
	for i := range 150 {
		l.Printf("line %d \xff", i)
	}
	l.Errorf("bad line")
	_, page := get(r.EventsHandler(), "fam=Reload&b=0&exp=1")
	for _, want := range []string{title, `line 149 \xff`, "bad line", "line 70"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q on the page", want)
		}
	}
	if strings.Contains(page, "discarded") {
		t.Error("the log overflows")
	}
	l.Finish()
	l.Finish()
	l.Printf("late")
	if _, page := get(r.EventsHandler(), "fam=Reload&b=0&exp=1"); strings.Contains(page, title) {
		t.Error("a finished log is on the page")
	}
}

// TestMirrorRace has the pages read while spans come and go. Run it with -race.
func TestMirrorRace(t *testing.T) {
	ctx, r := recording(Config{Mirror: true, Mirrors: 1 << 30})
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			for i := range 100 {
				_, s := Start(ctx, QueuePut, fmt.Sprint(g))
				for n := range 120 {
					s.Printf("%d %d", i, n)
				}
				s.Finish()
				s.Printf("late")
			}
		})
	}
	wg.Go(func() {
		for i := range 20 {
			get(r.RequestsHandler(), url.Values{"fam": {"Queue.Put"}, "b": {fmt.Sprint(i%10 - 1)}, "exp": {"1"}}.Encode())
		}
	})
	wg.Wait()
}

// TestLabels checks that profiles say which message a goroutine works on, and that the labels go when the span ends.
func TestLabels(t *testing.T) {
	ctx, _ := recording(Config{Labels: true})
	labels := func(ctx context.Context) string {
		f, _ := pprof.Label(ctx, "family")
		id, _ := pprof.Label(ctx, "trace")
		return f + " " + id
	}
	mine := func() string {
		var b bytes.Buffer
		pprof.Lookup("goroutine").WriteTo(&b, 1)
		return b.String()
	}
	cctx, conn := Start(ctx, SMTPConn, "x")
	mctx, tx := StartMessage(cctx, SMTPTransaction, "x", NewID())
	if got := labels(mctx); got != "SMTP.Transaction "+tx.ID().Short() {
		t.Errorf("labels %q", got)
	}
	if !strings.Contains(mine(), tx.ID().Short()) {
		t.Error("the goroutine has no label")
	}
	tx.Finish()
	if p := mine(); strings.Contains(p, tx.ID().Short()) || !strings.Contains(p, conn.ID().Short()) {
		t.Error("the goroutine keeps the label")
	}
	conn.Finish()
	if strings.Contains(mine(), conn.ID().Short()) {
		t.Error("the goroutine keeps the label")
	}
}
