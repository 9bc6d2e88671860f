package trace

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	id := NewID()
	back, err := ParseID(id.String())
	if err != nil || back != id || len(id.Short()) != 16 || !strings.HasPrefix(id.String(), id.Short()) {
		t.Errorf("%v %v %v %q", id, back, err, id.Short())
	}
	if (ID{}).String() != "" || (ID{}).Short() != "" || (SpanID{}).String() != "" {
		t.Error("the zero id renders as something")
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 32), strings.Repeat("0", 33), strings.Repeat("0", 64)} {
		if id, err := ParseID(bad); err == nil || id != (ID{}) {
			t.Errorf("%q parses as %v", bad, id)
		}
	}
	type both struct {
		ID   ID
		Span SpanID
		Fam  Family
		Kind Kind
	}
	for _, in := range []both{{}, {id, newSpanID(), QueueItem, Error}} {
		b, err := json.Marshal(in)
		var out both
		if err != nil || json.Unmarshal(b, &out) != nil || out != in {
			t.Errorf("%s becomes %+v (%v)", b, out, err)
		}
	}
	var out both
	for _, bad := range []string{`{"ID":"12"}`, `{"Span":"12"}`, `{"Span":"00000000000000000000"}`, `{"Fam":"x"}`} {
		if json.Unmarshal([]byte(bad), &out) == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestTraceparent(t *testing.T) {
	const ok = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	id, span, good := ParseTraceparent(ok)
	if !good || Traceparent(id, span) != ok {
		t.Errorf("%v %v %v", id, span, good)
	}
	if Traceparent(ID{}, span) != "" {
		t.Error("a header for no trace")
	}
	if i, s, good := ParseTraceparent(Traceparent(id, SpanID{})); !good || i != id || s == (SpanID{}) {
		t.Error("no valid header without a span")
	}
	for s, want := range map[string]bool{
		"01" + ok[2:] + "-more": true,
		"01" + ok[2:]:           true,
		ok + "-more":            false,
		"01" + ok[2:] + "x":     false,
		"ff" + ok[2:]:           false,
		"0g" + ok[2:]:           false,
		strings.ToUpper(ok):     false,
		ok[:54]:                 false,
		"":                      false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e47-36000f067aa0ba902b7-0": false,
	} {
		if _, _, good := ParseTraceparent(s); good != want {
			t.Errorf("%q: %v", s, good)
		}
	}
}

func TestFamilies(t *testing.T) {
	for _, f := range Families() {
		if back, ok := ParseFamily(f.String()); !ok || back != f || f.String() == "" {
			t.Errorf("%d: %q", f, f)
		}
	}
	if _, ok := ParseFamily("unknown"); ok || Family(200).String() != "unknown" {
		t.Error("unknown is a family")
	}
}

func FuzzTraceparent(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	f.Add("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what the future will be like")
	f.Fuzz(func(t *testing.T, s string) {
		id, span, ok := ParseTraceparent(s)
		if !ok {
			if id != (ID{}) || span != (SpanID{}) {
				t.Errorf("%q is refused, but gives %v %v", s, id, span)
			}
			return
		}
		out := Traceparent(id, span)
		if out[3:52] != s[3:52] {
			t.Errorf("%q becomes %q", s, out)
		}
	})
}
