package expvarom

import (
	"encoding/json"
	"expvar"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// mangle turns an expvar name into a metric name: every rune outside [A-Za-z0-9_] becomes "_", and a leading digit gets "i" in front.
func mangle(name string) string {
	m := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_':
			return r
		}
		return '_'
	}, name)
	if m != "" && '0' <= m[0] && m[0] <= '9' {
		m = "i" + m
	}
	return m
}

// Int is a legacy integer variable. It counts exactly up to 2^63-1 in expvar.
type Int struct {
	v    atomic.Int64
	desc *prometheus.Desc
}

// Int returns the legacy integer with this expvar name, such as "chasquid/queue/putCount".
func (r *Registry) Int(name, help string) *Int {
	m := mangle(name)
	return once(r, Info{Name: m, Legacy: name, Help: help, Type: "untyped"}, func() (*Int, prometheus.Collector, expvar.Var) {
		i := &Int{desc: prometheus.NewDesc(m, help, nil, nil)}
		return i, i, i
	})
}

// Inc adds one.
func (i *Int) Inc() { i.v.Add(1) }

// Add adds n.
func (i *Int) Add(n int64) { i.v.Add(n) }

// Set replaces the value.
func (i *Int) Set(n int64) { i.v.Store(n) }

// Value returns the current value.
func (i *Int) Value() int64 { return i.v.Load() }

// String is the value as JSON, for expvar.
func (i *Int) String() string { return strconv.FormatInt(i.v.Load(), 10) }

// Describe is for Prometheus.
func (i *Int) Describe(ch chan<- *prometheus.Desc) { ch <- i.desc }

// Collect is for Prometheus.
func (i *Int) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(i.desc, prometheus.UntypedValue, float64(i.v.Load()))
}

// Bounds of the keys of a Map.
const (
	freeKeys   = 16  // unknown keys admitted first come, first served
	closedKeys = 256 // keys a fold function declared to be of a closed set; more are a mistake in it
	maxKeyLen  = 64  // bytes of a key
)

// Map is a legacy variable with one value per key. Its keys are bounded: the known ones, those its fold function vouches for, and
// freeKeys of any other kind; what comes later is counted under one name.
type Map struct {
	keys atomic.Pointer[map[string]*atomic.Int64] // replaced whole when a key is added
	fold func(key string) (string, bool)
	over prometheus.Counter
	desc *prometheus.Desc

	mu     sync.Mutex // held to add a key
	free   int        // free slots left
	closed int        // slots left for keys the fold function vouches for
}

// Map returns the legacy map with this expvar name. label is the name of the label that carries the key on /metrics. The known keys are
// there from the start, at 0. Past 16 unknown keys, further ones are counted as "other".
func (r *Registry) Map(name, label, help string, known ...string) *Map {
	return r.MapFold(name, label, help, foldOther, known...)
}

func foldOther(key string) (string, bool) {
	if key == "" {
		return "other", true
	}
	return key, false
}

// MapFold is Map with a say in how unknown keys are named. fold returns the name under which a key that is not known is counted, and
// whether that name is of a small closed set: then it is always admitted, otherwise it takes one of the free slots. fold("") is the name
// for all that find no slot.
func (r *Registry) MapFold(name, label, help string, fold func(key string) (string, bool), known ...string) *Map {
	m := mangle(name)
	info := Info{Name: m, Legacy: name, Help: help, Type: "untyped", Labels: []string{label}, Known: [][]string{known}}
	return once(r, info, func() (*Map, prometheus.Collector, expvar.Var) {
		v := &Map{fold: fold, over: r.guard(m), desc: prometheus.NewDesc(m, help, []string{label}, nil), free: freeKeys, closed: closedKeys}
		keys := make(map[string]*atomic.Int64, len(known))
		for _, k := range known {
			keys[cleanKey(k)] = new(atomic.Int64)
		}
		v.keys.Store(&keys)
		return v, v, v
	})
}

// Inc adds one to the key's value.
func (m *Map) Inc(key string) { m.Add(key, 1) }

// Add adds n to the key's value.
func (m *Map) Add(key string, n int64) {
	if v := (*m.keys.Load())[key]; v != nil {
		v.Add(n)
		return
	}
	m.admit(key).Add(n)
}

// Value returns the value of the key, 0 if there is no such key.
func (m *Map) Value(key string) int64 {
	if v := (*m.keys.Load())[key]; v != nil {
		return v.Load()
	}
	return 0
}

// admit returns the variable for a key that is not there under its own name.
func (m *Map) admit(key string) *atomic.Int64 {
	name, closed := m.fold(key)
	name = cleanKey(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := (*m.keys.Load())[name]; v != nil {
		return v
	}
	slot := &m.free
	if closed {
		slot = &m.closed
	}
	if *slot > 0 {
		*slot--
		return m.insert(name)
	}
	if m.over != nil {
		m.over.Inc()
	}
	name, _ = m.fold("")
	name = cleanKey(name)
	if v := (*m.keys.Load())[name]; v != nil {
		return v
	}
	return m.insert(name)
}

func (m *Map) insert(name string) *atomic.Int64 {
	old := *m.keys.Load()
	keys := make(map[string]*atomic.Int64, len(old)+1)
	for k, v := range old {
		keys[k] = v
	}
	v := new(atomic.Int64)
	keys[strings.Clone(name)] = v
	m.keys.Store(&keys)
	return v
}

// cleanKey makes a key fit for a label value: valid UTF-8, quoted as Go does if it was not, and short.
func cleanKey(k string) string {
	if !utf8.ValidString(k) {
		k = strconv.Quote(k)
	}
	if len(k) > maxKeyLen {
		k = k[:maxKeyLen]
		for !utf8.ValidString(k) {
			k = k[:len(k)-1]
		}
	}
	return k
}

func sortedKeys(m map[string]*atomic.Int64) []string {
	ks := make([]string, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	return ks
}

// String is the map as JSON with sorted keys, spaced as the standard library's expvar.Map.
func (m *Map) String() string {
	keys := *m.keys.Load()
	b := []byte{'{'}
	for i, k := range sortedKeys(keys) {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, jsonString(k)...)
		b = append(b, ": "...)
		b = strconv.AppendInt(b, keys[k].Load(), 10)
	}
	return string(append(b, '}'))
}

// Describe is for Prometheus.
func (m *Map) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

// Collect is for Prometheus.
func (m *Map) Collect(ch chan<- prometheus.Metric) {
	for k, v := range *m.keys.Load() {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.UntypedValue, float64(v.Load()), k)
	}
}

// constString is a legacy string variable: expvar shows the string, /metrics a 1 with the string as the label "value".
type constString struct {
	value string
	desc  *prometheus.Desc
}

// String publishes a legacy string variable. The first value given for a name stays.
func (r *Registry) String(name, help, value string) {
	m := mangle(name)
	value = strings.ToValidUTF8(value, "\uFFFD")
	info := Info{Name: m, Legacy: name, Help: help, Type: "untyped", Labels: []string{"value"}, Known: [][]string{{value}}}
	once(r, info, func() (*constString, prometheus.Collector, expvar.Var) {
		s := &constString{value, prometheus.NewDesc(m, help, []string{"value"}, nil)}
		return s, s, s
	})
}

func (s *constString) String() string                      { return string(jsonString(s.value)) }
func (s *constString) Describe(ch chan<- *prometheus.Desc) { ch <- s.desc }
func (s *constString) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(s.desc, prometheus.UntypedValue, 1, s.value)
}

func jsonString(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil { // a string always marshals
		return []byte(`""`)
	}
	return b
}

// Verbs that are not SMTP here but are seen in the wild; each keeps a name of its own in the count of unknown commands.
var strangeVerbs = map[string]bool{
	"BDAT": true, "ETRN": true, "XCLIEN": true, "XFORWA": true, "LHLO": true, "TURN": true, "ATRN": true, "SEND": true, "SOML": true,
	"SAML": true, "CONNEC": true, "OPTION": true, "HEAD": true, "PUT": true, "USER": true, "PASS": true, "CAPA": true, "SSH": true,
}

// FoldCommand is the fold function of a count of SMTP commands: a verb that is not known is counted as unknown<"VERB">, of which the
// first six characters are kept; one that is not made of letters and digits, or finds no slot, as unknown<other>.
func FoldCommand(verb string) (string, bool) {
	const overflow = "unknown<other>"
	verb = strings.TrimSuffix(strings.TrimPrefix(verb, `unknown<"`), `">`)
	if verb == "" {
		return overflow, true
	}
	verb = strings.ToUpper(verb[:min(len(verb), 6)])
	for i := range len(verb) {
		if c := verb[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return overflow, true
		}
	}
	return `unknown<"` + verb + `">`, strangeVerbs[verb]
}
