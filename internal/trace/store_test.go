package trace

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"
)

// check holds the store's accounts against what is in it.
func (r *Recorder) check(t interface {
	Helper()
	Fatalf(string, ...any)
}) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var size, kept int64
	refs := map[*state]int{}
	rings := []*ring{&r.sample, &r.late, &r.exemplar, &r.watched}
	for f := range r.fams {
		rings = append(rings, &r.fams[f].errors)
		for b := range r.fams[f].buckets {
			rings = append(rings, &r.fams[f].buckets[b])
		}
	}
	for _, g := range rings {
		if len(g.slots) > g.max {
			t.Fatalf("%d entries in a ring of %d", len(g.slots), g.max)
		}
		for _, e := range g.slots {
			if !e.void() {
				refs[e.st]++
			}
		}
	}
	pins := map[*state]int{}
	for _, st := range r.traces {
		for _, e := range st.pinned {
			if !e.void() {
				pins[e.st]++
			}
		}
	}
	for id, st := range r.traces {
		size += st.size
		if st.kept() {
			kept += st.size
		}
		n := 0
		for range records(st.data) {
			n++
		}
		switch {
		case st.id != id, stateSize+int64(cap(st.data)) != st.size, n != st.spans, n > maxSpans, st.gone:
			t.Fatalf("trace %v: size %d, holds %d bytes in %d of %d spans, gone %v", id, st.size, cap(st.data), n, st.spans, st.gone)
		case st.refs != refs[st], st.pins != pins[st], st.kept() != r.keeps.has(st):
			t.Fatalf("trace %v: %d of %d references, %d of %d pins, listed %v", id, st.refs, refs[st], st.pins, pins[st], r.keeps.has(st))
		case st.active == 0 && !r.recents.has(st) && !st.kept():
			t.Fatalf("trace %v is there for no reason", id)
		case st.refs == 0 && len(st.pinned) > 0:
			t.Fatalf("trace %v pins others for no reason", id)
		}
	}
	if size != r.size || kept != r.kept {
		t.Fatalf("size %d is accounted as %d, kept %d as %d", size, r.size, kept, r.kept)
	}
	r.checkSpares(t)
}

// TestAccounts does things at random and holds the store's accounts against what is in it.
func TestAccounts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, r := recording(Config{Budget: 64 << 10})
			r.spares.max = int64(rapid.SampledFrom([]int{0, 2 << 10, 32 << 10}).Draw(rt, "spares"))
			ids := []ID{NewID(), NewID(), NewID(), NewID(), NewID(), NewID()}
			type open struct {
				ctx context.Context
				s   *Span
			}
			spans := []open{{ctx, nil}}
			for range rapid.IntRange(1, 120).Draw(rt, "n") {
				i := rapid.IntRange(0, len(spans)-1).Draw(rt, "span")
				o := spans[i]
				f := Family(rapid.IntRange(0, int(numFamilies)-1).Draw(rt, "family"))
				switch rapid.IntRange(0, 7).Draw(rt, "op") {
				case 0, 1:
					c, s := Start(o.ctx, f, "child")
					spans = append(spans, open{c, s})
				case 2, 3:
					c, s := StartMessage(o.ctx, f, "message", rapid.SampledFrom(ids).Draw(rt, "id"))
					spans = append(spans, open{c, s})
				case 4:
					o.s.Printf("%s", strings.Repeat("x", rapid.IntRange(0, 2000).Draw(rt, "len")))
				case 5:
					o.s.Errorf("failed")
				case 6:
					time.Sleep(time.Duration(rapid.IntRange(0, 2000).Draw(rt, "ms")) * time.Millisecond)
					r.Exemplar(o.s.ID(), true, 1)
				case 7:
					o.s.Finish()
				}
				r.check(rt)
			}
			for _, o := range spans {
				o.s.Finish()
			}
			r.check(rt)
			if n := r.activeCounts(); n != [numFamilies]int{} || r.active.Load() != 0 {
				rt.Fatalf("%v active, %d bytes", n, r.active.Load())
			}
		})
	})
}

// flood makes n unremarkable messages.
func flood(ctx context.Context, n int) {
	for range n {
		for _, f := range []Family{SMTPTransaction, SMTPConn} {
			_, s := StartMessage(ctx, f, "flood", NewID())
			s.Printf("%0200d", 1)
			s.Finish()
		}
	}
}

// TestBudget checks that the account of memory keeps to the budget, and that the account is honest.
func TestBudget(t *testing.T) {
	before := heap()
	ctx, r := recording(Config{Budget: 8 << 20})
	cctx, conn := Start(ctx, SMTPConn, "x")
	for i := range 60_000 {
		mctx, tx := StartMessage(cctx, SMTPTransaction, "192.0.2.1:12345", NewID())
		_, c := Start(mctx, Family(i%int(numFamilies)), "child")
		for range i % 30 {
			c.Printf("%0100d", i)
		}
		if i%3 == 0 {
			c.Errorf("failed %d", i)
		}
		c.Finish()
		tx.Finish()
		if i%1000 == 0 {
			if s := r.Size(); s > 8<<20 {
				t.Fatalf("size %d after %d messages", s, i)
			}
			r.check(t)
		}
	}
	r.buffers.Get() // at most one per processor is pooled: too little to matter
	if size, real := r.Size(), heap()-before; size < 4<<20 || real > 9<<20 {
		t.Errorf("accounted for %d, took %d", size, real)
	}
	if n := len(r.late.slots); n == 0 {
		t.Error("no failure is kept")
	}
	conn.Finish()
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestManyActive checks that active spans that say much leave the budget alone.
func TestManyActive(t *testing.T) {
	ctx, r := recording(Config{Budget: 4 << 20})
	for range 1000 {
		_, s := Start(ctx, SMTPConn, "x")
		for range 100 {
			s.Printf("%0500d", 1)
		}
	}
	if s := r.Size(); s > 6<<20 {
		t.Errorf("size %d", s)
	}
	if r.dropped.Load() == 0 {
		t.Error("nothing was dropped")
	}
}

// TestPromotion checks that a failure long after the fact keeps all there is of the message, its connection included.
func TestPromotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var exported []SpanData
		ctx, r := recording(Config{Budget: 2 << 20, Export: func(d SpanData) { exported = append(exported, d) }})
		flood(ctx, 100) // fill the rings of examples, so that nothing is kept by chance
		exported = nil
		cctx, conn := Start(ctx, SMTPConn, "192.0.2.1:25")
		id := NewID()
		_, tx := StartMessage(cctx, SMTPTransaction, "192.0.2.1:25", id)
		tx.Printf("MAIL, RCPT, DATA")
		tx.Finish()
		if r.Kept(id) || len(exported) != 0 {
			t.Fatal("kept from the start")
		}
		_, del := StartMessage(ctx, DeliveryRemote, "attempt 1", id)
		del.Errorf("remote said 451")
		del.Finish()
		if !r.Kept(id) || !r.Kept(conn.ID()) {
			t.Fatalf("kept: message %v, connection %v", r.Kept(id), r.Kept(conn.ID()))
		}
		if len(exported) != 2 || exported[0].Family != SMTPTransaction || exported[1].Title != "attempt 1" {
			t.Errorf("exported %+v", exported)
		}
		conn.Printf("QUIT")
		conn.Finish()
		time.Sleep(72 * time.Hour)
		for range 20 {
			flood(ctx, 2000)
			time.Sleep(time.Minute)
		}
		_, del = StartMessage(ctx, DeliveryRemote, "attempt 2", id)
		del.Finish()
		if n := len(exported); exported[n-1].Title != "attempt 2" {
			t.Errorf("the last span exported is %+v", exported[n-1])
		}
		if got, _ := r.Trace(id); len(got.Spans) != 3 || !got.Kept || got.Spans[0].Events[0].Text != "MAIL, RCPT, DATA" {
			t.Errorf("%+v", got)
		}
		if got, _ := r.Trace(conn.ID()); len(got.Spans) != 1 || got.Spans[0].Events[0].Text != "QUIT" {
			t.Errorf("%+v", got)
		}
		r.check(t)
		r.mu.Lock()
		r.strip(r.traces[id])
		r.mu.Unlock()
		if r.Kept(id) || r.Kept(conn.ID()) {
			t.Errorf("kept: message %v, connection %v", r.Kept(id), r.Kept(conn.ID()))
		}
		r.check(t)
	})
}

// TestPromotionWhileActive checks that a message that is kept before it ended keeps its connection too.
func TestPromotionWhileActive(t *testing.T) {
	ctx, r := recording(Config{})
	flood(ctx, 100)
	cctx, conn := Start(ctx, SMTPConn, "192.0.2.1:25")
	_, tx := StartMessage(cctx, SMTPTransaction, "192.0.2.1:25", NewID())
	if !r.Exemplar(tx.ID(), true, 1) || !r.Kept(tx.ID()) {
		t.Fatal("not kept")
	}
	tx.Finish()
	if !r.Kept(conn.ID()) {
		t.Error("the connection is not kept")
	}
	r.check(t)
}

// TestSampling checks which spans are kept as examples, and that a flood does not wash them away.
func TestSampling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, r := recording(Config{})
		slow := func(d time.Duration, fail bool) ID {
			_, s := Start(ctx, DNS, d.String())
			time.Sleep(d)
			if fail {
				s.Fail()
			}
			s.Finish()
			return s.ID()
		}
		for b, d := range BucketBounds() {
			id := slow(d, false)
			if Bucket(d) != b || b > 0 && Bucket(d-1) != b-1 {
				t.Errorf("%v is in range %d", d, Bucket(d))
			}
			if got := r.Examples(DNS, b); len(got) != 1 || got[0].Trace != id || got[0].Duration != d || !r.Kept(id) {
				t.Errorf("examples of %v: %+v", d, got)
			}
		}
		if r.Examples(DNS, -1) != nil || r.Examples(DNS, NumBuckets) != nil || r.Examples(numFamilies, 0) != nil || r.Errors(numFamilies) != nil {
			t.Error("examples of what does not exist")
		}
		failed := slow(0, true)
		for range 1000 {
			slow(0, false)
		}
		if got := r.Errors(DNS); len(got) != 1 || got[0].Trace != failed {
			t.Errorf("errors: %+v", got)
		}
		first := r.Examples(DNS, 0)
		if len(first) != keepInBucket {
			t.Fatalf("%d examples", len(first))
		}
		time.Sleep(inBucketEvery)
		latest := slow(0, false)
		slow(0, false)
		if got := r.Examples(DNS, 0); got[0].Trace != latest || got[1].Trace != first[0].Trace || len(got) != keepInBucket {
			t.Errorf("%v, %v, before %v", got[0].Trace, got[1].Trace, first[0].Trace)
		}
		for range keepSample {
			time.Sleep(sampleEvery)
			slow(0, false)
			slow(0, false)
		}
		if n := len(r.Sample()); n != keepSample {
			t.Errorf("%d samples", n)
		}
		for range 2 * keepErrors {
			slow(errorsEvery, true)
		}
		st := r.Families()[DNS]
		if st.Errors != keepErrors || st.Failed != 2*keepErrors+1 || st.Done < 1300 || st.Counts[0] < 1200 || st.Examples[7] != 1 ||
			st.Max != 10*time.Minute || st.Min != 0 || st.Sum < 11*time.Minute {
			t.Errorf("%+v", st)
		}
		r.check(t)
	})
}

// TestManySpans checks that a trace with many spans keeps the first and the latest.
func TestManySpans(t *testing.T) {
	ctx, r := recording(Config{})
	ctx, s := StartMessage(ctx, QueueItem, "x", NewID())
	for i := range 1000 {
		_, c := Start(ctx, DeliveryRemote, fmt.Sprint(i))
		c.Finish()
	}
	got, _ := r.Trace(s.ID())
	if n := len(got.Spans); n != maxSpans+1 || got.Dropped != 1000-maxSpans || got.Spans[1].Title != "0" || got.Spans[maxSpans/2].Title != "99" ||
		got.Spans[n-1].Title != "999" {
		t.Errorf("%d spans, %d dropped", n, got.Dropped)
	}
	s.Finish()
	r.check(t)
}

func TestSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, r := recording(Config{Budget: 1 << 20})
		_, old := Start(ctx, SMTPConn, "Mail.Example.ORG:25")
		old.Finish()
		_, bad := Start(ctx, Reload, "mail.example.org reload")
		time.Sleep(time.Second)
		bad.Errorf("no")
		bad.Finish()
		actx, act := Start(ctx, SMTPConn, "mail.example.org:26")
		_, child := Start(actx, DNS, "mail.example.org")
		for name, c := range map[string]struct {
			q    Query
			want []*Span
		}{
			"all":    {Query{}, []*Span{act, bad, old}},
			"text":   {Query{Text: "EXAMPLE.org:"}, []*Span{act, old}},
			"family": {Query{Family: Reload, HasFamily: true}, []*Span{bad}},
			"failed": {Query{Failed: true}, []*Span{bad}},
			"slow":   {Query{Slower: time.Second}, []*Span{bad}},
			"id":     {Query{Text: strings.ToUpper(old.ID().Short())}, []*Span{old}},
			"limit":  {Query{Limit: 1}, []*Span{act}},
			"none":   {Query{Text: "nowhere"}, nil},
			"long":   {Query{Text: strings.Repeat("a", 100)}, nil},
		} {
			var got []ID
			for _, s := range r.Search(c.q) {
				if got = append(got, s.Trace); !s.Stored || s.Active != (s.Trace == act.ID()) {
					t.Errorf("%s: %+v", name, s)
				}
			}
			var want []ID
			for _, s := range c.want {
				want = append(want, s.ID())
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		if ids := r.Lookup(old.ID().Short()); len(ids) != 1 || ids[0] != old.ID() {
			t.Errorf("lookup: %v", ids)
		}
		if r.Lookup("") != nil || r.Lookup(strings.Repeat("0", 33)) != nil {
			t.Error("anything is looked up")
		}
		if got := r.Active(10); len(got) != 2 || got[0].ID != act.SpanID() || got[1].ID != child.SpanID() {
			t.Errorf("active: %+v", got)
		}
		if got := r.Active(1, DNS, SMTPConn); len(got) != 1 || got[0].ID != act.SpanID() {
			t.Errorf("the oldest: %+v", got)
		}
		// What the budget has no room for is still found, as one line.
		flood(ctx, 5000)
		if got := r.Search(Query{Text: "flood", Limit: 5000}); len(got) < 500 || got[len(got)-1].Stored {
			t.Errorf("%d found", len(got))
		}
		r.check(t)
	})
}

// TestRestart checks that a message that an earlier process accepted has one trace with what both did.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, first := recording(Config{Generation: 6})
		_, tx := StartMessage(ctx, SMTPTransaction, "x", NewID())
		accepted := time.Now()
		tx.Finish()
		time.Sleep(time.Hour)

		ctx, second := recording(Config{Generation: 7})
		_, s := Resume(ctx, QueueItem, "x20260102", tx.ID(), accepted)
		s.Finish()
		got, ok := second.Trace(tx.ID())
		if !ok || len(got.Spans) != 2 {
			t.Fatalf("%+v", got)
		}
		if a, b := got.Spans[0], got.Spans[1]; a.Generation != 6 || b.Generation != 7 || !a.Start.Equal(accepted) || a.Active ||
			b.Events[0].Text != "resumed after restart, process generation 7" {
			t.Errorf("%+v\n%+v", a, b)
		}
		_, s = Resume(ctx, QueueItem, "x20260102", tx.ID(), accepted)
		s.Finish()
		if got, _ := second.Trace(tx.ID()); len(got.Spans) != 3 {
			t.Errorf("the past came twice: %+v", got)
		}
		// A span can move whole.
		old, _ := first.Trace(tx.ID())
		d := old.Spans[0]
		d.Attrs, d.Events = []Attr{{"a", "b"}}, []Event{{Offset: time.Second, Kind: Error, Text: "x"}}
		second.Import(d)
		got, _ = second.Trace(tx.ID())
		i := slices.IndexFunc(got.Spans, func(s SpanData) bool { return s.ID == d.ID })
		if s := got.Spans[max(i, 0)]; s.ID != d.ID || s.Attrs[0] != d.Attrs[0] || s.Events[0].Text != "x" || s.Events[0].Kind != Error || s.Generation != 6 {
			t.Errorf("%+v", s)
		}
		second.check(t)
		Resume(context.Background(), QueueItem, "x", tx.ID(), accepted) // no recorder
	})
}

// TestExemplars checks that metrics refer to few traces, and only to such as can be looked at.
func TestExemplars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := expvarom.NewPedantic()
		ctx, r := recording(Config{Metrics: reg, Budget: 2 << 20})
		h := reg.Histogram("chasquid_x_seconds", "X.", expvarom.Net)
		time.Sleep(time.Hour)
		flood(ctx, 100)
		var ids []ID
		for range 100 {
			_, s := StartMessage(ctx, SMTPTransaction, "x", NewID())
			h.ObserveTrace(0.001, s.ID())
			h.ObserveTrace(0.3, s.ID())
			h.ObserveTrace(7, s.ID())
			s.Finish()
			if r.Kept(s.ID()) {
				ids = append(ids, s.ID())
			}
		}
		if len(ids) != 2 { // one by a quick observation, one by a slow one
			t.Errorf("%d traces kept", len(ids))
		}
		flood(ctx, 5000)
		found := func() (out []string) {
			mfs, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, mf := range mfs {
				for _, m := range mf.Metric {
					for _, b := range m.GetHistogram().GetBucket() {
						if e := b.Exemplar; e != nil {
							out = append(out, e.Label[0].GetValue())
						}
					}
				}
			}
			return out
		}
		if got := found(); !slices.Equal(got, []string{ids[0].String(), ids[0].String(), ids[1].String()}) && len(got) != 3 {
			t.Errorf("exemplars %v, kept %v", got, ids)
		}
		for _, id := range found() {
			id, _ := ParseID(id)
			if tr, ok := r.Trace(id); !ok || len(tr.Spans) == 0 {
				t.Errorf("exemplar %v leads nowhere", id)
			}
		}
		r.mu.Lock()
		for r.keeps.first != nil {
			r.strip(r.keeps.first)
		}
		r.mu.Unlock()
		r.check(t)
		if got := found(); got != nil {
			t.Errorf("exemplars that lead nowhere: %v", got)
		}
		if r.Exemplar(NewID(), true, 1) || r.Exemplar(NewID(), false, 1) {
			t.Error("exemplar of a trace that does not exist")
		}
	})
}

func TestMetrics(t *testing.T) {
	reg := expvarom.NewPedantic()
	ctx, r := recording(Config{Metrics: reg})
	_, a := Start(ctx, DNS, "x")
	a.Finish()
	_, b := Start(ctx, DNS, "x")
	b.Fail()
	b.Finish()
	b.Printf("late")
	Start(ctx, STS, "x")
	for line, want := range map[string]string{
		"chasquid_trace_spans_active": "# HELP chasquid_trace_spans_active Operations under way, by kind.\n# TYPE chasquid_trace_spans_active gauge\n" +
			series(`chasquid_trace_spans_active{family="%s"} %d`, map[Family]int{STS: 1}),
		"chasquid_trace_events_dropped_total": "# HELP chasquid_trace_events_dropped_total Trace events dropped because their span was full or over.\n" +
			"# TYPE chasquid_trace_events_dropped_total counter\nchasquid_trace_events_dropped_total 1\n",
	} {
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), line); err != nil {
			t.Error(err)
		}
	}
	if r.metrics.spans[DNS][0].Value() != 1 || r.metrics.spans[DNS][1].Value() != 1 || r.metrics.spans[STS][0].Value() != 0 {
		t.Error("spans are not counted")
	}
	if n, _ := testutil.GatherAndCount(reg, "chasquid_trace_spans_total"); n != 2*int(numFamilies) {
		t.Errorf("%d series", n)
	}
	if ps, err := testutil.GatherAndLint(reg); err != nil || len(ps) > 0 {
		t.Errorf("%v %v", ps, err)
	}
}

func series(format string, values map[Family]int) string {
	var b strings.Builder
	for _, f := range Families() {
		fmt.Fprintf(&b, format+"\n", f, values[f])
	}
	return b.String()
}

// TestHammer does everything at once. Run it with -race.
func TestHammer(t *testing.T) {
	ctx, r := recording(Config{Budget: 1 << 20, Metrics: expvarom.New(), Mirror: true, Labels: true, Export: func(SpanData) {}})
	done := make(chan bool)
	for range 3 {
		go func() {
			defer func() { done <- true }()
			cctx, conn := Start(ctx, SMTPConn, "x")
			for i := range 200 {
				message(cctx, i+rand.IntN(1000))
			}
			conn.Finish()
		}()
	}
	go func() {
		defer func() { done <- true }()
		for range 20 {
			for _, f := range r.Families() {
				r.Examples(f.Family, 0)
				r.Errors(f.Family)
			}
			for _, s := range r.Search(Query{}) {
				r.Trace(s.Trace)
			}
			r.Active(100)
			r.Sample()
			r.Lookup("abcd")
			r.Size()
		}
	}()
	for range 4 {
		<-done
	}
	r.check(t)
}
