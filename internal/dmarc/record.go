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
	var t tagSet
	for part := range strings.SplitSeq(txt, ";") {
		if name, value, ok := strings.Cut(part, "="); ok {
			t.set(strings.Trim(name, " \t"), strings.Trim(value, " \t"))
		}
	}
	r.StrictDKIM, r.StrictSPF, r.Test = t.is(tagADKIM, "s"), t.is(tagASPF, "s"), t.is(tagT, "y")
	switch {
	case t.is(tagPSD, "y"):
		r.PSD = 'y'
	case t.is(tagPSD, "n"):
		r.PSD = 'n'
	}
	var okP, okSP, okNP bool
	r.Policy, okP = t.policy(tagP, "invalid")
	r.Subdomains, okSP = t.policy(tagSP, r.Policy)
	r.Absent, okNP = t.policy(tagNP, "")
	if r.Usable = okP && okSP && okNP && t.has[tagP]; !r.Usable {
		// RFC 9989 section 4.10.1: without a valid policy the record only counts, as "none", if it wants reports.
		r.Policy, r.Subdomains, r.Absent = PolicyNone, PolicyNone, ""
		r.Usable = hasReportURI(t.value[tagRUA])
	}
	return r, true
}

// The tags that matter here.
const (
	tagP = iota
	tagSP
	tagNP
	tagADKIM
	tagASPF
	tagT
	tagPSD
	tagRUA
	numTags
)

var tagNames = [numTags]string{"p", "sp", "np", "adkim", "aspf", "t", "psd", "rua"}

// tagSet is the tags of a record; of one that stands twice the first counts.
type tagSet struct {
	value [numTags]string
	has   [numTags]bool
}

func (t *tagSet) set(name, value string) {
	for i, n := range tagNames {
		if len(name) == len(n) && !t.has[i] && strings.EqualFold(name, n) {
			t.value[i], t.has[i] = value, true
		}
	}
}

func (t *tagSet) is(tag int, value string) bool {
	return len(t.value[tag]) == len(value) && strings.EqualFold(t.value[tag], value)
}

// policy returns the policy of a tag, def without the tag; ok is false if it is none.
func (t *tagSet) policy(tag int, def Policy) (p Policy, ok bool) {
	if !t.has[tag] {
		return def, true
	}
	for _, p := range [...]Policy{PolicyNone, PolicyQuarantine, PolicyReject} {
		if t.is(tag, string(p)) {
			return p, true
		}
	}
	return PolicyNone, false
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
