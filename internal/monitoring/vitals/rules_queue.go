package vitals

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

// queueSize: the queue is nearly full, will be soon, or grows fast.
func queueSize(s *Sampler, e *Evidence) []Problem {
	vals := s.recent("queue_items", 180)
	if len(vals) == 0 {
		return nil
	}
	items, capacity := vals[len(vals)-1], s.now("chasquid_queue_capacity_items", "")[""]
	if capacity > 0 && items > 0.8*capacity {
		return one("ChasquidQueueNearFull", Page, "/debug/queue", trace.ID{}, "The queue holds %.0f of at most %.0f messages; when it is full, mail is refused.%s", items, capacity, waitingFor(s))
	}
	if grows := slope(vals); capacity > 0 && len(vals) >= 60 && items > 100 && items+grows*4*3600 > capacity {
		return one("ChasquidQueueFillsSoon", Page, "/debug/queue", trace.ID{}, "The queue grows by %.0f messages a minute: at this rate it is full in %s.%s", grows*60, short(seconds((capacity-items)/grows)), waitingFor(s))
	}
	if ten := s.recent("queue_items", 60); items-ten[0] > 1000 {
		x := lastFailure(e)
		return one("ChasquidQueueGrows", Ticket, "/debug/queue", x.Trace, "The queue grew from %.0f to %.0f messages within the last 10 minutes.%s Its page shows by reason, destination and sender what they are.", ten[0], items, waitingFor(s))
	}
	return nil
}

// waitingFor says what most of the attempts of the last minutes failed of.
func waitingFor(s *Sampler) string {
	by := s.grewBy(failures, "reason", 10*time.Minute, "kind", "deferred")
	reason, n := largest(by)
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" %.0f %% of the deferrals of the last 10 minutes are because %s (%s).", 100*n/total(by), cause(reason), reason)
}

// lastFailure is the last example of all.
func lastFailure(e *Evidence) (x Example) {
	for _, o := range e.Examples {
		if o.At.After(x.At) {
			x = o
		}
	}
	return x
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
	if len(by) == 0 || s.over("disk", s.grewAt("chasquid_queue_disk_errors_total"), s.grewAt("chasquid_queue_puts_total", "result", "ok")) {
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

// lowLog is too little for a log.
const lowLog = 1 << 20

// defMinFree is what is left free when nothing else is said.
const defMinFree = 256 << 20

// diskSpace: no room left, or not for long.
func diskSpace(s *Sampler, e *Evidence) (list []Problem) {
	free, least := s.now("chasquid_filesystem_free_bytes", "path"), float64(e.MinFree)
	if least <= 0 {
		least = defMinFree
	}
	link := "/debug/metrics?q=filesystem"
	if n, ok := free["queue"]; ok && n < least {
		list = in("queue_space", one("ChasquidDiskWillFill", Page, link, e.Refused.Trace, "The disk is full: %s are free where the queue is, and mail is refused (452 4.3.1) below %s. "+
			"Free some space; mail is taken again at once. Meanwhile other servers try again, and users see an error; nothing is lost.", size(n), size(least)))
	} else if ok && n < 2*least {
		list = one("ChasquidDiskWillFill", Ticket, link, trace.ID{}, "The disk is nearly full: %s are free where the queue is, and below %s mail is refused. Free some space.", size(n), size(least))
	}
	if n, ok := free["log"]; ok && n < lowLog {
		list = append(list, one("ChasquidDiskWillFill", Ticket, link, trace.ID{}, "The disk of the mail log is full: %s are free. Mail goes on, its log does not.", size(n))...)
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

const (
	failures = "chasquid_delivery_failures_total"
	attempts = "chasquid_delivery_attempts_total"
)

// reasons in words.
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
	"remote_other":      "the other server refuses for now",
	"mda_error":         "the local delivery fails",
	"pipe_error":        "the command of an alias fails",
	"internal":          "this server made an error",
}

// own is what to say of reasons that are here: what is wrong if hardly anything else happens, if it is only some, and what to do.
var own = map[string]struct{ what, some, do string }{
	"dns_error":  {"", "Mail for some domains cannot leave, as the DNS gives no answer for them", ""},
	"mda_error":  {"Users do not get their mail, as the local delivery fails", "Some users do not get their mail", " Mail waits in the queue until it works: see mail_delivery_agent_bin or local_delivery."},
	"pipe_error": {"The commands of aliases fail", "The command of an alias fails", " Its mail waits in the queue until it works."},
	"internal":   {"This server made errors", "This server made errors", " The log has more."},
}

// cause is a reason in words.
func cause(reason string) string {
	if what, ok := reasons[reason]; ok {
		return what
	}
	return reason
}

// ownFailures: deliveries fail for reasons that are here. If it is most of them, somebody has to look now; a single full mailbox can wait.
func ownFailures(s *Sampler, e *Evidence) (list []Problem) {
	for _, r := range []struct{ reason, way, check string }{
		{"mda_error", "local", "mda"}, {"pipe_error", "pipe", ""}, {"internal", "local|pipe|remote|forward", ""}, {"dns_error", "remote|forward", ""},
	} {
		n := s.grew(failures, 10*time.Minute, "reason", r.reason)
		good := s.grewAt(attempts, "type", r.way, "result", "delivered")
		if r.reason == "dns_error" {
			good = s.grewAt(lookups, "result", "ok|notfound")
		}
		switch {
		case n == 0 || s.over(r.reason, s.grewAt(failures, "reason", r.reason), good):
		case r.reason == "dns_error" && (n < 3 || len(resolver(s, e)) > 0): // that tells more
		case n >= 3 && n > 0.5*s.grew(attempts, 10*time.Minute, "type", r.way) && own[r.reason].what != "":
			list = append(list, in(r.check, failing(e, r.reason, own[r.reason].what, Page, n))...)
		default:
			list = append(list, failing(e, r.reason, own[r.reason].some, Ticket, n)...)
		}
	}
	return list
}

// farFailures: deliveries fail for one reason that is elsewhere, to an extent that is not usual.
func farFailures(s *Sampler, e *Evidence) (list []Problem) {
	all := s.grew(attempts, 10*time.Minute)
	by := s.grewBy(failures, "reason", 10*time.Minute)
	for reason := range own {
		delete(by, reason)
	}
	delete(by, "expired")
	delete(by, "remote_mailbox")
	if len(providers(s, e)) > 0 { // that tells more
		for _, reason := range putOff {
			delete(by, reason)
		}
	}
	reason, n := largest(by)
	if n < 5 || n <= 0.4*all || s.over("far", s.grewAt(failures, "reason", reason), s.grewAt(attempts, "type", "remote|forward", "result", "delivered")) {
		return nil
	}
	list = failing(e, reason, "", Ticket, n)
	list[0].Text = fmt.Sprintf("%.0f %% of all deliveries: ", 100*min(1, n/max(all, 1))) + list[0].Text
	return list
}

// failing tells of failures for a reason. what is what to say of it, if anything special.
func failing(e *Evidence, reason, what string, sev Severity, n float64) []Problem {
	alert := "ChasquidRemoteDeliveryFailing"
	if reason == "mda_error" || reason == "pipe_error" {
		alert = "ChasquidLocalDeliveryFailing"
	}
	text := fmt.Sprintf("%s of the last 10 minutes failed because %s (%s).", plural(n, "delivery attempt"), cause(reason), reason)
	if what != "" {
		text = fmt.Sprintf("%s: %s of the last 10 minutes failed (%s).", what, plural(n, "attempt"), reason)
	}
	x, ok := e.Examples[reason]
	if ok {
		text += fmt.Sprintf(" The last one, to %s", x.To)
		if x.MTA != "" {
			text += " at " + x.MTA
		}
		text += ": " + x.Text + "."
	}
	text += own[reason].do
	return one(alert, sev, "/debug/queue?reason="+reason, x.Trace, "%s", text)
}

// dead: destinations whose hosts cannot be used at all.
func dead(_ *Sampler, e *Evidence) (list []Problem) {
	all := relays(e.Dead)
	for i, d := range all {
		if i == 3 {
			more := 0
			for _, o := range all[3:] {
				more += o.Waiting
			}
			return append(list, one("ChasquidRemoteDeliveryFailing", Ticket, "/debug/destinations", trace.ID{}, "%s more cannot be used either; %s for them.", plural(len(all)-3, "destination"), waiting(more))...)
		}
		do := ""
		sev, what, check, link := Info, "The hosts of "+d.Name+" cannot be used", "", "/debug/queue?destination="+escape(d.Name)
		if relay, ok := strings.CutPrefix(d.Name, "relay:"); ok {
			sev, what, check, link = Page, "The relay "+relay+", which mail leaves through, cannot be used", "relay", "/debug/queue?by=destination"
			do = " Is it up, and can it be reached from here?"
		} else if d.Waiting >= 10 {
			sev = Ticket
		}
		next := ""
		if !d.ProbeAt.IsZero() && d.ProbeAt.After(e.Now) {
			next = " It is tried again in " + short(d.ProbeAt.Sub(e.Now)) + "."
		}
		x, _ := latest(e, "connect_refused", "connect_timeout", "network_error", "tls_error", "dns_error")
		list = append(list, in(check, one("ChasquidRemoteDeliveryFailing", sev, link, x.Trace, "%s: %s. %s.%s%s", what, d.Err, waiting(d.Waiting), next, do))...)
	}
	return list
}

// relays makes one of all destinations behind the same relay, "relay:host …", and puts the relays first.
func relays(list []Dead) (out []Dead) {
	for _, d := range list {
		if !strings.HasPrefix(d.Name, "relay:") {
			continue
		}
		d.Name, _, _ = strings.Cut(d.Name, " ")
		if i := slices.IndexFunc(out, func(o Dead) bool { return o.Name == d.Name }); i >= 0 {
			out[i].Waiting += d.Waiting
		} else {
			out = append(out, d)
		}
	}
	for _, d := range list {
		if !strings.HasPrefix(d.Name, "relay:") {
			out = append(out, d)
		}
	}
	return out
}

func waiting(n int) string {
	if n == 1 {
		return "1 delivery waits"
	}
	return fmt.Sprintf("%d deliveries wait", n)
}

// putOff are the reasons of providers.
var putOff = []string{"remote_rate_limit", "remote_policy", "remote_greylist"}

// providers: one of the large ones puts us off.
func providers(s *Sampler, e *Evidence) (list []Problem) {
	const family = "chasquid_delivery_provider_attempts_total"
	all := s.grewBy(family, "provider", 30*time.Minute)
	for name, n := range s.grewBy(family, "provider", 30*time.Minute, "result", "deferred") {
		if name == "other" || all[name] <= 20 || n <= 0.5*all[name] {
			continue
		}
		text, id := "", trace.ID{}
		if x, ok := latest(e, putOff...); ok {
			text, id = " The last reply of that kind, from "+x.MTA+": "+x.Text, x.Trace
		}
		list = append(list, one("ChasquidProviderDeferring", Ticket, "/debug/destinations", id, "%s puts us off: %.0f of %.0f attempts of the last 30 minutes were deferred. Sending less at once helps, sending again does not.%s", name, n, all[name], text)...)
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
	case put >= 5 && put > 0.2*all && len(providers(s, e)) == 0:
		return one("ChasquidReputation", Ticket, "/debug/queue?by=reason", x.Trace, "Other servers put our mail off by policy (4.7.x): %s in the last hour.%s", plural(put, "time"), last)
	}
	return nil
}
