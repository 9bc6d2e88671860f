package courier

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/dns/zone"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

type oneRule struct{ r tlspolicy.Rule }

func (o oneRule) Rule(context.Context, string) (tlspolicy.Rule, error) { return o.r, nil }

func TestPlan(t *testing.T) {
	told := 0
	rule := tlspolicy.Rule{Source: "mta-sts", RequireTLS: true, RequirePKIX: true, Report: func(string, error) { told++ }, AllowMX: func(h string) error {
		if h == "mx2.a.test" {
			return fmt.Errorf("not listed")
		}
		return nil
	}}
	s := NewSMTP(Config{Hostname: "me.test", Sources: []tlspolicy.Source{oneRule{rule}}, Resolver: zone.MustNew(
		"a.test MX 10 mx1.a.test\na.test MX 20 mx2.a.test\na.test MX 30 mx3.a.test\na.test MX 40 mx4.a.test\na.test MX 50 mx5.a.test\n" +
			"mx1.a.test A 192.0.2.1\nmx2.a.test A 192.0.2.2\nmx4.a.test A 127.0.0.1\nn.test MX 0 .\nr.test A 192.0.2.9\n")})
	p := s.Plan(t.Context(), mail.Route{Transport: mail.SMTP, Domain: "a.test"})
	got := fmt.Sprint(p.Demands, p.Refusal)
	for _, h := range p.Servers {
		got += fmt.Sprintf("\n%s %d %v %v %s", h.Name, h.Pref, h.Addrs, h.Demands, h.Refused)
	}
	want := `[MTA-STS: certain servers, TLS with a valid certificate] <nil>
mx1.a.test 10 [192.0.2.1:25] [MTA-STS: certain servers, TLS with a valid certificate] 
mx2.a.test 20 [] [MTA-STS: certain servers, TLS with a valid certificate] MTA-STS does not allow it: not listed
mx3.a.test 30 [] [MTA-STS: certain servers, TLS with a valid certificate] Could not find mail server: mx3.a.test: no such domain
mx4.a.test 40 [] [MTA-STS: certain servers, TLS with a valid certificate] it is this server`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if told != 0 {
		t.Error("looking reported to the policy")
	}
	if p := s.Plan(t.Context(), mail.Route{Transport: mail.SMTP, Domain: "n.test"}); p.Refusal == nil || p.Refusal.Reply.Code != 556 {
		t.Errorf("null MX: %+v", p)
	}
	p = s.Plan(t.Context(), mail.Route{Transport: mail.Relay, Hosts: []string{"r.test:465"}, Target: "smtps://u@r.test:465"})
	if len(p.Servers) != 1 || fmt.Sprint(p.Servers[0].Addrs) != "[192.0.2.9:465]" || !strings.Contains(fmt.Sprint(p.Demands), "smarthost: TLS with a valid certificate") {
		t.Errorf("smarthost: %+v", p)
	}
}
