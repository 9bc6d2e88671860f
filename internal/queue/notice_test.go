package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"blitiri.com.ar/go/chasquid/internal/srs"
)

// A crash between the notice and the removal of its message makes no second notice.
func TestNoticeIsNotRepeatedAfterCrash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "them.test" {
				return greylist // the notice waits
			}
			return noUser
		}
		w.store.setFail(func(op string, _ mail.ID) error {
			if op == "remove" {
				return errors.New("crash")
			}
			return nil
		})
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(10 * time.Second)
		if n := len(w.store.ids()); n != 2 {
			t.Fatalf("%d messages, want the original and its notice", n)
		}
		w.stop()
		// The crash also loses that the notice was sent.
		w.store.lose(id, func(e *Entry) { e.Status[0].Notified = 0 })
		w.store.setFail(nil)
		w.start()
		time.Sleep(time.Minute)
		ids := w.store.ids()
		if len(ids) != 1 || ids[0] == id {
			t.Errorf("the store holds %v, want one notice", ids)
		}
		if n := len(w.courier.times("b@x.test")); n != 1 {
			t.Errorf("the failed recipient was tried %d times", n)
		}
		w.stop()
	})
}

// The same when the notice can be delivered at once after the restart: what was interrupted is concluded first.
func TestNoticeIsNotRepeatedByRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		var up atomic.Bool
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			switch {
			case r.To.Domain != "them.test":
				return noUser
			case up.Load():
				return delivered
			}
			return greylist
		}
		w.store.setFail(func(op string, _ mail.ID) error {
			if op == "remove" {
				return errors.New("crash")
			}
			return nil
		})
		id := w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(10 * time.Second)
		w.stop()
		before := len(w.courier.times("a@them.test"))
		w.store.lose(id, func(e *Entry) { e.Status[0].Notified = 0 })
		w.store.setFail(nil)
		w.store.flush = time.Second // so that what is attempted overtakes what is written
		up.Store(true)
		time.Sleep(10 * time.Minute)
		w.start()
		time.Sleep(10 * time.Minute)
		w.mustBeEmpty()
		if n := len(w.courier.times("a@them.test")) - before; n != 1 {
			t.Errorf("the notice was delivered %d times", n)
		}
		w.stop()
	})
}

// a notice that cannot be written keeps its message, is tried again, and is sent once.
func TestX1NoticeThatCannotBeWrittenKeepsMessage(t *testing.T) {
	for _, op := range []string{"create", "open", "commit", "update", "remove", "expand"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var broken atomic.Bool
				w := newWorld(t, func(c *Config) {
					c.Expand = func(_ context.Context, rs []mail.Recipient) ([]mail.Recipient, error) {
						if broken.Load() && op == "expand" {
							return nil, errors.New("hook failed")
						}
						return rs, nil
					}
				})
				w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
					if r.To.Domain == "x.test" {
						broken.Store(true)
						return noUser
					}
					return delivered
				}
				w.store.setFail(func(o string, _ mail.ID) error {
					if broken.Load() && o == op {
						return ErrBroken
					}
					return nil
				})
				id := w.put(envelope("a@them.test", "b@x.test"))
				time.Sleep(10*time.Minute + time.Second)
				if !w.store.has(id) {
					t.Fatal("the message is gone before its notice is durable")
				}
				if st := w.state(id); st != waiting {
					t.Errorf("the message is %v", st)
				}
				broken.Store(false)
				time.Sleep(2 * time.Minute)
				w.mustBeEmpty()
				if n := len(w.courier.times("a@them.test")); n != 1 {
					t.Errorf("%d notices", n)
				}
				if n := len(w.courier.times("b@x.test")); n != 1 {
					t.Errorf("the failed recipient was tried %d times", n)
				}
				w.stop()
			})
		})
	}
}

func (q *Queue) state(id mail.ID) msgState {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.index.at(q.index.find(id)).state
}

// S-10: notices are never refused by the item limit.
func TestS10NoticesAreExemptFromLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxItems = 1 })
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "x.test" {
				return noUser
			}
			return greylist
		}
		w.put(envelope("a@them.test", "b@x.test"))
		time.Sleep(time.Second)
		if len(w.store.ids()) != 1 || len(w.courier.times("a@them.test")) != 1 {
			t.Errorf("no notice: %v", w.store.ids())
		}
		if _, err := w.try(envelope("a@them.test", "b@x.test")); err == nil {
			t.Error("accepted beyond the limit")
		}
		w.stop()
	})
}

// Failures are told together; when another recipient takes long, not much later than they happen.
func TestFailureNoticeDoesNotWaitForSlowRecipient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			switch r.To.Domain {
			case "bad1.test", "bad2.test":
				return noUser
			case "slow.test":
				return greylist
			}
			return delivered
		}
		w.put(envelope("a@them.test", "b@bad1.test", "c@bad2.test", "d@slow.test"))
		time.Sleep(4 * time.Minute)
		if n := len(w.courier.times("a@them.test")); n != 1 {
			t.Errorf("%d notices after some minutes, want one about both", n)
		}
		w.stop() // what was told is remembered
		w.start()
		time.Sleep(6 * 24 * time.Hour)
		if n := len(w.courier.times("a@them.test")); n != 3 {
			t.Errorf("%d notices in all, want failure, delay, failure", n)
		}
		w.mustBeEmpty()
		w.stop()
	})
}

// D45: a list whose recipients fail one by one over hours makes few notices, and each failure is told once.
func TestD45FewNoticesForList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxBatch = 1 })
		told := map[string]int{}
		w.courier.deliver = func(_ context.Context, j *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "them.test" {
				rd, _ := j.Open()
				b, _ := io.ReadAll(rd)
				for l := range strings.SplitSeq(string(b), "\n") {
					if to, ok := strings.CutPrefix(l, "Final-Recipient: utf-8; "); ok {
						told[strings.TrimSpace(to)]++
					}
				}
				return delivered
			}
			if n, _ := strconv.Atoi(r.To.Local[1:]); j.Attempt > n%12 {
				return noUser
			}
			return greylist
		}
		var to []string
		for i := range 500 {
			to = append(to, fmt.Sprintf("r%d@d%d.test", i, i%50))
		}
		ps, _ := smtp.ParseParams("NOTIFY=FAILURE")
		env := envelope("a@them.test", to...)
		for i := range env.Rcpts {
			env.Rcpts[i].Params = ps
		}
		w.put(env)
		time.Sleep(24 * time.Hour)
		w.mustBeEmpty()
		if n := len(w.courier.times("a@them.test")); n < 3 || n > 8 {
			t.Errorf("%d notices", n)
		}
		for _, r := range to {
			if told[r] != 1 {
				t.Errorf("%s was told %d times", r, told[r])
			}
		}
		w.stop()
	})
}

func TestNoticeContent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var signed string
		w := newWorld(t, func(c *Config) {
			c.Sign = func(_ context.Context, domain string, content io.Reader) ([]byte, error) {
				b, err := io.ReadAll(content)
				signed = domain + " " + string(b[:5])
				return []byte("DKIM-Signature: x\r\n"), err
			}
		})
		var notice string
		w.courier.deliver = func(_ context.Context, job *mail.Job, r *mail.Recipient) mail.Outcome {
			if r.To.Domain == "x.test" {
				return noUser
			}
			rd, _ := job.Open()
			b, _ := io.ReadAll(rd)
			notice = string(b)
			if !job.From.IsNull() || job.Env.Source != mail.FromDSN || r.Orig != addr("a@us.test") {
				t.Errorf("notice from %v, %+v", job.From, r)
			}
			return delivered
		}
		w.put(envelope("a@us.test", "b@x.test"))
		synctest.Wait()
		for _, want := range []string{"DKIM-Signature: x\r\nFrom: Mail Delivery System <postmaster-dsn@us.test>\r\nTo: <a@us.test>\r\n",
			"Status: 5.1.1", "Diagnostic-Code: smtp; 550 5.1.1 no such user", "Remote-MTA: dns; mx.test", "Received: x\r\nSubject: x"} {
			if !strings.Contains(notice, want) {
				t.Errorf("no %q in\n%s", want, notice)
			}
		}
		if signed != "us.test From:" {
			t.Errorf("signed %q", signed)
		}
		w.mustBeEmpty()
		w.stop()
	})
}

func TestC60SuccessNotices(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		ps, _ := smtp.ParseParams("NOTIFY=SUCCESS,FAILURE")
		w.courier.deliver = func(_ context.Context, _ *mail.Job, r *mail.Recipient) mail.Outcome {
			o := delivered
			o.Relayed = r.To.Domain == "old.test"
			return o
		}
		send := func(to string, want int) {
			t.Helper()
			before := len(w.courier.times("a@them.test"))
			env := envelope("a@them.test", to)
			env.Rcpts[0].Params = ps
			w.put(env)
			synctest.Wait()
			if n := len(w.courier.times("a@them.test")) - before; n != want {
				t.Errorf("%s: %d notices, want %d", to, n, want)
			}
		}
		send("b@us.test", 1)  // delivered
		send("b@old.test", 1) // relayed to a host without DSN
		send("b@new.test", 0) // that one reports
		w.mustBeEmpty()
		w.stop()
	})
}

func TestNoNoticeWhenNotWanted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return noUser }
		never, _ := smtp.ParseParams("NOTIFY=NEVER")
		env := envelope("a@them.test", "b@x.test")
		env.Rcpts[0].Params = never
		w.put(env)
		id := w.put(envelope("<>", "b@x.test"))
		synctest.Wait()
		w.mustBeEmpty()
		if n := w.courier.count(); n != 2 {
			t.Errorf("%d jobs", n)
		}
		if got, want := w.events.of(id), []string{"queued", "attempt", "final"}; !slices.Equal(got, want) {
			t.Errorf("events %v", got)
		}
		w.stop()
	})
}

// Notices that fail go to the double bounce address if there is one, and end there.
func TestDoubleBounce(t *testing.T) {
	for to, want := range map[string]int{"<>": 0, "postmaster@us.test": 1} {
		t.Run(to, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.DoubleBounceTo = addr(to) })
				w.courier.deliver = func(context.Context, *mail.Job, *mail.Recipient) mail.Outcome { return noUser }
				w.put(envelope("a@them.test", "b@x.test"))
				time.Sleep(time.Minute)
				w.mustBeEmpty()
				if n := len(w.courier.times("postmaster@us.test")); n != want {
					t.Errorf("%d double bounces, want %d", n, want)
				}
				w.stop()
			})
		})
	}
}

// S-7: the sender of mail from elsewhere that an alias sends out is rewritten, and a bounce to it comes back to the true sender.
func TestS7Forwarding(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.SRS = srs.New([]byte("secret"))
			c.LocalDomain = func(d string) bool { return d == local || d == "second.test" }
			c.Expand = func(_ context.Context, rs []mail.Recipient) ([]mail.Recipient, error) {
				out := slices.Clone(rs)
				for i := range out {
					if out[i].To == addr("alias@us.test") {
						out[i].To = addr("b@x.test")
					}
				}
				return out, nil
			}
		})
		for _, c := range []struct {
			from, to  string
			rewritten bool
		}{
			{"a@them.test", "alias@us.test", true},
			{"a@us.test", "alias@us.test", false}, // local senders
			{"a@second.test", "alias@us.test", false},
			{"<>", "alias@us.test", false},      // bounces
			{"a@them.test", "b@x.test", false},  // relayed for a user, not forwarded by an alias
			{"a@them.test", "c@us.test", false}, // delivered here
		} {
			w.put(envelope(c.from, c.to))
			synctest.Wait()
			job := w.courier.jobs[w.courier.count()-1]
			if got := srs.Is(job.From); got != c.rewritten || !got && job.From != addr(c.from) || got && job.From.Domain != "us.test" {
				t.Errorf("%s to %s went from %s", c.from, c.to, job.From)
			}
			if job.Env.From != addr(c.from) {
				t.Errorf("the envelope says %s", job.Env.From)
			}
		}
		w.put(envelope("<>", w.courier.jobs[0].From.String()))
		synctest.Wait()
		if n := len(w.courier.times("a@them.test")); n != 1 {
			t.Errorf("the bounce did not come back to the sender")
		}
		w.mustBeEmpty()
		w.stop()
	})
}
