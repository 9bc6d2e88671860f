package smtp

import (
	"bytes"
	"errors"
)

// ErrChunk is the reason ParseChunk refuses the argument of BDAT.
var ErrChunk = errors.New("malformed chunk size")

// maxChunkDigits bounds chunk-size (RFC 3030 section 2, 1*DIGIT) to what fits 63 bits.
const maxChunkDigits = 18

// ParseChunk parses the argument of BDAT: a size in octets, and LAST in any case (RFC 3030 section 2).
func ParseChunk(arg []byte) (size int64, last bool, err error) {
	digits, word, has := bytes.Cut(arg, []byte{' '})
	if len(digits) == 0 {
		return 0, false, ErrChunk
	}
	for len(digits) > 1 && digits[0] == '0' {
		digits = digits[1:]
	}
	if len(digits) > maxChunkDigits {
		return 0, false, ErrChunk
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false, ErrChunk
		}
		size = size*10 + int64(c-'0')
	}
	if has {
		if !bytes.EqualFold(bytes.TrimLeft(word, " "), []byte("LAST")) {
			return 0, false, ErrChunk
		}
		last = true
	}
	return size, last, nil
}
