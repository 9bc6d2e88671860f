package main

import (
	"fmt"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// stubDNS answers for the names of the benchmark from memory: sink.test has an MX at sinkIP, sender.test an SPF record that passes,
// domains below dead.test an MX where nobody listens.
func stubDNS(addr, sinkIP string) error {
	zone := map[string][]string{
		"sink.test. MX":            {"sink.test. 300 IN MX 10 mx.sink.test."},
		"mx.sink.test. A":          {"mx.sink.test. 300 IN A " + sinkIP},
		"mx." + deadDomain + ". A": {"mx." + deadDomain + ". 300 IN A " + deadIP},
		"sender.test. TXT":         {`sender.test. 300 IN TXT "v=spf1 ip4:127.0.0.0/8 -all"`},
		"sender.test. MX":          {"sender.test. 300 IN MX 10 mx.sink.test."},
		"_dmarc.sender.test. TXT":  {`_dmarc.sender.test. 300 IN TXT "v=DMARC1; p=none"`},
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.RecursionAvailable = true
		if len(r.Question) == 1 {
			q := r.Question[0]
			name := dns.CanonicalName(q.Name)
			answers, ok := zone[name+" "+dns.TypeToString[q.Qtype]]
			if q.Qtype == dns.TypeMX && strings.HasSuffix(name, "."+deadDomain+".") {
				answers, ok = []string{name + " 300 IN MX 10 mx." + deadDomain + "."}, true
			}
			for _, a := range answers {
				rr, err := dns.NewRR(a)
				if err != nil {
					panic(err)
				}
				m.Answer = append(m.Answer, rr)
			}
			if !ok {
				soa, _ := dns.NewRR("test. 300 IN SOA ns.test. host.test. 1 1 1 1 300")
				m.Ns = append(m.Ns, soa)
			}
		}
		w.WriteMsg(m)
	})
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return fmt.Errorf("DNS stub: %w", err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("DNS stub: %w", err)
	}
	go (&dns.Server{PacketConn: pc, Handler: handler}).ActivateAndServe()
	go (&dns.Server{Listener: l, Handler: handler}).ActivateAndServe()
	return nil
}
