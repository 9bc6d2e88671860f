package acmecert

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/crypto/acme"
)

// Error is why there is no certificate.
type Error struct {
	Msg string
	Fix string // what to do
	Err error  // the cause, may be nil
}

// Error says what went wrong.
func (e *Error) Error() string { return e.Msg }

// Remedy says what to do.
func (e *Error) Remedy() string { return e.Fix }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// What could not be done, where the cause alone does not tell.
type (
	listenError    struct{ error }
	directoryError struct{ error }
	accountError   struct{ error }
)

func (e *listenError) Unwrap() error    { return e.error }
func (e *directoryError) Unwrap() error { return e.error }
func (e *accountError) Unwrap() error   { return e.error }

// maxDetail bounds what is shown of an authority's words.
const maxDetail = 600

// explain makes an error of one that says, in one line, for which name, why, and what to do.
func explain(host string, cfg Config, err error) *Error {
	// The authority's words go into logs and pages: on one line, and with nothing but text.
	words := strings.Join(strings.FieldsFunc(strings.ToValidUTF8(err.Error(), "\uFFFD"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(words) > maxDetail {
		words = strings.ToValidUTF8(words[:maxDetail], "") + "…"
	}
	return &Error{Msg: "no new certificate for " + host + ": " + words, Fix: fix(host, cfg, err), Err: err}
}

func fix(host string, cfg Config, err error) string {
	var own *Error
	var listen *listenError
	var directory *directoryError
	var account *accountError
	var authz *acme.AuthorizationError
	switch {
	case errors.As(err, &own):
		return own.Fix
	case errors.As(err, &listen):
		return fixListen(cfg, err)
	case errors.As(err, &authz):
		return fixProof(host, cfg, authz)
	case errors.As(err, &account) && problemType(err) != "ratelimited" && problemType(err) != "serverinternal":
		return fixAccount(cfg, err)
	case problemType(err) != "":
		return fixProblem(host, problemType(err))
	case errors.As(err, &directory):
		return fixNetwork(cfg, err)
	case errors.Is(err, context.DeadlineExceeded):
		return "the authority is slow; if it stays so, check the network of this machine"
	}
	return fixNetwork(cfg, err)
}

func setting(cfg Config) (name, port string) {
	if cfg.Challenge == TLSALPN01 {
		return "acme.tls_alpn_address", "443"
	}
	return "acme.http_address", "80"
}

func fixListen(cfg Config, err error) string {
	name, port := setting(cfg)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && cfg.Challenge == HTTP01:
		return fmt.Sprintf("another program has the port: set %s to a free one, and let that program forward /.well-known/acme-challenge/ to it", name)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("another program has the port: set %s to a free one and forward port %s to it, or use acme.challenge \"http-01\"", name, port)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("let the server's user listen on port %s (CAP_NET_BIND_SERVICE), as the systemd unit does", port)
	}
	return "correct " + name
}

// fixProof is for when the authority could not see the proof.
func fixProof(host string, cfg Config, z *acme.AuthorizationError) string {
	_, port := setting(cfg)
	for _, err := range z.Errors {
		switch problemType(err) {
		case "dns":
			return fmt.Sprintf("publish A or AAAA records of %s that lead to this machine", host)
		case "caa":
			return fixProblem(host, "caa")
		}
	}
	return fmt.Sprintf("port %s of %s has to lead here: check the A and AAAA records, the firewall, and what else answers there", port, host)
}

func fixAccount(cfg Config, err error) string {
	switch problemType(err) {
	case "externalaccountrequired":
		return "set acme.eab_key_id and acme.eab_key_file to what the authority gave you"
	case "invalidcontact", "unsupportedcontact":
		return "correct acme.email"
	case "useractionrequired":
		return fixProblem("", "useractionrequired")
	}
	if cfg.KeyID != "" {
		return "check acme.eab_key_id and the key in acme.eab_key_file with the authority"
	}
	return "if the authority closed the account, remove account.key below data_dir/acme: a new one is made"
}

// fixProblem is by the types of RFC 8555 section 6.7.
func fixProblem(host, problem string) string {
	switch problem {
	case "ratelimited":
		return "the authority wants us to wait, which is done; do not restart or remove files meanwhile"
	case "rejectedidentifier", "unsupportedidentifier":
		return fmt.Sprintf("the authority does not certify %s: correct acme.hostname, or use another authority", host)
	case "caa":
		return fmt.Sprintf("the CAA record of %s forbids this authority: correct it", host)
	case "dns":
		return fmt.Sprintf("publish A or AAAA records of %s that lead to this machine", host)
	case "useractionrequired":
		return "the authority wants you to do something: visit the address in its message"
	case "serverinternal":
		return "the authority has trouble; nothing is wrong here"
	}
	return "the authority's message says why"
}

func fixNetwork(cfg Config, err error) string {
	var unknown x509.UnknownAuthorityError
	var wrong x509.HostnameError
	var dns *net.DNSError
	switch {
	case errors.As(err, &unknown):
		return "set acme.ca_file to the root certificate of the authority's server, or install the system's (ca-certificates)"
	case errors.As(err, &wrong):
		return "correct acme.directory_url: its server has a certificate for another name"
	case errors.As(err, &dns):
		return "check acme.directory_url and the DNS of this machine"
	case problemStatus(err) != 0:
		return "check acme.directory_url; the authority may have trouble"
	}
	return fmt.Sprintf("check that this machine reaches %s", cfg.DirectoryURL)
}

func problemStatus(err error) int {
	var e *acme.Error
	if errors.As(err, &e) {
		return e.StatusCode
	}
	return 0
}
