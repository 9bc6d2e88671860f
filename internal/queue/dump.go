package queue

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// WriteDump writes the queue as text, in the layout that existing tools read (compat MON-3), oldest messages first, at most limit of them.
func (q *Queue) WriteDump(ctx context.Context, w io.Writer, limit int) error {
	b := bufio.NewWriter(w)
	now := time.Now()
	fmt.Fprintf(b, "# Queue status\n\ndate: %s\nlength: %d\n\n", now.Format(dumpTime), q.Stats().Messages)
	oldest, _, err := q.first(ctx, &Filter{}, "", place{}, limit)
	if err != nil {
		return err
	}
	for _, pl := range oldest {
		if it, ok := q.item(pl.m, pl.id); ok {
			dumpItem(b, &it)
		}
	}
	return b.Flush()
}

const dumpTime = "2006-01-02 15:04:05.999999999 -0700 MST"

func dumpItem(w io.Writer, it *Item) {
	var to []string
	seen := map[string]bool{}
	for i := range it.Rcpts {
		if o := it.Rcpts[i].Orig; !seen[o] {
			seen[o] = true
			to = append(to, o)
		}
	}
	fmt.Fprintf(w, "## Item %s\ncreated at: %s\nfrom: %s\nto: [%s]\n", it.ID, it.Arrived.Format(dumpTime), it.From, strings.Join(to, " "))
	for i := range it.Rcpts {
		r := &it.Rcpts[i]
		fmt.Fprintf(w, "%s %s (%s)\n\toriginal address: %s\n\tlast failure: %q\n", r.Status, r.To, r.Kind, r.Orig, r.LastFailure)
	}
	fmt.Fprintln(w)
}
