package tlsrpt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/dns"
	"blitiri.com.ar/go/chasquid/internal/trace"
	"blitiri.com.ar/go/log"
)

// Times.
const (
	tick       = time.Hour        // between looks at what is due, and writes of the state
	spread     = 4 * time.Hour    // reports of a day are sent within so long of its end (RFC 8460 section 5.5)
	postBudget = time.Minute      // for one POST
	firstRetry = 30 * time.Minute // of a POST; doubled each time
	giveUp     = 24 * time.Hour   // RFC 8460 section 5.5
	maxDue     = 1000             // POSTs waiting to be tried again
)

// delivery is one report on its way by HTTPS.
type delivery struct {
	domain, url string
	body        []byte
	next        time.Time
	wait        time.Duration
	until       time.Time
}

// NewClient makes the client for posting reports. It does not verify certificates, as RFC 8460 section 3 allows: what is reported may
// be just that they are wrong. It follows no redirects and connects to no addresses inside.
func NewClient(r dns.Resolver) *http.Client {
	d := &dns.Dialer{Resolver: r}
	return &http.Client{
		Timeout:       postBudget,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            d.DialContext,
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    20 * time.Second,
			MaxResponseHeaderBytes: 16 << 10,
			DisableKeepAlives:      true,
		},
	}
}

// Run sends the reports of each day after its end, at a moment of its own, until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	delay := mathrand.N(spread)
	for ctx.Err() == nil {
		r.work(ctx, delay)
		select {
		case <-time.After(tick):
		case <-ctx.Done():
		}
	}
	if err := r.save(); err != nil {
		log.Errorf("%v", err)
	}
}

// work sends what is due and writes the state. It outlives whatever stands in a record.
func (r *Recorder) work(ctx context.Context, delay time.Duration) {
	defer func() {
		if p := recover(); p != nil {
			log.Errorf("tlsrpt: panic: %v\n%s", p, debug.Stack())
		}
	}()
	if now := time.Now().UTC(); r.self.Load().on {
		for _, day := range r.over(now, delay) {
			r.reportDay(ctx, day)
		}
		r.retry(ctx, now)
	}
	if err := r.save(); err != nil {
		log.Errorf("%v", err)
	}
}

// over returns the days that are over for long enough.
func (r *Recorder) over(now time.Time, delay time.Duration) (l []time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, date := range slices.Sorted(maps.Keys(r.days)) {
		day, err := time.Parse(dateFormat, date)
		if err == nil && !now.Before(day.Add(24*time.Hour+delay)) {
			l = append(l, day)
		}
	}
	return l
}

// reportDay sends the reports of one day to the domains that want them, and forgets the day.
func (r *Recorder) reportDay(ctx context.Context, day time.Time) {
	ctx, span := trace.Start(ctx, trace.STS, "TLSRPT "+day.Format(dateFormat))
	defer span.Finish()
	r.mu.Lock()
	stats := r.days[day.Format(dateFormat)]
	delete(r.days, day.Format(dateFormat))
	r.mu.Unlock()
	for _, domain := range slices.Sorted(maps.Keys(stats.Domains)) {
		if ctx.Err() != nil {
			r.keep(day, domain, stats.Domains[domain]) // the rest after the restart
			continue
		}
		if err := r.reportDomain(ctx, day, domain, stats.Domains[domain]); err != nil {
			span.Printf("%s: %v", domain, err)
		}
	}
}

// keep puts a domain's counts back.
func (r *Recorder) keep(day time.Time, domain string, d *domainStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	date := day.Format(dateFormat)
	if r.days[date] == nil {
		r.days[date] = &dayStats{map[string]*domainStats{}}
	}
	r.days[date].Domains[domain] = d
}

// reportDomain sends one report everywhere it is wanted.
func (r *Recorder) reportDomain(ctx context.Context, day time.Time, domain string, d *domainStats) error {
	ascii, err := address.DomainToASCII(domain)
	if err != nil || d == nil || len(d.Policies) == 0 {
		return nil
	}
	targets, err := lookup(ctx, r.cfg.Resolver, ascii)
	if err != nil || len(targets) == 0 {
		return err
	}
	unique := make([]byte, 8)
	rand.Read(unique)
	self := r.self.Load()
	id := day.Format("20060102") + "." + hex.EncodeToString(unique) + "@" + self.hostname
	gz, err := r.build(day, ascii, d, id).encode()
	if err != nil {
		return err
	}
	for _, t := range targets {
		if t.URL != "" {
			now := time.Now()
			r.post(ctx, &delivery{domain: ascii, url: t.URL, body: gz, wait: firstRetry, until: now.Add(giveUp)})
			continue
		}
		msg := message(self.from, t.Mail, self.hostname, ascii, id, fileName(self.hostname, ascii, day, hex.EncodeToString(unique)), time.Now(), gz)
		err := r.cfg.Mail(ctx, self.from, t.Mail, msg)
		r.m.sent("mailto", err == nil)
		if err != nil {
			log.Errorf("tlsrpt: the report for %s could not be queued: %v", ascii, err)
		}
	}
	return nil
}

// post tries one delivery and keeps it for later if it fails.
func (r *Recorder) post(ctx context.Context, d *delivery) {
	err := r.tryPost(ctx, d)
	if err == nil {
		r.m.sent("https", true)
		return
	}
	trace.From(ctx).Printf("report for %s to %s: %v", d.domain, d.url, err)
	now := time.Now()
	d.next = now.Add(d.wait)
	d.wait *= 2
	r.mu.Lock()
	defer r.mu.Unlock()
	if d.next.After(d.until) || len(r.due) >= maxDue {
		r.m.sent("https", false)
		log.Infof("tlsrpt: the report for %s could not be delivered to %q: %v", d.domain, d.url, err)
		return
	}
	r.due = append(r.due, d)
}

func (r *Recorder) tryPost(ctx context.Context, d *delivery) error {
	ctx, cancel := context.WithTimeout(ctx, postBudget)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(d.body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/tlsrpt+gzip")
	resp, err := r.cfg.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	return nil
}

// retry tries again what is due.
func (r *Recorder) retry(ctx context.Context, now time.Time) {
	r.mu.Lock()
	due := r.due
	r.due = nil
	r.mu.Unlock()
	for _, d := range due {
		if ctx.Err() == nil && !now.Before(d.next) {
			r.post(ctx, d)
			continue
		}
		r.mu.Lock()
		r.due = append(r.due, d)
		r.mu.Unlock()
	}
}
