package mail

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// An ID of ours is 16 characters of idAlphabet, 5 bits each, the highest first: 51 bits of microseconds since idEpoch, which last
// until 2091, and 29 random bits. The alphabet is in the order of ASCII, so ids sort by time as strings; it has no letters that
// look like digits, no upper case, and nothing that a file name, a header or a command line would have to quote.
const (
	idAlphabet   = "0123456789abcdefghjkmnpqrstvwxyz"
	idEpoch      = 1577836800 * 1e6 // 2020-01-01, in microseconds since 1970
	idRandomBits = 29
)

// lastID is the time part of the newest id: no two ids of one process share it. The random part keeps apart the ids of processes
// and of machines, also when a clock is set back.
var lastID atomic.Int64

// NewID returns an id that was never used before and sorts after all that this process made earlier.
func NewID() ID {
	for {
		last := lastID.Load()
		now := max(last+1, time.Now().UnixMicro()-idEpoch)
		if lastID.CompareAndSwap(last, now) {
			return makeID(uint64(now), rand.Uint32())
		}
	}
}

func makeID(micros uint64, random uint32) ID {
	var b [16]byte
	low := random & (1<<idRandomBits - 1) // 29 bits; with the lowest bit of the time they fill the last six characters
	bits := micros<<idRandomBits | uint64(low)
	for i := 15; i > 3; i-- {
		b[i] = idAlphabet[bits&31]
		bits >>= 5
	}
	bits = micros >> (60 - idRandomBits)
	for i := 3; i >= 0; i-- {
		b[i] = idAlphabet[bits&31]
		bits >>= 5
	}
	return ID(b[:])
}

// DeriveID returns the id that follows from the time and the digest, which must have 4 bytes or more: the same for the same ones.
// It looks like an id of NewID.
func DeriveID(at time.Time, digest []byte) ID {
	return makeID(uint64(max(0, at.UnixMicro()-idEpoch)), binary.BigEndian.Uint32(digest))
}
