package fault

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Deliveries is what arrived in the world outside, which no fault touches.
type Deliveries struct {
	mu    sync.Mutex
	first map[string]time.Time // id, and when it came first
	ends  []ending
	torn  []string
	twice int
	odd   []string // came twice although no end of the server explains it
}

// ending is when the server was ended by force: from the fault until it was dead.
type ending struct {
	from, to time.Time
	twice    int // messages that came again because of it
}

const (
	// inFlight is how long before the server's end a message may have arrived outside without the queue having noted it.
	inFlight = time.Second
	// maxInFlight is how many messages that can be: the deliveries under way at the same time to two destinations.
	maxInFlight = 40
)

// clockSlack is for the time between an event and our noting it.
const clockSlack = 200 * time.Millisecond

// NewDeliveries returns an empty record.
func NewDeliveries() *Deliveries { return &Deliveries{first: map[string]time.Time{}} }

// Ended notes that the server was ended between the two times.
func (d *Deliveries) Ended(from, to time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ends = append(d.ends, ending{from: from, to: to})
}

// Add notes a message that arrived at a time.
func (d *Deliveries) Add(msg string, at time.Time) {
	id, whole := Check(msg)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !whole {
		d.torn = append(d.torn, id)
		return
	}
	first, again := d.first[id]
	if !again {
		d.first[id] = at
		return
	}
	d.twice++
	if !d.explained(first, at) {
		d.odd = append(d.odd, id)
	}
}

// explained reports whether the server ended between two arrivals of a message, and just after the first.
func (d *Deliveries) explained(first, second time.Time) bool {
	for i := range d.ends {
		e := &d.ends[i]
		if first.After(e.from.Add(-inFlight)) && first.Before(e.to.Add(clockSlack)) && second.After(e.from.Add(-clockSlack)) {
			e.twice++
			return e.twice <= maxInFlight
		}
	}
	return false
}

// Verdict compares what was acknowledged with what was delivered.
type Verdict struct {
	Accepted, Delivered int
	Twice, MostTwice    int      // arrivals beyond the first, and how many there were after one end
	Lost, Torn, Odd     []string // ids: acknowledged but not delivered; damaged; twice without a reason
}

// String is the verdict in a line.
func (v Verdict) String() string {
	return fmt.Sprintf("%d acknowledged, %d delivered, %d lost, %d torn, %d twice (at most %d after one fault, %d not in flight)",
		v.Accepted, v.Delivered, len(v.Lost), len(v.Torn), v.Twice, v.MostTwice, len(v.Odd))
}

// Judge compares the ledger with what arrived.
func (d *Deliveries) Judge(l *Ledger) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	v := Verdict{Accepted: len(l.accepted), Delivered: len(d.first), Twice: d.twice, Torn: d.torn, Odd: d.odd}
	for _, e := range d.ends {
		v.MostTwice = max(v.MostTwice, e.twice)
	}
	for id := range l.accepted {
		if _, ok := d.first[id]; !ok {
			v.Lost = append(v.Lost, id)
		}
	}
	return v
}

// CollectMaildir moves messages from a Maildir's new directory to the record.
func (d *Deliveries) CollectMaildir(dir string) error {
	dir = filepath.Join(dir, "new")
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		d.Add(string(b), info.ModTime())
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// ServeSink is a mail server that takes everything, until the listener is closed.
func (d *Deliveries) ServeSink(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go d.sinkSession(c)
	}
}

func (d *Deliveries) sinkSession(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	fmt.Fprintf(c, "220 sink.test ESMTP\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch strings.ToUpper(line[:min(4, len(line))]) {
		case "EHLO":
			io.WriteString(c, "250-sink.test\r\n250-PIPELINING\r\n250 SIZE 104857600\r\n")
		case "DATA":
			io.WriteString(c, "354 go\r\n")
			msg, err := readData(r)
			if err != nil {
				return
			}
			d.Add(msg, time.Now()) // before the reply: from here on it counts as delivered
			io.WriteString(c, "250 ok\r\n")
		case "QUIT":
			io.WriteString(c, "221 bye\r\n")
			return
		default:
			io.WriteString(c, "250 ok\r\n")
		}
	}
}

func readData(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if line == ".\r\n" {
			return b.String(), nil
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
}
