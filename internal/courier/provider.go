package courier

import "strings"

const otherProvider = "other"

// maxExtraProviders bounds the names an installation may add: they are label values.
const maxExtraProviders = 20

// providerSuffixes maps the ends of mail servers' names to the provider that runs them.
var providerSuffixes = map[string]string{
	"google.com": "google", "googlemail.com": "google",
	"outlook.com": "microsoft", "hotmail.com": "microsoft", "office365.us": "microsoft", "mx.microsoft": "microsoft",
	"yahoodns.net": "yahoo", "yahoo.co.jp": "yahoo",
	"icloud.com": "apple", "apple.com": "apple",
	"protonmail.ch": "proton", "proton.ch": "proton",
	"messagingengine.com": "fastmail",
	"amazonaws.com":       "amazon", "awsapps.com": "amazon",
	"gmx.net": "gmx_web_de", "gmx.com": "gmx_web_de", "web.de": "gmx_web_de", "kundenserver.de": "gmx_web_de", "1and1.com": "gmx_web_de", "ionos.com": "gmx_web_de",
	"qq.com": "qq_netease", "netease.com": "qq_netease", "163.com": "qq_netease", "126.com": "qq_netease", "mxhichina.com": "qq_netease",
	"mimecast.com": "mimecast", "mimecast.co.za": "mimecast",
	"pphosted.com": "proofpoint", "ppe-hosted.com": "proofpoint", "ppops.net": "proofpoint",
}

// provider returns the name for a mail server's host, by its longest known suffix.
func (s *SMTP) provider(host string) string {
	for h := host; h != ""; {
		if p, ok := s.extra[h]; ok {
			return p
		}
		if p, ok := providerSuffixes[h]; ok {
			return p
		}
		_, h, _ = strings.Cut(h, ".")
	}
	return otherProvider
}

// providerNames is the closed set of names: the built-in ones, the extra ones as far as they fit, and "other".
func providerNames(extra map[string]string) []string {
	names := []string{"google", "microsoft", "yahoo", "apple", "proton", "fastmail", "amazon", "gmx_web_de", "qq_netease", "mimecast", "proofpoint", otherProvider}
	n := len(names)
	seen := map[string]bool{}
	for _, name := range names {
		seen[name] = true
	}
	for _, name := range extra {
		if !seen[name] && len(names) < n+maxExtraProviders {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}
