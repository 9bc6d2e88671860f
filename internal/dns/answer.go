package dns

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	miekg "github.com/miekg/dns"
)

// maxRecords bounds what is kept of one answer; nothing legitimate comes near it.
const maxRecords = 256

// readAnswer makes an entry of a reply: it follows the CNAMEs inside it and collects the records of the type. next is the
// name to ask for when the chain ends outside the reply.
func readAnswer(msg *miekg.Msg, name string, qtype uint16) (e *entry, next string) {
	e = &entry{ttl: maxTTLValue}
	owner := escape(name)
	links := 0
	for ; links <= maxCNAME; links++ {
		target := ""
		for _, rr := range msg.Answer {
			h := rr.Header()
			if h.Class != miekg.ClassINET || !strings.EqualFold(h.Name, owner) {
				continue
			}
			if h.Rrtype == qtype {
				e.add(rr)
				e.ttl = min(e.ttl, seconds(h.Ttl))
			} else if c, ok := rr.(*miekg.CNAME); ok && target == "" {
				target = c.Target
				e.ttl = min(e.ttl, seconds(h.Ttl))
			}
		}
		if e.count > 0 || target == "" {
			break
		}
		owner = target
	}
	if links > maxCNAME {
		return &entry{err: &TemporaryError{name, errCNAMELoop}}, ""
	}
	if e.count > 0 {
		e.finish(name)
		return e, ""
	}
	negative, hasSOA := negativeTTL(msg)
	e.ttl = min(e.ttl, negative)
	if msg.Rcode == miekg.RcodeNameError {
		e.err = ErrNXDomain
		return e, ""
	}
	if links > 0 && !hasSOA {
		if n, ok := canonical(unescapeText(owner)); ok {
			return e, n
		}
	}
	e.err = ErrNotFound
	return e, ""
}

const maxTTLValue = time.Duration(1<<31-1) * time.Second // RFC 2181 section 8

func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0 // RFC 2181 section 8
	}
	return time.Duration(ttl) * time.Second
}

// negativeTTL is how long an absence may be remembered (RFC 2308 section 5).
func negativeTTL(msg *miekg.Msg) (time.Duration, bool) {
	for _, rr := range msg.Ns {
		if soa, ok := rr.(*miekg.SOA); ok {
			return min(seconds(soa.Minttl), seconds(soa.Hdr.Ttl), maxNegative), true
		}
	}
	return defNegative, false
}

// add takes one record of the answer.
func (e *entry) add(rr miekg.RR) {
	e.count++
	if e.count > maxRecords {
		return
	}
	switch rr := rr.(type) {
	case *miekg.MX:
		if h, ok := hostName(rr.Mx); ok {
			e.mx = append(e.mx, MX{rr.Preference, h})
		}
	case *miekg.A:
		if a, ok := netip.AddrFromSlice(rr.A); ok {
			e.ips = append(e.ips, a.Unmap())
		}
	case *miekg.AAAA:
		if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
			e.ips = append(e.ips, a)
		}
	case *miekg.TXT:
		e.texts = append(e.texts, unescapeText(strings.Join(rr.Txt, "")))
	case *miekg.PTR:
		if h, ok := hostName(rr.Ptr); ok && h != "" {
			e.texts = append(e.texts, h)
		}
	case *miekg.TLSA:
		if d, err := hex.DecodeString(rr.Certificate); err == nil {
			e.tlsa = append(e.tlsa, TLSA{rr.Usage, rr.Selector, rr.MatchingType, d})
		}
	}
}

// finish orders the records and fails the entry if none of them could be used: an MX that names no host is not the same as
// no MX, so nobody must fall back to the address of the domain (RFC 5321 section 5.1).
func (e *entry) finish(name string) {
	slices.SortStableFunc(e.mx, func(a, b MX) int { return int(a.Pref) - int(b.Pref) })
	if len(e.mx)+len(e.ips)+len(e.texts)+len(e.tlsa) == 0 {
		e.err = &TemporaryError{name, errBadRecords}
	}
}
