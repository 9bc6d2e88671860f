package vitals

import (
	"fmt"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

// queueSize: the queue is nearly full, will be soon, or grows fast.
func queueSize(s *Sampler, _ *Evidence) []Problem {
	vals := s.recent("queue_items", 180)
	if len(vals) == 0 {
		return nil
	}
	items, capacity := vals[len(vals)-1], s.now("chasquid_queue_capacity_items", "")[""]
	if capacity > 0 && items > 0.8*capacity {
		return one("ChasquidQueueNearFull", Page, "/debug/queue", trace.ID{}, "The queue holds %.0f of at most %.0f messages; when it is full, mail is refused.", items, capacity)
	}
	if grows := slope(vals); capacity > 0 && len(vals) >= 60 && items > 100 && items+grows*4*3600 > capacity {
		return one("ChasquidQueueFillsSoon", Page, "/debug/queue", trace.ID{}, "The queue grows by %.0f messages a minute: at this rate it is full in %s.", grows*60, short(seconds((capacity-items)/grows)))
	}
	if ten := s.recent("queue_items", 60); items-ten[0] > 1000 {
		return one("ChasquidQueueGrows", Ticket, "/debug/queue", trace.ID{}, "The queue grew from %.0f to %.0f messages within the last 10 minutes. Its page shows by reason and destination what they wait for.", ten[0], items)
	}
	return nil
}

// queueAge: something waits for long.
func queueAge(s *Sampler, _ *Evidence) []Problem {
	vals := s.recent("queue_oldest", 1)
	if len(vals) == 0 || vals[0] <= 4*3600 {
		return nil
	}
	return one("ChasquidQueueOldest", Ticket, "/debug/queue?sort=age", trace.ID{}, "The oldest message has been in the queue for %s.", short(seconds(vals[0])))
}

// diskErrors: the queue's disk fails.
func diskErrors(s *Sampler, _ *Evidence) []Problem {
	by := s.grewBy("chasquid_queue_disk_errors_total", "op", 10*time.Minute)
	if len(by) == 0 {
		return nil
	}
	return one("ChasquidQueueDiskErrors", Page, "/debug/log?q=queue", trace.ID{}, "The disk of the queue fails (errors of the last 10 minutes: %s). Mail is refused rather than lost.", listing(by))
}

// diskSlow: the disk takes long to make things durable, which every message waits for.
func diskSlow(s *Sampler, _ *Evidence) []Problem {
	vals := s.recent("fsync_p99", 18)
	if len(vals) < 6 || mean(vals) <= 0.5 {
		return nil
	}
	return one("ChasquidFsyncSlow", Ticket, "/debug/metrics?q=disk", trace.ID{}, "The disk of the queue is slow: making a message durable takes %.1f s at the slow end.", mean(vals))
}

// lowSpace is little enough to act at once.
const lowSpace = 256 << 20

// diskSpace: no room left, or not for long.
func diskSpace(s *Sampler, _ *Evidence) (list []Problem) {
	free := s.now("chasquid_filesystem_free_bytes", "path")
	for _, path := range []string{"data", "queue", "log"} {
		if n, ok := free[path]; ok && n < lowSpace {
			list = append(list, one("ChasquidDiskWillFill", Page, "/debug/metrics?q=filesystem", trace.ID{}, "The disk is full or nearly so: %s are free where the %s is. Mail is refused before it would be lost; free some space.", size(n), path)...)
			break
		}
	}
	if vals := s.recent("disk_free", 180); len(list) == 0 && len(vals) >= 60 {
		if per := slope(vals); per < 0 && vals[len(vals)-1]+per*6*3600 < 0 {
			list = one("ChasquidDiskWillFill", Page, "/debug/metrics?q=filesystem", trace.ID{}, "The disk fills: at the rate of the last half hour it is full in %s.", short(seconds(-vals[len(vals)-1]/per)))
		}
	}
	for path, n := range s.now("chasquid_filesystem_free_inodes", "path") {
		if n < 10000 {
			return append(list, one("ChasquidInodesLow", Ticket, "/debug/metrics?q=filesystem", trace.ID{}, "Only %.0f inodes are left where the %s is.", n, path)...)
		}
	}
	return list
}

const failures = "chasquid_delivery_failures_total"

// reasons in words: what went wrong and where to look.
var reasons = map[string]string{
	"dns_error":         "the DNS gives no answer",
	"no_mx":             "the domain takes no mail",
	"connect_timeout":   "the other server does not answer",
	"connect_refused":   "the other server refuses the connection",
	"network_error":     "the network fails",
	"tls_error":         "TLS with the other server fails",
	"sts_policy":        "the other domain's security policy is not met",
	"security_level":    "the connection is less secure than it was before",
	"remote_greylist":   "the other server asks to come back later",
	"remote_rate_limit": "the other server finds that we send too much",
	"remote_mailbox":    "the mailbox does not take it",
	"remote_policy":     "the other server does not want our mail",
	"remote_other":      "the other server refuses",
	"mda_error":         "the local delivery program fails",
	"pipe_error":        "the command of an alias fails",
	"internal":          "this server made an error",
}

// ownFailures: deliveries fail for reasons that are here.
func ownFailures(s *Sampler, e *Evidence) (list []Problem) {
	by := s.grewBy(failures, "reason", 10*time.Minute)
	for _, r := range []struct {
		reason string
		least  float64
	}{{"mda_error", 1}, {"pipe_error", 1}, {"internal", 1}, {"dns_error", 3}} {
		if n := by[r.reason]; n >= r.least {
			list = append(list, failing(e, r.reason, Page, n)...)
		}
	}
	return list
}

// farFailures: deliveries fail for one reason that is elsewhere, to an extent that is not usual.
func farFailures(s *Sampler, e *Evidence) (list []Problem) {
	all := s.grew("chasquid_delivery_attempts_total", 10*time.Minute)
	by := s.grewBy(failures, "reason", 10*time.Minute)
	for _, own := range []string{"mda_error", "pipe_error", "internal", "dns_error", "expired", "remote_mailbox"} {
		delete(by, own)
	}
	if reason, n := largest(by); n >= 5 && n > 0.4*all {
		list = failing(e, reason, Ticket, n)
		list[0].Text = fmt.Sprintf("%.0f %% of all deliveries: ", 100*min(1, n/max(all, 1))) + list[0].Text
	}
	return list
}

func failing(e *Evidence, reason string, sev Severity, n float64) []Problem {
	what := reasons[reason]
	if what == "" {
		what = reason
	}
	alert := "ChasquidRemoteDeliveryFailing"
	if reason == "mda_error" || reason == "pipe_error" {
		alert = "ChasquidLocalDeliveryFailing"
	}
	text := fmt.Sprintf("%s of the last 10 minutes failed because %s (%s).", plural(n, "delivery attempt"), what, reason)
	x, ok := e.Examples[reason]
	if ok {
		text += fmt.Sprintf(" The last one, to %s", x.To)
		if x.MTA != "" {
			text += " at " + x.MTA
		}
		text += ": " + x.Text
	}
	return one(alert, sev, "/debug/queue?reason="+reason, x.Trace, "%s", text)
}

// dead: destinations whose hosts cannot be used at all.
func dead(_ *Sampler, e *Evidence) (list []Problem) {
	for i, d := range e.Dead {
		if i == 3 {
			more := 0
			for _, o := range e.Dead[3:] {
				more += o.Waiting
			}
			return append(list, one("ChasquidRemoteDeliveryFailing", Ticket, "/debug/destinations", trace.ID{}, "%s more cannot be used either; %s for them.", plural(len(e.Dead)-3, "destination"), waiting(more))...)
		}
		sev, what := Info, "The hosts of "+d.Name+" cannot be used"
		if len(d.Name) > 6 && d.Name[:6] == "relay:" {
			sev, what = Page, "The relay "+d.Name[6:]+", which mail leaves through, cannot be used"
		} else if d.Waiting >= 10 {
			sev = Ticket
		}
		next := ""
		if !d.ProbeAt.IsZero() && d.ProbeAt.After(e.Now) {
			next = " It is tried again in " + short(d.ProbeAt.Sub(e.Now)) + "."
		}
		list = append(list, one("ChasquidRemoteDeliveryFailing", sev, "/debug/queue?destination="+escape(d.Name), trace.ID{}, "%s: %s. %s.%s", what, d.Err, waiting(d.Waiting), next)...)
	}
	return list
}

func waiting(n int) string {
	if n == 1 {
		return "1 delivery waits"
	}
	return fmt.Sprintf("%d deliveries wait", n)
}

// providers: one of the large ones puts us off.
func providers(s *Sampler, e *Evidence) (list []Problem) {
	const family = "chasquid_delivery_provider_attempts_total"
	all := s.grewBy(family, "provider", 30*time.Minute)
	for name, n := range s.grewBy(family, "provider", 30*time.Minute, "result", "deferred") {
		if name == "other" || all[name] <= 20 || n <= 0.5*all[name] {
			continue
		}
		text, id := "", trace.ID{}
		if x, ok := latest(e, "remote_rate_limit", "remote_policy", "remote_greylist"); ok {
			text, id = " The last reply of that kind, from "+x.MTA+": "+x.Text, x.Trace
		}
		list = append(list, one("ChasquidProviderDeferring", Ticket, "/debug/destinations", id, "%s puts us off: %.0f of %.0f attempts of the last 30 minutes were deferred.%s", name, n, all[name], text)...)
	}
	return list
}

// latest is the last example of some reasons.
func latest(e *Evidence, reasons ...string) (best Example, ok bool) {
	for _, r := range reasons {
		if x, found := e.Examples[r]; found && x.At.After(best.At) {
			best, ok = x, true
		}
	}
	return best, ok
}

// reputation: other servers do not want our mail, whoever it is from.
func reputation(s *Sampler, e *Evidence) []Problem {
	const family = "chasquid_delivery_remote_replies_total"
	all := s.grew(family, time.Hour, "command", "RCPT|end_of_data")
	refused, put := s.grew(family, time.Hour, "class", "5.7"), s.grew(family, time.Hour, "class", "4.7")
	x, _ := latest(e, "remote_policy", "remote_rate_limit", "remote_greylist")
	last := ""
	if x.Text != "" {
		last = " The last reply of that kind, from " + x.MTA + ": " + x.Text
	}
	switch {
	case refused >= 5 && refused > 0.05*all:
		return one("ChasquidReputation", Ticket, "/debug/queue?by=reason", x.Trace, "Other servers refuse our mail by policy (5.7.x): %s in the last hour.%s", plural(refused, "time"), last)
	case put >= 5 && put > 0.2*all:
		return one("ChasquidReputation", Ticket, "/debug/queue?by=reason", x.Trace, "Other servers put our mail off by policy (4.7.x): %s in the last hour.%s", plural(put, "time"), last)
	}
	return nil
}
