package vitals

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

func escape(s string) string { return url.QueryEscape(s) }

const lookups = "chasquid_dns_lookups_total"

// resolver: the DNS does not answer.
func resolver(s *Sampler, e *Evidence) []Problem {
	const bad = "timeout|temporary|error"
	by := s.grewBy(lookups, "result", 5*time.Minute, "result", bad)
	all := s.grew(lookups, 5*time.Minute)
	if n := total(by); n < 3 || n <= 0.1*all || s.over("resolver", s.grewAt(lookups, "result", bad), s.grewAt(lookups, "result", "ok|notfound")) {
		return nil
	}
	if e.Unresolved > 0 && e.Unresolved < 3 && by["error"] < 3 {
		return nil // it is those domains whose servers do not answer
	}
	where := ""
	if len(e.Resolvers) > 0 {
		where = " The servers asked are " + strings.Join(e.Resolvers, ", ") + ": do they run, and can they be reached?"
	}
	return in("resolver", one("ChasquidDNSFailing", Page, "/debug/dns", e.Examples["dns_error"].Trace, "The DNS fails: %.0f of %s of the last 5 minutes got no answer (%s).%s "+
		"Mail is taken, but what goes out waits, and senders are not checked.", total(by), plural(all, "look-up"), listing(by), where))
}

// hookFiles are the programs behind the names of hooks.
var hookFiles = map[string]string{"post_data": "hooks/post-data", "alias_resolve": "hooks/alias-resolve", "alias_exists": "hooks/alias-exists"}

// hooksBroken: hooks that do not do their work.
func hooksBroken(s *Sampler, e *Evidence) (list []Problem) {
	const family, bad = "chasquid_hook_runs_total", "timeout|bad_output|exec_error"
	all := s.grewBy(family, "hook", 10*time.Minute)
	for hook, n := range s.grewBy(family, "hook", 10*time.Minute, "result", bad) {
		if n <= 0.05*all[hook] || s.over(hook, s.grewAt(family, "hook", hook, "result", bad), s.grewAt(family, "hook", hook, "result", "success|permanent|temporary")) {
			continue
		}
		how := s.grewBy(family, "result", 10*time.Minute, "hook", hook, "result", bad)
		list = append(list, in("hooks", one("ChasquidHookBroken", Page, "/debug/traces?b=-2&family="+trace.Hook.String(), e.Hook,
			"The hook %s is broken: %.0f of %s of the last 10 minutes failed (%s). Mail it should have judged is put off.", hookFiles[hook], n, plural(all[hook], "run"), listing(how)))...)
	}
	return list
}

// stuck: operations that do not come to an end.
func stuck(_ *Sampler, e *Evidence) (list []Problem) {
	count := map[trace.Family]int{}
	for _, o := range e.Stuck {
		count[o.Family]++
		if count[o.Family] > 1 {
			continue
		}
		switch o.Family {
		case trace.Hook:
			list = append(list, in("hooks", one("ChasquidHookHung", Page, "/debug/traces?state=active&family="+trace.Hook.String(), o.Trace,
				"A hook hangs: %s has been running for %s. Clients wait for it, and are put off when its time is over: look at what the hook itself waits for.", o.Title, short(o.For)))...)
		case trace.DeliveryLocal, trace.DeliveryPipe:
			list = append(list, one("ChasquidLocalDeliveryFailing", Ticket, "/debug/traces?state=active&family="+o.Family.String(), o.Trace, "A local delivery hangs: %s has been running for %s.", o.Title, short(o.For))...)
		}
	}
	return list
}

// unsigned: mail leaves without our signature.
func unsigned(s *Sampler, _ *Evidence) []Problem {
	n := s.grew("chasquid_dkim_signatures_total", 30*time.Minute, "result", "error")
	if n == 0 {
		return nil
	}
	return one("ChasquidDKIMSignErrors", Ticket, "/debug/domains", trace.ID{}, "%s of the last 30 minutes could not be signed with DKIM.", plural(n, "message"))
}

// certificates: what has ended, or will soon.
func certificates(_ *Sampler, e *Evidence) (list []Problem) {
	for _, c := range e.Certificates {
		left, alert, sev, check := c.NotAfter.Sub(e.Now), "ChasquidCertExpires2d", Page, "certificates"
		text := fmt.Sprintf("The certificate %s expires in %s. Renew it; the new one is loaded by itself.", c.Name, short(left))
		switch {
		case left < 0:
			text = fmt.Sprintf("The certificate %s expired %s ago, on %s UTC. Mail programs of users and careful servers turn away, others go on. Renew it; the new one is loaded by itself.",
				c.Name, short(-left), c.NotAfter.UTC().Format(time.DateTime))
		case left < 48*time.Hour:
			check = ""
		case left < 21*24*time.Hour:
			alert, sev, check = "ChasquidCertExpires21d", Ticket, ""
		default:
			continue
		}
		list = append(list, in(check, one(alert, sev, "/debug/certs#"+escape(c.Name), e.Handshake, "%s", text))...)
	}
	return list
}

// renewals: the authority gives no certificate. It is soon enough to look today while the present one lasts.
func renewals(_ *Sampler, e *Evidence) (list []Problem) {
	for _, r := range e.Renewals {
		severity, left := Ticket, "the present certificate lasts for "+short(r.NotAfter.Sub(e.Now))
		switch {
		case r.NotAfter.IsZero():
			severity, left = Page, "there is no TLS for this name until it works"
		case !r.NotAfter.After(e.Now):
			severity, left = Page, "the present certificate has ended"
		}
		again := "it is tried again"
		if wait := r.Next.Sub(e.Now); wait > 0 {
			again += " in " + short(wait)
		}
		list = append(list, one("ChasquidACMEFailing", severity, "/debug/certs#"+escape("acme/"+r.Name), trace.ID{},
			"ACME has given no certificate for %s for %s: %s. Meanwhile %s, and %s. The last answer: %s", r.Name, short(e.Now.Sub(r.Since)), r.Remedy, left, again, r.Err)...)
	}
	return list
}

func certificateFiles(s *Sampler, _ *Evidence) []Problem {
	by := s.grewBy("chasquid_tls_certificate_load_errors_total", "name", time.Hour)
	if len(by) == 0 {
		return nil
	}
	return one("ChasquidCertLoadErrors", Ticket, "/debug/log?q=certificate", trace.ID{}, "Certificates could not be loaded in the last hour (times: %s); the ones loaded before are used on.", listing(by))
}

func reloading(_ *Sampler, e *Evidence) []Problem {
	if e.ReloadErr == "" {
		return nil
	}
	return in("config", one("ChasquidReloadFailed", Ticket, "/debug/log?q=reload", trace.ID{}, "The last reload failed, what was loaded before is in use: %s", e.ReloadErr))
}

func panics(s *Sampler, _ *Evidence) []Problem {
	by := s.grewBy("chasquid_panics_total", "component", time.Hour)
	if len(by) == 0 {
		return nil
	}
	return one("ChasquidPanic", Ticket, "/debug/log?q=panic", trace.ID{}, "A bug was hit and survived in the last hour (%s). The log has the stack: please report it.", listing(by))
}

func history(s *Sampler, _ *Evidence) []Problem {
	lost := s.grew("chasquid_history_errors_total", 10*time.Minute) + s.grew("chasquid_history_events_dropped_total", 10*time.Minute)
	if lost == 0 {
		return nil
	}
	return one("ChasquidHistoryLossy", Info, "/debug/log?q=history", trace.ID{}, "The history of messages has gaps: %.0f errors and dropped events in the last 10 minutes. Mail is not affected.", lost)
}

func logging(s *Sampler, _ *Evidence) []Problem {
	by := s.grewBy("chasquid_log_write_errors_total", "log", 10*time.Minute)
	if len(by) == 0 {
		return nil
	}
	return one("ChasquidLogWriteErrors", Ticket, "/debug/log", trace.ID{}, "Log lines could not be written in the last 10 minutes (%s).", listing(by))
}

func overflow(s *Sampler, _ *Evidence) []Problem {
	by := s.grewBy("chasquid_metrics_label_overflow_total", "metric", time.Hour)
	name, n := largest(by)
	if n <= 100 {
		return nil
	}
	return one("ChasquidLabelOverflow", Info, "/debug/metrics?q="+escape(name), trace.ID{}, "Somebody sends what the protocol does not know: %.0f unknown values of %s in the last hour.", n, name)
}

// leak: goroutines grow and grow.
func leak(s *Sampler, _ *Evidence) []Problem {
	day := s.long("goroutines")
	const six = int(6 * time.Hour / LongStep)
	if len(day) < six {
		return nil
	}
	first, last := float64(day[len(day)-six]), float64(day[len(day)-1])
	if !(last > 5000 && last-first > 600) {
		return nil
	}
	return one("ChasquidGoroutineLeak", Ticket, "/debug/goroutines", trace.ID{}, "Goroutines grew from %.0f to %.0f in the last 6 hours.", first, last)
}

// clock: somebody set it.
func clock(s *Sampler, _ *Evidence) []Problem {
	if s.jump == 0 || s.mono-s.jumpAt > 30*time.Minute {
		return nil
	}
	way := "forward"
	if s.jump < 0 {
		way = "back"
	}
	return one("ChasquidClockJump", Ticket, "/debug/queue?sort=next", trace.ID{}, "The clock of this machine was set %s by %s, %s ago. Times of retries, ages in the queue and the validity of certificates follow the clock. If this was no correction, look at the time service.", way, short(s.jump.Abs()), short(s.mono-s.jumpAt))
}

func selfcheck(s *Sampler, _ *Evidence) (list []Problem) {
	for _, t := range s.windows["chasquid_selfcheck_status"].cells {
		if t.last == 0 {
			list = append(list, one("ChasquidSelfcheckFailed", Ticket, "/debug/domains", trace.ID{}, "The DNS is not as it should be: the check %s of %s fails.", t.label("check"), t.label("domain"))...)
		}
	}
	return list
}

// stale: a loop that should have run.
func stale(s *Sampler, e *Evidence) []Problem {
	at := s.now("chasquid_sts_cache_last_refresh_timestamp_seconds", "")[""]
	age := e.Now.Sub(time.Unix(int64(at), 0))
	if at == 0 || age <= 48*time.Hour {
		return nil
	}
	return one("ChasquidSTSRefreshStalled", Ticket, "/debug/sts", trace.ID{}, "The MTA-STS policies were not refreshed for %s.", short(age))
}

// checks: health checks that fail for what no rule has seen.
func checks(found []Problem, e *Evidence) (list []Problem) {
	for _, c := range e.Failing {
		if slices.ContainsFunc(found, func(p Problem) bool { return p.Check == c.Name }) {
			continue
		}
		text := "The check " + c.Name + " fails: " + c.Err
		if !c.Warning {
			text = "No mail is taken. " + text
		}
		list = append(list, in(c.Name, one("ChasquidNotReady", Page, "/readyz?verbose", trace.ID{}, "%s", text))...)
	}
	return list
}
