package cli

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/opctl"
)

func historyCommand() *command {
	return &command{name: "history", args: "[options] [<text>]", short: "Search the messages of the last days",
		long: "Lists the messages that the history knows, the latest first. The text is a queue id, trace id, Message-ID, address, domain, " +
			"client address, user, or the id that another server gave a message. Without one, all are listed.\n\nThe server must be running.",
		prepare: historySearch}
}

func historySearch(fs *flag.FlagSet) func(*call) error {
	q := history.Query{}
	fs.StringVar(&q.State, "state", "", "messages in this `state`: delivered, partly delivered, bounced, queued or refused")
	fs.IntVar(&q.Limit, "limit", 100, "at most this many messages")
	since := fs.Duration("since", 0, "messages of this `duration` until now, such as 24h")
	asJSON := fs.Bool("json", false, "write JSON")
	return func(c *call) error {
		if err := c.wantArgs(0, 1); err != nil {
			return err
		}
		if len(c.args) == 1 {
			q.Text = c.args[0]
		}
		if *since > 0 {
			q.Since = time.Now().Add(-*since)
		}
		found := opctl.Found{Messages: []history.Message{}}
		if err := c.ask(timeout, opctl.HistoryFind, opctl.QueryArgs(q), &found); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.Stdout, found)
		}
		if len(found.Messages) == 0 {
			fmt.Fprintln(c.Stdout, "No messages.")
			return nil
		}
		t := newTable(c.Stdout, "ARRIVED", "ID", "STATE", "SENDER", "RECIPIENTS", "SIZE")
		for _, m := range found.Messages {
			t.row(m.Arrived.Local().Format(time.DateTime), string(m.ID), m.State, sender(m.From), someOf(m.Rcpts), humanSize(m.Size))
		}
		if err := t.flush(); err != nil {
			return err
		}
		if found.More {
			fmt.Fprintln(c.Stdout, "There are more: raise -limit, or say more precisely what you look for.")
		}
		return nil
	}
}

// someOf is the first of a list and how many more there are.
func someOf(l []string) string {
	switch len(l) {
	case 0:
		return ""
	case 1:
		return l[0]
	}
	return fmt.Sprintf("%s and %d more", l[0], len(l)-1)
}

func traceCommand() *command {
	return &command{name: "trace", args: "[options] <queue id | trace id | Message-ID | address>", short: "Show what happened to a message",
		long: "Shows the timeline of a message: every event from its arrival to its last delivery. Of an address, the latest messages are shown.\n\n" +
			"The server must be running.",
		prepare: traceMessage}
}

func traceMessage(fs *flag.FlagSet) func(*call) error {
	limit := fs.Int("limit", 5, "at most this many messages")
	asJSON := fs.Bool("json", false, "write JSON")
	return func(c *call) error {
		if err := c.wantArgs(1, 1); err != nil {
			return err
		}
		l, more, err := c.timelines(c.args[0], *limit)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.Stdout, opctl.Found{Messages: l, More: more})
		}
		for i, m := range l {
			if i > 0 {
				fmt.Fprintln(c.Stdout)
			}
			printTimeline(c.Stdout, m)
		}
		if more {
			fmt.Fprintln(c.Stdout, "\nThere are more: raise -limit, or use \"chasquid history\".")
		}
		return nil
	}
}

// timelines finds the messages that text means, with all that is known of them.
func (c *call) timelines(text string, limit int) (l []history.Message, more bool, err error) {
	found := opctl.Found{}
	if err := c.ask(timeout, opctl.HistoryFind, opctl.QueryArgs(history.Query{Text: text, Limit: limit}), &found); err != nil {
		return nil, false, err
	}
	for _, m := range found.Messages {
		id := string(m.ID)
		if id == "" {
			id = m.Trace
		}
		var whole history.Message
		if err := c.ask(timeout, opctl.HistoryGet, map[string][]string{"id": {id}}, &whole); err == nil {
			m = whole
		} else if _, ok := err.(control.RemoteError); !ok {
			return nil, false, err
		}
		l = append(l, m)
	}
	if len(l) == 0 {
		return nil, false, fmt.Errorf("the history knows nothing of %q", text)
	}
	return l, found.More, nil
}

func printTimeline(w io.Writer, m history.Message) {
	fmt.Fprintf(w, "%s  %s  from %s  %s\n", printable(firstOf(string(m.ID), m.Trace)), m.State, printable(sender(m.From)), humanSize(m.Size))
	t := newTable(w)
	for _, e := range m.Events {
		t.row("  "+e.At.Local().Format("2006-01-02 15:04:05.000"), e.Kind, describe(e))
	}
	t.flush()
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// describe is an event in words.
func describe(e history.Event) string {
	var l []string
	add := func(format string, v string) {
		if v != "" {
			l = append(l, fmt.Sprintf(format, v))
		}
	}
	add("from %s", e.From)
	add("to %s", strings.Join(e.Rcpts, " "))
	add("client %s", e.Client)
	add("user %s", e.User)
	if e.Attempt > 0 {
		l = append(l, fmt.Sprintf("attempt %d", e.Attempt))
	}
	add("%s", e.Disposition)
	if e.Reason != "none" {
		add("(%s)", e.Reason)
	}
	add("by %s", e.MTA)
	add("%s", e.TLS)
	add("%q", e.Reply)
	add("%s", e.Text)
	add("id %s", e.Other)
	add("error: %s", e.Error)
	if e.Wait > 0 {
		l = append(l, "next in "+e.Wait.Round(time.Second).String())
	}
	if e.Took > 0 {
		l = append(l, "took "+e.Took.Round(time.Millisecond).String())
	}
	return strings.Join(l, " ")
}
