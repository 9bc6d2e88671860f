// Package dkim signs messages for their domain and verifies the signatures of others (RFC 6376, RFC 8301, RFC 8463).
//
// Bodies stream: one pass over the message serves all signatures and all keys, and nothing of it is kept.
package dkim

import (
	"crypto"
	"errors"
	"io"
	"sync"
	"time"
)

// Limits and times.
const (
	MaxSignatures = 5    // verified of one message, from the top
	MinRSABits    = 1024 // RFC 8301 section 3.2
	MaxRSABits    = 8192 // RFC 8301 section 3.2 asks for 4096; more only costs our time
	maxTags       = 64   // of a signature or key record
	maxKeys       = 4    // TXT records tried for one signature
	keyBudget     = 20 * time.Second
	bufferSize    = 32 << 10
)

// The results of a verification, as Authentication-Results names them (RFC 8601 section 2.7.1).
const (
	Pass      = "pass"
	Fail      = "fail"
	PermError = "permerror"
	TempError = "temperror"
	None      = "none" // of a message without signatures
)

// The algorithms.
const (
	RSASHA256     = "rsa-sha256"
	Ed25519SHA256 = "ed25519-sha256" // RFC 8463
)

// Key is a signing key.
type Key struct {
	Domain   string // the d= tag; Unicode or A-labels
	Selector string
	Signer   crypto.Signer // *rsa.PrivateKey or ed25519.PrivateKey
}

// ErrKeyType is returned for keys that are neither RSA nor Ed25519.
var ErrKeyType = errors.New("unsupported key type")

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// copyBody reads r to its end and gives it to every writer.
func copyBody(r io.Reader, hashes []*bodyHash) error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		for _, h := range hashes {
			h.write(buf[:n])
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
