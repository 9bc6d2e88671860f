package courier

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Classify finds the class of a failure from the remote's reply or, if there was none, from the error, and the stage at which
// it happened. It is the one place where that is decided: metrics, log, schedule, timeline, pages and notices follow it.
//
// The words of the reply come first, as codes are used loosely; then the enhanced code; then the code and the stage.
func Classify(r smtp.Reply, err error, stage Stage) mail.Reason {
	if r.IsZero() {
		return classifyError(err, stage)
	}
	switch {
	case stage == StageTLS:
		return mail.ReasonTLS
	case r.Enh[1] == 7 && r.Enh[2] >= 20 && r.Enh[2] <= 27: // RFC 7372: the sender's authentication, whatever the words
		return mail.ReasonPolicy
	}
	text := strings.ToLower(r.Text)
	for i := range phrases {
		p := &phrases[i]
		if (p.class == 0 || p.class == r.Class()) && strings.Contains(text, p.words) {
			return p.reason
		}
	}
	if reason, ok := classifyEnhanced(r.Enh, stage); ok {
		return reason
	}
	return classifyCode(r.Code, stage)
}

// classifyError finds the class of a failure in which the remote said nothing intelligible.
func classifyError(err error, stage Stage) mail.Reason {
	switch stage {
	case StageDNS:
		return mail.ReasonDNS
	case StageTLS:
		return mail.ReasonTLS
	case StageAuth:
		return mail.ReasonInternal
	case StageLocal:
		return mail.ReasonMDA
	case StageConnect:
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return mail.ReasonConnectRefused
		case isTimeout(err):
			return mail.ReasonConnectTimeout
		}
	}
	if errors.Is(err, smtp.ErrReplySyntax) || errors.Is(err, smtp.ErrReplyTooBig) {
		return mail.ReasonRemoteOther
	}
	return mail.ReasonNetwork
}

// classifyEnhanced goes by the subject and the detail of RFC 3463, and of RFC 7505, 7372 and 8689 where they add to it.
func classifyEnhanced(e smtp.EnhancedCode, stage Stage) (mail.Reason, bool) {
	switch e[1] {
	case 1:
		switch e[2] {
		case 7, 8: // the sender's address
			return mail.ReasonPolicy, true
		case 10:
			return mail.ReasonNoMX, true
		}
		return mail.ReasonMailbox, true
	case 2:
		if e[2] == 3 { // larger than the mailbox takes
			return mail.ReasonPolicy, true
		}
		return mail.ReasonMailbox, true
	case 3:
		if e[2] == 4 {
			return mail.ReasonPolicy, true
		}
		return mail.ReasonRemoteOther, true
	case 4:
		if e[2] == 5 {
			return mail.ReasonRateLimit, true
		}
		return mail.ReasonRemoteOther, true
	case 5:
		if e[2] == 3 {
			return mail.ReasonRateLimit, true
		}
		return mail.ReasonRemoteOther, true
	case 6:
		return mail.ReasonPolicy, true
	case 7:
		switch e[2] {
		case 10, 30:
			return mail.ReasonTLS, true
		case 28:
			return mail.ReasonRateLimit, true
		}
		if e[2] == 0 && stage <= StageHello && e[0] == 4 {
			return mail.ReasonRateLimit, true // refused for now before a word was said
		}
		return mail.ReasonPolicy, true
	}
	return 0, false
}

// classifyCode goes by the code alone (RFC 5321 section 4.2.3).
func classifyCode(code int, stage Stage) mail.Reason {
	switch code {
	case 521, 556:
		return mail.ReasonNoMX
	case 530, 535, 538, 554, 571:
		return mail.ReasonPolicy
	case 454:
		if stage == StageTLS || stage == StageMail {
			return mail.ReasonTLS
		}
	case 450, 550, 551, 553, 552:
		switch {
		case stage == StageRcpt:
			return mail.ReasonMailbox
		case code != 450:
			return mail.ReasonPolicy
		}
	}
	return mail.ReasonRemoteOther
}

// Bounds of RetryAfter.
const (
	greylistWait  = 5 * time.Minute
	rateLimitWait = 15 * time.Minute
	maxRetryAfter = time.Hour
)

// RetryAfter is how long a failure of this class is not worth another attempt: what the reply says, or else what experience
// says; 0 if neither says anything.
func RetryAfter(reason mail.Reason, r smtp.Reply) time.Duration {
	var d time.Duration
	switch reason {
	case mail.ReasonGreylist:
		d = greylistWait
	case mail.ReasonRateLimit:
		d = rateLimitWait
	default:
		return 0
	}
	if said := saidWait(strings.ToLower(r.Text)); said > 0 {
		d = said
	}
	return min(d, maxRetryAfter)
}

// saidWait finds the first "300 seconds", "5 minutes", "1 hour" in a text.
func saidWait(text string) time.Duration {
	words := strings.FieldsFunc(text, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') })
	for i, w := range words {
		digits := 0
		for digits < len(w) && w[digits] >= '0' && w[digits] <= '9' {
			digits++
		}
		n, err := strconv.Atoi(w[:digits])
		if err != nil || n <= 0 || n > 86400 {
			continue
		}
		unit := w[digits:]
		if unit == "" && i+1 < len(words) {
			unit = words[i+1]
		}
		switch unit {
		case "s", "sec", "secs", "second", "seconds":
			return time.Duration(n) * time.Second
		case "m", "min", "mins", "minute", "minutes":
			return time.Duration(n) * time.Minute
		case "h", "hour", "hours":
			return time.Duration(n) * time.Hour
		}
	}
	return 0
}
