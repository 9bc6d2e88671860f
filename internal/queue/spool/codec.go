package spool

import (
	"encoding/binary"
	"math"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// blockSize is how many bytes of a message share one checksum: the size of a chunk and of the blocks of a body file.
const blockSize = 64 << 10

// maxText is how much of a reply or failure text is kept per recipient.
const maxText = 1 << 10

// content says where the bytes of a message are: prefix, chunks, body file and the inline rest, in this order.
type content struct {
	prefixLen, prefixCRC uint32
	inlineLen, inlineCRC uint32
	chunks               []chunkRef
	fileLen              int64
	fileCRCs             []uint32 // one per blockSize bytes of the body file
}

// chunkRef names a chunk record.
type chunkRef struct {
	at  loc
	len uint32
	crc uint32
}

// size is the length of the message.
func (c *content) size() int64 {
	n := int64(c.prefixLen) + int64(c.inlineLen) + c.fileLen
	for _, r := range c.chunks {
		n += int64(r.len)
	}
	return n
}

func fileBlocks(n int64) int64 { return (n + blockSize - 1) / blockSize }

// stub is the first part of a message record's meta: what the store itself must know.
type stub struct {
	serial  uint64
	id      mail.ID
	rcpts   uint32
	content content
}

func appendString[S ~string](b []byte, s S) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendTime(b []byte, t time.Time) []byte {
	var n int64
	switch {
	case t.IsZero():
	case t.Year() > 2200: // UnixNano ends in 2262
		n = math.MaxInt64
	case t.Year() > 1700:
		n = t.UnixNano()
	}
	return binary.AppendVarint(b, n)
}

func appendStub(b []byte, s *stub) []byte {
	b = binary.AppendUvarint(b, s.serial)
	b = appendString(b, s.id)
	b = binary.AppendUvarint(b, uint64(s.rcpts))
	c := &s.content
	b = binary.AppendUvarint(b, uint64(c.prefixLen))
	b = binary.LittleEndian.AppendUint32(b, c.prefixCRC)
	b = binary.AppendUvarint(b, uint64(c.inlineLen))
	b = binary.LittleEndian.AppendUint32(b, c.inlineCRC)
	b = binary.AppendUvarint(b, uint64(len(c.chunks)))
	for _, r := range c.chunks {
		b = binary.LittleEndian.AppendUint32(b, r.at.seg)
		b = binary.LittleEndian.AppendUint32(b, r.at.off)
		b = binary.AppendUvarint(b, uint64(r.len))
		b = binary.LittleEndian.AppendUint32(b, r.crc)
	}
	b = binary.AppendUvarint(b, uint64(c.fileLen))
	for _, crc := range c.fileCRCs {
		b = binary.LittleEndian.AppendUint32(b, crc)
	}
	return b
}

func appendAddress(b []byte, a address.Address) []byte {
	return appendString(appendString(b, a.Local), a.Domain)
}

func appendParams(b []byte, ps smtp.Params) []byte {
	b = binary.AppendUvarint(b, uint64(len(ps)))
	for _, p := range ps {
		b = appendString(b, p.Keyword)
		b = append(b, bit(p.HasValue, 1))
		b = appendString(b, p.Value)
	}
	return b
}

func bit(on bool, b byte) byte {
	if on {
		return b
	}
	return 0
}

// Flags of an encoded envelope.
const (
	envUTF8 byte = 1 << iota
	envLongLines
)

// appendEnvelope encodes the second part of a message record's meta.
func appendEnvelope(b []byte, e *mail.Envelope) []byte {
	b = appendAddress(b, e.From)
	b = appendParams(b, e.Params)
	b = appendTime(b, e.Arrived)
	b = append(b, e.Trace[:]...)
	b = appendString(b, e.Client)
	b = appendString(b, e.Auth)
	b = append(b, byte(e.Source), byte(e.Body), bit(e.UTF8, envUTF8)|bit(e.LongLines, envLongLines))
	b = appendString(b, e.MessageID)
	for i := range e.Rcpts {
		b = appendRcpt(b, &e.Rcpts[i])
	}
	return b
}

// Flags of an encoded recipient: which of its rarer parts follow.
const (
	rcptSameOrig byte = 1 << iota // Orig equals To
	rcptCommand
	rcptVia
	rcptParams
	rcptTimes
	rcptDetail
)

func appendRcpt(b []byte, r *mail.Recipient) []byte {
	f := bit(r.Orig == r.To, rcptSameOrig) | bit(r.Command != "", rcptCommand) | bit(len(r.Via) > 0, rcptVia) |
		bit(len(r.Params) > 0, rcptParams) | bit(!r.NotBefore.IsZero() || !r.GiveUp.IsZero(), rcptTimes) |
		bit(r.Detail != "", rcptDetail)
	b = append(b, byte(r.Kind), f)
	b = appendAddress(b, r.To)
	if f&rcptSameOrig == 0 {
		b = appendAddress(b, r.Orig)
	}
	if f&rcptCommand != 0 {
		b = appendString(b, r.Command)
	}
	if f&rcptVia != 0 {
		b = binary.AppendUvarint(b, uint64(len(r.Via)))
		for _, v := range r.Via {
			b = appendString(b, v)
		}
	}
	if f&rcptParams != 0 {
		b = appendParams(b, r.Params)
	}
	if f&rcptTimes != 0 {
		b = appendTime(appendTime(b, r.NotBefore), r.GiveUp)
	}
	if f&rcptDetail != 0 {
		b = appendString(b, r.Detail)
	}
	return b
}

// appendStates encodes the last part of a message record's meta: the states of all recipients, or one 0 if all are new.
func appendStates(b []byte, ss []queue.RcptStatus) []byte {
	fresh := true
	for i := range ss {
		fresh = fresh && ss[i] == (queue.RcptStatus{})
	}
	if fresh {
		return append(b, 0)
	}
	b = append(b, 1)
	for i := range ss {
		b = appendState(b, &ss[i])
	}
	return b
}

// Flags of an encoded state.
const (
	stateRelayed byte = 1 << iota
	stateHeld
	stateReply
)

func appendState(b []byte, s *queue.RcptStatus) []byte {
	f := bit(s.Relayed, stateRelayed) | bit(s.Held, stateHeld) | bit(s.Reply != (smtp.Reply{}), stateReply)
	b = append(b, byte(s.Status), f, byte(s.Notified), byte(s.Reason))
	b = binary.AppendUvarint(b, uint64(max(s.Attempts, 0)))
	b = appendTime(b, s.Next)
	if f&stateReply != 0 {
		b = binary.AppendUvarint(b, uint64(max(s.Reply.Code, 0)))
		for _, n := range s.Reply.Enh {
			b = binary.AppendUvarint(b, uint64(n))
		}
		b = appendString(b, clip(s.Reply.Text))
	}
	b = appendString(b, clip(s.MTA))
	return appendString(b, clip(s.Text))
}

func clip(s string) string { return s[:min(len(s), maxText)] }

// decoder reads what the append functions wrote. After an error everything reads as zero and bad is set.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) uvarint() uint64 {
	n, k := binary.Uvarint(d.b)
	if k <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[k:]
	return n
}

func (d *decoder) uint32() uint32 {
	n := d.uvarint()
	if n > math.MaxUint32 {
		d.fail()
		return 0
	}
	return uint32(n)
}

// count reads how many things follow that take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) byte() byte {
	if p := d.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) fixed32() uint32 {
	if p := d.bytes(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) string() string { return string(d.bytes(d.count(1))) }

func (d *decoder) time() time.Time {
	n, k := binary.Varint(d.b)
	if k <= 0 {
		d.fail()
		return time.Time{}
	}
	d.b = d.b[k:]
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// stub decodes all but the id, which it returns as it stands in the buffer.
func (d *decoder) stub(s *stub) (id []byte) {
	s.serial = d.uvarint()
	id = d.bytes(d.count(1))
	s.rcpts = d.uint32()
	c := &s.content
	*c = content{prefixLen: d.uint32(), prefixCRC: d.fixed32(), inlineLen: d.uint32(), inlineCRC: d.fixed32()}
	if n := d.count(13); n > 0 {
		c.chunks = make([]chunkRef, n)
		for i := range c.chunks {
			c.chunks[i] = chunkRef{at: loc{d.fixed32(), d.fixed32()}, len: d.uint32(), crc: d.fixed32()}
		}
	}
	n := d.uvarint()
	if n > math.MaxInt64-blockSize || fileBlocks(int64(n)) > int64(len(d.b)/4) {
		d.fail()
		return id
	}
	if c.fileLen = int64(n); n > 0 {
		c.fileCRCs = make([]uint32, fileBlocks(c.fileLen))
		for i := range c.fileCRCs {
			c.fileCRCs[i] = d.fixed32()
		}
	}
	return id
}

func (d *decoder) address() address.Address {
	return address.Address{Local: d.string(), Domain: d.string()}
}

func (d *decoder) params() smtp.Params {
	n := d.count(3)
	if n == 0 {
		return nil
	}
	ps := make(smtp.Params, n)
	for i := range ps {
		ps[i] = smtp.Param{Keyword: d.string(), HasValue: d.byte() == 1, Value: d.string()}
	}
	return ps
}

func (d *decoder) envelope(e *mail.Envelope, rcpts uint32) {
	e.From = d.address()
	e.Params = d.params()
	e.Arrived = d.time()
	copy(e.Trace[:], d.bytes(len(trace.ID{})))
	e.Client = d.string()
	e.Auth = d.string()
	e.Source, e.Body = mail.Source(d.byte()), mail.Body(d.byte())
	flags := d.byte()
	e.UTF8, e.LongLines = flags&envUTF8 != 0, flags&envLongLines != 0
	e.MessageID = d.string()
	if uint64(rcpts)*4 > uint64(len(d.b)) {
		d.fail()
		return
	}
	e.Rcpts = make([]mail.Recipient, rcpts)
	for i := range e.Rcpts {
		d.rcpt(&e.Rcpts[i])
	}
}

func (d *decoder) rcpt(r *mail.Recipient) {
	r.Kind = mail.Kind(d.byte())
	f := d.byte()
	r.To = d.address()
	r.Orig = r.To
	if f&rcptSameOrig == 0 {
		r.Orig = d.address()
	}
	if f&rcptCommand != 0 {
		r.Command = d.string()
	}
	if f&rcptVia != 0 {
		r.Via = make([]string, d.count(1))
		for i := range r.Via {
			r.Via[i] = d.string()
		}
	}
	if f&rcptParams != 0 {
		r.Params = d.params()
	}
	if f&rcptTimes != 0 {
		r.NotBefore, r.GiveUp = d.time(), d.time()
	}
	if f&rcptDetail != 0 {
		r.Detail = d.string()
	}
}

func (d *decoder) states(rcpts uint32) []queue.RcptStatus {
	ss := make([]queue.RcptStatus, rcpts)
	if d.byte() == 0 {
		return ss
	}
	for i := range ss {
		d.state(&ss[i])
	}
	return ss
}

func (d *decoder) state(s *queue.RcptStatus) {
	s.Status = queue.Status(d.byte())
	f := d.byte()
	s.Relayed, s.Held = f&stateRelayed != 0, f&stateHeld != 0
	s.Notified, s.Reason = queue.Notified(d.byte()), mail.Reason(d.byte())
	s.Attempts = int(d.uint32())
	s.Next = d.time()
	if f&stateReply != 0 {
		s.Reply.Code = int(d.uint32())
		for i := range s.Reply.Enh {
			s.Reply.Enh[i] = uint16(d.uint32())
		}
		s.Reply.Text = clip(d.string()) // as it is written
	}
	s.MTA = clip(d.string())
	s.Text = clip(d.string())
}

// result is the meta part of a result record.
type result struct {
	id     mail.ID
	serial uint64
	us     []queue.RcptUpdate
}

func appendResult(b []byte, r *result) []byte {
	b = appendString(b, r.id)
	b = binary.AppendUvarint(b, r.serial)
	b = binary.AppendUvarint(b, uint64(len(r.us)))
	for i := range r.us {
		b = binary.AppendUvarint(b, uint64(r.us[i].Rcpt))
		b = appendState(b, &r.us[i].State)
	}
	return b
}

// result decodes all of a result record.
func (d *decoder) result(r *result) {
	r.id = mail.ID(d.string())
	r.serial = d.uvarint()
	for n := d.count(9); n > 0 && !d.bad; n-- {
		u := queue.RcptUpdate{Rcpt: int(d.uint32())}
		d.state(&u.State)
		r.us = append(r.us, u)
	}
}

// applyResult decodes those states of a result record for which want holds into status.
func (d *decoder) applyResult(status []queue.RcptStatus, want func(rcpt int) bool) (serial uint64) {
	d.bytes(d.count(1))
	serial = d.uvarint()
	for n := d.count(9); n > 0 && !d.bad; n-- {
		if r := int(d.uint32()); r < len(status) && want(r) {
			status[r] = queue.RcptStatus{}
			d.state(&status[r])
		} else {
			d.skipState()
		}
	}
	return serial
}

// resultRcpts reads only which recipients a result is about: the one, or several in which.
func (d *decoder) resultRcpts() (one uint32, which []uint32) {
	n := d.count(9)
	for i := 0; i < n && !d.bad; i++ {
		one = d.uint32()
		if n > 1 {
			which = append(which, one)
		}
		d.skipState()
	}
	return one, which
}

func (d *decoder) skipState() {
	d.byte()
	f := d.byte()
	d.bytes(2)
	d.uvarint()
	d.uvarint() // the time, whose zigzag form is as long
	if f&stateReply != 0 {
		d.uvarint()
		for range (smtp.EnhancedCode{}) {
			d.uvarint()
		}
		d.bytes(d.count(1))
	}
	d.bytes(d.count(1))
	d.bytes(d.count(1))
}

// removed is the meta part of a removed record. seg is the segment that holds the message's record: as long as it exists, this
// record must.
type removed struct {
	seg    uint32
	id     mail.ID
	serial uint64
}

func appendRemoved(b []byte, r removed) []byte {
	b = binary.LittleEndian.AppendUint32(b, r.seg) // first, at a fixed place: it is filled in when the record is written
	b = appendString(b, r.id)
	return binary.AppendUvarint(b, r.serial)
}

func (d *decoder) removed() (r removed) {
	r.seg = d.fixed32()
	r.id = mail.ID(d.string())
	r.serial = d.uvarint()
	return r
}

// The meta part of a chunk record has a fixed size, so that a chunkRef need not say where the bytes begin.
const (
	chunkMeta = 16
	chunkHead = recordHead + chunkMeta
)

func appendChunk(b []byte, serial uint64, crc uint32) []byte {
	b = binary.LittleEndian.AppendUint64(b, serial)
	b = binary.LittleEndian.AppendUint32(b, crc)
	return binary.LittleEndian.AppendUint32(b, 0)
}

func parseChunk(meta []byte) (serial uint64, crc uint32, ok bool) {
	if len(meta) != chunkMeta {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint64(meta), binary.LittleEndian.Uint32(meta[8:]), true
}

// The meta part of a link record: the segment before this one, and the end of its records, all durable by then.
const linkMeta = 12

func appendLink(b []byte, prev uint32, end int64) []byte {
	b = binary.LittleEndian.AppendUint32(b, prev)
	return binary.LittleEndian.AppendUint64(b, uint64(end))
}

func parseLink(meta []byte) (prev uint32, end int64, ok bool) {
	if len(meta) != linkMeta {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint32(meta), int64(binary.LittleEndian.Uint64(meta[4:])), true
}
