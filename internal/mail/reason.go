package mail

// Reason is the class of a delivery failure: one closed set shared by metrics, log, timeline, pages and notices.
type Reason uint8

// The reasons.
const (
	ReasonNone Reason = iota
	ReasonDNS
	ReasonNoMX
	ReasonConnectTimeout
	ReasonConnectRefused
	ReasonNetwork
	ReasonTLS
	ReasonSTSPolicy
	ReasonSecurityLevel
	ReasonGreylist
	ReasonRateLimit
	ReasonMailbox
	ReasonPolicy
	ReasonRemoteOther
	ReasonMDA
	ReasonPipe
	ReasonInternal
	ReasonExpired
	NumReasons
)

var reasonNames = [NumReasons]string{
	"none", "dns_error", "no_mx", "connect_timeout", "connect_refused", "network_error", "tls_error", "sts_policy", "security_level",
	"remote_greylist", "remote_rate_limit", "remote_mailbox", "remote_policy", "remote_other", "mda_error", "pipe_error", "internal", "expired",
}

// String returns the name as metrics, logs and pages show it.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames[r]
	}
	return "internal"
}

// ParseReason is the inverse of String.
func ParseReason(s string) (Reason, bool) {
	for i, n := range reasonNames {
		if n == s {
			return Reason(i), true
		}
	}
	return 0, false
}
