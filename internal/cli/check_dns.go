package cli

import "blitiri.com.ar/go/chasquid/internal/selfcheck"

// checkDNS looks at the records of this server and of its domains.
func (k *checker) checkDNS() {
	conf := selfcheck.Config{Resolver: k.configuredResolver(k.conf), Hostname: k.conf.GetHostname()} // certificates were looked at already
	k.judged("host "+k.conf.GetHostname(), conf.Host(k.ctx))
	for _, d := range k.snap.Domains {
		if d.Dir != "" {
			k.judged("DNS of "+d.Name, conf.Domain(k.ctx, d))
		}
	}
}

// judged takes findings into the report.
func (k *checker) judged(about string, found []selfcheck.Finding) {
	for _, f := range found {
		switch f.Result {
		case selfcheck.OK:
			k.ok(about, "%s", f.Text)
		case selfcheck.Fail:
			k.fail(about, f.Fix, "%s", f.Text)
		default:
			k.warn(about, f.Fix, "%s", f.Text)
		}
	}
}
