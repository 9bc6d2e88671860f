package message

import (
	"bytes"
	"io"
)

// ToLF returns a reader of r with every CRLF as LF, as files, pipes and hooks want it. A CR that no LF follows stays.
func ToLF(r io.Reader) io.Reader { return &converter{r: r, convert: toLF} }

// ToCRLF returns a reader of r with every bare LF as CRLF, the wire form.
func ToCRLF(r io.Reader) io.Reader { return &converter{r: r, convert: toCRLF} }

// chunk is how much a converter reads at a time.
const chunk = 8 << 10

type converter struct {
	r       io.Reader
	convert func(out, in []byte, cr *bool) []byte
	in, out []byte
	rest    []byte // of out, not yet read
	cr      bool   // the last byte of the input so far was a CR; toLF has it still to write
	err     error
}

// Read implements io.Reader.
func (c *converter) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		if c.in == nil {
			c.in, c.out = make([]byte, chunk), make([]byte, 0, 2*chunk)
		}
		n, err := c.r.Read(c.in)
		c.rest = c.convert(c.out[:0], c.in[:n], &c.cr)
		if c.err = err; err == io.EOF && c.cr {
			c.rest, c.cr = c.convert(c.rest, nil, &c.cr), false
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// toLF converts in; a nil in asks for what is held back at the end.
func toLF(out, in []byte, cr *bool) []byte {
	if *cr && (len(in) == 0 && in == nil || len(in) > 0 && in[0] != '\n') {
		out, *cr = append(out, '\r'), false
	}
	for len(in) > 0 {
		*cr = false
		i := bytes.IndexByte(in, '\r')
		switch {
		case i < 0:
			return append(out, in...)
		case i+1 == len(in):
			*cr = true
			return append(out, in[:i]...)
		case in[i+1] == '\n':
			out = append(append(out, in[:i]...), '\n')
			in = in[i+2:]
		default:
			out = append(out, in[:i+1]...)
			in = in[i+1:]
		}
	}
	return out
}

func toCRLF(out, in []byte, cr *bool) []byte {
	for len(in) > 0 {
		i := bytes.IndexByte(in, '\n')
		if i < 0 {
			*cr = in[len(in)-1] == '\r'
			return append(out, in...)
		}
		out = append(out, in[:i]...)
		if bare := i > 0 && in[i-1] != '\r' || i == 0 && !*cr; bare {
			out = append(out, '\r')
		}
		out = append(out, '\n')
		*cr = false
		in = in[i+1:]
	}
	return out
}
