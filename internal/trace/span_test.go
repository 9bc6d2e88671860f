package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/log"
	"pgregory.net/rapid"
)

func recording(cfg Config) (context.Context, *Recorder) {
	r := New(cfg)
	return WithRecorder(context.Background(), r), r
}

// spanData returns what the recorder knows of the span.
func (r *Recorder) spanData(s *Span) SpanData {
	t, _ := r.Trace(s.ID())
	for _, d := range t.Spans {
		if d.ID == s.SpanID() {
			return d
		}
	}
	return SpanData{}
}

// texts renders events as "kind text", with the gaps.
func texts(es []Event) (out []string) {
	for _, e := range es {
		if e.Gap > 0 {
			out = append(out, fmt.Sprintf("(%d dropped)", e.Gap))
		}
		out = append(out, e.Kind.String()+" "+e.Text)
	}
	return out
}

func TestNoRecorder(t *testing.T) {
	ctx := context.Background()
	ctx2, s := Start(ctx, SMTPConn, "x")
	if s != nil || ctx2 != ctx {
		t.Error("a span without recorder")
	}
	s.Printf("%d", 1)
	s.Event("x")
	s.Set("a", "b")
	s.Fail()
	s.Link(NewID())
	s.Finish()
	if err := s.Errorf("x %w", io.EOF); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if s.ID() != (ID{}) || s.SpanID() != (SpanID{}) || s.Traceparent() != "" || From(ctx) != nil || s.Error(io.EOF) != io.EOF {
		t.Error("a nil span is something")
	}
	id := NewID()
	ctx, s = StartMessage(ctx, SMTPTransaction, "x", id)
	ctx, child := Start(ctx, CheckSPF, "y")
	if s.ID() != id || child.ID() != id || From(ctx).ID() != id {
		t.Error("the message's id is lost without recorder")
	}
	child.Errorf("x")
	child.Finish()
	s.Finish()
	rctx, r := recording(Config{})
	_, linked := StartMessage(WithRecorder(ctx, RecorderFrom(rctx)), DNS, "a recorder after all", NewID())
	linked.Finish()
	if d := r.spanData(linked); len(d.Links) != 1 || d.Links[0].Trace != id {
		t.Errorf("links to the message: %+v", d.Links)
	}
	var nobody *Recorder
	nobody.Import(SpanData{Trace: id})
	if nobody.Kept(id) || nobody.EventLog(Reload, "x") != nil {
		t.Error("a nil recorder keeps things")
	}
	nobody.EventLog(Reload, "x").Printf("x")
}

// TestTree checks what a message looks like: linked to its connection, with children, through the queue.
func TestTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, r := recording(Config{Generation: 7})
		cctx, conn := Start(ctx, SMTPConn, "192.0.2.1:25")
		id := NewID()
		mctx, tx := StartMessage(cctx, SMTPTransaction, "192.0.2.1:25", id)
		sctx, spf := Start(mctx, CheckSPF, "example.org")
		time.Sleep(3 * time.Millisecond)
		spf.Event("lookup", Str("name", "a b"), Num("n", -1), Took("took", time.Second), Str("none", ""))
		spf.Set("result", "none")
		spf.Set("result", "pass")
		spf.Errorf("bad\x00 \xff\n\tü")
		_, dns := Start(sctx, DNS, "example.org")
		dns.Finish()
		spf.Finish()

		got, ok := r.Trace(id)
		if !ok || len(got.Spans) != 3 {
			t.Fatalf("%v %+v", ok, got)
		}
		s := got.Spans[0]
		if !s.Active || s.Family != SMTPTransaction || s.Parent != (SpanID{}) || len(s.Links) != 1 || s.Links[0] != (Link{conn.ID(), conn.SpanID()}) {
			t.Errorf("transaction %+v", s)
		}
		s = got.Spans[1]
		if s.Active || !s.Failed || s.Parent != tx.SpanID() || s.Duration != 3*time.Millisecond || s.Generation != 7 ||
			!slices.Equal(s.Attrs, []Attr{{"result", "pass"}}) {
			t.Errorf("spf %+v", s)
		}
		if want := []string{`debug lookup name="a b" n=-1 took=1s none=""`, `error bad\x00 \xff\n\tü`}; !slices.Equal(texts(s.Events), want) {
			t.Errorf("events %q, want %q", texts(s.Events), want)
		}
		if e := s.Events[0]; e.Offset != 3*time.Millisecond || !e.At.Equal(s.Start.Add(e.Offset)) {
			t.Errorf("event %+v", e)
		}
		if got.Spans[2].Parent != spf.SpanID() {
			t.Errorf("dns %+v", got.Spans[2])
		}
		if c, _ := r.Trace(conn.ID()); len(c.Spans) != 1 || c.Spans[0].Links[0].Trace != id {
			t.Errorf("connection %+v", c)
		}
		tx.Finish()
		conn.Finish()

		qctx, item := StartMessage(ctx, QueueItem, "x", id)
		_, again := StartMessage(qctx, DeliveryRemote, "y", id)
		if got, _ := r.Trace(id); len(got.Spans) != 5 || got.Spans[4].Parent != item.SpanID() {
			t.Errorf("%+v", got)
		}
		again.Finish()
		item.Finish()
		if n := r.activeCounts(); n != [numFamilies]int{} {
			t.Errorf("active after the end: %v", n)
		}
	})
}

// TestEventCap checks that of many events the first third and the latest stay, with a mark between.
func TestEventCap(t *testing.T) {
	ctx, r := recording(Config{})
	_, s := Start(ctx, SMTPConn, "x")
	for i := range 1000 {
		s.Printf("event %d", i)
	}
	for _, active := range []bool{true, false} {
		got, _ := r.Trace(s.ID())
		es := texts(got.Spans[0].Events)
		if len(es) != maxEvents+1 || es[headEvents-1] != "info event 32" || es[headEvents] != "(900 dropped)" || es[headEvents+1] != "info event 933" ||
			es[maxEvents] != "info event 999" {
			t.Errorf("active %v: %d events: %q", active, len(es), es)
		}
		s.Finish()
	}
	_, s = Start(ctx, SMTPConn, "x")
	s.Printf("%s", strings.Repeat("é", 1<<20))
	for i := range 1000 {
		s.Set(fmt.Sprint("key", i), strings.Repeat("x", 600))
	}
	for range 1000 {
		s.Event("long", Str("x", strings.Repeat("y", 600)))
	}
	s.Finish()
	got, _ := r.Trace(s.ID())
	data := len(r.traces[s.ID()].data)
	if sp := got.Spans[0]; len(sp.Events[0].Text) != maxText || len(sp.Attrs) != 3 || data > recHead+spanBytes+maxMeta+maxText {
		t.Errorf("first event has %d bytes, %d attributes, %d bytes in all", len(sp.Events[0].Text), len(sp.Attrs), data)
	}
}

// TestEventsModel compares a span's buffer with a plain list, for any sequence of events.
func TestEventsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom([]int{tightBytes, spanBytes}).Draw(t, "limit")
		lens := rapid.SliceOfN(rapid.IntRange(0, 700), 0, 300).Draw(t, "lens")
		var b buffer
		var all []string
		dropped := 0
		for i, n := range lens {
			text := fmt.Sprintf("%d:%s", i, strings.Repeat("x", n))
			dropped += b.add(time.Duration(i)*time.Millisecond, Kind(i%3), []byte(text), limit)
			all = append(all, text[:min(len(text), maxText)])
		}
		es := b.notes().events(time.Time{})
		if len(es)+dropped != len(all) || len(es) > maxEvents || dropped != b.dropped {
			t.Fatalf("%d kept, %d dropped of %d", len(es), dropped, len(all))
		}
		if b.size() > limit+2*maxText {
			t.Fatalf("%d bytes", b.size())
		}
		gap := 0
		for i, e := range es {
			if gap += e.Gap; e.Text != all[i+gap] || e.Offset != time.Duration(i+gap)*time.Millisecond || e.Kind != Kind((i+gap)%3) {
				t.Fatalf("event %d after a gap of %d: %+v", i, gap, e)
			}
		}
		if gap != dropped {
			t.Fatalf("gap of %d, %d dropped", gap, dropped)
		}
	})
}

// TestLate checks that annotations after the end, by anybody at any time, are counted and do nothing else. Run it with -race.
func TestLate(t *testing.T) {
	ctx, r := recording(Config{Mirror: true, Labels: true})
	for range 20 {
		_, s := Start(ctx, SMTPConn, "x")
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 100 {
					s.Printf("%d %d", g, i)
					s.Set("g", "x")
					s.Errorf("error %d", i)
					s.Link(NewID())
				}
			})
		}
		wg.Go(func() { s.Finish() })
		wg.Go(func() { r.Trace(s.ID()); r.Active(10) })
		wg.Wait()
		s.Finish()
		before := r.dropped.Load()
		d := r.spanData(s)
		s.Printf("late")
		s.Errorf("late")
		s.Set("late", "x")
		s.Fail()
		if after := r.spanData(s); len(after.Events) != len(d.Events) || after.Active || r.dropped.Load() != before+3 {
			t.Errorf("late events change the span, or are not counted: %d", r.dropped.Load()-before)
		}
	}
}

// captureLog collects what is logged while f runs at a verbosity.
func captureLog(t *testing.T, v log.Level, f func()) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	old := log.Default
	l := log.New(file)
	l.Level = v
	log.Default = l
	defer func() { log.Default = old }()
	f()
	b, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLOG3Lines checks the lines of the process log, and that fail2ban's filter finds refused commands (LOG-4).
func TestLOG3Lines(t *testing.T) {
	work := func() {
		ctx, _ := recording(Config{Log: true})
		ctx, conn := Start(ctx, SMTPConn, "192.0.2.1:4567")
		conn.Errorf("AUTH failed: %d  %s", 535, "bad \"login\"\n")
		ctx, tx := StartMessage(ctx, SMTPTransaction, "someone else", NewID())
		tx.Error(errors.New("RCPT failed: 550  no such user"))
		_, spf := Start(ctx, CheckSPF, "exam\x1bple")
		spf.Printf("printed")
		spf.Debugf("debugged")
		spf.Event("event", Num("n", 1))
		spf.Print("shown as it is: %d")
		spf.Infof("%s sent", "x@example.org")
		spf.Info(nil, "x@example.net sent")
	}
	info := captureLog(t, log.Info, work)
	re := regexp.MustCompile(`(?m)^(?:\S+ \S+ )?_ span_test.go:(\d+) +(.*)$`)
	var lines, where []string
	for _, m := range re.FindAllStringSubmatch(info, -1) {
		where, lines = append(where, m[1]), append(lines, m[2])
	}
	want := []string{
		`SMTP.Conn 192.0.2.1:4567: error: AUTH failed: 535  bad \"login\"\n`,
		`SMTP.Conn 192.0.2.1:4567: error: RCPT failed: 550  no such user`,
		`Check.SPF exam\x1bple: x@example.org sent`,
		`Check.SPF exam\x1bple: x@example.net sent`,
	}
	if !slices.Equal(lines, want) || len(strings.Split(strings.TrimSpace(info), "\n")) != 4 {
		t.Errorf("%s\ngives %q, want %q", info, lines, want)
	}
	slices.Sort(where)
	if len(slices.Compact(where)) != 4 {
		t.Errorf("the lines of code are not those that annotated: %s", info)
	}
	fail2ban := regexp.MustCompile(`SMTP\.Conn (\S+):\d+: error:.*((AUTH|MAIL|RCPT|DATA) failed|Unknown command|too many errors|http command)`)
	if m := fail2ban.FindAllStringSubmatch(info, -1); len(m) != 2 || m[1][1] != "192.0.2.1" {
		t.Errorf("the filter finds %q", m)
	}
	debug := captureLog(t, log.Debug, work)
	for _, line := range []string{`Check.SPF exam\x1bple: printed`, `Check.SPF exam\x1bple: debugged`, `Check.SPF exam\x1bple: event n=1`, `Check.SPF exam\x1bple: shown as it is: %d`} {
		if !strings.Contains(debug, line) || !regexp.MustCompile(`\. span_test.go:\d+ +`+regexp.QuoteMeta(line)).MatchString(debug) {
			t.Errorf("no %s in %s", line, debug)
		}
	}
	if silent := captureLog(t, log.Debug, func() { ctx, _ := recording(Config{}); _, s := Start(ctx, DNS, "x"); s.Errorf("x") }); silent != "" {
		t.Errorf("logged without being asked: %s", silent)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"": "", "plain": "plain", "ü €": "ü €", "a\nb": `a\nb`, "\xc3": `\xc3`, "a\xffü\x1b[0m": `a\xffü\x1b[0m`,
		"\u202e": `\u202e`, `back\slash "q"`: `back\slash "q"`, "\ufffd": "\ufffd"} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestTitles(t *testing.T) {
	ctx, r := recording(Config{})
	for in, want := range map[string]string{"a\xffb": `a\xffb`, "x\n": `x\n`, strings.Repeat("y", 1000): strings.Repeat("y", maxTitle), "\ufffd ok": "\ufffd ok"} {
		_, s := Start(ctx, SMTPConn, in)
		if got := r.spanData(s); got.Title != want {
			t.Errorf("%q: %q", in, got.Title)
		}
	}
	if _, s := Start(ctx, Family(99), "x"); r.spanData(s).Family >= numFamilies {
		t.Error("a family that does not exist")
	}
}
