package courier

import (
	"crypto/tls"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// The closed label sets of the delivery metrics.
var (
	stageNames   = []string{"mx_lookup", "sts_policy", "connect", "banner", "ehlo", "starttls", "envelope", "data", "quit", "mda_exec"}
	commandNames = []string{"connect", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "end_of_data"}
	classNames   = []string{"2xx", "4.1", "4.2", "4.3", "4.4", "4.5", "4.6", "4.7", "4xx", "5.1", "5.2", "5.3", "5.4", "5.5", "5.6", "5.7", "5xx"}
	dialResults  = []string{"ok", "refused", "timeout", "unreachable", "reset", "other"}
	levelNames   = []string{"plain", "tls_insecure", "tls_secure", "tls_failed"}
	tlsVersions  = []string{"tls1_0", "tls1_1", "tls1_2", "tls1_3", "none"}
	resultNames  = []string{"delivered", "deferred", "bounced"}
	rtypes       = []string{"local", "remote", "forward", "pipe"}
)

// Indexes into stageNames.
const (
	stageMX = iota
	stagePolicy
	stageConnect
	stageBanner
	stageEHLO
	stageSTARTTLS
	stageEnvelope
	stageData
	stageQuit
	stageExec
	numStages
)

// Indexes into commandNames.
const (
	cmdConnect = iota
	cmdEHLO
	cmdSTARTTLS
	cmdMAIL
	cmdRCPT
	cmdDATA
	cmdEnd
	numCommands
)

// metrics are the variables of all couriers that share a registry; the children are resolved once.
type metrics struct {
	stage     [numStages]*expvarom.Histogram
	replies   [numCommands][]*expvarom.Counter
	providers map[string]*[3]*expvarom.Counter
	conns     *expvarom.CounterVec
	tlsConns  *expvarom.CounterVec
	levelIn   [2]*expvarom.Counter // pass, fail
	sent      [4]*expvarom.Counter // by transport

	oldTLS   *expvarom.Map
	oldLevel *expvarom.Map
}

func newMetrics(r *expvarom.Registry) *metrics {
	m := &metrics{}
	stage := r.HistogramVec("chasquid_delivery_stage_duration_seconds", "Time spent in one stage of a delivery attempt.",
		expvarom.Net, []string{"stage"}, stageNames)
	for i, n := range stageNames {
		m.stage[i] = stage.With(n)
	}
	replies := r.CounterVec("chasquid_delivery_remote_replies_total",
		"Replies of remote servers, by the command they answer and the class and subject of their status.",
		[]string{"command", "class"}, commandNames, classNames)
	for i, c := range commandNames {
		for _, cl := range classNames {
			m.replies[i] = append(m.replies[i], replies.With(c, cl))
		}
	}
	m.conns = r.CounterVec("chasquid_delivery_connections_total", "Outgoing connection attempts, by address family and result.",
		[]string{"network", "result"}, []string{"ip4", "ip6"}, dialResults)
	m.tlsConns = r.CounterVec("chasquid_delivery_tls_connections_total", "Outgoing SMTP sessions, by how they are protected.",
		[]string{"level", "version"}, levelNames, tlsVersions)
	levels := r.CounterVec("chasquid_security_level_checks_total", "Checks of a connection's TLS level against the best one seen with the domain.",
		[]string{"direction", "result"}, []string{"in", "out"}, []string{"pass", "fail", "skip"})
	m.levelIn = [2]*expvarom.Counter{levels.With("out", "pass"), levels.With("out", "fail")}
	sent := r.CounterVec("chasquid_delivery_sent_bytes_total", "Bytes of messages delivered or handed on, by kind of recipient.", []string{"type"}, rtypes)
	for i, t := range rtypes {
		m.sent[i] = sent.With(t)
	}
	m.oldTLS = r.Map("chasquid/smtpOut/tlsCount", "result", "count of TLS usage in outgoing connections",
		"plain", "tls:insecure", "tls:secure", "tls:failed")
	m.oldLevel = r.Map("chasquid/smtpOut/securityLevelChecks", "result", "count of security level checks on outgoing connections", "pass", "fail")
	return m
}

// newProviders makes the counters of the providers, of which only the courier that finds servers by MX has any.
func (m *metrics) newProviders(r *expvarom.Registry, extra map[string]string) {
	m.providers = map[string]*[3]*expvarom.Counter{}
	names := providerNames(extra)
	attempts := r.CounterVec("chasquid_delivery_provider_attempts_total",
		"Delivery attempts per recipient, by the provider that runs the destination's mail servers.",
		[]string{"provider", "result"}, names, resultNames)
	for _, n := range names {
		m.providers[n] = &[3]*expvarom.Counter{
			mail.Deferred: attempts.With(n, "deferred"), mail.Delivered: attempts.With(n, "delivered"), mail.Failed: attempts.With(n, "bounced")}
	}
}

func (m *metrics) took(stage int, since time.Time) {
	m.stage[stage].Observe(time.Since(since).Seconds())
}

// reply counts one reply of a remote server.
func (m *metrics) reply(command int, code int, enh smtp.EnhancedCode) {
	i := 0 // "2xx"; 3xx is as good
	switch code / 100 {
	case 4:
		i = 8
		if enh[0] == 4 && enh[1] >= 1 && enh[1] <= 7 {
			i = int(enh[1])
		}
	case 5:
		i = 16
		if enh[0] == 5 && enh[1] >= 1 && enh[1] <= 7 {
			i = 8 + int(enh[1])
		}
	}
	m.replies[command][i].Inc()
}

// tls counts how a session is protected: a level, or failed for a STARTTLS or a handshake that did not work.
func (m *metrics) tls(level tlspolicy.Level, failed bool, state *tls.ConnectionState) {
	version := "none"
	if state != nil {
		version = strings.ReplaceAll(strings.ToLower(versionName(state.Version)), ".", "_")
	}
	name, old := "plain", "plain"
	switch {
	case failed:
		name, old = "tls_failed", "tls:failed"
	case level == tlspolicy.TLSSecure:
		name, old = "tls_secure", "tls:secure"
	case level == tlspolicy.TLSInsecure:
		name, old = "tls_insecure", "tls:insecure"
	}
	m.tlsConns.With(name, version).Inc()
	m.oldTLS.Inc(old)
}

// levelCheck counts one check of the ledger.
func (m *metrics) levelCheck(pass bool) {
	if pass {
		m.levelIn[0].Inc()
		m.oldLevel.Inc("pass")
	} else {
		m.levelIn[1].Inc()
		m.oldLevel.Inc("fail")
	}
}

// attempts counts the outcomes of one job that went to a provider's servers.
func (m *metrics) attempts(provider string, out []mail.Outcome) {
	p := m.providers[provider]
	if p == nil {
		p = m.providers[otherProvider]
	}
	for i := range out {
		p[out[i].Disposition%3].Inc()
	}
}

// versionName is the TLS version without a space: "TLS1.3".
func versionName(v uint16) string { return strings.ReplaceAll(tls.VersionName(v), " ", "") }
