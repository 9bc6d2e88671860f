package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
)

// Predecessor is the old process, as the new one sees it.
type Predecessor struct {
	Introduction
	Sockets *Sockets

	link  link
	yours chan error // gets one value when the queue is ours, or never will be
	rest  chan struct{}
	ready chan struct{} // closed when relayed connections may be served
	gone  chan struct{} // closed when the old process has ended

	mu    sync.Mutex
	serve func(net.Conn)
	work  sync.WaitGroup
}

// FromEnvironment returns the process that this one succeeds, nil if there is none.
func FromEnvironment() (*Predecessor, error) {
	v, ok := os.LookupEnv(Variable)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(Variable) // it is not for programs that we start
	fd, err := parseVariable(v)
	if err != nil {
		return nil, err
	}
	c, err := connOf(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Variable, err)
	}
	p := &Predecessor{link: link{c}, yours: make(chan error, 1), rest: make(chan struct{}), ready: make(chan struct{}), gone: make(chan struct{})}
	first, err := p.link.receive()
	if err == nil && (first.Say != hello || first.From == nil || len(first.Sockets) != len(first.fds)) {
		err = errors.New("it did not say hello")
	}
	if err != nil {
		return nil, fmt.Errorf("the process to succeed: %w", err)
	}
	p.Introduction, p.Sockets = *first.From, &Sockets{names: first.Sockets, fds: first.fds}
	go p.listen()
	return p, nil
}

// listen reads what the old process says.
func (p *Predecessor) listen() {
	given, restGiven := false, false
	for {
		m, err := p.link.receive()
		if err != nil {
			break
		}
		switch {
		case m.Say == yours && !given:
			given = true
			p.yours <- nil
		case m.Say == rest && !restGiven:
			restGiven = true
			close(p.rest)
		case m.Say == relay && len(m.fds) == 1:
			p.take(m.fds[0])
			continue
		}
		closeFDs(m.fds)
	}
	if !given {
		p.yours <- &Error{Msg: "the process to succeed has ended or given up the upgrade", Fix: "start the server anew if nothing else does"}
	}
	if !restGiven {
		close(p.rest)
	}
	p.work.Wait()
	close(p.gone)
}

// take serves a connection that came over the link.
func (p *Predecessor) take(fd int) {
	c, err := connOf(fd)
	if err != nil {
		return
	}
	p.work.Go(func() {
		defer c.Close()
		<-p.ready
		p.mu.Lock()
		serve := p.serve
		p.mu.Unlock()
		serve(c)
	})
}

// Fail tells the old process why this one cannot succeed it. A nil Predecessor tells nobody.
func (p *Predecessor) Fail(err error) {
	if p != nil {
		text := err.Error()
		p.link.send(packet{Say: failed, Text: text[:min(len(text), maxPacket/8)]})
	}
}

// Prepared says that everything is read that needs no queue, and waits until the queue is ours.
func (p *Predecessor) Prepared(ctx context.Context, self Introduction) error {
	if err := p.link.send(packet{Say: prepared, From: &self}); err != nil {
		return fmt.Errorf("telling the process to succeed: %w", err)
	}
	select {
	case err := <-p.yours:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Serving says that this process serves. From here on serve gets the connections over which old sessions send what they receive. That the
// old process is gone is no error: it gave everything away.
func (p *Predecessor) Serving(serve func(net.Conn)) {
	p.mu.Lock()
	p.serve = serve
	p.mu.Unlock()
	close(p.ready)
	p.link.send(packet{Say: serving})
}

// Rest is closed when the old process has nothing open any more but its sessions, or is gone.
func (p *Predecessor) Rest() <-chan struct{} { return p.rest }

// Gone is closed when the old process has ended and what it sent is done with.
func (p *Predecessor) Gone() <-chan struct{} { return p.gone }

// Stop asks the old process to end its sessions soon.
func (p *Predecessor) Stop() { p.link.send(packet{Say: stop}) }
