//go:build !race

package auth

import (
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
)

// TestD20UserEnumeration: the time of an answer does not tell a user from nobody. Medians of interleaved samples; the only difference that would show is a hash
// more or less, which is nearly all of the time. Under the race detector hashes are slow and times mean nothing, hence the build tag.
func TestD20UserEnumeration(t *testing.T) {
	pw, err := userdb.NewScrypt("secret")
	if err != nil {
		t.Fatal(err)
	}
	var db userdb.DB
	if err := db.Set("real", pw); err != nil {
		t.Fatal(err)
	}
	if err := db.Set("deaf", userdb.NewDenied()); err != nil {
		t.Fatal(err)
	}
	text, err := db.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	a := New(Config{FS: fstest.MapFS{"u": &fstest.MapFile{Data: text}}})
	if err := a.Load(t.Context(), []File{{"d.test", "u"}}); err != nil {
		t.Fatal(err)
	}
	users := []string{"real@d.test", "deaf@d.test", "nobody@d.test", "x@nowhere.test"}
	samples := map[string][]time.Duration{}
	for range 7 {
		for _, u := range users {
			start := time.Now()
			if ok, _, err := a.Authenticate(t.Context(), address.MustParse(u), "guess"); ok || err != nil {
				t.Fatal(u, ok, err)
			}
			samples[u] = append(samples[u], time.Since(start))
		}
	}
	median := func(u string) time.Duration { slices.Sort(samples[u]); return samples[u][3] }
	for _, u := range users[1:] {
		if r := float64(median(u)) / float64(median("real@d.test")); r < 0.5 || r > 2 {
			t.Errorf("%s takes %v, a real user %v", u, median(u), median("real@d.test"))
		}
	}
}
