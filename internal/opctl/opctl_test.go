package opctl

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"github.com/google/go-cmp/cmp"
)

// TestFilterArgs: a filter survives the way through the arguments.
func TestFilterArgs(t *testing.T) {
	f := queue.Filter{ID: "i", Sender: "<>", Recipient: "@r", Destination: "relay:h", Reason: "dns", State: "held", OlderThan: time.Minute, YoungerThan: time.Hour}
	for _, f := range []queue.Filter{{}, f} {
		got, err := parseFilter(FilterArgs(f))
		if d := cmp.Diff(f, got); err != nil || d != "" {
			t.Errorf("%v\n%s", err, d)
		}
	}
	q := history.Query{Text: "t", State: "s", Since: time.Unix(1, 2).UTC(), Until: time.Unix(3, 4).UTC(), Limit: 5, Offset: 6}
	for _, q := range []history.Query{{}, q} {
		got, err := parseQuery(QueryArgs(q))
		if d := cmp.Diff(q, got); err != nil || d != "" {
			t.Errorf("%v\n%s", err, d)
		}
	}
}

// TestBadArgs: what cannot be understood is refused, and nothing is done to all messages by mistake.
func TestBadArgs(t *testing.T) {
	var none *history.History
	m := Methods((*queue.Queue)(nil), none, nil)
	for _, c := range []struct{ method, args, want string }{
		{QueueList, "older_than=x", "older_than is not a duration"},
		{QueueList, "limit=-1", "limit is not a number"},
		{QueueCount, "younger_than=1", "younger_than is not a duration"},
		{QueueGroups, "limit=x", "limit is not a number"},
		{QueueOperate, "op=explode&id=x", "unknown queue operation"},
		{QueueOperate, "op=drop", "no filter given"},
		{HistoryFind, "", ErrNoHistory.Error()},
		{HistoryGet, "id=x", ErrNoHistory.Error()},
	} {
		a, err := url.ParseQuery(c.args)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m[c.method](context.Background(), a); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v", c.method, c.args, err)
		}
	}
	if _, ok := m[Reload]; ok {
		t.Error("there is a method that does nothing")
	}
	for name := range Slow() {
		if _, ok := Methods(nil, nil, func(context.Context) Reloaded { return Reloaded{} })[name]; !ok {
			t.Errorf("%s is slow but does not exist", name)
		}
	}
}
