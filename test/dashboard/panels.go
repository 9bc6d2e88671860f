package dashboard

// quantiles are three percentiles of a histogram; with is what its buckets are chosen by besides.
func quantiles(family, with string, exemplars bool) []Query {
	var qs []Query
	for _, q := range []struct{ n, name string }{{"0.5", "p50"}, {"0.95", "p95"}, {"0.99", "p99"}} {
		qs = append(qs, Query{Expr: "histogram_quantile(" + q.n + ", sum by (le) (rate(" + family + "_bucket{SEL" + with + "}[$__rate_interval])))", Legend: q.name, Exemplars: exemplars && q.n == "0.99"})
	}
	return qs
}

// slow is the 99th percentile of a histogram by one label.
func slow(family, by string) []Query {
	return []Query{{Expr: "histogram_quantile(0.99, sum by (le, " + by + ") (rate(" + family + "_bucket{SEL}[$__rate_interval])))", Legend: "{{" + by + "}}"}}
}

// heat is a histogram over time.
func heat(family, with string) []Query {
	return []Query{{Expr: "sum by (le) (increase(" + family + "_bucket{SEL" + with + "}[$__rate_interval]))", Legend: "{{le}}"}}
}

// rates are the rates of a counter by some labels; with chooses among them.
func rates(family, with, by, legend string) []Query {
	return []Query{{Expr: "sum by (" + by + ") (rate(" + family + "{SEL" + with + "}[$__rate_interval]))", Legend: legend}}
}

func one(expr, legend string) []Query { return []Query{{Expr: expr, Legend: legend}} }

// Rows are the dashboard, in the order in which questions are asked at night.
var Rows = []Row{
	{"Is mail flowing?", flowing},
	{"In", in},
	{"Queue", queue},
	{"Out", out},
	{"Dependencies", dependencies},
	{"Process", process},
}

var flowing = []Panel{
	{Title: "Ready", Kind: Stat, Unit: "bool_yes_no", Warn: 1, Bad: 0.5, Page: "/readyz?verbose", Normal: "Yes. No: mail is refused; the page says why and what to do.",
		Query: one("min by (instance) (chasquid_ready{SEL})", "{{instance}}")},
	{Title: "Checks that fail", Kind: Stat, Unit: "short", Warn: 1, Bad: 2, Page: "/readyz?verbose", Normal: "0. Others than those of Ready warn: mail is taken, but part of it waits.",
		Query: one("count by (instance) (chasquid_health_check_status{SEL} == 0) or sum by (instance) (chasquid_health_check_status{SEL}) * 0", "{{instance}}")},
	{Title: "Alerts", Kind: Stat, Unit: "short", Warn: 1, Bad: 3, Normal: "0. How many of the shipped alerts fire; docs/runbook.md has a section for each.",
		Query: one(`count(ALERTS{alertname=~"Chasquid.*", alertstate="firing", SEL}) or vector(0)`, "firing")},
	{Title: "Accept errors burn", Kind: Stat, Unit: "none", Warn: 1, Bad: 6, Page: "/debug/messages?state=refused",
		Normal: "0. How many times faster than the objective allows messages come back because of errors of ours, over an hour; above 14 somebody is woken.",
		Query:  one("instance:chasquid_accept_errors:ratio_rate1h{SEL} / 0.001", "{{instance}}")},
	{Title: "Accept slow burn", Kind: Stat, Unit: "none", Warn: 1, Bad: 6, Page: "/debug/traces?family=SMTP.Transaction&b=5",
		Normal: "0. The same for messages that wait over 10 s for their answer.", Query: one("instance:chasquid_accept_slow:ratio_rate1h{SEL} / 0.01", "{{instance}}")},
	{Title: "Oldest in queue", Kind: Stat, Unit: "s", Warn: 3600, Bad: 4 * 3600, Page: "/debug/queue?sort=age", Normal: "Minutes. Hours are usual while one destination is down.",
		Query: one("max by (instance) (chasquid_queue_oldest_item_age_seconds{SEL})", "{{instance}}")},
	{Title: "Queue full", Kind: Stat, Unit: "percentunit", Warn: 0.3, Bad: 0.8, Page: "/debug/queue", Normal: "Near 0. At 100 % mail is refused.",
		Query: one("sum by (instance) (chasquid_queue_items{SEL}) / sum by (instance) (chasquid_queue_capacity_items{SEL})", "{{instance}}")},
	{Title: "Put off a minute", Kind: Stat, Unit: "cpm", Warn: 10, Bad: 100, Page: "/debug/queue?by=reason", Normal: "A few: greylisting, full mailboxes. Many at once have one reason; the queue shows it.",
		Query: one(`sum by (instance) (rate(chasquid_delivery_attempts_total{SEL, result="deferred"}[$__rate_interval])) * 60`, "{{instance}}")},
	{Title: "Certificate ends in", Kind: Stat, Unit: "s", Warn: 21 * 86400, Bad: 2 * 86400, Page: "/debug/certs", Normal: "Weeks. A certificate of 90 days is renewed with 30 left.",
		Query: one("min by (instance) (chasquid_tls_certificate_not_after_timestamp_seconds{SEL}) - time()", "{{instance}}")},
	{Title: "Disk left", Kind: Stat, Unit: "percentunit", Warn: 0.2, Bad: 0.05, Page: "/debug/metrics?q=filesystem", Normal: "Over 20 % of the fullest disk that mail needs.",
		Query: one("min by (instance) (chasquid_filesystem_free_bytes{SEL} / chasquid_filesystem_size_bytes{SEL})", "{{instance}}")},
	{Title: "Disk in four days", Kind: Stat, Unit: "bytes", Warn: 4 << 30, Bad: 1 << 30, Page: "/debug/metrics?q=filesystem", Normal: "About what is free now. Below 0 the disk is full by then, going on as in the last 6 hours.",
		Query: one("min by (instance) (predict_linear(chasquid_filesystem_free_bytes{SEL}[6h], 4 * 86400))", "{{instance}}")},
}

var in = []Panel{
	{Title: "Connections", Kind: Lines, Unit: "short", Page: "/debug/traces?state=active&family=SMTP.Conn", Normal: "Follows the day. A line that only rises is a leak or clients that hold on; max_connections is the limit.",
		Query: one("sum by (mode) (chasquid_smtp_in_connections_open{SEL})", "{{mode}}")},
	{Title: "Connections a second", Kind: Lines, Unit: "cps", Normal: "Follows the day. Refused ones are those over a limit, behind a broken proxy, or while stopping.",
		Query: append(rates("chasquid_smtp_in_connections_total", "", "mode", "{{mode}}"), rates("chasquid_smtp_in_connections_refused_total", "", "reason", "refused: {{reason}}")...)},
	{Title: "Messages by result", Kind: Lines, Unit: "cps", Stack: true, Page: "/debug/messages", Normal: "Mostly accepted and rejected. server_error is ours and should be none.",
		Query: rates("chasquid_smtp_in_messages_total", "", "result", "{{result}}")},
	{Title: "Refusals by reason", Kind: Lines, Unit: "cps", Stack: true, Page: "/debug/messages?state=refused", Normal: "unknown_user and relay_denied are strangers who try. queue_full should be none.",
		Query: rates("chasquid_smtp_in_messages_rejected_total", "", "reason", "{{reason}}")},
	{Title: "Time to accept", Kind: Lines, Unit: "s", Page: "/debug/traces?family=SMTP.Transaction&lat=true", Normal: "p99 below a second without a spam filter, some seconds with one. Points are examples: they open the trace.",
		Query: quantiles("chasquid_smtp_in_accept_duration_seconds", "", true)},
	{Title: "Slowest stages", Kind: Lines, Unit: "s", Page: "/debug/traces?family=SMTP.Transaction&b=3", Normal: "p99 of each part of taking a message. hook is the spam filter, queue_put the disk, spf, dkim_verify and dmarc the DNS.",
		Query: slow("chasquid_smtp_in_stage_duration_seconds", "stage")},
	{Title: "Stages over time", Kind: Heatmap, Unit: "s", Normal: "All stages together: a dark band low down. A second band higher up is a part that is slow for some.",
		Query: heat("chasquid_smtp_in_stage_duration_seconds", "")},
	{Title: "TLS versions", Kind: Lines, Unit: "cps", Stack: true, Normal: "tls1_3 and tls1_2. A few errors of clients are scanners.",
		Query: append(rates("chasquid_smtp_in_tls_handshakes_total", `, result="ok"`, "version", "{{version}}"), rates("chasquid_smtp_in_tls_handshakes_total", `, result!="ok"`, "result", "failed: {{result}}")...)},
	{Title: "Logins", Kind: Lines, Unit: "cps", Page: "/debug/auth", Normal: "ok follows the day. bad_credentials is guessing, backend_error a broken Dovecot.",
		Query: append(rates("chasquid_auth_attempts_total", "", "result", "{{result}}"), rates("chasquid_auth_throttled_total", "", "scope", "slowed down by {{scope}}")...)},
	{Title: "Recipients", Kind: Lines, Unit: "cps", Page: "/debug/messages", Normal: "accepted follows the day. Much unknown_user is somebody who tries out addresses; a step in submission is a newsletter or a stolen account.",
		Query: rates("chasquid_smtp_in_recipients_total", "", "mode, result", "{{mode}} {{result}}")},
	{Title: "Checks of senders", Kind: Lines, Unit: "cps", Normal: "pass and none. temperror is the DNS.",
		Query: append(append(rates("chasquid_spf_checks_total", "", "result", "SPF {{result}}"), rates("chasquid_dkim_verifications_total", "", "result", "DKIM {{result}}")...), rates("chasquid_dmarc_checks_total", "", "result", "DMARC {{result}}")...)},
	{Title: "What no honest client does", Kind: Lines, Unit: "cps", Normal: "Near 0. bare_lf and smuggling are attacks, http_verb and unknown_command scanners.",
		Query: rates("chasquid_smtp_in_protocol_violations_total", "", "kind", "{{kind}}")},
}

var queue = []Panel{
	{Title: "Messages", Kind: Lines, Unit: "short", Page: "/debug/queue", Normal: "Few, or falling. held are those an operator stopped.",
		Query: append(one("sum by (state) (chasquid_queue_items{SEL})", "{{state}}"), one("sum(chasquid_queue_capacity_items{SEL})", "capacity")...)},
	{Title: "By age", Kind: Lines, Unit: "short", Stack: true, Page: "/debug/queue?sort=age", Normal: "Mostly under 5 min. Old ones wait for destinations that are down.",
		Query: one("sum by (age) (chasquid_queue_items_by_age{SEL})", "{{age}}")},
	{Title: "In and out", Kind: Lines, Unit: "cps", Normal: "The same, over time. In above out is a queue that grows.",
		Query: append(rates("chasquid_queue_puts_total", "", "source, result", "in: {{source}} {{result}}"), rates("chasquid_queue_items_removed_total", "", "reason", "out: {{reason}}")...)},
	{Title: "Time in the queue", Kind: Heatmap, Unit: "s", Page: "/debug/traces?family=Courier.SMTP&lat=true", Normal: "Elsewhere: seconds, with some of hours from greylisting and servers that were down.",
		Query: heat("chasquid_queue_time_in_queue_seconds", `, type="remote"`)},
	{Title: "Late for the objective", Kind: Lines, Unit: "percentunit", Normal: "Below 5 %: the share of recipients elsewhere without an outcome within 5 min.",
		Query: one("instance:chasquid_stale:ratio_rate1h{SEL}", "{{instance}}")},
	{Title: "Disk of the queue", Kind: Lines, Unit: "s", Page: "/debug/metrics?q=disk", Normal: "p99 of fsync: a few ms on flash, tens of ms on disks. Every message waits for it.",
		Query: slow("chasquid_queue_disk_operation_duration_seconds", "op")},
	{Title: "Making a message durable", Kind: Lines, Unit: "s", Normal: "A little above the fsync beside it.", Query: quantiles("chasquid_queue_put_duration_seconds", "", true)},
	{Title: "Disk errors", Kind: Lines, Unit: "cps", Page: "/debug/log?q=queue", Normal: "None. Any is worth a look at the disk.", Query: rates("chasquid_queue_disk_errors_total", "", "op", "{{op}}")},
	{Title: "Size", Kind: Lines, Unit: "bytes", Normal: "What waits, in bytes; the disk has to hold it.", Query: one("sum by (instance) (chasquid_queue_size_bytes{SEL})", "{{instance}}")},
}

var out = []Panel{
	{Title: "Attempts by result", Kind: Lines, Unit: "cps", Stack: true, Page: "/debug/destinations", Normal: "Mostly delivered.",
		Query: rates("chasquid_delivery_attempts_total", "", "type, result", "{{type}} {{result}}")},
	{Title: "Failures by reason", Kind: Lines, Unit: "cps", Stack: true, Page: "/debug/queue?by=reason", Normal: "remote_greylist and remote_mailbox come with mail. One reason that stands out is the cause.",
		Query: rates("chasquid_delivery_failures_total", "", "kind, reason", "{{kind}}: {{reason}}")},
	{Title: "Put off, by provider", Kind: Lines, Unit: "percentunit", Page: "/debug/destinations", Normal: "A few percent. Half and more: it finds that we send too much, or does not trust us.",
		Query: one(`sum by (provider) (rate(chasquid_delivery_provider_attempts_total{SEL, result="deferred"}[$__rate_interval])) / sum by (provider) (rate(chasquid_delivery_provider_attempts_total{SEL}[$__rate_interval]))`, "{{provider}}")},
	{Title: "Slowest stages", Kind: Lines, Unit: "s", Page: "/debug/traces?family=Courier.SMTP&b=4", Normal: "p99 of each part of a delivery. connect and banner are the other server, mx_lookup the DNS, data its spam filter, mda_exec the local delivery.",
		Query: slow("chasquid_delivery_stage_duration_seconds", "stage")},
	{Title: "Duration of attempts", Kind: Lines, Unit: "s", Page: "/debug/traces?family=Courier.SMTP&lat=true", Normal: "Seconds. Points are examples: they open the trace.", Query: quantiles("chasquid_delivery_attempt_duration_seconds", "", true)},
	{Title: "How sessions are protected", Kind: Lines, Unit: "cps", Stack: true, Page: "/debug/sts", Normal: "Mostly tls_secure. plain are servers without TLS; tls_failed should be rare.",
		Query: rates("chasquid_delivery_tls_connections_total", "", "level", "{{level}}")},
	{Title: "Bad answers of others", Kind: Lines, Unit: "cps", Page: "/debug/queue?by=reason", Normal: "4.x are put off, 5.x refusals. 5.7 and 4.7 are about policy: our reputation.",
		Query: rates("chasquid_delivery_remote_replies_total", `, class!="2xx"`, "class", "{{class}}")},
	{Title: "Late starts", Kind: Lines, Unit: "s", Normal: "p99 below a second. More: too few workers (max_deliveries) for what is due.", Query: quantiles("chasquid_queue_attempt_lag_seconds", "", false)},
	{Title: "Under way", Kind: Lines, Unit: "short", Page: "/debug/traces?state=active", Normal: "Below max_deliveries. A line that stays up is something that hangs.", Query: one("sum by (type) (chasquid_delivery_in_flight{SEL})", "{{type}}")},
	{Title: "Connections", Kind: Lines, Unit: "cps", Normal: "ok. Failures of only ip6 are a broken route; of both, port 25 is closed or the network is down.",
		Query: rates("chasquid_delivery_connections_total", "", "network, result", "{{network}} {{result}}")},
	{Title: "Attempts until the end", Kind: Lines, Unit: "short", Normal: "1. 2 and more: greylisting.", Query: quantiles("chasquid_delivery_final_attempt_number", "", false)},
	{Title: "Notices", Kind: Lines, Unit: "cps", Normal: "Few. Many failure notices at once: we answer forged mail, or a list has dead addresses.", Query: rates("chasquid_dsn_messages_total", "", "kind, result", "{{kind}} {{result}}")},
}

var dependencies = []Panel{
	{Title: "DNS by result", Kind: Lines, Unit: "cps", Stack: true, Page: "/debug/dns", Normal: "ok and notfound. timeout and error are the resolver; temporary often is the domain asked for.",
		Query: rates("chasquid_dns_lookups_total", "", "purpose, result", "{{purpose}} {{result}}")},
	{Title: "DNS time", Kind: Lines, Unit: "s", Page: "/debug/dns", Normal: "p99 below a second with a resolver near by.", Query: slow("chasquid_dns_lookup_duration_seconds", "purpose")},
	{Title: "DNS cache", Kind: Lines, Unit: "percentunit", Normal: "Over half of the questions on a busy server.", Query: one("avg by (instance) (chasquid_dns_cache_hit_ratio{SEL})", "{{instance}}")},
	{Title: "Hooks", Kind: Lines, Unit: "cps", Stack: true, Page: "/debug/traces?family=Hook&b=-2", Normal: "success, permanent (spam), skip (no hook). timeout, bad_output and exec_error are a broken filter.",
		Query: rates("chasquid_hook_runs_total", "", "hook, result", "{{hook}} {{result}}")},
	{Title: "Hooks: time", Kind: Lines, Unit: "s", Page: "/debug/traces?family=Hook&lat=true", Normal: "What the spam filter usually takes. Points are examples: they open the trace.", Query: quantiles("chasquid_hook_duration_seconds", "", true)},
	{Title: "Hooks running", Kind: Lines, Unit: "short", Page: "/debug/traces?state=active&family=Hook", Normal: "0 or a few. Rising: the filter hangs.", Query: one("sum by (hook) (chasquid_hooks_running{SEL})", "{{hook}}")},
	{Title: "MTA-STS policies asked for", Kind: Lines, Unit: "cps", Page: "/debug/sts", Normal: "hit. Failed checks of mode enforce keep mail back.",
		Query: append(rates("chasquid_sts_cache_requests_total", "", "result", "{{result}}"), rates("chasquid_sts_policy_checks_total", `, result="fail"`, "mode", "check failed: {{mode}}")...)},
	{Title: "Password checks", Kind: Lines, Unit: "s", Page: "/debug/auth", Normal: "Tens of ms: passwords are made to take time. More with dovecot: it is busy.", Query: slow("chasquid_auth_duration_seconds", "backend")},
	{Title: "Space left", Kind: Lines, Unit: "bytes", Page: "/debug/metrics?q=filesystem", Normal: "Steady. It should not follow the queue.", Query: one("min by (instance, path) (chasquid_filesystem_free_bytes{SEL})", "{{instance}} {{path}}")},
	{Title: "Inodes left", Kind: Lines, Unit: "short", Page: "/debug/metrics?q=filesystem", Normal: "Steady, far from 0.", Query: one("min by (instance, path) (chasquid_filesystem_free_inodes{SEL})", "{{instance}} {{path}}")},
	{Title: "What is loaded", Kind: Lines, Unit: "short", Page: "/debug/domains", Normal: "Steps only when somebody changed something. A fall nobody made is a file that was lost.", Query: one("sum by (kind) (chasquid_config_objects{SEL})", "{{kind}}")},
	{Title: "DNS of our domains", Kind: Lines, Unit: "bool_yes_no", Page: "/debug/domains", Normal: "Yes, with selfcheck on; nothing without. No is a record that is wrong or gone.",
		Query: one("min by (domain, check) (chasquid_selfcheck_status{SEL})", "{{domain}} {{check}}")},
	{Title: "Certificates end in", Kind: Lines, Unit: "s", Page: "/debug/certs", Normal: "A saw: falling, and up again at each renewal.",
		Query: one("min by (name) (chasquid_tls_certificate_not_after_timestamp_seconds{SEL}) - time()", "{{name}}")},
}

var process = []Panel{
	{Title: "CPU", Kind: Lines, Unit: "percentunit", Page: "/debug/profiles", Normal: "Follows the mail. 100 % is one core.", Query: one("rate(process_cpu_seconds_total{SEL}[$__rate_interval])", "{{instance}}")},
	{Title: "Memory", Kind: Lines, Unit: "bytes", Page: "/debug/pprof/", Normal: "Steady after some hours. The difference is buffers and what the runtime keeps.",
		Query: append(one("process_resident_memory_bytes{SEL}", "{{instance}} resident"), one("go_memstats_heap_inuse_bytes{SEL}", "{{instance}} heap")...)},
	{Title: "Goroutines", Kind: Lines, Unit: "short", Page: "/debug/goroutines", Normal: "A hundred, and some for each connection and delivery. A line that only rises is a leak.", Query: one("go_goroutines{SEL}", "{{instance}}")},
	{Title: "Waiting for a processor", Kind: Lines, Unit: "s", Normal: "p99 below 10 ms. More: the machine is overloaded, so all other times here are too.", Query: quantiles("go_sched_latencies_seconds", "", false)},
	{Title: "Pauses for garbage", Kind: Lines, Unit: "s", Normal: "p99 below a millisecond.", Query: quantiles("go_gc_pauses_seconds", "", false)},
	{Title: "File descriptors", Kind: Lines, Unit: "short", Normal: "Follows the connections, far below the limit.", Query: append(one("process_open_fds{SEL}", "{{instance}}"), one("process_max_fds{SEL}", "{{instance}} limit")...)},
	{Title: "Up since", Kind: Lines, Unit: "s", Page: "/debug/log", Normal: "Rises. Each fall is a start; marks tell the version.", Query: one("time() - process_start_time_seconds{SEL}", "{{instance}}")},
	{Title: "Log", Kind: Lines, Unit: "cps", Page: "/debug/log", Normal: "Few errors. More of them is the cheapest sign that something is wrong.",
		Query: append(rates("chasquid_log_messages_total", `, level="error"`, "level", "{{level}}"), rates("chasquid_log_write_errors_total", "", "log", "{{log}} cannot be written")...)},
	{Title: "What it does", Kind: Lines, Unit: "short", Page: "/debug/traces?state=active", Normal: "Operations under way, by kind. One that stays up hangs.", Query: one("sum by (family) (chasquid_trace_spans_active{SEL})", "{{family}}")},
	{Title: "What fails", Kind: Lines, Unit: "cps", Page: "/debug/traces", Normal: "Checks of strangers fail all day. Reload, Queue and Courier.Local should not.", Query: rates("chasquid_trace_spans_total", `, outcome="error"`, "family", "{{family}}")},
	{Title: "The monitoring itself", Kind: Lines, Unit: "cps", Normal: "A scrape every some seconds; what was dropped should be none.",
		Query: append(rates("chasquid_monitoring_http_requests_total", "", "handler", "{{handler}}"), rates("chasquid_history_events_dropped_total", "", "job", "history events dropped")...)},
	{Title: "Memory of traces", Kind: Lines, Unit: "bytes", Page: "/debug/traces", Normal: "Below 32 MiB, always.", Query: one("chasquid_trace_store_size_bytes{SEL}", "{{instance}}")},
}
