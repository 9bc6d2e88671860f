package tlspolicy

import "errors"

// Level is how well a connection is protected. The values are those of existing domaininfo files.
type Level uint8

// The levels, lowest first.
const (
	Plain       Level = 0
	TLSClient   Level = 1 // incoming only: the client used TLS, without a certificate of its own
	TLSInsecure Level = 2 // encrypted, the peer's name is not proven
	TLSSecure   Level = 3 // encrypted, the peer's name is proven
)

// String returns the name as files and error texts of existing installations show it.
func (l Level) String() string {
	switch l {
	case TLSClient:
		return "TLS_CLIENT"
	case TLSInsecure:
		return "TLS_INSECURE"
	case TLSSecure:
		return "TLS_SECURE"
	}
	return "PLAIN"
}

// What Rule.Report is told besides errors of crypto/tls and crypto/x509, which come wrapped.
var (
	ErrNoSTARTTLS = errors.New("the server does not offer STARTTLS")
	ErrSTARTTLS   = errors.New("the server refused STARTTLS")
)
