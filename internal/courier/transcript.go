package courier

import (
	"bytes"
	"strconv"

	"blitiri.com.ar/go/chasquid/internal/trace"
)

const (
	maxTranscript  = 8 << 10 // bytes kept of one message's dialogue
	transcriptLine = 256     // bytes shown of one line
	transcriptTail = 40      // lines shown, the last ones
)

// transcript keeps the dialogue with a server for the trace of a failure. Secrets are never put in.
type transcript struct {
	b       []byte
	dropped bool
}

func (t *transcript) reset() { t.b, t.dropped = t.b[:0], false }

func (t *transcript) sent(line string) {
	t.room(len(line))
	t.b = append(append(append(t.b, "> "...), line...), '\n')
}

// sentBlock notes several commands that left together, each with its CRLF.
func (t *transcript) sentBlock(lines []byte) {
	t.room(len(lines))
	t.b = append(t.b, lines...)
}

func (t *transcript) got(code int, text []byte) {
	text = text[:min(len(text), transcriptLine)]
	t.room(len(text))
	t.b = strconv.AppendInt(append(t.b, "< "...), int64(code), 10)
	t.b = append(t.b, ' ')
	start := len(t.b)
	t.b = append(append(t.b, text...), '\n')
	for i := start; i < len(t.b)-1; i++ {
		if t.b[i] == '\n' {
			t.b[i] = '|' // the lines of one reply stand on one line
		}
	}
}

func (t *transcript) note(err error) {
	t.room(transcriptLine)
	msg := err.Error()
	t.b = append(append(append(t.b, "! "...), msg[:min(len(msg), transcriptLine)]...), '\n')
}

// room drops the oldest half when n more bytes would be too many.
func (t *transcript) room(n int) {
	if len(t.b) == 0 || len(t.b)+n < maxTranscript {
		return
	}
	half := t.b[len(t.b)/2:]
	if i := bytes.IndexByte(half, '\n'); i >= 0 {
		half = half[i+1:]
	}
	t.b, t.dropped = append(t.b[:0], half...), true
}

// dump writes the dialogue into a span, one event a line.
func (t *transcript) dump(span *trace.Span) {
	if span == nil {
		return
	}
	b, skip := t.b, bytes.Count(t.b, []byte{'\n'})-transcriptTail
	for ; skip > 0; skip-- {
		b = b[bytes.IndexByte(b, '\n')+1:]
		t.dropped = true
	}
	if t.dropped {
		span.Printf("… the dialogue began earlier")
	}
	for line := range bytes.Lines(b) {
		line = bytes.TrimRight(line, "\r\n")
		mark := ""
		if len(line) < 2 || line[1] != ' ' || line[0] != '<' && line[0] != '>' && line[0] != '!' {
			mark = "> "
		}
		span.Printf("%s%q", mark, line[:min(len(line), transcriptLine)])
	}
}
