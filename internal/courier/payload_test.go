package courier

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"blitiri.com.ar/go/chasquid/internal/mail"
)

func payloadOf(content string, pad bool) *payload {
	if pad { // too large for memory
		content += strings.Repeat("x\r\n", smallMessage/3+1)
	}
	return &payload{job: &mail.Job{Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(iotest.OneByteReader(strings.NewReader(content))), nil
	}}}
}

// What is asked of a message has the same answer whether it is in memory or not.
func TestPayloadQuestions(t *testing.T) {
	for _, c := range []struct {
		in                       string
		eightBit, text, optional bool
	}{
		{"Subject: x\r\n\r\nhello\r\n", false, true, false},
		{"Subject: x\r\n\r\nh\xc3\xa9llo\r\n", true, true, false},
		{"Subject: x\r\n\r\na\nb\r\n", false, false, false},
		{"Subject: x\r\n\r\na\rb\r\n", false, false, false},
		{"Subject: x\r\n\r\na\x00b\r\n", false, false, false},
		{"Subject: x\r\n\r\n" + strings.Repeat("y", 998) + "\r\n", false, true, false},
		{"Subject: x\r\n\r\n" + strings.Repeat("y", 999) + "\r\n", false, false, false},
		{"TLS-REQUIRED:  no \r\n\r\nhello\r\n", false, true, true},
		{"TLS-Required: yes\r\n\r\nhello\r\n", false, true, false},
		{"Subject: x\r\n\r\nTLS-Required: no\r\n", false, true, false},
	} {
		for _, pad := range []bool{false, true} {
			m := payloadOf(c.in, pad)
			if err := m.load(); err != nil || m.whole == pad {
				t.Fatalf("%q: %v, whole %v", c.in, err, m.whole)
			}
			if m.eightBit() != c.eightBit || m.text() != c.text || m.tlsOptional() != c.optional {
				t.Errorf("%.60q (large %v): 8-bit %v, text %v, TLS optional %v", c.in, pad, m.eightBit(), m.text(), m.tlsOptional())
			}
			m.release()
		}
	}
}

func TestPayloadErrors(t *testing.T) {
	disk := errors.New("disk")
	for name, j := range map[string]mail.Job{
		"open":  {Size: 5, Open: func() (io.ReadCloser, error) { return nil, disk }},
		"large": {Size: 5 << 20, Open: func() (io.ReadCloser, error) { return nil, disk }},
		"read":  {Size: 5, Open: func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(disk)), nil }},
		"short": {Size: 5, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("abc")), nil }},
		"none":  {Size: 5},
	} {
		m := payload{job: &j}
		if err := m.load(); err == nil {
			t.Errorf("%s: no error", name)
		}
		m.release()
	}
}
