package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/opctl"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"github.com/google/go-cmp/cmp"
)

// fakeQueue has messages and notes what is done to them.
type fakeQueue struct {
	items []queue.Item
	did   []string
}

func (q *fakeQueue) selected(f queue.Filter) (l []queue.Item) {
	for _, it := range q.items {
		if (f.ID == "" || f.ID == it.ID) && (f.Sender == "" || f.Sender == it.From) {
			l = append(l, it)
		}
	}
	return l
}

func (q *fakeQueue) List(_ context.Context, f queue.Filter, p queue.Page) (queue.List, error) {
	l := q.selected(f)
	start := 0
	fmt.Sscan(p.After, &start)
	end := min(start+min(p.Limit, 2), len(l)) // pages of two
	out := queue.List{Items: l[start:end], Total: len(l)}
	if end < len(l) {
		out.Next = fmt.Sprint(end)
	}
	return out, nil
}

func (q *fakeQueue) Groups(_ context.Context, _ queue.Filter, by string, limit int) ([]queue.Group, error) {
	return []queue.Group{{Name: by + "!", Messages: limit, Recipients: 2, Bytes: 3000}}, nil
}

func (q *fakeQueue) Count(_ context.Context, f queue.Filter) (int, error) {
	return len(q.selected(f)), nil
}

func (q *fakeQueue) Item(id mail.ID) (queue.Item, error) {
	if l := q.selected(queue.Filter{ID: id}); len(l) > 0 {
		return l[0], nil
	}
	return queue.Item{}, queue.ErrNotFound
}

func (q *fakeQueue) Operate(_ context.Context, op queue.Op, f queue.Filter, who string) (int, error) {
	if who == "" {
		return 0, errors.New("nobody asked")
	}
	l := q.selected(f)
	for _, it := range l {
		q.did = append(q.did, op.String()+" "+string(it.ID))
	}
	return len(l), nil
}

func someQueue() *fakeQueue {
	arrived := time.Now().Add(-90 * time.Minute)
	rcpt := func(to, reason string) queue.ItemRcpt {
		return queue.ItemRcpt{To: to, Orig: to, Status: queue.Pending.String(), Attempts: 2, Reason: reason, Destination: "d.org", LastFailure: "451 later\x1b[2J"}
	}
	return &fakeQueue{items: []queue.Item{
		{ID: "one", State: "waiting", From: "a@b.c", Arrived: arrived, Size: 2048, Rcpts: []queue.ItemRcpt{rcpt("x@d.org", "greylist"), rcpt("y@d.org", "dns")}},
		{ID: "two", State: "held", From: "", Arrived: arrived, Size: 10, Rcpts: []queue.ItemRcpt{{To: "z@d.org", Status: queue.Sent.String()}, rcpt("v@d.org", "tls")}},
		{ID: "three", State: "waiting", From: "a@b.c", Arrived: arrived, Size: 5 << 20, Rcpts: []queue.ItemRcpt{rcpt("w\x1b[0m@d.org", "")}},
	}}
}

// serve answers on the control socket of a configuration directory, which it returns.
func serve(t *testing.T, q opctl.Queue, h opctl.History) string {
	t.Helper()
	dir := configDir(t, "data_dir: \".\"\n")
	srv, err := control.Listen(control.Config{Path: filepath.Join(dir, control.SocketName), Slow: opctl.Slow(),
		Methods: opctl.Methods(q, h, func(context.Context) opctl.Reloaded { return reloaded })})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return dir
}

func TestO3QueueLs(t *testing.T) {
	dir := serve(t, someQueue(), nil)
	r := run(t, Env{}, "chasquid", "queue", "ls", "-C", dir)
	want := `ID     AGE    SIZE     STATE    NEXT  SENDER  RECIPIENTS          REASON
one    1h30m  2.0 KiB  waiting        a@b.c   x@d.org and 1 more  greylist
two    1h30m  10 B     held           <>      v@d.org             tls
three  1h30m  5.0 MiB  waiting        a@b.c   w?[0m@d.org
3 of 3 messages
`
	var got strings.Builder
	for line := range strings.Lines(r.out) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if d := cmp.Diff(want, got.String()); r.exit != 0 || d != "" {
		t.Errorf("exit %d %s\n%s", r.exit, r.errout, d)
	}
	r = run(t, Env{}, "chasquid", "queue", "ls", "-C", dir, "-sender=a@b.c", "-limit=1", "-json")
	var l struct {
		Total int
		Items []queue.Item
	}
	if err := json.Unmarshal([]byte(r.out), &l); err != nil || l.Total != 2 || len(l.Items) != 1 || l.Items[0].ID != "one" {
		t.Errorf("%v: %s %s", err, r.out, r.errout)
	}
	r = run(t, Env{}, "chasquid", "queue", "ls", "-C", dir, "-by", "reason", "-limit=7")
	if r.exit != 0 || !strings.Contains(r.out, "reason!  7         2           2.9 KiB") {
		t.Errorf("groups: %s %s", r.out, r.errout)
	}
}

func TestO3QueueShow(t *testing.T) {
	dir := serve(t, someQueue(), nil)
	r := run(t, Env{}, "chasquid", "queue", "show", "one", "-C", dir)
	for _, w := range []string{"Id:       one\n", "x@d.org", "y@d.org", "451 later?[2J", "Attempts:      2"} {
		if !strings.Contains(r.out, w) {
			t.Errorf("does not show %q:\n%s", w, r.out)
		}
	}
	r = run(t, Env{}, "chasquid", "queue", "show", "none", "-C", dir)
	if r.exit != 1 || !strings.Contains(r.errout, "no such message in the queue") {
		t.Errorf("exit %d, %q", r.exit, r.errout)
	}
}

// TestO3Operate: what is done, only to what was named, and only when it was confirmed.
func TestO3Operate(t *testing.T) {
	for _, c := range []struct {
		line, stdin string
		exit        int
		did         []string
		says        string
	}{
		{"hold one", "y\n", 0, []string{"hold one"}, "Hold: 1 message. Go on? [y/N] "},
		{"hold one", "n\n", 1, nil, "not done"},
		{"hold one", "", 1, nil, "not done"},
		{"drop -yes -sender=a@b.c", "", 0, []string{"drop one", "drop three"}, "Drop: 2 messages (done)"},
		{"drop -sender=a@b.c three -yes", "", 0, []string{"drop three"}, "1 message"},
		{"retry one two -yes", "", 0, []string{"retry one", "retry two"}, "2 messages"},
		{"bounce one none -yes", "", 1, nil, `no message "none"`},
		{"bounce -yes", "", 2, nil, "say which messages"},
		{"release -all -yes", "", 0, []string{"release one", "release two", "release three"}, "3 messages"},
		{"release -all one", "", 2, nil, "exclude each other"},
		{"drop -all -count", "", 0, nil, "3 messages (not done, only counted)"},
		{"hold -sender=x@y -yes", "", 0, nil, "0 messages"},
		{"hold one -json", "", 0, []string{"hold one"}, `"messages": 1`},
		{"hold \"\"", "", 2, nil, "an id is empty"},
	} {
		q := someQueue()
		dir := serve(t, q, nil)
		words := append([]string{"chasquid", "queue"}, strings.Fields(strings.ReplaceAll(c.line, `""`, "EMPTY"))...)
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "EMPTY", "")
		}
		r := run(t, Env{Stdin: strings.NewReader(c.stdin)}, append(words, "-C", dir)...)
		if r.exit != c.exit || !slices.Equal(q.did, c.did) || !strings.Contains(r.out+r.errout, c.says) {
			t.Errorf("%s: exit %d, did %q\n%s%s", c.line, r.exit, q.did, r.out, r.errout)
		}
	}
}

func TestQueueNoServer(t *testing.T) {
	dir := configDir(t, "data_dir: \".\"\n")
	r := run(t, Env{}, "chasquid", "queue", "ls", "-C", dir)
	if r.exit != 1 || !strings.Contains(r.errout, "the server does not answer") {
		t.Errorf("exit %d: %q", r.exit, r.errout)
	}
	dir = serve(t, someQueue(), nil)
	if r := run(t, Env{}, "chasquid", "history", "-C", dir); r.exit != 1 || !strings.Contains(r.errout, "keeps no history") {
		t.Errorf("exit %d: %q", r.exit, r.errout)
	}
}

// fakeHistory knows one message.
type fakeHistory struct{ asked []history.Query }

func (h *fakeHistory) Search(_ context.Context, q history.Query) ([]history.Message, bool, error) {
	h.asked = append(h.asked, q)
	if q.Text == "nobody" {
		return nil, false, nil
	}
	return []history.Message{{ID: "one", State: "bounced", From: "a@b", Rcpts: []string{"c@d", "e@f"}, Size: 100, Arrived: time.Now()}}, true, nil
}

func (h *fakeHistory) Get(_ context.Context, id string) (history.Message, bool, error) {
	m := history.Message{ID: "one", State: "bounced", From: "a@b", Events: []history.Event{
		{Kind: "queued", From: "a@b", Rcpts: []string{"c@d"}, Client: "192.0.2.1:5"},
		{Kind: "attempt", Rcpts: []string{"c@d"}, Attempt: 1, Disposition: "failed", Reason: "mailbox", Reply: "550 5.1.1 \x1bno", Took: time.Second}}}
	return m, id == "one", nil
}

func TestO5History(t *testing.T) {
	h := &fakeHistory{}
	dir := serve(t, someQueue(), h)
	r := run(t, Env{}, "chasquid", "history", "a@b", "-state=bounced", "-since=2h", "-limit", "9", "-C", dir)
	if r.exit != 0 || !strings.Contains(r.out, "bounced  a@b     c@d and 1 more  100 B") || !strings.Contains(r.out, "There are more") {
		t.Errorf("exit %d %s\n%s", r.exit, r.errout, r.out)
	}
	q := h.asked[0]
	if q.Text != "a@b" || q.State != "bounced" || q.Limit != 9 || time.Since(q.Since) < 2*time.Hour || time.Since(q.Since) > 3*time.Hour {
		t.Errorf("asked %+v", q)
	}
	r = run(t, Env{}, "chasquid", "trace", "one", "-C", dir)
	for _, w := range []string{"one  bounced  from a@b", "queued   from a@b to c@d client 192.0.2.1:5", `attempt 1 failed (mailbox) "550 5.1.1 \x1bno" took 1s`} {
		if !strings.Contains(r.out, w) {
			t.Errorf("does not say %q:\n%s%s", w, r.out, r.errout)
		}
	}
	if r := run(t, Env{}, "chasquid", "trace", "nobody", "-C", dir); r.exit != 1 || !strings.Contains(r.errout, `knows nothing of "nobody"`) {
		t.Errorf("exit %d: %q", r.exit, r.errout)
	}
}
