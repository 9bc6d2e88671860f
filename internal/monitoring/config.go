package monitoring

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"blitiri.com.ar/go/chasquid/internal/expvarom"
	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Config of a Server. Everything a page shows comes from here; the server reads no state of other packages by itself. All of it may be
// missing: a page without anything to show says so. Functions are called at any time, by several goroutines, and must be quick.
type Config struct {
	Hostname     string
	AllowedHosts []string // further names accepted in Host on loopback
	WebConfig    string   // file of the Prometheus exporter toolkit: TLS, client certificates, passwords; "": none
	Build        Build
	Started      time.Time
	Succeeded    *Succession // the process before this one; nil: it was started anew
	Pages        []Page      // further pages; one with the path of a page of this package replaces it
	Checks       []Check
	Disks        []Disk // whose space is watched
	MinFree      int64  // bytes of disk below which no mail is taken
	Exit         func() // called by POST /exit after the reply is out
	Metrics      *expvarom.Registry

	Status  func() Status   // for the index
	Queue   Queue           // a *queue.Queue
	Traces  *trace.Recorder //
	History History         // a *history.History
	Recent  *Recent         // one of the timeline's observers
	Log     *Log            // what the process log goes through

	ConfigText func() string                                             // the settings in force, without secrets
	Settings   func() []Setting                                          // the same, one by one
	Domains    func() []Domain                                           // for /debug/domains
	Policies   func() []Policy                                           // MTA-STS policies in memory, for /debug/sts
	Levels     func() []TLSLevel                                         // what TLS was seen with which domain, for /debug/sts; the first are shown
	DNS        func() DNS                                                // for /debug/dns
	Diagnose   func(ctx context.Context, w io.Writer, rcpt string) error // dry run of a delivery, for /debug/diagnose
	Flight     bool                                                      // keep the last seconds of the execution trace from the start
}

// Queue is what the pages need of the queue.
type Queue interface {
	Stats() queue.Stats
	List(ctx context.Context, f queue.Filter, p queue.Page) (queue.List, error)
	Count(ctx context.Context, f queue.Filter) (int, error)
	Groups(ctx context.Context, f queue.Filter, by string, limit int) ([]queue.Group, error)
	Item(id mail.ID) (queue.Item, error)
	Operate(ctx context.Context, op queue.Op, f queue.Filter, who string) (int, error)
	Destinations(ctx context.Context, limit int) []queue.Destination
	WriteDump(ctx context.Context, w io.Writer, limit int) error
}

// History is what the pages need of the history of messages.
type History interface {
	Search(ctx context.Context, q history.Query) (found []history.Message, more bool, err error)
	Get(ctx context.Context, id string) (history.Message, bool, error)
}

// Page is one page of the server. Components make the handlers; the wiring lists them.
type Page struct {
	Path    string // "/debug/queue"
	Method  string // GET when empty (HEAD included)
	Title   string // in the index; a page without title is not listed
	About   string // one sentence for the index
	Group   string // index section
	Public  bool   // seen by peers that are neither on loopback nor authenticated
	Handler http.Handler
	Subtree bool // the handler also serves everything below Path
}

// Disk is a file system, by one of the directories that are on it.
type Disk struct {
	Name string // "queue": a metric label
	Path string
}

// Succession is the process that this one took over from, without a restart.
type Succession struct {
	Version    string    `json:"version"` // of that process
	PID        int       `json:"pid"`
	At         time.Time `json:"at"`
	Generation int       `json:"generation"` // of this process: one more than upgrades since the start
}

// Build says what is running.
type Build struct {
	Version    string    `json:"version"`
	SourceDate time.Time `json:"source_date"`
	GoVersion  string    `json:"go_version"`
}

// Status is what the index shows of the rest of the server, taken at the time of the request.
type Status struct {
	Listeners    []ListenerStatus
	Queue        QueueStatus // looked at only if there is no Config.Queue
	Certificates []CertificateStatus
	Renewals     []Renewal // of what comes by ACME
	Domains      int
	Users        int
	ReloadAt     time.Time
	ReloadErr    error
	ChangedAt    time.Time   // when a reload last changed settings
	Changes      []string    // those it changed
	Restart      []string    // settings that were changed and wait for a restart
	Rejections   []Rejection // the last ones, newest first
}

// ListenerStatus is one SMTP listener.
type ListenerStatus struct {
	Address string `json:"address"`
	Mode    string `json:"mode"`
	Open    int64  `json:"open"`
	Total   int64  `json:"total"`
}

// QueueStatus is the queue in figures.
type QueueStatus struct {
	Items    int64         `json:"messages"`
	Capacity int64         `json:"capacity"`
	Sending  int64         `json:"sending"`
	Held     int64         `json:"held"`
	Bytes    int64         `json:"bytes"`
	Oldest   time.Duration `json:"oldest_ns"`
}

// Renewal is how it stands with a certificate that comes by ACME.
type Renewal struct {
	Name     string    `json:"name"`
	NotAfter time.Time `json:"not_after,omitzero"` // zero: there is none
	Covered  bool      `json:"covered,omitempty"`  // there is one in certs/
	Next     time.Time `json:"next,omitzero"`
	Since    time.Time `json:"failing_since,omitzero"`
	Failures int       `json:"failures,omitempty"`
	Error    string    `json:"error,omitempty"`
	Remedy   string    `json:"remedy,omitempty"`
}

// CertificateStatus is one certificate in use.
type CertificateStatus struct {
	Name      string    `json:"name"` // of its directory
	Names     []string  `json:"names"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after"`
	Issuer    string    `json:"issuer,omitempty"`
	Key       string    `json:"key,omitempty"`    // "ECDSA P-256"
	SHA256    string    `json:"sha256,omitempty"` // fingerprint, hex
}

// Rejection is one refused message or command. Its texts come from strangers.
type Rejection struct {
	At     time.Time `json:"at"`
	Client string    `json:"client"`
	User   string    `json:"user,omitempty"`
	From   string    `json:"from,omitempty"`
	To     string    `json:"to,omitempty"`
	Reason string    `json:"reason"`
	Reply  string    `json:"reply,omitempty"`
	Trace  trace.ID  `json:"trace,omitzero"`
}

// Setting is one effective setting, without secrets.
type Setting struct {
	Name   string `json:"name"`
	Text   string `json:"text"`   // as it would be written
	Origin string `json:"origin"` // "default", or where it is set
}

// Domain is one local domain.
type Domain struct {
	Name         string   `json:"name"`
	Users        int      `json:"users"`
	Aliases      int      `json:"aliases"`
	Keys         []Key    `json:"dkim,omitempty"`
	Certificates []string `json:"certificates,omitempty"` // names of those that are for the domain
	Notes        []string `json:"notes,omitempty"`        // what is wrong with it, in sentences
}

// Key is a DKIM key.
type Key struct {
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm"`
	Published string `json:"published,omitempty"` // what the DNS says of it: "yes", "no", "another key"; empty if it was not asked
}

// Policy is one MTA-STS policy in memory.
type Policy struct {
	Domain  string    `json:"domain"`
	Mode    string    `json:"mode"` // enforce, testing, none
	MX      []string  `json:"mx"`
	ID      string    `json:"id,omitempty"`
	Fetched time.Time `json:"fetched,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	Error   string    `json:"error,omitempty"` // of the last refresh
}

// TLSLevel is the best protection seen with a domain; less is not accepted any more.
type TLSLevel struct {
	Domain   string `json:"domain"`
	Incoming string `json:"incoming,omitempty"`
	Outgoing string `json:"outgoing,omitempty"`
}

// DNS is the resolver.
type DNS struct {
	Servers  []DNSServer  `json:"servers"`
	Failures []DNSFailure `json:"failures"` // newest first
	Notes    []string     `json:"notes,omitempty"`
}

// DNSServer is one server that is asked.
type DNSServer struct {
	Address string `json:"address"`
	Trusted bool   `json:"validation_believed"`
}

// DNSFailure is a look-up that got no answer.
type DNSFailure struct {
	At      time.Time     `json:"at"`
	Name    string        `json:"name"`
	Type    string        `json:"type"`
	Purpose string        `json:"purpose"`
	Took    time.Duration `json:"took_ns"`
	Error   string        `json:"error"`
}

// errNotHere is what a page says that has nothing to show.
var errNotHere = errors.New("not available on this server")
