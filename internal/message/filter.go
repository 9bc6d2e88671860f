package message

import (
	"bytes"
	"io"
)

// maxHeld bounds what a Filter keeps of one field; a longer one is judged by its beginning.
const maxHeld = 64 << 10

// Filter is a writer that passes a message on without the header fields that drop reports. It holds at most one field, only
// of the names given, and copies nothing of the body. Close must be called at the end of the message.
type Filter struct {
	w     io.Writer
	names []string
	drop  func(Field) bool

	state   filterState
	prev    filterState // at the beginning of a line: what a continuation goes on with
	held    []byte      // the field that may go, or the beginning of a line that may be one
	line    int         // of what is held, from 1
	lines   int         // line ends seen
	dropped int
}

type filterState uint8

const (
	lineStart filterState = iota // at the beginning of a line: held is what came of it
	passing                      // inside a field that is of no interest
	holding                      // inside a field that may go
	skipping                     // inside a field that goes and is too long to hold
	inBody
)

// NewFilter makes a Filter that asks drop about the fields of the names.
func NewFilter(w io.Writer, drop func(Field) bool, names ...string) *Filter {
	return &Filter{w: w, names: names, drop: drop}
}

// Dropped returns how many fields were dropped.
func (f *Filter) Dropped() int { return f.dropped }

// Write implements io.Writer.
func (f *Filter) Write(p []byte) (int, error) {
	if f.state == inBody {
		return f.w.Write(p)
	}
	from := 0 // p[from:i] is to be passed on
	for i := 0; i < len(p) && f.state != inBody; {
		if f.state == lineStart {
			next, err := f.begin(p, &from, i)
			if err != nil {
				return 0, err
			}
			i = next
			continue
		}
		end := len(p)
		if j := bytes.IndexByte(p[i:], '\n'); j >= 0 {
			end = i + j + 1
			f.lines++
		}
		chunk := p[i:end]
		i = end
		if f.state != passing {
			from = i
		}
		if f.state == holding {
			f.held = append(f.held, chunk...)
			if len(f.held) > maxHeld {
				if err := f.cutShort(); err != nil {
					return 0, err
				}
			}
		}
		if chunk[len(chunk)-1] == '\n' {
			f.state, f.prev = lineStart, f.state
		}
	}
	return len(p), f.pass(p[from:])
}

// begin looks at p[i], at or near the beginning of a line, and returns where to go on.
func (f *Filter) begin(p []byte, from *int, i int) (int, error) {
	c := p[i]
	fresh := len(f.held) == 0 || f.prev == holding
	if fresh {
		if f.lines > 0 && (c == ' ' || c == '\t') {
			f.state = f.prev // a continuation
			return i, nil
		}
		if err := f.decide(); err != nil {
			return i, err
		}
		f.prev = passing
		if c != '\r' && c != '\n' && !f.mayBegin(c) {
			f.state = passing
			return i, nil
		}
	}
	if err := f.pass(p[*from:i]); err != nil {
		return i, err
	}
	f.held = append(f.held, c)
	*from = i + 1
	switch f.judge() {
	case inBody:
		f.state = inBody
		return i + 1, f.flush()
	case holding:
		f.state, f.line = holding, f.lines+1
	case passing:
		f.state = passing
		if c == '\n' {
			f.lines++
			f.state, f.prev = lineStart, passing
		}
		return i + 1, f.flush()
	}
	return i + 1, nil
}

// mayBegin reports whether one of the names begins with c.
func (f *Filter) mayBegin(c byte) bool {
	for _, n := range f.names {
		if lower(n[0]) == lower(c) {
			return true
		}
	}
	return false
}

// judge says what the beginning of a line, in held, belongs to; lineStart means that it cannot be said yet.
func (f *Filter) judge() filterState {
	h := f.held
	switch {
	case h[0] == '\n' || len(h) == 2 && h[0] == '\r' && h[1] == '\n':
		return inBody
	case len(h) == 1 && h[0] == '\r':
		return lineStart
	case len(h) > maxHeld:
		return passing
	}
	for _, n := range f.names {
		if len(h) <= len(n) {
			if equalFold(h, n[:len(h)]) {
				return lineStart
			}
			continue
		}
		if !equalFold(h[:len(n)], n) {
			continue
		}
		switch h[len(h)-1] {
		case ':':
			return holding
		case ' ', '\t':
			return lineStart
		}
	}
	return passing
}

// decide ends the field that is held, if there is one: it is passed on or dropped.
func (f *Filter) decide() error {
	if len(f.held) == 0 {
		return nil
	}
	if f.drop(f.field()) {
		f.dropped++
		f.held = f.held[:0]
		return nil
	}
	return f.flush()
}

func (f *Filter) field() Field {
	name, colon := fieldName(f.held)
	return Field{f.held, int32(name), int32(colon), int32(f.line)}
}

// cutShort judges a field by its beginning because it is too long to be held.
func (f *Filter) cutShort() error {
	f.state = passing
	if f.drop(f.field()) {
		f.dropped++
		f.held = f.held[:0]
		f.state = skipping
		return nil
	}
	return f.flush()
}

func (f *Filter) flush() error {
	err := f.pass(f.held)
	f.held = f.held[:0]
	return err
}

func (f *Filter) pass(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, err := f.w.Write(b)
	return err
}

// Close passes on, or drops, what was held at the end of a message without body.
func (f *Filter) Close() error {
	if f.state == holding || f.state == lineStart && f.prev == holding {
		return f.decide()
	}
	return f.flush()
}
