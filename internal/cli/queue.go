package cli

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"blitiri.com.ar/go/chasquid/internal/config"
	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/opctl"
	"blitiri.com.ar/go/chasquid/internal/queue"
)

// operationTimeout bounds an operation on the queue: it may be a long one.
const operationTimeout = time.Hour

// socket is the path of the control socket. Unlike chasquid-util's, a relative data directory is that of the server.
func (c *call) socket() (string, error) {
	conf, err := config.Load(filepath.Join(c.configDir, config.FileName), "")
	if err != nil {
		return "", err
	}
	return filepath.Join(conf.Path(conf.GetDataDir()), control.SocketName), nil
}

// ask calls a method of the running server and decodes the answer into v, unless that is nil.
func (c *call) ask(limit time.Duration, method string, args map[string][]string, v any) error {
	path, err := c.socket()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	values, err := c.Call(ctx, path, method, args)
	var remote control.RemoteError
	if err != nil && !errors.As(err, &remote) {
		return fmt.Errorf("the server does not answer on %s: %w (is it running, and may you use its socket?)", path, err)
	} else if err != nil {
		return err
	}
	if v == nil {
		return nil
	}
	return opctl.Decode(values, v)
}

// filterFlags declares the options that select messages.
func filterFlags(fs *flag.FlagSet, f *queue.Filter) {
	fs.StringVar(&f.Sender, "sender", "", "messages from this `address`, from @domain, or from <>")
	fs.StringVar(&f.Recipient, "recipient", "", "messages for this `address`, or for @domain")
	fs.StringVar(&f.Destination, "destination", "", "messages waiting for this `destination`, as \"queue ls\" shows it")
	fs.StringVar(&f.Reason, "reason", "", "messages whose last attempt failed for this `reason`, as \"queue ls\" shows it")
	fs.StringVar(&f.State, "state", "", "messages in this `state`: waiting, sending or held")
	fs.DurationVar(&f.OlderThan, "older_than", 0, "messages that have been here longer than this `duration`, such as 90m")
	fs.DurationVar(&f.YoungerThan, "younger_than", 0, "messages that have been here for less than this `duration`")
}

const filterText = `Options select messages by sender, recipient, destination, reason, state and age; a message must fit all that are given.`

func queueCommands() []*command {
	l := []*command{
		{name: "queue ls", args: "[options]", short: "List the messages in the queue", prepare: queueLs,
			long: "Lists the messages that wait for delivery, the oldest first. " + filterText + " With -by, counts them in groups instead."},
		{name: "queue show", args: "<id>", short: "Show one message of the queue, with all its recipients", prepare: queueShow,
			long: "Shows what the queue knows of a message: every recipient, where it goes, how often that was tried and why it failed."},
	}
	for _, op := range []struct {
		op          queue.Op
		short, long string
	}{
		{queue.Hold, "Stop delivering messages until they are released", "Holds messages: nothing is attempted for them until they are released."},
		{queue.Release, "Deliver held messages again", "Ends a hold."},
		{queue.Retry, "Try to deliver messages now", "Makes the next attempt due at once instead of at its time."},
		{queue.Bounce, "Give messages up and tell their senders", "Fails every recipient that is left, and sends the notice about it to the sender."},
		{queue.Drop, "Remove messages without telling anybody", "Removes messages from the queue. Nobody is told, and nothing brings them back."},
	} {
		l = append(l, &command{name: "queue " + op.op.String(), args: "[options] [<id>...]", short: op.short,
			long:    op.long + "\n\nMessages are named by their ids, or selected by options. " + filterText + " The number of messages is shown first and has to be confirmed, unless -yes is given.",
			prepare: func(fs *flag.FlagSet) func(*call) error { return queueOperate(fs, op.op) }})
	}
	return append(l, exportCommand())
}

func queueLs(fs *flag.FlagSet) func(*call) error {
	var f queue.Filter
	filterFlags(fs, &f)
	var p queue.Page
	fs.StringVar(&p.Sort, "sort", "age", "`order`: age, -age, next, size or attempts")
	fs.IntVar(&p.Limit, "limit", 100, "at most this many lines")
	by := fs.String("by", "", "count by `what`: destination, reason or sender")
	asJSON := fs.Bool("json", false, "write JSON")
	return func(c *call) error {
		if err := c.wantArgs(0, 0); err != nil {
			return err
		}
		if p.Limit < 1 {
			return usageError("-limit must be at least 1")
		}
		if *by != "" {
			return c.queueGroups(f, *by, p.Limit, *asJSON)
		}
		return c.queueList(f, p, *asJSON)
	}
}

func (c *call) queueList(f queue.Filter, p queue.Page, asJSON bool) error {
	all := queue.List{Items: []queue.Item{}}
	for limit := p.Limit; ; {
		p.Limit = min(limit-len(all.Items), queue.MaxList)
		var l queue.List
		if err := c.ask(operationTimeout, opctl.QueueList, opctl.PageArgs(opctl.FilterArgs(f), p), &l); err != nil {
			return err
		}
		all.Items, all.Total, p.After = append(all.Items, l.Items...), l.Total, l.Next
		if l.Next == "" || len(all.Items) >= limit {
			break
		}
	}
	if asJSON {
		return printJSON(c.Stdout, struct {
			Total int          `json:"total"`
			Items []queue.Item `json:"items"`
		}{all.Total, all.Items})
	}
	if all.Total == 0 {
		fmt.Fprintln(c.Stdout, "No messages.")
		return nil
	}
	now := time.Now()
	t := newTable(c.Stdout, "ID", "AGE", "SIZE", "STATE", "NEXT", "SENDER", "RECIPIENTS", "REASON")
	for _, it := range all.Items {
		to, reason := rcptSummary(it)
		t.row(string(it.ID), humanAge(now.Sub(it.Arrived)), humanSize(it.Size), it.State, when(it.Next, now), sender(it.From), to, reason)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintf(c.Stdout, "%d of %s\n", len(all.Items), plural(all.Total, "message"))
	return nil
}

// sender is an address as tables show it.
func sender(a string) string {
	if a == "" {
		return "<>"
	}
	return a
}

// rcptSummary is the first recipient that is left and how many more there are, and why it was not delivered yet.
func rcptSummary(it queue.Item) (to, reason string) {
	if it.Error != "" {
		return "", it.Error
	}
	left := 0
	for _, r := range it.Rcpts {
		if r.Status != queue.Pending.String() {
			continue
		}
		left++
		if left == 1 {
			to, reason = r.To, r.Reason
		}
	}
	if left > 1 {
		to += fmt.Sprintf(" and %d more", left-1)
	}
	return to, reason
}

func (c *call) queueGroups(f queue.Filter, by string, limit int, asJSON bool) error {
	args := opctl.FilterArgs(f)
	args.Set("by", by)
	args.Set("limit", fmt.Sprint(limit))
	groups := []queue.Group{}
	if err := c.ask(operationTimeout, opctl.QueueGroups, args, &groups); err != nil {
		return err
	}
	if asJSON {
		return printJSON(c.Stdout, groups)
	}
	now := time.Now()
	t := newTable(c.Stdout, strings.ToUpper(by), "MESSAGES", "RECIPIENTS", "SIZE", "OLDEST")
	for _, g := range groups {
		t.row(g.Name, fmt.Sprint(g.Messages), fmt.Sprint(g.Recipients), humanSize(g.Bytes), when(g.Oldest, now))
	}
	return t.flush()
}

func queueShow(fs *flag.FlagSet) func(*call) error {
	asJSON := fs.Bool("json", false, "write JSON")
	return func(c *call) error {
		if err := c.wantArgs(1, 1); err != nil {
			return err
		}
		var it queue.Item
		if err := c.ask(timeout, opctl.QueueItem, opctl.ItemArgs(mail.ID(c.args[0])), &it); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.Stdout, it)
		}
		return c.printItem(it, time.Now())
	}
}

func (c *call) printItem(it queue.Item, now time.Time) error {
	t := newTable(c.Stdout)
	field := func(name, value string) {
		if value != "" {
			t.row(name+":", value)
		}
	}
	field("Id", string(it.ID))
	field("State", it.State)
	field("From", sender(it.From))
	field("Arrived", it.Arrived.Local().Format(time.DateTime)+", "+when(it.Arrived, now))
	field("Size", humanSize(it.Size))
	field("Source", it.Source)
	field("Client", it.Client)
	field("User", it.User)
	field("Message-ID", it.MessageID)
	field("Trace", it.Trace)
	field("Error", it.Error)
	if err := t.flush(); err != nil {
		return err
	}
	for _, r := range it.Rcpts {
		fmt.Fprintln(c.Stdout)
		t = newTable(c.Stdout)
		field("To", r.To)
		if r.Orig != r.To {
			field("Original", r.Orig)
		}
		field("Status", strings.ToLower(r.Status))
		field("Destination", r.Destination)
		field("Now", r.Doing)
		field("Attempts", fmt.Sprint(r.Attempts))
		if r.Status == queue.Pending.String() {
			field("Next", when(r.Next, now))
			field("Gives up", when(r.GiveUp, now))
		}
		field("Reason", r.Reason)
		field("Last failure", r.LastFailure)
		field("Server", r.MTA)
		if err := t.flush(); err != nil {
			return err
		}
	}
	return nil
}

func queueOperate(fs *flag.FlagSet, op queue.Op) func(*call) error {
	var f queue.Filter
	filterFlags(fs, &f)
	all := fs.Bool("all", false, "all messages, if nothing else selects some")
	yes := fs.Bool("yes", false, "do not ask")
	dry := fs.Bool("count", false, "only say how many messages it would be")
	asJSON := fs.Bool("json", false, "write JSON; implies -yes")
	return func(c *call) error {
		filters, err := selection(c.args, f, *all)
		if err != nil {
			return err
		}
		n := 0
		for _, f := range filters {
			var k int
			if err := c.ask(operationTimeout, opctl.QueueCount, opctl.FilterArgs(f), &k); err != nil {
				return err
			}
			if k == 0 && f.ID != "" {
				return fmt.Errorf("no message %q in the queue that fits", f.ID)
			}
			n += k
		}
		if !*dry && n > 0 {
			if !*yes && !*asJSON && !c.confirm(fmt.Sprintf("%s: %s. Go on?", upperFirst(op.String()), plural(n, "message"))) {
				return errors.New("not done")
			}
			if n, err = c.operate(op, filters, *all); err != nil {
				return err
			}
		}
		if *asJSON {
			return printJSON(c.Stdout, map[string]any{"operation": op.String(), "messages": n, "done": !*dry})
		}
		verb := "done"
		if *dry {
			verb = "not done, only counted"
		}
		fmt.Fprintf(c.Stdout, "%s: %s (%s)\n", upperFirst(op.String()), plural(n, "message"), verb)
		return nil
	}
}

// selection is one filter for each id, or the filter of the options.
func selection(ids []string, f queue.Filter, all bool) ([]queue.Filter, error) {
	var l []queue.Filter
	for _, id := range ids {
		if id == "" {
			return nil, usageError("an id is empty")
		}
		one := f
		one.ID = mail.ID(id)
		l = append(l, one)
	}
	if len(l) > 0 {
		if all {
			return nil, usageError("-all and ids exclude each other")
		}
		return l, nil
	}
	if f == (queue.Filter{}) && !all {
		return nil, usageError("say which messages: ids, options that select some, or -all")
	}
	return []queue.Filter{f}, nil
}

func (c *call) operate(op queue.Op, filters []queue.Filter, all bool) (n int, err error) {
	who := "operator"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	for _, f := range filters {
		var k int
		if err := c.ask(operationTimeout, opctl.QueueOperate, opctl.OperateArgs(op, f, who, all), &k); err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// confirm asks a question on the terminal. Without one the answer is no.
func (c *call) confirm(question string) bool {
	fmt.Fprintf(c.Stdout, "%s [y/N] ", question)
	line, err := bufio.NewReader(c.Stdin).ReadString('\n')
	if err != nil {
		fmt.Fprintln(c.Stdout)
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}

// ownerOf returns the numeric owner of a path.
func ownerOf(path string) (uid, gid int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	return fileOwner(info)
}
