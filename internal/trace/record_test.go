package trace

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// checkSpares checks that what waits to be used again is accounted for, and nobody else's.
func (r *Recorder) checkSpares(t interface{ Fatalf(string, ...any) }) {
	size := stateSize * int64(len(r.spares.states))
	used := map[*byte]bool{}
	for _, st := range r.traces {
		if cap(st.data) > 0 {
			used[&st.data[:1][0]] = true
		}
	}
	for _, st := range r.spares.states {
		if !st.gone || st.kept() || st.active != 0 || st.spans != 0 || st.data != nil || st.pinned != nil || r.traces[st.id] == st || r.recents.has(st) || r.keeps.has(st) {
			t.Fatalf("a spare state is in use: %+v", st)
		}
	}
	for class, free := range r.spares.datas {
		for _, b := range free {
			size += int64(cap(b))
			if p := &b[:1][0]; used[p] || cap(b) != dataSmall<<class {
				t.Fatalf("%d spare bytes are in use, or at the wrong place", cap(b))
			} else {
				used[p] = true
			}
		}
	}
	if size != r.spares.size || size > r.spares.max {
		t.Fatalf("%d spare bytes of %d are accounted as %d", size, r.spares.max, r.spares.size)
	}
}

// TestRecord checks that spans come out of the store as they went in.
func TestRecord(t *testing.T) {
	text := rapid.StringMatching(`[a-zü ]{0,40}`)
	span := rapid.Custom(func(t *rapid.T) SpanData {
		d := SpanData{Trace: ID{1}, ID: newSpanID(), Family: Family(rapid.IntRange(0, int(numFamilies)-1).Draw(t, "family")),
			Title: text.Draw(t, "title"), Duration: time.Duration(rapid.Int64().Draw(t, "duration")), Failed: rapid.Bool().Draw(t, "failed"),
			Generation: rapid.Int64().Draw(t, "generation")}
		d.Start = time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(t, "second"), rapid.Int64Range(0, 999_999_999).Draw(t, "nano"))
		if rapid.Bool().Draw(t, "child") {
			d.Parent = newSpanID()
		}
		for range rapid.IntRange(0, 3).Draw(t, "links") {
			d.Links = append(d.Links, Link{NewID(), newSpanID()})
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "attrs") {
			d.Attrs = append(d.Attrs, Attr{fmt.Sprint("key", i), text.Draw(t, "value")})
		}
		for i := range rapid.IntRange(0, 50).Draw(t, "events") {
			at := time.Duration(i) * time.Millisecond
			d.Events = append(d.Events, Event{At: d.Start.Add(at), Offset: at, Kind: Kind(i % 3), Text: text.Draw(t, "event")})
		}
		return d
	})
	rapid.Check(t, func(t *rapid.T) {
		_, r := recording(Config{Generation: 7})
		in := map[SpanID]SpanData{}
		for _, d := range rapid.SliceOfN(span, 1, 20).Draw(t, "spans") {
			in[d.ID] = d
			r.Import(d)
		}
		r.check(t)
		got, _ := r.Trace(ID{1})
		if len(got.Spans) != len(in) {
			t.Fatalf("%d spans of %d", len(got.Spans), len(in))
		}
		for _, d := range got.Spans {
			if want := in[d.ID]; !reflect.DeepEqual(d, want) {
				t.Fatalf("%+v\nwent in as\n%+v", d, want)
			}
		}
	})
}

// TestLargeTrace checks that a trace that says very much keeps the first spans and the latest whole.
func TestLargeTrace(t *testing.T) {
	ctx, r := recording(Config{})
	ctx, s := StartMessage(ctx, QueueItem, "x", NewID())
	for i := range 100 {
		_, c := Start(ctx, DeliveryRemote, fmt.Sprint(i))
		for range 20 {
			c.Print(strings.Repeat("x", 500))
		}
		c.Finish()
	}
	if st := r.traces[s.ID()]; len(st.data) > maxTraceBytes || cap(st.data) > maxTraceBytes+dataLarge {
		t.Errorf("%d bytes of %d", len(st.data), cap(st.data))
	}
	r.check(t)
	got, _ := r.Trace(s.ID())
	n := len(got.Spans) - 1
	if n < 20 || got.Dropped != 100-n || got.Spans[1].Title != "0" || got.Spans[2].Title != "1" || got.Spans[n].Title != "99" || got.Spans[n-1].Title != "98" {
		t.Errorf("%d spans, %d dropped", n, got.Dropped)
	}
	for _, d := range got.Spans[1:] {
		if len(d.Events) != 20 || d.Events[19].Text != strings.Repeat("x", 500) {
			t.Errorf("%s has %d events", d.Title, len(d.Events))
		}
	}
}

// TestSpares checks that a store that is full uses again what the traces left that it forgets, and that what it shows is not overwritten.
func TestSpares(t *testing.T) {
	ctx, r := recording(Config{Budget: 1 << 20})
	flood(ctx, 2000)
	if r.Size() < 1<<20*3/4 {
		t.Fatalf("the store is not full: %d bytes", r.Size())
	}
	_, s := StartMessage(ctx, SMTPTransaction, "shown", NewID())
	s.Printf("event")
	s.Finish()
	got, _ := r.Trace(s.ID())
	before := map[*byte]bool{}
	for _, st := range r.traces {
		before[&st.data[0]] = true
	}
	flood(ctx, 2000)
	again := 0
	for _, st := range r.traces {
		if before[&st.data[0]] {
			again++
		}
	}
	if n := len(r.traces); n < 500 || again < n*9/10 {
		t.Errorf("%d of %d traces have data that was used before", again, n)
	}
	if _, ok := r.Trace(s.ID()); ok {
		t.Fatal("the trace is still there")
	}
	if d := got.Spans[0]; d.Title != "shown" || d.Events[0].Text != "event" {
		t.Errorf("what was shown became %+v", d)
	}
	for n := 1; n < 3*dataLarge; n += 100 {
		b := r.spares.data(n)
		if cap(b) < n || cap(b) > max(2*n, dataSmall) && cap(b) > n+dataLarge {
			t.Errorf("%d bytes have room for %d", cap(b), n)
		}
		r.spares.putData(b)
	}
	r.check(t)
}

// TestLateChild checks that a span that begins after its parent was forgotten is not mixed up with the trace that has the parent's place now.
func TestLateChild(t *testing.T) {
	ctx, r := recording(Config{Budget: 1 << 20})
	flood(ctx, 2000)
	pctx, parent := StartMessage(ctx, SMTPTransaction, "parent", NewID())
	parent.Finish()
	place := parent.state
	flood(ctx, 2000)
	var others []*Span
	for place.id == parent.ID() || place.active == 0 {
		_, s := StartMessage(ctx, SMTPTransaction, "other", NewID())
		flood(ctx, 1)
		if others = append(others, s); len(others) > 3000 {
			t.Fatal("the place is not used again")
		}
	}
	_, child := Start(pctx, CheckSPF, "child")
	if got, _ := r.Trace(parent.ID()); len(got.Spans) != 1 || got.Spans[0].ID != child.SpanID() {
		t.Errorf("the parent's trace is %+v", got)
	}
	if got, _ := r.Trace(place.id); len(got.Spans) != 1 || got.Spans[0].Title != "other" {
		t.Errorf("the other trace is %+v", got)
	}
	child.Finish()
	for _, s := range others {
		s.Finish()
	}
	r.check(t)
}
