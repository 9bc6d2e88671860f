package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The JSON form of a report (RFC 8460 section 4.4).
type (
	report struct {
		Organization string         `json:"organization-name"`
		Range        dateRange      `json:"date-range"`
		Contact      string         `json:"contact-info"`
		ID           string         `json:"report-id"`
		Policies     []policyReport `json:"policies"`
	}
	dateRange struct {
		Start time.Time `json:"start-datetime"`
		End   time.Time `json:"end-datetime"`
	}
	policyReport struct {
		Policy   policyInfo      `json:"policy"`
		Summary  summary         `json:"summary"`
		Failures []failureDetail `json:"failure-details,omitempty"`
	}
	policyInfo struct {
		Type   string   `json:"policy-type"`
		Text   []string `json:"policy-string,omitempty"`
		Domain string   `json:"policy-domain"`
		MX     []string `json:"mx-host,omitempty"`
	}
	summary struct {
		Successful int64 `json:"total-successful-session-count"`
		Failed     int64 `json:"total-failure-session-count"`
	}
	failureDetail struct {
		Type   string `json:"result-type"`
		Host   string `json:"receiving-mx-hostname,omitempty"`
		Count  int64  `json:"failed-session-count"`
		Reason string `json:"failure-reason-code,omitempty"`
	}
)

// build makes the report of one domain for one day.
func (r *Recorder) build(day time.Time, domain string, d *domainStats, id string) report {
	self := r.self.Load()
	rep := report{
		Organization: self.organization,
		Range:        dateRange{day, day.Add(24*time.Hour - time.Second)},
		Contact:      self.contact,
		ID:           id,
	}
	for _, p := range d.Policies {
		pr := policyReport{Policy: policyInfo{p.Type, p.Text, domain, p.MX}, Summary: summary{Successful: p.Successful}}
		for _, f := range p.Failures {
			pr.Summary.Failed += f.Count
			pr.Failures = append(pr.Failures, failureDetail{f.Type, f.Host, f.Count, f.Reason})
		}
		rep.Policies = append(rep.Policies, pr)
	}
	return rep
}

// encode returns the report as compressed JSON.
func (rep report) encode() ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := json.NewEncoder(z).Encode(rep); err != nil {
		return nil, fmt.Errorf("encoding the report: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compressing the report: %w", err)
	}
	return b.Bytes(), nil
}

// fileName is the name RFC 8460 section 5.1 wants.
func fileName(submitter, domain string, day time.Time, unique string) string {
	return fmt.Sprintf("%s!%s!%d!%d!%s.json.gz", submitter, domain, day.Unix(), day.Add(24*time.Hour-time.Second).Unix(), unique)
}

// message makes the mail that carries a report (RFC 8460 section 5.3), in wire form. TLS-Required lets it arrive even where the
// failures it tells of are still there (RFC 8689 section 3).
func message(from, to, submitter, domain, id, file string, now time.Time, gz []byte) []byte {
	boundary := "=_tlsrpt_" + strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, id)
	var b strings.Builder
	line := func(format string, args ...any) {
		fmt.Fprintf(&b, format, args...)
		b.WriteString("\r\n")
	}
	line("From: <%s>", from)
	line("To: <%s>", to)
	line("Date: %s", now.Format(time.RFC1123Z))
	line("Message-ID: <%s>", id)
	line("Subject: Report Domain: %s Submitter: %s Report-ID: <%s>", domain, submitter, id)
	line("TLS-Report-Domain: %s", domain)
	line("TLS-Report-Submitter: %s", submitter)
	line("TLS-Required: No")
	line("Auto-Submitted: auto-generated")
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=\"%s\"", boundary)
	line("")
	line("--%s", boundary)
	line("Content-Type: text/plain; charset=\"us-ascii\"")
	line("")
	line("This is an aggregate report about TLS connections from %s to the mail\r\nservers of %s.", submitter, domain)
	line("")
	line("--%s", boundary)
	line("Content-Type: application/tlsrpt+gzip")
	line("Content-Transfer-Encoding: base64")
	line("Content-Disposition: attachment;\r\n\tfilename=\"%s\"", file)
	line("")
	text := base64.StdEncoding.EncodeToString(gz)
	for len(text) > 76 {
		line("%s", text[:76])
		text = text[76:]
	}
	line("%s", text)
	line("--%s--", boundary)
	return []byte(b.String())
}
