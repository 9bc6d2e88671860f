package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/courier"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/domaininfo"
	"blitiri.com.ar/go/chasquid/internal/monitoring"
	"blitiri.com.ar/go/chasquid/internal/sts"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
)

// openState opens what is remembered of other servers, below the data directory.
func (s *server) openState(ctx context.Context, dir string) error {
	servers := make([]string, len(s.conf.Resolvers))
	for i, r := range s.conf.Resolvers {
		servers[i] = r.String()
	}
	s.dns = dns.New(dns.Config{Servers: servers, TrustAD: s.conf.GetDnsTrustAd(), Metrics: s.reg})
	var err error
	if s.levels, err = domaininfo.Open(ctx, domaininfo.Config{Dir: filepath.Join(dir, "domaininfo")}); err != nil {
		return fmt.Errorf("Error opening domain info database: %w", err)
	}
	if s.sts, err = sts.New(sts.Config{Resolver: s.dns, Dir: filepath.Join(dir, "sts-cache"), Metrics: s.reg}); err != nil {
		return fmt.Errorf("Failed to initialize STS cache: %w", err)
	}
	return nil
}

func (s *server) tlsSources() []tlspolicy.Source         { return []tlspolicy.Source{s.sts} }
func (s *server) tlsHostSources() []tlspolicy.HostSource { return nil }
func (s *server) ledger() courier.Ledger                 { return s.levels }

// rpcDomaininfoClear forgets the TLS levels of a domain.
func (s *server) rpcDomaininfoClear(ctx context.Context, args url.Values) (url.Values, error) {
	domain, err := address.NormalizeDomain(args.Get("Domain"))
	if err != nil {
		return nil, err
	}
	if err := s.levels.Clear(ctx, domain); errors.Is(err, domaininfo.ErrNotFound) {
		return nil, domaininfo.ErrNotFound
	} else if err != nil {
		return nil, err
	}
	return url.Values{}, nil
}

// queuePage is the dump of the queue that existing scripts read.
func (s *server) queuePage() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := s.queue.WriteDump(r.Context(), w, dumpLimit); err != nil {
			fmt.Fprintf(w, "\nincomplete: %v\n", err)
		}
	})
}

// dumpLimit bounds the messages of one dump.
const dumpLimit = 10000

func (s *server) queueStatus(st *monitoring.Status) {
	q := s.queue.Stats()
	st.Queue = monitoring.QueueStatus{Items: int64(q.Messages), Capacity: int64(q.Capacity), Sending: int64(q.Sending), Held: int64(q.Held),
		Bytes: q.Bytes, Oldest: q.Oldest.Round(time.Second)}
}

func (s *server) importItems(ctx context.Context) error { return nil }
