package lru

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestEvictsLeastRecentlyUsed(t *testing.T) {
	m := New[string, int](2)
	m.Put("a", 1)
	m.Put("b", 2)
	m.Get("a")
	m.Peek("b")
	if k, v, ok := m.Put("c", 3); k != "b" || v != 2 || !ok {
		t.Errorf("evicted %q %d %v", k, v, ok)
	}
	if _, _, ok := m.Put("a", 4); ok {
		t.Error("replacing evicted something")
	}
	if v, ok := m.Get("a"); v != 4 || !ok {
		t.Errorf("a is %d %v", v, ok)
	}
}

// Against a model: a slice, most recently used first.
func TestModel(t *testing.T) {
	type entry struct{ k, v int }
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.IntRange(0, 5).Draw(t, "max")
		m, size := New[int, int](bound), max(bound, 1)
		var model []entry
		find := func(k int) int { return slices.IndexFunc(model, func(e entry) bool { return e.k == k }) }
		take := func(k int) (e entry, ok bool) {
			i := find(k)
			if i < 0 {
				return e, false
			}
			e = model[i]
			model = slices.Delete(model, i, i+1)
			return e, true
		}
		for range rapid.IntRange(0, 50).Draw(t, "steps") {
			k := rapid.IntRange(0, 7).Draw(t, "key")
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				v := rapid.Int().Draw(t, "value")
				_, had := take(k)
				model = slices.Insert(model, 0, entry{k, v})
				ok, ov, evicted := m.Put(k, v)
				if wantEvict := len(model) > size; evicted != wantEvict {
					t.Fatalf("evicted %v, want %v (had %v)", evicted, wantEvict, had)
				} else if evicted {
					last := model[size]
					model = model[:size]
					if (entry{ok, ov}) != last {
						t.Fatalf("evicted %d %d, want %v", ok, ov, last)
					}
				}
			case 1:
				v, ok := m.Get(k)
				e, had := take(k)
				if had {
					model = slices.Insert(model, 0, e)
				}
				if ok != had || v != e.v {
					t.Fatalf("Get %d: %d %v, want %v %v", k, v, ok, e, had)
				}
			case 2:
				v, ok := m.Peek(k)
				if i := find(k); ok != (i >= 0) || ok && v != model[i].v {
					t.Fatalf("Peek %d: %d %v", k, v, ok)
				}
			case 3:
				if _, had := take(k); m.Remove(k) != had {
					t.Fatalf("Remove %d: want %v", k, had)
				}
			}
			var got []entry
			for k, v := range m.All() {
				got = append(got, entry{k, v})
			}
			if k, v, ok := m.Oldest(); ok != (len(got) > 0) || ok && (entry{k, v}) != got[len(got)-1] {
				t.Fatalf("oldest %d %d %v", k, v, ok)
			}
			if !slices.Equal(got, model) || m.Len() != len(model) {
				t.Fatalf("have %v, want %v", got, model)
			}
		}
	})
}
