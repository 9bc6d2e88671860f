package spool

import (
	"encoding/binary"
	"hash/crc32"
)

// A segment is a header page and then records, each aligned to recordAlign bytes:
//
//	0   u8   magic
//	1   u8   type
//	2   u16  0
//	4   u32  CRC-32C of bytes 0-3, 8-23 and the meta part, begun with the segment's salt
//	8   u32  number of the write that brought it; never falls within a segment
//	12  u32  how much of the segment was durable when it was written, in units of recordAlign
//	16  u32  length of the meta part
//	20  u32  length of the tail
//	24       meta, then tail
//
// Integers are little-endian. The tail carries bytes of messages; its checksums stand in the meta part, so that starting does not
// have to read it.
const (
	recordMagic = 0xC5
	recordAlign = 8
	recordHead  = 24
	maxMeta     = 64 << 20 // of one record; more is damage, not data
)

// recordType says what a record means. docs/queue-format.md has the meta parts.
type recordType uint8

const (
	recLink    recordType = 1 // first of a segment: which one came before, and where its records end
	recMessage recordType = 2
	recChunk   recordType = 3 // 64 KiB of a message that is still being written
	recResult  recordType = 4 // new states of some recipients
	recRemoved recordType = 5
	recSkip    recordType = 6 // damaged bytes that were set aside; the tail means nothing
	recSeal    recordType = 7 // orderly end of the store's work
	lastType              = recSeal
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// header is the head of a record.
type header struct {
	typ     recordType
	number  uint32
	synced  uint32
	metaLen uint32
	tailLen uint32
}

// size is how much of the segment the record takes.
func (h header) size() int64 { return alignUp(recordHead + int64(h.metaLen) + int64(h.tailLen)) }

func alignUp(n int64) int64 { return (n + recordAlign - 1) &^ (recordAlign - 1) }

// beginRecord makes room for the head of a record, whose meta part the caller appends; sealRecord fills it in.
func beginRecord(b []byte) []byte { return append(b, make([]byte, recordHead)...) }

// sealRecord completes the record whose head and meta part are the first recordHead+h.metaLen bytes of b.
func sealRecord(b []byte, h header, salt uint32) {
	b[0], b[1], b[2], b[3] = recordMagic, byte(h.typ), 0, 0
	binary.LittleEndian.PutUint32(b[8:], h.number)
	binary.LittleEndian.PutUint32(b[12:], h.synced)
	binary.LittleEndian.PutUint32(b[16:], h.metaLen)
	binary.LittleEndian.PutUint32(b[20:], h.tailLen)
	binary.LittleEndian.PutUint32(b[4:], headChecksum(b, h.metaLen, salt))
}

func headChecksum(b []byte, metaLen, salt uint32) uint32 {
	c := crc32.Update(salt, castagnoli, b[:4])
	return crc32.Update(c, castagnoli, b[8:recordHead+metaLen])
}

// parseHeader reads a head without verifying its checksum. ok is false for bytes that cannot begin a record of at most limit bytes.
func parseHeader(b []byte, limit int64) (h header, ok bool) {
	if len(b) < recordHead || b[0] != recordMagic || b[1] == 0 || recordType(b[1]) > lastType || b[2] != 0 || b[3] != 0 {
		return header{}, false
	}
	h = header{
		typ:     recordType(b[1]),
		number:  binary.LittleEndian.Uint32(b[8:]),
		synced:  binary.LittleEndian.Uint32(b[12:]),
		metaLen: binary.LittleEndian.Uint32(b[16:]),
		tailLen: binary.LittleEndian.Uint32(b[20:]),
	}
	return h, h.metaLen <= maxMeta && h.size() <= limit
}

// verifyRecord checks the head and meta part in b, which must hold both.
func verifyRecord(b []byte, h header, salt uint32) bool {
	return binary.LittleEndian.Uint32(b[4:]) == headChecksum(b, h.metaLen, salt)
}

// The header page of a segment: two copies of this, so that one bad sector does not lose what follows.
//
//	0   8 bytes  segmentMagic
//	8   u32      format version
//	12  u32      sequence number, that of the file name
//	16  u32      salt: random, so that nothing written for another segment or sent by a stranger passes as a record of this one
//	20  u32      CRC-32C of bytes 0-19
const (
	segmentMagic   = "CHQSPOOL"
	formatVersion  = 1
	segmentHead    = 24
	segmentPage    = 4096 // records begin here
	secondHeaderAt = 2048
)

func appendSegmentPage(b []byte, seq, salt uint32) []byte {
	b = append(b, make([]byte, segmentPage)...)
	p := b[len(b)-segmentPage:]
	for _, at := range []int{0, secondHeaderAt} {
		h := p[at:]
		copy(h, segmentMagic)
		binary.LittleEndian.PutUint32(h[8:], formatVersion)
		binary.LittleEndian.PutUint32(h[12:], seq)
		binary.LittleEndian.PutUint32(h[16:], salt)
		binary.LittleEndian.PutUint32(h[20:], checksum(h[:20]))
	}
	return b
}

// parseSegmentPage returns the first intact header of the page.
func parseSegmentPage(p []byte) (version, seq, salt uint32, ok bool) {
	for _, at := range []int{0, secondHeaderAt} {
		if len(p) < at+segmentHead {
			break
		}
		h := p[at : at+segmentHead]
		if string(h[:8]) == segmentMagic && binary.LittleEndian.Uint32(h[20:]) == checksum(h[:20]) {
			return binary.LittleEndian.Uint32(h[8:]), binary.LittleEndian.Uint32(h[12:]), binary.LittleEndian.Uint32(h[16:]), true
		}
	}
	return 0, 0, 0, false
}
