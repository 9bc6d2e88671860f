package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestList(t *testing.T) {
	c := mustLoad(t, "# comment: hostname: here\n\nhostname: \"a.test\"\nsmtp_address: [\":25\",\n  \":26\"]\nmax_data_size_mb: -1\n"+
		"otlp_endpoint: \"http://u:geheim@h/\"\nacme { email: \"x@y.test\" }", `data_dir: "/d"`)
	got := map[string]Setting{}
	for _, s := range c.List() {
		got[s.Name] = s
	}
	for name, want := range map[string]Setting{
		"hostname":         {"hostname", "hostname: \"a.test\"\n", c.File + ":3"},
		"smtp_address":     {"smtp_address", "smtp_address: \":25\"\nsmtp_address: \":26\"\n", c.File + ":4"},
		"max_data_size_mb": {"max_data_size_mb", "max_data_size_mb: 50\n", "default"},
		"data_dir":         {"data_dir", "data_dir: \"/d\"\n", "override"},
		"otlp_endpoint":    {"otlp_endpoint", "otlp_endpoint: \"http://u:xxxxx@h/\"\n", c.File + ":7"},
		"acme":             {"acme", "acme: {\n  email: \"x@y.test\"\n}\n", c.File + ":8"},
		"max_queue_items":  {"max_queue_items", "max_queue_items: 1000000\n", "default"},
	} {
		if d := cmp.Diff(want, got[name]); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if s := mustLoad(t, "", "").List()[0]; s.Name != "hostname" || s.Origin != "system" {
		t.Errorf("%+v", s)
	}
}

func TestDiff(t *testing.T) {
	a := mustLoad(t, `hostname: "a.test" smtp_address: ":25" suffix_separators: "+" dovecot_auth: true timeouts { data: "1m" }`, "")
	b := mustLoad(t, `hostname: "a.test" smtp_address: [":25", ":26"] suffix_separators: "" otlp_endpoint: "http://u:geheim@h/" timeouts { data: "2m" }`, "")
	var got []string
	for _, c := range Diff(a, b) {
		got = append(got, c.String())
	}
	want := []string{
		`smtp_address: ":25" -> ":25" ":26"`,
		`suffix_separators: "+" -> ""`,
		`dovecot_auth: true -> unset`,
		`otlp_endpoint: unset -> "http://u:xxxxx@h/"`,
	}
	if len(got) != 5 || !strings.HasPrefix(got[4], "timeouts: { command: ") || !strings.Contains(got[4], `data: "2m"`) {
		t.Fatalf("%q", got)
	}
	if d := cmp.Diff(want, got[:4]); d != "" {
		t.Error(d)
	}
	if d := Diff(a, a); len(d) > 0 {
		t.Error(d)
	}
}
