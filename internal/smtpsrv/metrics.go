package smtpsrv

import (
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/auth"
	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Label values, in the order of the constants that index them.
type (
	refusal   uint8
	endReason uint8
	violation uint8
	result    uint8
	rcptKind  uint8
)

const (
	refusedTotal refusal = iota
	refusedPerIP
	refusedProxy
	refusedTLS
	refusedShutdown
)

const (
	endOpen endReason = iota // not yet; what a panic leaves becomes endError
	endQuit
	endEOF
	endTimeout
	endErrors
	endError
	endProtocol
	endShutdown
)

const (
	violationBareCR violation = iota
	violationBareLF
	violationLongLine
	violationPipelining
	violationEarly
	violationHTTP
	violationSyntax
	violationUnknown
	violationSmuggling
)

const (
	resultAccepted    result = iota
	resultRejected           // the sender's fault, or a policy
	resultTempfail           // refused for now by a policy
	resultServerError        // our fault
	resultAborted            // the client went away, or changed its mind
)

const (
	rcptAccepted rcptKind = iota
	rcptUnknownUser
	rcptRelayDenied
	rcptBadSyntax
	rcptTooMany
	rcptTempfail
	rcptOther
)

var (
	modeLabels      = []string{"smtp", "submission", "submission_tls"}
	refusalLabels   = []string{"limit_total", "limit_per_ip", "proxy_protocol", "tls_handshake", "shutdown"}
	endLabels       = []string{"io_error", "quit", "eof", "timeout", "too_many_errors", "io_error", "wrong_protocol", "shutdown"}
	violationLabels = []string{"bare_cr", "bare_lf", "line_too_long", "pipelining", "early_talker", "http_verb", "bad_syntax", "unknown_command", "smuggling"}
	resultLabels    = []string{"accepted", "rejected", "client_tempfail", "server_error", "aborted"}
	rcptLabels      = []string{"accepted", "unknown_user", "relay_denied", "syntax", "too_many", "tempfail", "other"}
	rejectLabels    = []string{"unknown_user", "relay_denied", "auth_required", "spf_fail", "dkim_fail", "security_level", "hook_reject", "too_big",
		"too_many_rcpts", "loop", "bad_from", "bad_content", "queue_full", "no_valid_rcpt", "other"}
	stageLabels = []string{"tls_handshake", "data_receive", "parse", "spf", "dkim_verify", "dmarc", "security_level", "sender", "rate", "hook", "dkim_sign", "alias_resolve", "queue_put", "other"}
	// codes are those the server may reply with.
	codes = []int{214, 220, 221, 235, 250, 252, 334, 354, 421, 450, 451, 452, 454, 455, 500, 501, 502, 503, 504, 521, 530, 534, 535, 538, 550, 551, 552, 553, 554, 555, 556}
)

const maxCode = 600

// metrics is the variables of a server.
type metrics struct {
	commandCount *expvarom.Map // legacy; each has a typed twin, counted by the same call
	responses    *expvarom.Map
	loops        *expvarom.Int
	tlsCount     *expvarom.Map
	wrongProto   *expvarom.Map

	modes      [numModes]modeMetrics
	duration   [numVerbs]*expvarom.Histogram
	code       [maxCode]*expvarom.Counter
	codeName   [maxCode]string
	violations []*expvarom.Counter
	stages     map[string]*expvarom.Histogram
	authTook   *expvarom.HistogramVec
	authFailed *expvarom.Gauge
	panics     *expvarom.Counter
}

// modeMetrics is the variables of one mode, resolved.
type modeMetrics struct {
	label           string
	connections     *expvarom.Counter
	open            *expvarom.Gauge
	refused         []*expvarom.Counter
	sessionDuration []*expvarom.Histogram
	commands        [numVerbs]*expvarom.Counter
	handshakes      *expvarom.CounterVec
	received, sent  *expvarom.Counter
	messages        []*expvarom.Counter
	rejected        map[string]*expvarom.Counter
	acceptDuration  [3]*expvarom.Histogram
	size, rcpts     *expvarom.Histogram
	recipients      []*expvarom.Counter
	auth            *expvarom.CounterVec
}

func newMetrics(r *expvarom.Registry) *metrics {
	m := &metrics{stages: map[string]*expvarom.Histogram{}}
	names := make([]string, 0, numVerbs)
	for i := range firstHTTP {
		names = append(names, verbs[i].name)
	}
	m.legacy(r, names)
	m.perServer(r, append(names, unknownVerb.name))
	for mode := range m.modes {
		m.modes[mode].label = modeLabels[mode]
	}
	m.connections(r)
	m.mail(r)
	commands := r.CounterVec("chasquid_smtp_in_commands_total", "Commands received.", []string{"mode", "command"}, modeLabels, append(names, unknownVerb.name))
	for mode := range m.modes {
		for i, name := range append(names, unknownVerb.name) {
			m.modes[mode].commands[i] = commands.With(modeLabels[mode], name)
		}
	}
	return m
}

func (m *metrics) legacy(r *expvarom.Registry, names []string) {
	m.commandCount = r.MapFold("chasquid/smtpIn/commandCount", "command", "Commands received, by verb; QUIT is not counted.", expvarom.FoldCommand, names...)
	known := make([]string, len(codes))
	for i, c := range codes {
		known[i] = strconv.Itoa(c)
		m.codeName[c] = known[i]
	}
	m.responses = r.Map("chasquid/smtpIn/responseCodeCount", "code", "Replies sent, by code; the greeting is not counted.", known...)
	m.loops = r.Int("chasquid/smtpIn/loopsDetected", "Messages refused because they went in circles.")
	m.tlsCount = r.Map("chasquid/smtpIn/tlsCount", "status", "Messages received with and without TLS.", "tls", "plain")
	m.wrongProto = r.Map("chasquid/smtpIn/wrongProtoCount", "command", "Commands of other protocols.", "GET", "POST", "CONNECT")

	twin := r.CounterVec("chasquid_smtp_in_responses_total", "Replies sent, by code; the greeting is not counted.", []string{"code"}, append(known, "other"))
	for c := range m.code {
		name := m.codeName[c]
		if name == "" {
			name = "other"
		}
		m.code[c] = twin.With(name)
	}
}

func (m *metrics) perServer(r *expvarom.Registry, names []string) {
	d := r.HistogramVec("chasquid_smtp_in_command_duration_seconds", "From the last byte of a command to its reply.", expvarom.Fast, []string{"command"}, names)
	for i, name := range names {
		m.duration[i] = d.With(name)
	}
	v := r.CounterVec("chasquid_smtp_in_protocol_violations_total", "What clients did that no honest client does.", []string{"kind"}, violationLabels)
	for _, l := range violationLabels {
		m.violations = append(m.violations, v.With(l))
	}
	st := r.HistogramVec("chasquid_smtp_in_stage_duration_seconds", "Parts of taking a message.", expvarom.Net, []string{"stage"}, stageLabels)
	for _, l := range stageLabels {
		m.stages[l] = st.With(l)
	}
	m.authTook = r.HistogramVec("chasquid_auth_duration_seconds", "Checking a password, without the delay that hides how long that took.", expvarom.Fast,
		[]string{"backend", "result"}, []string{"userdb", "dovecot"}, []string{"ok", "failed"})
	m.authFailed = r.Gauge("chasquid_auth_last_failure_timestamp_seconds", "When a login last failed.")
	m.panics = r.CounterVec("chasquid_panics_total", "Bugs that were caught.", []string{"component"},
		[]string{"smtp_in", "queue", "courier", "monitoring", "reload", "other"}).With("smtp_in")
}

func (m *metrics) connections(r *expvarom.Registry) {
	mode := []string{"mode"}
	conns := r.CounterVec("chasquid_smtp_in_connections_total", "Connections accepted, those turned away included.", mode, modeLabels)
	open := r.GaugeVec("chasquid_smtp_in_connections_open", "Connections now.", mode, modeLabels)
	refused := r.CounterVec("chasquid_smtp_in_connections_refused_total", "Connections that never got a greeting.", []string{"mode", "reason"}, modeLabels, refusalLabels)
	duration := r.HistogramVec("chasquid_smtp_in_session_duration_seconds", "Length of sessions, by how they ended.", expvarom.Long,
		[]string{"mode", "end"}, modeLabels, endLabels[1:])
	handshakes := r.CounterVec("chasquid_smtp_in_tls_handshakes_total", "TLS handshakes.", []string{"mode", "version", "result"}, modeLabels,
		[]string{"tls1_0", "tls1_1", "tls1_2", "tls1_3", "none"}, []string{"ok", "client_error", "timeout", "no_shared_version", "cert_error", "other"})
	received := r.CounterVec("chasquid_smtp_in_received_bytes_total", "Bytes received, without TLS overhead.", mode, modeLabels)
	sent := r.CounterVec("chasquid_smtp_in_sent_bytes_total", "Bytes sent, without TLS overhead.", mode, modeLabels)
	auth := r.CounterVec("chasquid_auth_attempts_total", "Attempts to log in.", []string{"mode", "backend", "result"}, modeLabels,
		[]string{"userdb", "dovecot", "none"}, []string{"ok", "bad_credentials", "backend_error", "malformed", "tls_required"})
	for i := range m.modes {
		mm, l := &m.modes[i], modeLabels[i]
		mm.connections, mm.open, mm.received, mm.sent = conns.With(l), open.With(l), received.With(l), sent.With(l)
		mm.handshakes, mm.auth = handshakes, auth
		for _, reason := range refusalLabels {
			mm.refused = append(mm.refused, refused.With(l, reason))
		}
		for _, e := range endLabels {
			mm.sessionDuration = append(mm.sessionDuration, duration.With(l, e))
		}
	}
}

func (m *metrics) mail(r *expvarom.Registry) {
	mode := []string{"mode"}
	messages := r.CounterVec("chasquid_smtp_in_messages_total", "Messages whose data was begun, by what became of them.", []string{"mode", "result"}, modeLabels, resultLabels)
	rejected := r.CounterVec("chasquid_smtp_in_messages_rejected_total", "Refusals of senders, recipients and messages, by reason.", []string{"mode", "reason"}, modeLabels, rejectLabels)
	accept := r.HistogramVec("chasquid_smtp_in_accept_duration_seconds", "From the end of a message to the reply.", expvarom.Net,
		[]string{"mode", "result"}, modeLabels, []string{"accepted", "rejected", "tempfail"})
	size := r.HistogramVec("chasquid_smtp_in_message_size_bytes", "Size of accepted messages.", expvarom.Size, mode, modeLabels)
	rcpts := r.HistogramVec("chasquid_smtp_in_message_recipients", "Recipients of accepted messages.", expvarom.Small, mode, modeLabels)
	recipients := r.CounterVec("chasquid_smtp_in_recipients_total", "Recipients, by result.", []string{"mode", "result"}, modeLabels, rcptLabels)
	for i := range m.modes {
		mm, l := &m.modes[i], modeLabels[i]
		mm.size, mm.rcpts, mm.rejected = size.With(l), rcpts.With(l), map[string]*expvarom.Counter{}
		for _, reason := range rejectLabels {
			mm.rejected[reason] = rejected.With(l, reason)
		}
		for _, res := range resultLabels {
			mm.messages = append(mm.messages, messages.With(l, res))
		}
		for j, res := range []string{"accepted", "rejected", "tempfail"} {
			mm.acceptDuration[j] = accept.With(l, res)
		}
		for _, res := range rcptLabels {
			mm.recipients = append(mm.recipients, recipients.With(l, res))
		}
	}
}

// reject counts a refusal. Reasons that are not in the catalogue, which checks may have, count as "other".
func (mm *modeMetrics) reject(reason string) {
	c := mm.rejected[reason]
	if c == nil {
		c = mm.rejected["other"]
	}
	c.Inc()
}

func (mm *modeMetrics) refuse(r refusal) { mm.refused[r].Inc() }

// accepted returns the histogram of a result.
func (mm *modeMetrics) accepted(r result) *expvarom.Histogram {
	return mm.acceptDuration[min(int(r), len(mm.acceptDuration)-1)]
}

func (m *metrics) violation(v violation) { m.violations[v].Inc() }

// count counts a command; unknownCommand one that is not in the table.
func (m *metrics) count(mode Mode, v *verb) {
	if v.index == noVerb {
		m.wrongProto.Inc(v.name)
		return
	}
	if v.name != "QUIT" {
		m.commandCount.Inc(v.name)
	}
	m.modes[mode].commands[v.index].Inc()
}

func (m *metrics) unknownCommand(mode Mode, name []byte) {
	m.commandCount.Inc(`unknown<"` + string(name[:min(len(name), 6)]) + `">`)
	m.modes[mode].commands[noVerb].Inc()
}

// command records how long a command took.
func (m *metrics) command(v *verb, took time.Duration, id trace.ID) {
	m.duration[v.index].ObserveTrace(took.Seconds(), id)
}

func (m *metrics) response(code int) {
	if code < 0 || code >= maxCode {
		code = 0
	}
	name := m.codeName[code]
	if name == "" {
		name = strconv.Itoa(code)
	}
	m.responses.Inc(name)
	m.code[code].Inc()
}

// stage records one part of taking a message; checks are named by what they check.
func (m *metrics) stage(name string, took time.Duration, id trace.ID) {
	h := m.stages[name]
	if h == nil {
		h = m.stages["other"]
	}
	h.ObserveTrace(took.Seconds(), id)
}

func (m *metrics) authDuration(backend string, ok bool, took time.Duration) {
	res := "failed"
	if ok {
		res = "ok"
	}
	if backend = backendLabel(backend); backend != "none" {
		m.authTook.With(backend, res).Observe(took.Seconds())
	}
}

// backendLabel returns the label of an authenticator's backend.
func backendLabel(backend string) string {
	switch backend {
	case auth.UserDB, auth.Dovecot:
		return backend
	}
	return auth.None
}

// rcptResultOf classes a refused recipient.
func rcptResultOf(label string, r smtp.Reply) rcptKind {
	switch {
	case label == "unknown_user":
		return rcptUnknownUser
	case label == "relay_denied":
		return rcptRelayDenied
	case label == "syntax":
		return rcptBadSyntax
	case r.Temporary():
		return rcptTempfail
	}
	return rcptOther
}
