// Package config turns chasquid.conf into plain, checked values.
package config

//go:generate protoc --go_out=. --go_opt=paths=source_relative config.proto
//go:generate go run ./gendoc -out ../../docs/configuration.md

import (
	"crypto/x509"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// FileName is the name of the configuration file in the configuration directory.
const FileName = "chasquid.conf"

// maxFileSize bounds what is read as a configuration file, so that a wrong path (a device, a mailbox) fails fast.
const maxFileSize = 4 << 20

// Config is an effective configuration: defaults, file and overrides merged and checked. It is not changed after Load.
type Config struct {
	*Settings // the effective settings as written; use the parsed values below where there are any

	Dir  string // configuration directory
	File string // the file it was read from

	MaxDataSize   int64         // bytes
	GiveUp        time.Duration // of give_up_send_after
	DelayNotice   time.Duration // of delay_notice_after; 0 is never
	Time          Durations     // of timeouts
	TrustedProxy  []netip.Prefix
	OutgoingIPs   []netip.Addr     // at most one of each family
	Resolvers     []netip.AddrPort // of dns_server
	Relay         *Relay           // of relay_via; nil is direct delivery
	Routes        []DomainRoute    // of route, in file order
	LocalMaildir  string           // path template of "maildir:", empty if not used
	LocalLMTP     string           // socket path or host:port of "lmtp:", empty if not used
	SRS           bool
	SRSSecretFile string // path of the SRS secret
	TLSReports    bool
	ACME          *ACMEConfig // nil is off

	// Warnings are sentences about settings that are legal but probably not meant.
	Warnings []string

	text, overrides string            // what it was made of
	origin          map[string]string // by name of the setting, where it was set; see List
}

// Durations are the parsed timeouts.
type Durations struct {
	Command, Data, Session, PostDataHook, AliasHook, LocalDelivery, Dial, Drain time.Duration
}

// TLSMode says how TLS is used towards a relay.
type TLSMode uint8

// The modes.
const (
	Opportunistic TLSMode = iota // STARTTLS when offered
	StartTLS                     // STARTTLS required
	ImplicitTLS                  // TLS from the first byte
)

// Relay is a server that takes mail for us.
type Relay struct {
	Host     string // name or IP, without brackets
	Port     uint16
	TLS      TLSMode
	User     string
	Password string
}

// DomainRoute is one exception: mail for Domain goes through Relay, or by MX records if Relay is nil.
type DomainRoute struct {
	Domain     string // normalised, without the leading dot
	Subdomains bool   // the domains below Domain rather than Domain itself
	Relay      *Relay
}

// ACMEConfig are the acme settings with their defaults filled in.
type ACMEConfig struct {
	Email, DirectoryURL string
	Roots               *x509.CertPool // whom to trust as the authority's server; nil: the system's
	Hostnames           []string       // in ASCII form, lower case
	Challenge, Address  string         // kind of challenge, and where it is answered
	KeyID               string         // of an external account; empty: none
	MACKey              []byte
}

// Default returns the built-in settings. The host name is left empty: Load asks the operating system.
func Default() *Settings {
	on, plus, dot := "on", "+", "."
	return &Settings{
		MaxDataSizeMb:            50,
		SmtpAddress:              []string{"systemd"},
		SubmissionAddress:        []string{"systemd"},
		SubmissionOverTlsAddress: []string{"systemd"},
		MailDeliveryAgentBin:     "maildrop",
		MailDeliveryAgentArgs:    []string{"-f", "%from%", "-d", "%to_user%"},
		DataDir:                  "/var/lib/chasquid",
		SuffixSeparators:         &plus,
		DropCharacters:           &dot,
		MailLogPath:              "<syslog>",
		MaxQueueItems:            1_000_000,
		GiveUpSendAfter:          "120h",
		MaxRecipients:            1000,
		MaxReceivedHeaders:       100,
		MaxConnections:           5000,
		MaxConnectionsPerIp:      100,
		SenderLoginMatch:         "off",
		LongLines:                "refuse",
		Selfcheck:                "off",
		HaproxyTrusted: []string{"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",
			"169.254.0.0/16", "fe80::/10", "fc00::/7"},
		DelayNoticeAfter:            "4h",
		MinFreeDiskMb:               256,
		MaxDeliveries:               200,
		MaxDeliveriesPerDestination: 20,
		Srs:                         on,
		TlsReports:                  on,
		HistoryDays:                 7,
		HistoryMaxMb:                1024,
		Timeouts: &Timeouts{
			Command: "5m", Data: "3m", Session: "60m", PostDataHook: "1m", AliasHook: "5s", LocalDelivery: "30s",
			Dial: "30s", Drain: "30s",
		},
	}
}

// Load reads the configuration file at path, applies the overrides (the same grammar; may be empty) and checks the result.
// Errors are of type *Error; several wrong values are joined with errors.Join.
func Load(path, overrides string) (*Config, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, readError(path, err)
	}
	return build(path, text, overrides, nil)
}

// Keep returns the configuration with the named settings as they are in running: for those that cannot change while the server runs.
func (c *Config) Keep(running *Config, names ...string) (*Config, error) {
	return build(c.File, c.text, c.overrides, func(s *Settings) {
		dst, src := s.ProtoReflect(), running.Settings.ProtoReflect()
		for _, name := range names {
			if fd := dst.Descriptor().Fields().ByName(protoreflect.Name(name)); src.Has(fd) {
				dst.Set(fd, src.Get(fd))
			} else {
				dst.Clear(fd)
			}
		}
	})
}

// build makes a configuration of the texts; adjust, if set, has the last word on the settings before they are checked.
func build(path, text, overrides string, adjust func(*Settings)) (*Config, error) {
	s := Default()
	c := &Config{Settings: s, File: path, text: text, overrides: overrides, origin: map[string]string{}}
	for _, src := range []source{{what: "config", file: path, text: text}, {what: "override", text: overrides}} {
		layer, err := parse(src)
		if err != nil {
			return nil, err
		}
		merge(s.ProtoReflect(), layer.ProtoReflect(), c.warnIgnored)
		c.noteOrigins(layer, src)
	}
	if adjust != nil {
		adjust(s)
	}
	var err error
	if s.Hostname == "" {
		if s.Hostname, err = os.Hostname(); err != nil {
			return nil, &Error{prefix: "could not get hostname", Field: "hostname", Msg: err.Error(),
				Fix: `set hostname: "mail.example.org" in ` + path, err: err}
		}
	}
	if c.Dir, err = filepath.Abs(filepath.Dir(path)); err != nil {
		return nil, readError(path, err)
	}
	k := &checker{Config: c, file: text, overrides: overrides}
	if err := k.run(); err != nil {
		return nil, err
	}
	return c, nil
}

// Empty reports a file that sets nothing: what is left of one whose writing was cut short.
func (c *Config) Empty() bool {
	layer, err := parse(source{text: c.text})
	return err == nil && proto.Size(layer) == 0
}

// Files returns the paths of all files that the configuration was made from.
func (c *Config) Files() []string {
	files := []string{filepath.Join(c.Dir, filepath.Base(c.File))}
	add := func(path string) {
		if path != "" {
			files = append(files, c.Path(path))
		}
	}
	add(c.RelayPasswordFile)
	for _, r := range c.Route {
		add(r.PasswordFile)
	}
	add(c.Acme.GetCaFile())
	add(c.Acme.GetEabKeyFile())
	return files
}

var dataDirRE = regexp.MustCompile(`(?m)^\s*data_dir\s*:\s*"([^"\\]*)"`)

// FindDataDir returns the data directory that the file names, as far as that can be told: also of a file that is wrong elsewhere. Whoever
// asks the server about a bad file has to find its socket.
func FindDataDir(path string) string {
	if c, err := Load(path, ""); err == nil {
		return c.Path(c.DataDir)
	}
	dir := Default().DataDir
	if text, err := readFile(path); err == nil {
		if m := dataDirRE.FindStringSubmatch(text); m != nil && m[1] != "" {
			dir = m[1]
		}
	}
	return (&Config{Dir: filepath.Dir(path)}).Path(dir)
}

// Path returns p, made relative to the configuration directory unless it is absolute or empty.
func (c *Config) Path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(c.Dir, p)
}

// Equal reports whether two configurations have the same effective settings and the same contents of the files they name.
func (c *Config) Equal(d *Config) bool { return len(Diff(c, d)) == 0 }

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(b) > maxFileSize {
		err = &os.PathError{Op: "read", Path: path, Err: errors.New("larger than 4 MiB: not a configuration file")}
	}
	return string(b), err
}
