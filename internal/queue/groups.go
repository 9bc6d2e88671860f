package queue

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue/sched"
)

// Group counts messages that have something in common.
type Group struct {
	Name       string    `json:"name"`
	Messages   int       `json:"messages"`
	Recipients int       `json:"recipients"` // that are left
	Bytes      int64     `json:"bytes"`
	Oldest     time.Time `json:"oldest"`
}

// tally counts one group while the records are walked over.
type tally struct {
	messages, recipients int
	bytes                int64
	oldest               uint32
	sample               uint32 // one message of the group
	sampleID             idKey
	seen                 uint32 // the message counted last
}

// tallies count by a key. There may be as many senders as messages, so groups that stay small are forgotten on the way (lossy counting):
// the large ones, which are the ones asked for, are counted right to within a window per thousand.
type tallies struct {
	by     map[uint64]*tally
	window int
}

const tallyWindow = 50_000

func (ts *tallies) add(q *Queue, key uint64, m uint32, rcpts int) {
	t := ts.by[key]
	r := q.index.at(m)
	if t == nil {
		if len(ts.by) >= tallyWindow*(ts.window+1) {
			ts.window++
			for k, old := range ts.by {
				if old.messages <= ts.window {
					delete(ts.by, k)
				}
			}
		}
		t = &tally{oldest: r.arrived, sample: m, sampleID: r.id}
		ts.by[key] = t
	}
	t.recipients += rcpts
	if t.seen != m {
		t.seen = m
		t.messages++
		t.bytes += int64(r.size)
	}
	t.oldest = min(t.oldest, r.arrived)
}

// Groups counts the messages that the filter selects by "destination", "reason" or "sender", and returns the largest groups first.
func (q *Queue) Groups(ctx context.Context, f Filter, by string, limit int) ([]Group, error) {
	if !slices.Contains([]string{"destination", "reason", "sender"}, by) {
		return nil, fmt.Errorf("%w: cannot group by %q", errFilter, by)
	}
	ts := tallies{by: map[uint64]*tally{}}
	err := q.scan(ctx, &f, func(m uint32) {
		if by == "sender" {
			left := 0
			q.index.each(m, func(_ int, r *ref) {
				if r.status == Pending {
					left++
				}
			})
			ts.add(q, uint64(q.index.at(m).from), m, left)
			return
		}
		q.index.each(m, func(_ int, r *ref) {
			switch {
			case r.status != Pending || r.unit == 0:
			case by == "reason":
				ts.add(q, uint64(r.reason), m, 1)
			default:
				ts.add(q, uint64(q.sched.DestOf(r.unit)), m, 1)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	type keyed struct {
		key uint64
		*tally
	}
	all := make([]keyed, 0, len(ts.by))
	for k, t := range ts.by {
		all = append(all, keyed{k, t})
	}
	slices.SortFunc(all, func(a, b keyed) int { return cmp.Or(cmp.Compare(b.messages, a.messages), cmp.Compare(a.key, b.key)) })
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	groups := make([]Group, 0, len(all))
	for _, k := range all {
		if name := q.groupName(by, k.key, k.tally); name != "" {
			groups = append(groups, Group{name, k.messages, k.recipients, k.bytes, time.Unix(int64(k.oldest), 0)})
		}
	}
	return groups, nil
}

// groupName finds the name of a group, "" if it is gone meanwhile.
func (q *Queue) groupName(by string, key uint64, t *tally) string {
	switch by {
	case "reason":
		return mail.Reason(key).String()
	case "destination":
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.sched.Name(sched.Dest(key))
	}
	it, ok := q.item(t.sample, t.sampleID) // memory has only a hash of the sender
	if !ok || it.Error != "" {
		return ""
	}
	return strings.ToLower(it.From)
}

// Destination tells about one destination and the site it belongs to.
type Destination = sched.DestStat

// Destinations returns the destinations with the most work, whatever its state.
func (q *Queue) Destinations(ctx context.Context, limit int) []Destination {
	var all []Destination
	order := func(a, b Destination) int { return cmp.Or(cmp.Compare(b.Units, a.Units), cmp.Compare(a.Name, b.Name)) }
	for from := 0; ctx.Err() == nil; {
		q.mu.Lock()
		from = q.sched.Dests(from, slice, func(d sched.DestStat) { all = append(all, d) })
		q.mu.Unlock()
		if len(all) > 2*limit+slice || from == 0 {
			slices.SortFunc(all, order)
			all = all[:min(len(all), limit)]
		}
		if from == 0 {
			break
		}
	}
	return all
}

// Stats is the queue in a few numbers.
type Stats struct {
	Messages, Capacity     int
	Waiting, Sending, Held int
	Bytes                  int64
	Oldest                 time.Duration // age of the oldest message
	Running                int           // attempts
}

// Stats returns the numbers of now. It costs the same however many messages there are.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	x := &q.index
	return Stats{Messages: x.n, Capacity: q.conf().MaxItems, Waiting: int(x.states[waiting]), Sending: int(x.states[sending]),
		Held: int(x.states[held]), Bytes: x.size, Oldest: x.ages.oldest(time.Now()), Running: q.sched.Running()}
}
