package monitoring

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/remedy"
	"blitiri.com.ar/go/log"
	"github.com/prometheus/exporter-toolkit/web"
)

// webConfig is a file in the format of the Prometheus exporter toolkit, which reads it again for each request.
type webConfig struct{ path string }

// CheckWebConfig reports what is wrong with the file monitoring_web_config names, so that a start can fail with a reason.
func CheckWebConfig(path string) error {
	if path == "" {
		return nil
	}
	if err := web.Validate(path); err != nil {
		return remedy.With(fmt.Errorf("monitoring_web_config %s: %s", path, strings.Join(strings.Fields(err.Error()), " ")), "correct the file; its format is that of the Prometheus exporter toolkit")
	}
	return nil
}

// serveWeb serves with the TLS and the passwords of the file.
func serveWeb(l net.Listener, srv *http.Server, path string) error {
	return web.Serve(l, srv, &web.FlagConfig{WebConfigFile: &path}, slog.New(toolkitLog{}))
}

// hasUsers reports whether the file has passwords: then the toolkit has checked the one of any request that reaches us. It sees only
// users that are written one a line, as the toolkit's documentation has them; others are asked for their password, but trusted no more
// than anybody.
func (c *webConfig) hasUsers() bool {
	b, err := os.ReadFile(c.path)
	if err != nil {
		return false
	}
	in := false
	for line := range strings.Lines(string(b)) {
		text := strings.TrimSpace(line)
		if text == "" || text[0] == '#' {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			in = strings.TrimSpace(strings.SplitN(text, "#", 2)[0]) == "basic_auth_users:"
			continue
		}
		if in {
			_, hash, ok := strings.Cut(text, ":")
			return ok && strings.HasPrefix(strings.Trim(strings.TrimSpace(hash), `"'`), "$2")
		}
	}
	return false
}

// toolkitLog is a log for the toolkit that takes only what is wrong.
type toolkitLog struct{}

func (toolkitLog) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (toolkitLog) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%q", a.Key, a.Value.String())
		return true
	})
	log.Errorf("monitoring: %s%s", r.Message, b.String())
	return nil
}

func (t toolkitLog) WithAttrs([]slog.Attr) slog.Handler { return t }
func (t toolkitLog) WithGroup(string) slog.Handler      { return t }
