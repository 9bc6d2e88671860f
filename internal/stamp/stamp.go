// Package stamp writes the time that begins a line of a log.
package stamp

import (
	"strings"
	"time"
)

// Layout is how the time looks, for package time.
const Layout = "2006-01-02 15:04:05.000000 "

// Clock writes times. It remembers the second of the last one, as most lines are of the same second as the one before. The zero value is
// ready; it is for one goroutine at a time.
type Clock struct {
	second int64
	zone   *time.Location
	text   []byte // that second, up to the fraction
}

// Append appends the time as Layout has it.
func (c *Clock) Append(b []byte, at time.Time) []byte {
	if second, zone := at.Unix(), at.Location(); second != c.second || zone != c.zone || len(c.text) == 0 {
		c.second, c.zone = second, zone
		c.text = at.AppendFormat(c.text[:0], Layout[:strings.IndexByte(Layout, '.')+1])
	}
	b = append(b, c.text...)
	var digits [7]byte
	digits[6] = ' '
	for i, micros := 5, at.Nanosecond()/1000; i >= 0; i, micros = i-1, micros/10 {
		digits[i] = byte('0' + micros%10)
	}
	return append(b, digits[:]...)
}
