package smtp

import (
	"bytes"
	"errors"
)

// ErrSmuggling is ErrBareCR or ErrBareLF around a lone dot: what some servers take for the end of data, and so the way to
// smuggle a second message past a server that does not.
var ErrSmuggling = errors.New("line end without CR or LF around a lone dot")

// DotReader takes apart the data stream of RFC 5321 section 4.5.2 as it arrives: it undoes dot stuffing and finds the end of data.
// Only CRLF.CRLF ends the data (section 4.1.1.4), and a CR or LF that is not part of a CRLF is an error wherever it stands (section
// 2.3.8), so there is nothing two servers could read differently. The zero value is at the start of a message.
type DotReader struct {
	state dotState
}

type dotState uint8

const (
	atStart  dotState = iota // of a line
	inLine                   // past its first octet
	afterCR                  // in a line
	afterDot                 // that begins a line
	dotCR                    // after that dot, a CR
	dotEnded                 // CRLF.CRLF was seen
)

// Next reads the front of src, which is not empty. It returns a run of message content, which aliases src and may be empty, and how many
// octets of src it used, at least one. done is true when the end of data was among them: the rest of src is not part of the message.
// An error is ErrBareCR, ErrBareLF or ErrSmuggling; there is no way to go on after it.
func (d *DotReader) Next(src []byte) (run []byte, n int, done bool, err error) {
	// What depends on octets of an earlier piece, one at a time.
	switch c := src[0]; d.state {
	case afterCR:
		if c != '\n' {
			return nil, 0, false, ErrBareCR
		}
		d.state = atStart
		return src[:1], 1, false, nil
	case dotCR:
		if c != '\n' {
			return nil, 0, false, ErrSmuggling
		}
		d.state = dotEnded
		return nil, 1, true, nil
	case afterDot:
		switch c {
		case '\r':
			d.state = dotCR
			return nil, 1, false, nil
		case '\n':
			return nil, 0, false, ErrSmuggling
		}
		d.state = inLine
	case atStart:
		if c == '.' { // the dot itself is never content
			d.state = afterDot
			return nil, 1, false, nil
		}
	}
	return d.lines(src)
}

// lines returns the run up to the next dot that begins a line, or to the end of src. src starts inside a line, or at the start of one
// without a dot.
func (d *DotReader) lines(src []byte) (run []byte, n int, done bool, err error) {
	i := 0 // start of the line looked at
	for i < len(src) && (src[i] != '.' || i == 0) {
		j := bytes.IndexByte(src[i:], '\n')
		if j < 0 {
			return d.tail(src, i)
		}
		j += i
		if j == 0 || src[j-1] != '\r' {
			return nil, 0, false, bareLF(src, j)
		}
		if k := bytes.IndexByte(src[i:j-1], '\r'); k >= 0 {
			return nil, 0, false, bareCR(src, i+k)
		}
		i = j + 1
	}
	d.state = atStart
	return src[:i], i, false, nil
}

// tail ends a run whose last line, from i, has no line end in src.
func (d *DotReader) tail(src []byte, i int) (run []byte, n int, done bool, err error) {
	d.state = inLine
	if k := bytes.IndexByte(src[i:], '\r'); k >= 0 {
		if i+k != len(src)-1 {
			return nil, 0, false, bareCR(src, i+k)
		}
		d.state = afterCR
	}
	return src, len(src), false, nil
}

// bareLF tells what the LF at src[i], without a CR, is up to. So does bareCR for a CR without LF.
func bareLF(src []byte, i int) error {
	if i+1 < len(src) && src[i+1] == '.' {
		return ErrSmuggling
	}
	return ErrBareLF
}

func bareCR(src []byte, i int) error {
	if i+1 < len(src) && src[i+1] == '.' {
		return ErrSmuggling
	}
	return ErrBareCR
}
