package alerts

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
	"go.yaml.in/yaml/v2"
)

// startBlackbox runs the blackbox exporter with the shipped modules, each twice: as it is, and under "trusting" believing the server's
// certificate, which no authority has signed here.
func startBlackbox(t *testing.T, s *harness.Server) string {
	t.Helper()
	exporter := harness.Need(t, "prometheus-blackbox-exporter", "prometheus-blackbox-exporter")
	var conf struct{ Modules map[string]map[string]any }
	read := func() {
		if err := yaml.Unmarshal([]byte(read(t, dir+"/blackbox.yml")), &conf); err != nil {
			t.Fatal(err)
		}
	}
	read()
	plain := conf.Modules
	conf.Modules = nil
	read()
	for name, m := range conf.Modules {
		m["tcp"].(map[any]any)["tls_config"] = map[string]string{"ca_file": filepath.Join(s.Dir, "certs", "mail.example.test", "fullchain.pem"), "server_name": "mail.example.test"}
		plain["trusting_"+name] = m
	}
	b, err := yaml.Marshal(map[string]any{"modules": plain})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "blackbox.yml")
	if err := os.WriteFile(path, b, 0600); err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + harness.FreePort(t, "127.0.0.1")
	background(t, exporter, "--config.file="+path, "--web.listen-address="+addr)
	harness.WaitFor(t, waitTime, "the exporter", func() bool {
		resp, err := http.Get("http://" + addr + "/-/healthy")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
	return addr
}

// TestBlackbox looks at the server from outside with the shipped modules: they see its ports and until when the certificate is valid, and
// see that something is wrong if the certificate is not to be trusted or the protocol is another one.
func TestBlackbox(t *testing.T) {
	s := harness.New(t, harness.Options{})
	s.Start()
	addr := startBlackbox(t, s)
	for _, c := range []struct {
		module, target string
		good           bool
	}{
		{"trusting_smtp_starttls", s.SMTP, true},
		{"trusting_smtp_starttls", s.Submission, true},
		{"trusting_smtps", s.SubmissionTLS, true},
		{"smtp_starttls", s.SMTP, false},
		{"smtps", s.SubmissionTLS, false},
		{"trusting_smtps", s.SMTP, false},
		{"trusting_smtp_starttls", "127.0.0.1:" + harness.FreePort(t, "127.0.0.1"), false},
	} {
		t.Run(c.module+" "+c.target, func(t *testing.T) {
			t.Parallel()
			_, body := get(t, "http://"+addr+"/probe?"+url.Values{"module": {c.module}, "target": {c.target}}.Encode())
			if got := strings.Contains(body, "\nprobe_success 1\n"); got != c.good || !got && !strings.Contains(body, "\nprobe_success 0\n") {
				t.Errorf("success %v, want %v", got, c.good)
			}
			if c.good && !strings.Contains(body, "\nprobe_ssl_earliest_cert_expiry ") {
				t.Error("it does not say until when the certificate is valid")
			}
		})
	}
}
