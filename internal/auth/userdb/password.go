package userdb

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"

	"golang.org/x/crypto/scrypt"
)

// Parameters of new passwords, and bounds of those in files: a file cannot make us run out of memory or time.
const (
	defaultLogN   = 14
	defaultR      = 8
	defaultP      = 1
	defaultKeyLen = 32
	saltLen       = 16

	maxMemory = 512 << 20 // bytes: 128 * N * r (RFC 7914 section 2)
	maxWork   = 1 << 26   // N * r * p, 512 times the default
	minKeyLen = 8         // a shorter key could be guessed, an empty one would match everything
	maxKeyLen = 1024
)

// Scheme is how a password is kept.
type Scheme uint8

// The schemes.
const (
	Unknown  Scheme = iota // there is no such user
	DeniedTo               // the user exists, and never authenticates
	PlainText
	ScryptHash
)

// Password is what is known of a user's password. The zero value is that of a user who does not exist.
type Password struct {
	scheme          Scheme
	logN            uint8
	r, p            int32
	salt, encrypted []byte // encrypted is the password itself for PlainText
}

// ErrParams is the reason a file with absurd scrypt parameters is refused.
var ErrParams = errors.New("scrypt parameters are out of bounds")

// NewScrypt hashes the password with fresh salt and the default parameters.
func NewScrypt(password string) (Password, error) {
	p := Password{scheme: ScryptHash, logN: defaultLogN, r: defaultR, p: defaultP, salt: make([]byte, saltLen)}
	rand.Read(p.salt)
	var err error
	p.encrypted, err = p.hash(password, defaultKeyLen)
	return p, err
}

// NewPlain keeps the password as it is. Meant for tests.
func NewPlain(password string) Password {
	return Password{scheme: PlainText, encrypted: []byte(password)}
}

// NewDenied is for a user who receives mail and never authenticates.
func NewDenied() Password { return Password{scheme: DeniedTo} }

// Scheme returns how the password is kept.
func (p Password) Scheme() Scheme { return p.scheme }

// Verify reports whether this is the password. It takes the time of one scrypt in every case, so that the time says nothing about
// whether a user exists or may log in. It needs 16 MiB of memory with the default parameters.
func (p Password) Verify(password string) bool {
	key, keyLen := p, max(len(p.encrypted), minKeyLen) // what is stored shorter never matches
	if p.scheme != ScryptHash {
		key, keyLen = Password{logN: defaultLogN, r: defaultR, p: defaultP, salt: make([]byte, saltLen)}, defaultKeyLen
	}
	got, err := key.hash(password, keyLen)
	switch p.scheme {
	case ScryptHash:
		return err == nil && subtle.ConstantTimeCompare(got, p.encrypted) == 1
	case PlainText:
		a, b := sha256.Sum256([]byte(password)), sha256.Sum256(p.encrypted)
		return len(p.encrypted) > 0 && subtle.ConstantTimeCompare(a[:], b[:]) == 1
	}
	return false
}

func (p Password) hash(password string, keyLen int) ([]byte, error) {
	return scrypt.Key([]byte(password), p.salt, 1<<p.logN, int(p.r), int(p.p), keyLen)
}

func fromEntry(e *Entry) (Password, error) {
	switch s := e.GetScheme().(type) {
	case *Entry_Scrypt:
		return fromScrypt(s.Scrypt)
	case *Entry_Plain:
		return Password{scheme: PlainText, encrypted: s.Plain.GetPassword()}, nil
	}
	return NewDenied(), nil // an entry without a scheme is as good
}

func fromScrypt(s *Scrypt) (Password, error) {
	n, r, p := s.GetLogN(), int64(s.GetR()), int64(s.GetP())
	if n < 1 || n > 30 || r < 1 || r > 1<<20 || p < 1 || p > 1<<20 || 128*r<<n > maxMemory || r*p<<n > maxWork ||
		len(s.GetEncrypted()) > maxKeyLen {
		return Password{}, ErrParams
	}
	pw := Password{scheme: ScryptHash, logN: uint8(n), r: s.GetR(), p: s.GetP(), salt: s.GetSalt(), encrypted: s.GetEncrypted()}
	if int(s.GetKeyLen()) != len(pw.encrypted) {
		pw.encrypted = nil // nothing would ever match
	}
	return pw, nil
}

func (p Password) entry() *Entry {
	switch p.scheme {
	case ScryptHash:
		return &Entry{Scheme: &Entry_Scrypt{&Scrypt{
			LogN: uint64(p.logN), R: p.r, P: p.p, KeyLen: int32(len(p.encrypted)), Salt: p.salt, Encrypted: p.encrypted,
		}}}
	case PlainText:
		return &Entry{Scheme: &Entry_Plain{&Plain{Password: p.encrypted}}}
	}
	return &Entry{Scheme: &Entry_Denied{&Denied{}}}
}
