package spf

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"go.yaml.in/yaml/v2"
)

// suite is one document of the openspf test suite for RFC 7208, testdata/rfc7208-tests.yml (its licence stands beside it; the
// "skip" marks in this copy are of another implementation and are not honoured here).
type suite struct {
	Description string
	Tests       map[string]vector
	ZoneData    map[string][]map[string]any
}

type vector struct {
	Helo, Host, MailFrom string
	Result               any
}

func list(v any) (l []string) {
	switch v := v.(type) {
	case nil:
	case []any:
		for _, e := range v {
			l = append(l, fmt.Sprint(e))
		}
	default:
		l = append(l, fmt.Sprint(v))
	}
	return l
}

func loadSuite(t *testing.T) (all []suite) {
	data, err := os.ReadFile("testdata/rfc7208-tests.yml")
	if err != nil {
		t.Fatal(err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var s suite
		if err := dec.Decode(&s); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
}

// quote writes the strings of a TXT record in presentation format.
func quote(parts []string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(` "`)
		for i := range len(p) {
			fmt.Fprintf(&b, `\%03d`, p[i])
		}
		b.WriteByte('"')
	}
	return b.String()
}

// zoneText turns the suite's zone data into a zone.
func (s suite) zone(t *testing.T) *zone.Zone {
	z := zone.MustNew("")
	for _, name := range slices.Sorted(maps.Keys(s.ZoneData)) {
		add := func(format string, args ...any) {
			owner := strings.ReplaceAll(strings.TrimSuffix(name, "."), " ", `\032`)
			if err := z.Add(owner + " " + fmt.Sprintf(format, args...)); err != nil {
				t.Logf("%s: not put into the zone: %v", s.Description, err)
			}
		}
		hasTXT := slices.ContainsFunc(s.ZoneData[name], func(r map[string]any) bool { return r["TXT"] != nil })
		answersTXT := slices.ContainsFunc(s.ZoneData[name], func(r map[string]any) bool { return r["TXT"] != nil && r["TXT"] != "NONE" })
		for _, rec := range s.ZoneData[name] {
			for typ, v := range rec {
				switch typ {
				case "TIMEOUT": // of the types that have no records
					if !answersTXT {
						add("TIMEOUT")
					}
				case "CNAMELOOP":
					add("CNAME %s", name)
				case "MX":
					add("MX %s %s.", list(v)[0], strings.TrimSuffix(list(v)[1], "."))
				case "SPF": // the suite's drivers copy type SPF to TXT where there is none
					if !hasTXT && v != "NONE" {
						add("TXT%s", quote(list(v)))
					}
				case "TXT":
					if v != "NONE" {
						add("TXT%s", quote(list(v)))
					}
				case "CNAME", "PTR":
					add("%s %s.", typ, strings.TrimSuffix(fmt.Sprint(v), "."))
				default:
					for _, a := range list(v) {
						add("%s %s", typ, a)
					}
				}
			}
		}
	}
	return z
}

// skipped are the vectors whose expectation is not ours.
var skipped = map[string]string{
	"p-macro-multiple": "the macro p is always \"unknown\": RFC 7208 section 7.2 says that it should not be used, and looking it up is a gift to whoever owns the client's reverse zone",
}

// TestC106Suite runs the openspf suite for RFC 7208.
func TestC106Suite(t *testing.T) {
	n := 0
	for _, s := range loadSuite(t) {
		z := s.zone(t)
		c := New(Config{Resolver: z})
		for _, name := range slices.Sorted(maps.Keys(s.Tests)) {
			v := s.Tests[name]
			t.Run(strings.ReplaceAll(s.Description, " ", "_")+"/"+name, func(t *testing.T) {
				n++
				if why := skipped[name]; why != "" {
					t.Logf("not looked at: %s", why)
					return
				}
				ip := netip.MustParseAddr(v.Host)
				var from address.Address
				if i := strings.LastIndexByte(v.MailFrom, '@'); i >= 0 {
					from = address.Address{Local: v.MailFrom[:i], Domain: v.MailFrom[i+1:]}
				} else if v.MailFrom != "" {
					from.Local = v.MailFrom
				}
				r := c.Check(context.Background(), ip, v.Helo, from)
				if !slices.Contains(list(v.Result), r.Value) {
					t.Errorf("helo %q, from %q, ip %s: got %s (%s), want %v", v.Helo, v.MailFrom, ip, r.Value, r.Reason, v.Result)
				}
			})
		}
	}
	if n < 200 {
		t.Errorf("only %d vectors", n)
	}
}
