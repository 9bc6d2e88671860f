// Package opctl is what an operator can ask of the running server over its control socket, besides what existing installations know.
package opctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"blitiri.com.ar/go/chasquid/internal/control"
	"blitiri.com.ar/go/chasquid/internal/history"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
)

// The methods' names. Arguments are those of the functions that encode them here; the answer is JSON under the key "json".
const (
	QueueList    = "QueueList"    // FilterArgs and PageArgs; queue.List
	QueueGroups  = "QueueGroups"  // FilterArgs, "by", "limit"; []queue.Group
	QueueCount   = "QueueCount"   // FilterArgs; a number
	QueueItem    = "QueueItem"    // "id"; queue.Item
	QueueOperate = "QueueOperate" // FilterArgs, "op", "who"; a number
	HistoryFind  = "HistoryFind"  // QueryArgs; Found
	HistoryGet   = "HistoryGet"   // "id"; history.Message
	Reload       = "Reload"       // none; Reloaded
)

// Queue is what the methods need of a queue. *queue.Queue has it.
type Queue interface {
	List(ctx context.Context, f queue.Filter, p queue.Page) (queue.List, error)
	Groups(ctx context.Context, f queue.Filter, by string, limit int) ([]queue.Group, error)
	Count(ctx context.Context, f queue.Filter) (int, error)
	Item(id mail.ID) (queue.Item, error)
	Operate(ctx context.Context, op queue.Op, f queue.Filter, who string) (int, error)
}

// History is what the methods need of the history. *history.History has it.
type History interface {
	Search(ctx context.Context, q history.Query) (found []history.Message, more bool, err error)
	Get(ctx context.Context, id string) (history.Message, bool, error)
}

// Found is a page of messages from the history.
type Found struct {
	Messages []history.Message `json:"messages"`
	More     bool              `json:"more"`
}

// Reloaded is how a reload went.
type Reloaded struct {
	Errors   []ReloadError `json:"errors,omitempty"`
	Changes  []string      `json:"changes,omitempty"` // settings that are others now, "name: old -> new"
	Restart  []string      `json:"restart,omitempty"` // settings that take effect at the next restart
	Warnings []string      `json:"warnings,omitempty"`
}

// ReloadError is something that stays as it was before.
type ReloadError struct {
	What   string `json:"what"`
	Error  string `json:"error"`
	Remedy string `json:"remedy,omitempty"`
}

// ErrNoHistory is the answer of a server that keeps no history.
var ErrNoHistory = errors.New("the server keeps no history; its log says why")

// Methods returns the methods for the control socket. History may be nil: there is none then; reload too: then there is no such method.
func Methods(q Queue, h History, reload func(context.Context) Reloaded) map[string]control.Method {
	if p, ok := h.(*history.History); ok && p == nil {
		h = nil
	}
	m := map[string]control.Method{
		QueueList:   func(ctx context.Context, a url.Values) (url.Values, error) { return list(ctx, q, a) },
		QueueGroups: func(ctx context.Context, a url.Values) (url.Values, error) { return groups(ctx, q, a) },
		QueueCount:  func(ctx context.Context, a url.Values) (url.Values, error) { return count(ctx, q, a) },
		QueueItem: func(ctx context.Context, a url.Values) (url.Values, error) {
			return Answer(q.Item(mail.ID(a.Get("id"))))
		},
		QueueOperate: func(ctx context.Context, a url.Values) (url.Values, error) { return operate(ctx, q, a) },
		HistoryFind:  func(ctx context.Context, a url.Values) (url.Values, error) { return find(ctx, h, a) },
		HistoryGet:   func(ctx context.Context, a url.Values) (url.Values, error) { return get(ctx, h, a.Get("id")) },
	}
	if reload != nil {
		m[Reload] = func(ctx context.Context, a url.Values) (url.Values, error) { return Answer(reload(ctx), nil) }
	}
	return m
}

// Slow returns the methods whose work may take longer than the limit of the control socket.
func Slow() map[string]bool {
	return map[string]bool{QueueList: true, QueueGroups: true, QueueCount: true, QueueOperate: true, HistoryFind: true, HistoryGet: true, Reload: true}
}

// Answer encodes a result.
func Answer[T any](v T, err error) (url.Values, error) {
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding the answer: %w", err)
	}
	return url.Values{"json": {string(b)}}, nil
}

// Decode is the other end of the encoding of answers.
func Decode(values url.Values, v any) error {
	if err := json.Unmarshal([]byte(values.Get("json")), v); err != nil {
		return fmt.Errorf("the server's answer cannot be understood: %w", err)
	}
	return nil
}

func list(ctx context.Context, q Queue, a url.Values) (url.Values, error) {
	f, err := parseFilter(a)
	if err != nil {
		return nil, err
	}
	limit, err := number(a, "limit")
	if err != nil {
		return nil, err
	}
	return Answer(q.List(ctx, f, queue.Page{Sort: a.Get("sort"), After: a.Get("after"), Limit: limit}))
}

func groups(ctx context.Context, q Queue, a url.Values) (url.Values, error) {
	f, err := parseFilter(a)
	if err != nil {
		return nil, err
	}
	limit, err := number(a, "limit")
	if err != nil {
		return nil, err
	}
	return Answer(q.Groups(ctx, f, a.Get("by"), limit))
}

func count(ctx context.Context, q Queue, a url.Values) (url.Values, error) {
	f, err := parseFilter(a)
	if err != nil {
		return nil, err
	}
	return Answer(q.Count(ctx, f))
}

func operate(ctx context.Context, q Queue, a url.Values) (url.Values, error) {
	f, err := parseFilter(a)
	if err != nil {
		return nil, err
	}
	op, err := queue.ParseOp(a.Get("op"))
	if err != nil {
		return nil, err
	}
	if f == (queue.Filter{}) && a.Get("all") == "" {
		return nil, errors.New("no filter given; to mean every message, ask for all")
	}
	who := a.Get("who")
	if who == "" {
		who = "control socket"
	}
	return Answer(q.Operate(ctx, op, f, who))
}

func find(ctx context.Context, h History, a url.Values) (url.Values, error) {
	if h == nil {
		return nil, ErrNoHistory
	}
	q, err := parseQuery(a)
	if err != nil {
		return nil, err
	}
	var f Found
	f.Messages, f.More, err = h.Search(ctx, q)
	return Answer(f, err)
}

func get(ctx context.Context, h History, id string) (url.Values, error) {
	if h == nil {
		return nil, ErrNoHistory
	}
	m, ok, err := h.Get(ctx, id)
	if err == nil && !ok {
		err = errors.New("no such message in the history")
	}
	return Answer(m, err)
}

// number reads an argument that is a number, 0 if it is not there.
func number(a url.Values, key string) (int, error) {
	if a.Get(key) == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(a.Get(key))
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s is not a number: %q", key, a.Get(key))
	}
	return n, nil
}

// duration reads an argument that is a duration, 0 if it is not there.
func duration(a url.Values, key string) (time.Duration, error) {
	if a.Get(key) == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(a.Get(key))
	if err != nil {
		return 0, fmt.Errorf("%s is not a duration: %q", key, a.Get(key))
	}
	return d, nil
}

// instant reads an argument that is a time, the zero time if it is not there.
func instant(a url.Values, key string) (time.Time, error) {
	if a.Get(key) == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, a.Get(key))
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is not a time: %q", key, a.Get(key))
	}
	return t, nil
}
