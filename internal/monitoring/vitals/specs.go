package vitals

import "strings"

// kind says how a series is made of a family.
type kind uint8

const (
	gaugeSum kind = iota // of all metrics that fit
	gaugeMax
	gaugeMin
	rate // of counters, per second times scale
	p99  // of a histogram
)

// spec describes one series.
type spec struct {
	name, title, unit string
	family            string
	kind              kind
	scale             float64
	match             []string // label, values separated by "|", …
}

func alternatives(s string) []string { return strings.Split(s, "|") }

// specs are the series that are kept: as many as the budget of memory allows.
var specs = []spec{
	{"in_accepted", "accepted", "/min", "chasquid_smtp_in_messages_total", rate, 60, []string{"result", "accepted"}},
	{"in_rejected", "rejected", "/min", "chasquid_smtp_in_messages_total", rate, 60, []string{"result", "rejected"}},
	{"in_tempfail", "told to come back", "/min", "chasquid_smtp_in_messages_total", rate, 60, []string{"result", "client_tempfail"}},
	{"in_errors", "our errors", "/min", "chasquid_smtp_in_messages_total", rate, 60, []string{"result", "server_error"}},
	{"in_open", "connections open", "", "chasquid_smtp_in_connections_open", gaugeSum, 0, nil},
	{"in_p99", "accept p99", "s", "chasquid_smtp_in_accept_duration_seconds", p99, 0, nil},
	{"auth_failed", "failed logins", "/min", "chasquid_auth_attempts_total", rate, 60, []string{"result", "bad_credentials|backend_error"}},
	{"submitted", "recipients submitted", "/min", "chasquid_smtp_in_recipients_total", rate, 60, []string{"mode", "submission|submission_tls", "result", "accepted"}},
	{"unknown_users", "unknown recipients", "/min", "chasquid_smtp_in_recipients_total", rate, 60, []string{"result", "unknown_user"}},
	{"queue_items", "queued", "", "chasquid_queue_items", gaugeSum, 0, nil},
	{"queue_oldest", "oldest queued", "s", "chasquid_queue_oldest_item_age_seconds", gaugeMax, 0, nil},
	{"out_delivered", "delivered", "/min", "chasquid_delivery_attempts_total", rate, 60, []string{"result", "delivered"}},
	{"out_deferred", "deferred", "/min", "chasquid_delivery_attempts_total", rate, 60, []string{"result", "deferred"}},
	{"out_bounced", "bounced", "/min", "chasquid_delivery_attempts_total", rate, 60, []string{"result", "bounced"}},
	{"out_running", "deliveries running", "", "chasquid_delivery_in_flight", gaugeSum, 0, nil},
	{"dns_failed", "DNS failures", "/min", "chasquid_dns_lookups_total", rate, 60, []string{"result", "timeout|temporary|error"}},
	{"hook_p99", "hooks p99", "s", "chasquid_hook_duration_seconds", p99, 0, nil},
	{"fsync_p99", "fsync p99", "s", "chasquid_queue_disk_operation_duration_seconds", p99, 0, []string{"op", "fsync"}},
	{"disk_free", "disk free", "B", "chasquid_filesystem_free_bytes", gaugeMin, 0, nil},
	{"log_errors", "errors logged", "/min", "chasquid_log_messages_total", rate, 60, []string{"level", "error"}},
	{"goroutines", "goroutines", "", "go_goroutines", gaugeSum, 0, nil},
	{"rss", "memory", "B", "process_resident_memory_bytes", gaugeSum, 0, nil},
	{"cpu", "CPU", "%", "process_cpu_seconds_total", rate, 100, nil},
	{"hooks_running", "hooks running", "", "chasquid_hooks_running", gaugeSum, 0, nil},
}

// watched are the families of which the rules want to know the last hour by label.
var watched = []string{
	"chasquid_smtp_in_messages_total", "chasquid_smtp_in_recipients_total", "chasquid_auth_attempts_total", "chasquid_panics_total",
	"chasquid_delivery_attempts_total", "chasquid_delivery_failures_total", "chasquid_delivery_remote_replies_total",
	"chasquid_delivery_provider_attempts_total", "chasquid_dns_lookups_total", "chasquid_hook_runs_total", "chasquid_queue_disk_errors_total",
	"chasquid_tls_certificate_load_errors_total", "chasquid_dkim_signatures_total", "chasquid_metrics_label_overflow_total",
	"chasquid_history_errors_total", "chasquid_history_events_dropped_total", "chasquid_log_write_errors_total", "chasquid_queue_puts_total",
	"chasquid_filesystem_free_bytes", "chasquid_filesystem_free_inodes", "chasquid_queue_capacity_items", "chasquid_selfcheck_status",
	"chasquid_sts_cache_last_refresh_timestamp_seconds",
}
