package dmarc

import "strings"

// Policy is what a domain asks receivers to do with mail that fails.
type Policy string

// The policies (RFC 9989 section 4.7).
const (
	PolicyNone       Policy = "none"
	PolicyQuarantine Policy = "quarantine"
	PolicyReject     Policy = "reject"
)

// weaker is the policy one level down, for domains in test mode (RFC 9989 section 4.7, tag t).
func (p Policy) weaker() Policy {
	if p == PolicyReject {
		return PolicyQuarantine
	}
	return PolicyNone
}

// Record is a DMARC policy record as far as receiving needs it.
type Record struct {
	Policy     Policy // p
	Subdomains Policy // sp, or p
	Absent     Policy // np, or empty
	StrictDKIM bool   // adkim=s
	StrictSPF  bool   // aspf=s
	Test       bool   // t=y
	PSD        byte   // 'y', 'n', or 0 for u, the default
	Usable     bool   // it has a valid policy; else the domain is treated as if it had no record
}

// maxRecord bounds the text looked at.
const maxRecord = 4096

// isRecord reports a text that begins with the version tag, which is compared exactly (RFC 9989 section 4.7, tag v).
func isRecord(txt string) bool {
	name, rest, _ := strings.Cut(txt, "=")
	version, _, _ := strings.Cut(rest, ";")
	return strings.TrimRight(name, " \t") == "v" && strings.Trim(version, " \t") == "DMARC1"
}

// ParseRecord parses a policy record; ok is false if the text is none. Unknown tags and malformed parts are passed over.
func ParseRecord(txt string) (r Record, ok bool) {
	if len(txt) > maxRecord || !isRecord(txt) {
		return Record{}, false
	}
	seen := map[string]string{}
	for part := range strings.SplitSeq(txt, ";") {
		name, value, ok := strings.Cut(part, "=")
		name = strings.ToLower(strings.Trim(name, " \t"))
		if _, dup := seen[name]; ok && !dup && len(seen) < 32 {
			seen[name] = strings.Trim(value, " \t")
		}
	}
	tag := func(name string) string { return strings.ToLower(seen[name]) }
	r.StrictDKIM, r.StrictSPF, r.Test = tag("adkim") == "s", tag("aspf") == "s", tag("t") == "y"
	if psd := tag("psd"); psd == "y" || psd == "n" {
		r.PSD = psd[0]
	}
	valid := true
	policy := func(name string, def Policy) Policy {
		if _, ok := seen[name]; !ok && name != "p" {
			return def
		}
		switch p := Policy(tag(name)); p {
		case PolicyNone, PolicyQuarantine, PolicyReject:
			return p
		}
		valid = false
		return PolicyNone
	}
	r.Policy = policy("p", PolicyNone)
	r.Subdomains = policy("sp", r.Policy)
	r.Absent = policy("np", "")
	if !valid {
		// RFC 9989 section 4.10.1: without a valid policy the record only counts, as "none", if it wants reports.
		r.Policy, r.Subdomains, r.Absent = PolicyNone, PolicyNone, ""
		r.Usable = hasReportURI(seen["rua"])
		return r, true
	}
	r.Usable = true
	return r, true
}

// hasReportURI reports a list with a URI that could be reported to.
func hasReportURI(list string) bool {
	for uri := range strings.SplitSeq(list, ",") {
		scheme, rest, ok := strings.Cut(strings.Trim(uri, " \t"), ":")
		rest, _, _ = strings.Cut(rest, "!")
		switch strings.ToLower(scheme) {
		case "mailto":
			if ok && strings.Contains(rest, "@") {
				return true
			}
		case "https":
			if ok && len(rest) > len("//") {
				return true
			}
		}
	}
	return false
}
