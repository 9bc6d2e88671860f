package sched

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

func TestS4Delays(t *testing.T) {
	want := []time.Duration{1, 5, 10, 20, 40, 60, 60, 60}
	for i, w := range want {
		w *= time.Minute
		if got := Delay(i+1, 0, 0); got != w {
			t.Errorf("Delay(%d, 0) = %v, want %v", i+1, got, w)
		}
		if got := Delay(i+1, 0, 1); got != w+w/10 {
			t.Errorf("Delay(%d, 1) = %v, want %v", i+1, got, w+w/10)
		}
		if got := Delay(i+1, 0, -7); got != w-w/10 {
			t.Errorf("Delay(%d, -7) = %v, want %v", i+1, got, w-w/10)
		}
	}
	if got := Delay(0, 0, 0); got != time.Minute {
		t.Errorf("Delay(0, 0) = %v", got)
	}
	for _, jitter := range []float64{-1, 0, 0.5, 1} {
		if got := Delay(1, 7*time.Minute, jitter); got < 7*time.Minute || got > 7*time.Minute+42*time.Second {
			t.Errorf("asked for 7 minutes, jitter %v: %v", jitter, got)
		}
		if got, want := Delay(3, time.Minute, jitter), Delay(3, 0, jitter); got != want {
			t.Errorf("asked for less than the table says: %v, want %v", got, want)
		}
	}
}

// Five days of a destination that is alive but always defers: the retry table holds, within the jitter and a second.
func TestS4FiveDays(t *testing.T) {
	m := newSim(t, Config{})
	m.hosts["a.test"] = func(*sim, Key) (time.Duration, Verdict) { return time.Second, Neutral }
	k := m.add("a.test", 1, true, m.now, 0)
	m.run(5 * 24 * time.Hour)
	tries := m.tries[k]
	if n := len(tries); n < 110 || n > 135 {
		t.Fatalf("%d attempts in five days", n)
	}
	for i := 1; i < len(tries); i++ {
		got, want := tries[i].Sub(tries[i-1])-time.Second, Delay(i, 0, 0)
		if diff := (got - want).Abs(); diff > want/10+time.Second {
			t.Errorf("between attempts %d and %d: %v, want about %v", i, i+1, got, want)
		}
	}
}

// Sites that hang for ten minutes, refuse, or are dead, hundreds of them with deep backlogs, do not delay a site that works.
func TestS2HostileSitesDelayNobody(t *testing.T) {
	m := newSim(t, Config{})
	group := uint32(0)
	add := func(name string) Key { group++; return m.add(name, group, true, m.now, 0) }
	m.host("good.test", 50*time.Millisecond, Good)
	for range 20 { // known to be well before the trouble starts
		add("good.test")
	}
	m.run(time.Minute)
	for i := range 300 {
		name := fmt.Sprintf("bad%d.test", i)
		v := []Verdict{Dead, Slow, Dead}[i%3]
		m.host(name, []time.Duration{10 * time.Minute, time.Second, 2 * time.Minute}[i%3], v)
		for range 100 {
			add(name)
		}
	}
	for minute := range 120 {
		m.run(time.Minute)
		k := add("good.test")
		start := m.now
		m.run(time.Second)
		if len(m.tries[k]) == 0 || m.tries[k][0].Sub(start) > 100*time.Millisecond {
			t.Fatalf("minute %d: a mail to the good site was not attempted at once", minute)
		}
	}
}

// Local deliveries do not wait for remote ones, however many hang.
func TestLocalDoesNotWaitForRemote(t *testing.T) {
	m := newSim(t, Config{Workers: 4})
	m.host("local", time.Millisecond, Good)
	for i := range 10 {
		name := fmt.Sprintf("bad%d.test", i)
		m.host(name, time.Hour, Dead)
		m.add(name, uint32(i+1), true, m.now, 0)
	}
	m.run(time.Second)
	k := m.add("local", 99, true, m.now, 0)
	m.run(time.Second)
	if m.done[k].IsZero() {
		t.Error("local delivery waits for remote ones")
	}
}

// A list with 10,000 recipients, at one destination or at many of one site or locally, does not delay a single mail that comes later.
func TestS2ListDoesNotDelaySingleMail(t *testing.T) {
	const job = 10 * time.Second
	for _, c := range []struct {
		name  string
		setup func(m *sim)
		to    string
	}{
		{"one destination", func(m *sim) {
			m.host("big.test", job, Good)
			for range 100 {
				m.add("big.test", 1, false, m.now, 0)
			}
		}, "big.test"},
		{"many destinations of one site", func(m *sim) {
			for i := range 500 {
				name := fmt.Sprintf("v%d.test", i)
				m.host(name, job, Good)
				d, _ := m.s.Intern(name, "", mail.SMTP, m.now)
				m.s.SetSite(name, "mx.hoster.test")
				m.s.Add(Unit{Dest: d, Group: 1, Due: m.now}, m.now)
				m.s.Release(d)
			}
			m.host("other.test", job, Good)
			m.s.Intern("other.test", "mx.hoster.test", mail.SMTP, m.now)
		}, "other.test"},
		{"local", func(m *sim) {
			m.host("local", job, Good)
			for range 200 {
				m.add("local", 1, false, m.now, 0)
			}
		}, "local"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newSim(t, Config{})
			c.setup(m)
			m.run(15 * time.Second)
			for i := range 5 {
				k := m.add(c.to, uint32(10+i), true, m.now, 0)
				start := m.now
				m.run(3 * time.Second)
				if len(m.tries[k]) == 0 || m.tries[k][0].Sub(start) > 2*time.Second {
					t.Errorf("single mail %d waits behind the list (attempts %v, list running %v)", i, m.tries[k], m.running)
				}
				m.run(17 * time.Second)
			}
		})
	}
}

// Two lists share a site evenly, whichever came first.
func TestListsShareASite(t *testing.T) {
	m := newSim(t, Config{PerSite: 4})
	by := map[uint32]int{}
	m.hosts["a.test"] = func(m *sim, k Key) (time.Duration, Verdict) {
		by[m.s.Group(k)]++
		return time.Second, Good
	}
	for g := uint32(1); g <= 2; g++ {
		for range 400 {
			m.add("a.test", g, false, m.now, 0)
		}
	}
	m.run(60 * time.Second)
	if d := by[1] - by[2]; d < -4 || d > 4 || by[1] < 50 {
		t.Errorf("shares %v", by)
	}
}

// First attempts go before a backlog of repeated ones, which still moves.
func TestFreshBeforeRetries(t *testing.T) {
	m := newSim(t, Config{PerSite: 1})
	m.host("a.test", time.Second, Good)
	var old, fresh []Key
	for i := range 1000 {
		old = append(old, m.add("a.test", uint32(i+1), true, m.now, 3))
	}
	for i := range 100 {
		fresh = append(fresh, m.add("a.test", uint32(2000+i), true, m.now, 0))
	}
	m.run(140 * time.Second)
	n, o := 0, 0
	for _, k := range fresh {
		if !m.done[k].IsZero() {
			n++
		}
	}
	for _, k := range old {
		if !m.done[k].IsZero() {
			o++
		}
	}
	if n != 100 || o < 20 {
		t.Errorf("after 140 s: %d of 100 first attempts and %d repeated ones made", n, o)
	}
}

// Concurrency starts at 5, grows by one a round to 20 while all is well, halves on failure, never leaves 1..20.
func TestS2AdaptiveConcurrency(t *testing.T) {
	m := newSim(t, Config{})
	verdict := Good
	m.hosts["a.test"] = func(*sim, Key) (time.Duration, Verdict) { return time.Second, verdict }
	for i := range 5000 {
		m.add("a.test", uint32(i+1), true, m.now, 0)
	}
	m.run(900 * time.Millisecond)
	if m.running["a.test"] != 5 {
		t.Errorf("%d attempts at first, want 5", m.running["a.test"])
	}
	m.run(time.Second)
	if r := m.running["a.test"]; r != 5 && r != 6 {
		t.Errorf("%d attempts after one round, want 6", r)
	}
	m.run(60 * time.Second)
	if m.running["a.test"] != 20 || m.peak["a.test"] != 20 {
		t.Errorf("%d attempts after a minute, peak %d, want 20", m.running["a.test"], m.peak["a.test"])
	}
	stat := func() SiteStat { st, _ := m.s.Site(m.s.Lookup("a.test")); return st }
	verdict = Slow
	m.run(time.Second) // those that run still end well; those that start now do not
	verdict = Good
	m.run(time.Second)
	if st := stat(); st.Limit > 10 || st.Fails == 0 || st.LastErr == "" {
		t.Errorf("after a round of failures: %+v", st)
	}
}

// A dead site is left alone after three failures in a row and then probed by one attempt at a time, less and less often; when it comes
// back, what waited flows.
func TestS2DeadSiteIsProbed(t *testing.T) {
	m := newSim(t, Config{})
	up := false
	m.hosts["a.test"] = func(*sim, Key) (time.Duration, Verdict) {
		if up {
			return time.Second, Good
		}
		return 5 * time.Second, Dead
	}
	var keys []Key
	for i := range 10_000 {
		keys = append(keys, m.add("a.test", uint32(i+1), true, m.now, 0))
	}
	m.run(10 * time.Second)
	if n := len(m.starts); n != 5 {
		t.Fatalf("%d attempts before the site was left alone, want 5", n)
	}
	if st, ok := m.s.Site(m.s.Lookup("a.test")); !ok || !st.Dead || st.ProbeAt.IsZero() || st.LastErr == "" || st.Waiting != 9995 {
		t.Errorf("stat %+v", st)
	}
	before := len(m.starts)
	m.run(6 * time.Hour)
	if n := len(m.starts) - before; n < 20 || n > 40 {
		t.Errorf("%d probes in six hours", n)
	}
	if m.peak["a.test"] != 5 {
		t.Errorf("peak %d", m.peak["a.test"])
	}
	up = true
	m.run(35 * time.Minute) // a probe within a quarter of an hour, then 10,000 messages, 20 a second
	for _, k := range keys[5:] {
		if m.done[k].IsZero() && len(m.tries[k]) == 0 {
			t.Fatalf("unit %d was not attempted after the site came back", k)
		}
	}
}

// A domain with a broken policy or broken DNS that points its MX at somebody's hosts cannot close them.
func TestBarredDomainDoesNotCloseSharedSite(t *testing.T) {
	m := newSim(t, Config{})
	m.host("victim.test", time.Second, Good)
	m.host("evil.test", time.Second, Barred)
	m.host("alone.test", time.Second, Barred)
	for _, n := range []string{"victim.test", "evil.test"} {
		m.s.Intern(n, "mx.shared.test", mail.SMTP, m.now)
	}
	for i := range 50 {
		m.add("evil.test", uint32(i+1), true, m.now, 0)
		m.add("alone.test", uint32(i+1000), true, m.now, 0)
	}
	m.run(30 * time.Second)
	if st, _ := m.s.Site(m.s.Lookup("victim.test")); st.Dead || st.Fails != 0 {
		t.Errorf("the shared site was closed: %+v", st)
	}
	if st, _ := m.s.Site(m.s.Lookup("alone.test")); !st.Dead {
		t.Errorf("the lone site was not closed: %+v", st)
	}
}

// After a restart a million overdue units start no more than the limits, and those whose time has not come stay.
func TestRestartDoesNotStampede(t *testing.T) {
	m := newSim(t, Config{})
	var later []Key
	for i := range 200_000 {
		name := fmt.Sprintf("d%d.test", i%1000)
		if i < 1000 {
			m.host(name, 10*time.Second, Good)
		}
		if i%2 == 0 {
			m.add(name, uint32(i+1), true, m.now.Add(-time.Hour), 2)
		} else {
			later = append(later, m.add(name, uint32(i+1), true, m.now.Add(30*time.Minute), 2))
		}
	}
	m.run(9 * time.Second)
	total := 0
	for name, n := range m.peak {
		total += n
		if n > 5 {
			t.Errorf("%d attempts at once at %s", n, name)
		}
	}
	if total > 256 {
		t.Errorf("%d attempts at once", total)
	}
	for _, k := range later {
		if len(m.tries[k]) > 0 {
			t.Fatal("a unit was attempted before its persisted time")
		}
	}
}

func TestHoldClaimRemove(t *testing.T) {
	m := newSim(t, Config{PerSite: 1})
	m.host("a.test", time.Second, Good)
	run := m.add("a.test", 1, true, m.now, 0)
	rdy := m.add("a.test", 2, true, m.now, 0)
	wait := m.add("a.test", 3, true, m.now.Add(time.Hour), 1)
	gone := m.add("a.test", 4, true, m.now, 0)
	m.run(500 * time.Millisecond)
	if m.s.Claim(run) {
		t.Error("claimed a running unit")
	}
	for _, k := range []Key{rdy, wait, gone} {
		if !m.s.Claim(k) {
			t.Errorf("cannot claim %+v", m.s.Info(k))
		}
		if m.s.Claim(k) {
			t.Errorf("claimed twice")
		}
	}
	m.s.Hold(rdy)
	m.s.Hold(wait)
	m.s.Remove(gone)
	m.run(2 * time.Hour)
	if len(m.tries) != 1 {
		t.Errorf("attempts %v, want one", m.tries)
	}
	for _, k := range []Key{rdy, wait} {
		if !m.s.Info(k).Held || !m.s.Claim(k) {
			t.Errorf("not held: %+v", m.s.Info(k))
		}
		m.s.Defer(k, m.now, m.now)
	}
	m.run(time.Minute)
	if len(m.done) != 3 {
		t.Errorf("%d done, want 3", len(m.done))
	}
}

// Sites and destinations that are no longer used do not pile up.
func TestMemoryOfSitesIsBounded(t *testing.T) {
	m := newSim(t, Config{})
	for i := range 60_000 {
		name := fmt.Sprintf("d%d.test", i)
		m.hosts[name] = func(*sim, Key) (time.Duration, Verdict) { return time.Millisecond, Good }
		m.add(name, uint32(i+1), true, m.now, 0)
		m.run(2 * time.Millisecond)
		delete(m.hosts, name)
	}
	if n := len(m.s.sites); n > sweepFloor+1 {
		t.Errorf("%d sites remembered", n)
	}
	if n := len(m.s.dests.byName); n > idleDests+10 {
		t.Errorf("%d destinations remembered", n)
	}
	if len(m.s.flows) != 0 || len(m.s.runs) != 0 {
		t.Errorf("%d flows, %d runs left", len(m.s.flows), len(m.s.runs))
	}
}

func TestUnitIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(unit{}); n > 24 {
		t.Errorf("a unit takes %d bytes", n)
	}
}

func TestHeapBytesPerWaitingUnit(t *testing.T) {
	const n = 1_000_000
	heap := func() uint64 {
		var ms runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	before := heap()
	s := New(Config{})
	now := time.Unix(1_800_000_000, 0)
	d, _ := s.Intern("a.test", "", mail.SMTP, now)
	start := time.Now()
	for i := range n {
		s.Add(Unit{Dest: d, Group: uint32(i), Solo: true, Due: now.Add(time.Duration(i%3600) * time.Second), Attempts: 4}, now)
	}
	per := float64(heap()-before) / n
	t.Logf("%.1f bytes a unit, added in %v", per, time.Since(start))
	if per > 36 {
		t.Errorf("%.1f bytes for each waiting unit", per)
	}
	runtime.KeepAlive(s)
}

func TestJudge(t *testing.T) {
	r := smtp.NewReply(450, "4.2.0", "later")
	for _, c := range []struct {
		os   []mail.Outcome
		want Verdict
	}{
		{nil, Neutral},
		{[]mail.Outcome{{Disposition: mail.Delivered}}, Good},
		{[]mail.Outcome{{Reason: mail.ReasonConnectTimeout}}, Dead},
		{[]mail.Outcome{{Reason: mail.ReasonConnectTimeout}, {Disposition: mail.Delivered}}, Good},
		{[]mail.Outcome{{Reason: mail.ReasonGreylist, Reply: r}}, Good},
		{[]mail.Outcome{{Reason: mail.ReasonMailbox, Reply: r, Disposition: mail.Failed}}, Good},
		{[]mail.Outcome{{Reason: mail.ReasonRateLimit, Reply: r}}, Slow},
		{[]mail.Outcome{{Reason: mail.ReasonDNS}}, Barred},
		{[]mail.Outcome{{Reason: mail.ReasonDNS, Disposition: mail.Failed}}, Neutral},
		{[]mail.Outcome{{Reason: mail.ReasonSTSPolicy}}, Barred},
		{[]mail.Outcome{{Reason: mail.ReasonInternal}}, Neutral},
		{[]mail.Outcome{{}}, Neutral},
	} {
		if got := Judge(c.os); got != c.want {
			t.Errorf("Judge(%+v) = %v, want %v", c.os, got, c.want)
		}
	}
}

// Units taken out of the middle leave the rest in the order of their times.
func TestHeapOrder(t *testing.T) {
	m := newSim(t, Config{})
	var keys []Key
	for i := range 500 {
		keys = append(keys, m.add("a.test", uint32(i+1), true, m.now.Add(time.Duration(1+m.rnd.IntN(100_000))*time.Second), 1))
	}
	for n := range 400 {
		i := m.rnd.IntN(len(keys))
		if !m.s.Claim(keys[i]) {
			t.Fatal("cannot claim")
		}
		m.s.Remove(keys[i])
		keys = append(keys[:i], keys[i+1:]...)
		for j := 1; j < len(m.s.heap); j++ {
			if m.s.less(j, (j-1)/2) {
				t.Fatalf("out of order at %d after %d", j, n)
			}
		}
	}
}

// Whatever happens in whatever order, every unit is in exactly one place, none is attempted early or twice at once, and none is forgotten.
func TestScheduleProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(Config{Workers: 6, PerSite: 3, Initial: 2, Local: 2, Pipe: 1})
		now := time.Unix(1_800_000_000, 0)
		names := []string{"a.test", "b.test", "local", "pipe"}
		due := map[Key]time.Time{}
		state := map[Key]string{}
		pick := func(want string) Key {
			var ks []Key
			for k, st := range state {
				if st == want {
					ks = append(ks, k)
				}
			}
			if len(ks) == 0 {
				t.Skip()
			}
			least := ks[0]
			for _, k := range ks {
				least = min(least, k)
			}
			return least
		}
		put := func(k Key, at time.Time) { s.Defer(k, at, now); state[k], due[k] = "in", at }
		later := func() time.Time { return now.Add(time.Duration(rapid.IntRange(-5, 600).Draw(t, "in")) * time.Second) }
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "dest")
				group := rapid.Uint32Range(1, 4).Draw(t, "group")
				d, _ := s.Intern(name, "", transportOf(name), now)
				at := later()
				k := s.Add(Unit{Dest: d, Group: group, Solo: group == 1, Due: at, Attempts: rapid.IntRange(0, 2).Draw(t, "n")}, now)
				s.Release(d)
				if _, ok := state[k]; ok {
					t.Fatalf("key %d given twice", k)
				}
				state[k], due[k] = "in", at
			},
			"next": func(t *rapid.T) {
				s.Tick(now)
				k, ok := s.Next(now)
				if !ok {
					return
				}
				if state[k] != "in" || due[k].After(now) {
					t.Fatalf("unit %d attempted while %s, due %v, now %v", k, state[k], due[k], now)
				}
				state[k] = "running"
			},
			"done": func(t *rapid.T) {
				k := pick("running")
				s.Done(k, rapid.SampledFrom([]Verdict{Neutral, Good, Slow, Dead, Barred}).Draw(t, "v"), "x", now, 0)
				s.Attempted(k)
				state[k] = "claimed"
			},
			"claim": func(t *rapid.T) {
				k := pick("in")
				if !s.Claim(k) {
					t.Fatal("cannot claim")
				}
				state[k] = "claimed"
			},
			"defer":  func(t *rapid.T) { put(pick("claimed"), later()) },
			"remove": func(t *rapid.T) { k := pick("claimed"); s.Remove(k); delete(state, k) },
			"hold":   func(t *rapid.T) { k := pick("claimed"); s.Hold(k); state[k] = "held" },
			"free": func(t *rapid.T) {
				k := pick("held")
				if !s.Claim(k) {
					t.Fatal("cannot claim a held unit")
				}
				put(k, now)
			},
			"time": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(1, 300).Draw(t, "s")) * time.Second) },
			"": func(t *rapid.T) {
				if n := s.Running(); n > 6+2+1 {
					t.Fatalf("%d running", n)
				}
				for i := 1; i < len(s.heap); i++ {
					if s.less(i, (i-1)/2) || s.unit(s.heap[i]).place != uint32(i) {
						t.Fatalf("the heap is out of order at %d", i)
					}
				}
				for k, st := range state {
					if in := s.Info(k); in.Running != (st == "running") || in.Held != (st == "held") || in.State == "free" {
						t.Fatalf("unit %d is %s for us, %+v for the schedule", k, st, in)
					}
				}
			},
		})
		// Drain: with good answers everything left is attempted within an hour.
		for k, st := range state {
			switch st {
			case "running":
				s.Done(k, Good, "", now, 0)
				put(k, now)
			case "claimed", "held":
				s.Claim(k)
				put(k, now)
			}
		}
		for range 400 {
			now = now.Add(20 * time.Second)
			s.Tick(now)
			for k, ok := s.Next(now); ok; k, ok = s.Next(now) {
				if state[k] != "in" {
					t.Fatalf("unit %d attempted while %q", k, state[k])
				}
				s.Done(k, Good, "", now, 0)
				s.Remove(k)
				delete(state, k)
			}
		}
		if len(state) > 0 || len(s.flows) > 0 || len(s.runs) > 0 || s.remote != 0 || s.doubtful != 0 || len(s.heap) > 0 {
			t.Fatalf("left: units %v, %d flows, %d runs, %d remote, %d doubtful, %d in the heap", state, len(s.flows), len(s.runs), s.remote, s.doubtful, len(s.heap))
		}
	})
}
