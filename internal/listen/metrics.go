package listen

import "blitiri.com.ar/go/chasquid/internal/expvarom"

type metrics struct {
	headers *expvarom.CounterVec
}

func newMetrics(r *expvarom.Registry) *metrics {
	return &metrics{
		headers: r.CounterVec("chasquid_smtp_in_proxy_headers_total", "PROXY headers of incoming connections, by what came of them.",
			[]string{"result"}, []string{"ok", "local", "untrusted", "malformed", "timeout"}),
	}
}
