package vitals

import (
	"fmt"
	"math"
	"time"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

const messages = "chasquid_smtp_in_messages_total"

// acceptErrors: mail is refused for reasons that are ours.
func acceptErrors(s *Sampler, e *Evidence) []Problem {
	ours := s.grew(messages, 5*time.Minute, "result", "server_error")
	all := s.grew(messages, 5*time.Minute, "result", "accepted|rejected|server_error")
	if ours < 3 && (all < 20 || ours <= 0.0144*all) || ours == 0 {
		return nil
	}
	if s.over("accept", s.grewAt(messages, "result", "server_error"), s.grewAt(messages, "result", "accepted")) {
		return nil
	}
	why := ""
	if by := s.grewBy("chasquid_queue_puts_total", "result", 5*time.Minute, "result", "full|error"); len(by) > 0 {
		why = " The queue did not take them: " + listing(by) + "."
	}
	if e.Refused.Text != "" {
		why += " The last answer: " + e.Refused.Text
	}
	return one("ChasquidAcceptErrorsBudgetBurn", Page, "/debug/messages?state=refused", e.Refused.Trace,
		"%.0f of %s of the last 5 minutes could not be taken because of errors of ours; their senders will try again.%s", ours, plural(all, "message"), why)
}

// acceptSlow: clients wait for their 250.
func acceptSlow(s *Sampler, _ *Evidence) []Problem {
	vals := s.recent("in_p99", 6)
	if len(vals) == 0 || !(mean(vals) > 10) {
		return nil
	}
	return one("ChasquidAcceptSlowBudgetBurn", Page, "/debug/traces?b=5&family="+trace.SMTPTransaction.String(), trace.ID{},
		"Accepting a message takes %s at the slow end; clients give up and send again. The slowest transactions say which stage it is.", short(seconds(mean(vals))))
}

func seconds(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }

// noInbound: silence where there was mail every hour.
func noInbound(s *Sampler, _ *Evidence) []Problem {
	day := s.long("in_accepted")
	const quiet = int(6 * time.Hour / LongStep)
	if len(day) < longLen {
		return nil
	}
	sum := func(vals []float32) (n float64) {
		for _, v := range vals {
			if v == v {
				n += float64(v) * LongStep.Minutes()
			}
		}
		return n
	}
	if sum(day[len(day)-quiet:]) > 0.5 || sum(day[:len(day)-quiet]) < 40 {
		return nil
	}
	return one("ChasquidNoInbound", Page, "/", trace.ID{}, "No mail was accepted for 6 hours, where there was some every hour before. Look at the DNS (MX) and the firewall.")
}

const logins = "chasquid_auth_attempts_total"

// loginBackend: passwords cannot be checked.
func loginBackend(s *Sampler, _ *Evidence) []Problem {
	by := s.grewBy(logins, "backend", 10*time.Minute, "result", "backend_error")
	name, n := largest(by)
	if n == 0 || s.over("login", s.grewAt(logins, "result", "backend_error"), s.grewAt(logins, "backend", name, "result", "ok|bad_credentials")) {
		return nil
	}
	what := "the files of users cannot be read"
	if name == "dovecot" {
		what = "Dovecot does not answer. Does it run, and may we open its sockets?"
	}
	return in("auth", one("ChasquidAuthBackendErrors", Page, "/debug/auth", trace.ID{}, "Users cannot log in: for %s of the last 10 minutes the password could not be checked: %s", plural(n, "login"), what))
}

// loginGuessing: somebody tries passwords.
func loginGuessing(s *Sampler, _ *Evidence) []Problem {
	n := s.grew(logins, 15*time.Minute, "result", "bad_credentials")
	if n < 900 {
		return nil
	}
	return one("ChasquidAuthBruteForce", Info, "/debug/auth", trace.ID{}, "Somebody guesses passwords: %.0f failed logins in the last 15 minutes.", n)
}

// harvest: somebody tries out which addresses exist.
func harvest(s *Sampler, _ *Evidence) []Problem {
	n := s.grew("chasquid_smtp_in_recipients_total", 15*time.Minute, "result", "unknown_user")
	if n < 1800 {
		return nil
	}
	return one("ChasquidDirectoryHarvest", Info, "/debug/messages?state=refused", trace.ID{}, "Somebody tries out addresses: %.0f unknown recipients in the last 15 minutes.", n)
}

// spike: far more is submitted than usual, or by one user than people send. An account may be stolen.
func spike(s *Sampler, e *Evidence) []Problem {
	now := s.grew("chasquid_smtp_in_recipients_total", 30*time.Minute, "mode", "submission|submission_tls", "result", "accepted")
	usual := math.NaN()
	if day := s.long("submitted"); len(day) > 24 {
		sum, n := 0.0, 0.0
		for _, v := range day[:len(day)-6] {
			if v == v {
				sum += float64(v)
				n++
			}
		}
		usual = sum / n * 30 // of half an hour
	}
	top := Sender{}
	if len(e.Senders) > 0 {
		top = e.Senders[0]
	}
	who := ""
	if top.Recipients > 0 {
		who = fmt.Sprintf(" %s alone sent to %s in the last hour.", top.User, plural(top.Recipients, "recipient"))
	}
	switch {
	case usual == usual && now > 100 && now > 10*usual:
		return one("ChasquidSubmissionSpike", Ticket, "/debug/auth", top.Trace,
			"Users sent to %s in the last 30 minutes, more than ten times the usual %.0f: an account may be stolen.%s Look at what it sends; change the password, hold its mail.", plural(now, "recipient"), usual, who)
	case usual != usual && top.Recipients >= 200:
		return one("ChasquidSubmissionSpike", Ticket, "/debug/auth", top.Trace,
			"%s sent to %s in the last hour: the account may be stolen. Look at what it sends; change the password, hold its mail. (What is usual is not known yet: the server runs for less than two hours.)", top.User, plural(top.Recipients, "recipient"))
	}
	return nil
}
