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
	"blitiri.com.ar/go/chasquid/internal/queue/items"
	"blitiri.com.ar/go/chasquid/internal/sts"
	"blitiri.com.ar/go/chasquid/internal/tlspolicy"
	"blitiri.com.ar/go/log"
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

// importItems takes over the queue files of an installation of the original: each is removed once it is safely in the spool. What
// cannot be read stays where it is, for an operator to look at.
func (s *server) importItems(ctx context.Context) error {
	last := time.Now()
	r, err := items.Import(ctx, items.Config{Store: s.store, Dir: filepath.Join(s.conf.GetDataDir(), "queue"), Progress: func(done, total int) {
		if time.Since(last) > progressEvery {
			last = time.Now()
			log.Infof("Importing the queue: %d of %d messages", done, total)
		}
	}})
	if r.Done > 0 {
		log.Infof("Imported %d messages from the queue of an earlier version", r.Done)
	}
	if r.Failed > 0 {
		log.Errorf("%d queue files of an earlier version cannot be read and were left in place", r.Failed)
	}
	if err != nil {
		return fmt.Errorf("Error importing the queue of an earlier version: %w", err)
	}
	return nil
}

// progressEvery is how often long work says how far it is.
const progressEvery = 2 * time.Second
