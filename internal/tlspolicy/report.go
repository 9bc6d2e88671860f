package tlspolicy

// Report is what became of one session under one policy: what TLSRPT wants to know (RFC 8460 section 4).
type Report struct {
	Domain string   // the recipient domain, lower-case Unicode
	Policy string   // "sts" or "tlsa" (RFC 8460 section 4.2)
	Text   []string // the policy, line by line
	MX     []string // the mail servers it names
	Host   string   // the mail server of the session; empty if it did not come to one
	Err    error    // nil: the policy was satisfied
}

// ReportError is an error that knows its result type of RFC 8460 section 4.3, such as "sts-policy-invalid".
type ReportError interface {
	error
	ResultType() string
}
