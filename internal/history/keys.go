package history

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"unicode/utf8"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

// A Bloom filter of bloomBits bits a key and bloomHashes probes passes a stranger once in about a thousand.
const (
	bloomBits   = 14
	bloomHashes = 10
)

// appendKeys appends a hash of everything the message can be found by.
func appendKeys(keys []uint64, b []byte) []uint64 {
	for len(b) > 0 {
		_, _, rest, ok := walk(b, func(f field) { keys = appendFieldKeys(keys, f) })
		if !ok {
			break
		}
		b = rest
	}
	return keys
}

func appendFieldKeys(keys []uint64, f field) []uint64 {
	switch f.tag {
	case tagTrace:
		var id trace.ID
		copy(id[:], f.value)
		if id != (trace.ID{}) {
			var digits [2 * len(id)]byte
			hex.Encode(digits[:], id[:])
			return append(keys, hashLower(digits[:]), hashLower(digits[:len(digits)/2]))
		}
	case tagClient:
		if ap, err := netip.ParseAddrPort(string(f.value)); err == nil {
			var room [64]byte
			return append(keys, hashLower(ap.Addr().Unmap().AppendTo(room[:0])))
		}
	case tagFrom, tagRcpt, tagOrig, tagUser:
		keys = append(keys, hashLower(f.value))
		if i := bytes.LastIndexByte(f.value, '@'); i >= 0 {
			keys = append(keys, hashLower(f.value[i+1:]))
		}
	case tagID, tagMessageID, tagOther:
		return append(keys, hashLower(f.value))
	case tagReply:
		if id := remoteID(f.value); id != nil {
			return append(keys, hashLower(id))
		}
	}
	return keys
}

// idMarks stand before the id in replies, as servers write them.
var idMarks = [][]byte{[]byte("queued as "), []byte("Queued as "), []byte("queued mail for delivery [InternalId="), []byte("id="), []byte("Message accepted as "), []byte("ok ")}

// remoteID finds the id another server gave the message in its reply; nil if there is none.
func remoteID(reply []byte) []byte {
	for _, mark := range idMarks {
		_, id, ok := bytes.Cut(reply, mark)
		if !ok {
			continue
		}
		if i := bytes.IndexAny(id, " ,;)]\n"); i >= 0 {
			id = id[:i]
		}
		if id = bytes.Trim(id, "<>.[]"); len(id) >= 5 && len(id) <= 128 {
			return id
		}
	}
	return nil
}

// hashKey is the key of a text in lower case: 64-bit FNV-1a with a final mix, as the low bits choose filter positions.
func hashKey(s string) uint64 {
	h := uint64(fnvStart)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return mix(h)
}

// hashLower is hashKey of strings.ToLower of the text, without making that.
func hashLower(b []byte) uint64 {
	h := uint64(fnvStart)
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return hashKey(strings.ToLower(string(b)))
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		h = (h ^ uint64(c)) * fnvPrime
	}
	return mix(h)
}

const (
	fnvStart = 14695981039346656037
	fnvPrime = 1099511628211
)

func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}

// keySet is a set of keys. They are hashes already, so their low bits say where to look.
type keySet struct {
	slots []uint64 // 0 is an empty one
	n     int      // different keys
	zero  bool     // the key 0 is among them
}

// Sizes of a keySet's table: the first, and the largest that is kept for reuse.
const (
	firstSlots = 1 << 10
	spareSlots = 1 << 16
)

func (s *keySet) add(k uint64) {
	if k == 0 {
		if !s.zero {
			s.zero = true
			s.n++
		}
		return
	}
	if 2*s.n >= len(s.slots) {
		s.grow()
	}
	if s.put(k) {
		s.n++
	}
}

// put puts k into its slot and reports whether it was not there.
func (s *keySet) put(k uint64) bool {
	mask := uint64(len(s.slots) - 1)
	for i := k & mask; ; i = (i + 1) & mask {
		switch s.slots[i] {
		case k:
			return false
		case 0:
			s.slots[i] = k
			return true
		}
	}
}

func (s *keySet) grow() {
	old := s.slots
	s.slots = make([]uint64, max(firstSlots, 2*len(old)))
	for _, k := range old {
		if k != 0 {
			s.put(k)
		}
	}
}

// reset empties the set.
func (s *keySet) reset() {
	clear(s.slots)
	if s.n, s.zero = 0, false; len(s.slots) > spareSlots {
		s.slots = nil
	}
}

func newBloom(keys *keySet) []byte {
	filter := make([]byte, max(8, (keys.n*bloomBits+7)/8))
	set := func(i uint64) bool { filter[i/8] |= 1 << (i % 8); return true }
	for _, k := range keys.slots {
		if k != 0 {
			bloomProbe(filter, k, set)
		}
	}
	if keys.zero {
		bloomProbe(filter, 0, set)
	}
	return filter
}

func bloomHas(filter []byte, key uint64) bool {
	if len(filter) == 0 {
		return false
	}
	return bloomProbe(filter, key, func(i uint64) bool { return filter[i/8]&(1<<(i%8)) != 0 })
}

// bloomProbe calls f for the key's positions, made of two halves of its hash, until f returns false.
func bloomProbe(filter []byte, key uint64, f func(uint64) bool) bool {
	bits := uint64(len(filter)) * 8
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], key)
	step := uint64(binary.BigEndian.Uint32(b[:4])) | 1
	at := uint64(binary.LittleEndian.Uint32(b[4:]))
	for range bloomHashes {
		if !f(at % bits) {
			return false
		}
		at += step
	}
	return true
}
