package opctl

import (
	"net/url"
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
)

// filterText are the fields of a filter that are text.
func filterText(f *queue.Filter) map[string]*string {
	return map[string]*string{"id": (*string)(&f.ID), "sender": &f.Sender, "recipient": &f.Recipient, "destination": &f.Destination,
		"reason": &f.Reason, "state": &f.State}
}

// FilterArgs encodes a filter.
func FilterArgs(f queue.Filter) url.Values {
	a := url.Values{}
	for name, v := range filterText(&f) {
		if *v != "" {
			a.Set(name, *v)
		}
	}
	if f.OlderThan != 0 {
		a.Set("older_than", f.OlderThan.String())
	}
	if f.YoungerThan != 0 {
		a.Set("younger_than", f.YoungerThan.String())
	}
	return a
}

// parseFilter is the inverse of FilterArgs.
func parseFilter(a url.Values) (f queue.Filter, err error) {
	for name, v := range filterText(&f) {
		*v = a.Get(name)
	}
	if f.OlderThan, err = duration(a, "older_than"); err != nil {
		return f, err
	}
	f.YoungerThan, err = duration(a, "younger_than")
	return f, err
}

// PageArgs adds a page to the arguments.
func PageArgs(a url.Values, p queue.Page) url.Values {
	a.Set("sort", p.Sort)
	a.Set("after", p.After)
	a.Set("limit", strconv.Itoa(p.Limit))
	return a
}

// ItemArgs names one message.
func ItemArgs(id mail.ID) url.Values { return url.Values{"id": {string(id)}} }

// OperateArgs encodes an operation, who asks for it, and whether no filter means all messages.
func OperateArgs(op queue.Op, f queue.Filter, who string, all bool) url.Values {
	a := FilterArgs(f)
	a.Set("op", op.String())
	a.Set("who", who)
	if all {
		a.Set("all", "1")
	}
	return a
}

// QueryArgs encodes a query of the history.
func QueryArgs(q history.Query) url.Values {
	a := url.Values{"text": {q.Text}, "state": {q.State}, "limit": {strconv.Itoa(q.Limit)}, "offset": {strconv.Itoa(q.Offset)}}
	if !q.Since.IsZero() {
		a.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if !q.Until.IsZero() {
		a.Set("until", q.Until.Format(time.RFC3339Nano))
	}
	return a
}

// parseQuery is the inverse of QueryArgs.
func parseQuery(a url.Values) (q history.Query, err error) {
	q.Text, q.State = a.Get("text"), a.Get("state")
	if q.Since, err = instant(a, "since"); err != nil {
		return q, err
	}
	if q.Until, err = instant(a, "until"); err != nil {
		return q, err
	}
	if q.Limit, err = number(a, "limit"); err != nil {
		return q, err
	}
	q.Offset, err = number(a, "offset")
	return q, err
}
