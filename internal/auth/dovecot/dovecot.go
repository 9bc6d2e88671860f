// Package dovecot asks a Dovecot auth service whether users exist and passwords are right.
//
// It speaks two protocols of Dovecot over UNIX sockets: that of auth masters for users, that of auth clients for passwords. Each has one
// connection that all requests share, because Dovecot delays the answer to a wrong password by seconds: nobody waits behind it.
package dovecot

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
)

// Where Dovecot puts its sockets; the first of each that accepts a connection is used.
var (
	userdbPaths = []string{"/var/run/dovecot/auth-chasquid-userdb", "/var/run/dovecot/auth-userdb"}
	clientPaths = []string{"/var/run/dovecot/auth-chasquid-client", "/var/run/dovecot/auth-client"}
)

// DefaultTimeout is the time limit of one request.
const DefaultTimeout = 5 * time.Second

// maxRequest is the longest line Dovecot takes, with some room to spare.
const maxRequest = 8000

// Config is what a Client needs. The zero value finds Dovecot by itself.
type Config struct {
	UserDB, Client string        // paths of the sockets; empty: the usual places
	Timeout        time.Duration // of one request; 0: DefaultTimeout

	Dial func(ctx context.Context, network, addr string) (net.Conn, error) // nil: real connections
}

// Client talks to Dovecot. It is safe for concurrent use.
type Client struct {
	cfg     Config         // but for the paths of the sockets
	wg      sync.WaitGroup // the readers of the connections
	sockets atomic.Pointer[sockets]
	closed  atomic.Bool
}

// sockets is where Dovecot is.
type sockets struct {
	userDB, client string // as configured
	users          *endpoint
	password       *endpoint

	mu     sync.Mutex // held while looking for them
	pinned bool
}

// ErrNotFound means that no Dovecot answers at the usual places.
var ErrNotFound = errors.New("no Dovecot socket found")

// New returns a Client. It connects when first asked. Close it to get rid of its goroutines.
func New(cfg Config) *Client {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	c := &Client{cfg: cfg}
	c.sockets.Store(c.newSockets(cfg.UserDB, cfg.Client))
	return c
}

func (c *Client) newSockets(userDB, client string) *sockets {
	return &sockets{userDB: userDB, client: client, users: &endpoint{client: c, path: userDB, greet: greetMaster},
		password: &endpoint{client: c, path: client, greet: greetClient}}
}

// SetPaths changes the paths of the sockets, for requests that come from now on. Those under way are answered.
func (c *Client) SetPaths(userDB, client string) {
	if s := c.sockets.Load(); s.userDB != userDB || s.client != client {
		c.renew(userDB, client)
	}
}

// Rest ends the connections once what was asked on them is answered. The next request makes new ones.
func (c *Client) Rest() {
	s := c.sockets.Load()
	c.renew(s.userDB, s.client)
}

func (c *Client) renew(userDB, client string) {
	old := c.sockets.Swap(c.newSockets(userDB, client))
	old.users.retire()
	old.password.retire()
}

// Close closes the connections and waits for their goroutines. Requests from then on fail.
func (c *Client) Close() error {
	c.closed.Store(true)
	s := c.sockets.Load()
	s.users.close()
	s.password.close()
	c.wg.Wait()
	return nil
}

// Probe reports whether Dovecot answers on both sockets.
func (c *Client) Probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	s := c.sockets.Load()
	if err := c.find(ctx, s); err != nil {
		return err
	}
	for _, e := range []*endpoint{s.users, s.password} {
		if _, _, err := e.connect(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Exists asks whether Dovecot knows the user, "user@domain" or "user".
func (c *Client) Exists(ctx context.Context, user string) (bool, error) {
	if err := checkUser(user); err != nil {
		return false, err
	}
	verb, _, err := c.ask(ctx, (*sockets).userEndpoint, func(id string) string {
		return "USER\t" + id + "\t" + user + "\tservice=smtp\n"
	})
	switch {
	case err != nil:
		return false, err
	case verb == "USER":
		return true, nil
	case verb == "NOTFOUND":
		return false, nil
	}
	return false, fmt.Errorf("dovecot: user look-up failed: %q", verb)
}

// Authenticate asks whether this is the user's password. The error says that Dovecot cannot tell.
func (c *Client) Authenticate(ctx context.Context, user, password string) (bool, error) {
	if err := checkUser(user); err != nil {
		return false, err
	}
	resp := base64.StdEncoding.EncodeToString([]byte(user + "\x00" + user + "\x00" + password))
	if len(resp) > maxRequest {
		return false, nil // Dovecot would hang up; no such password can be right
	}
	verb, params, err := c.ask(ctx, (*sockets).passwordEndpoint, func(id string) string {
		return "AUTH\t" + id + "\tPLAIN\tservice=smtp\tsecured\tno-penalty\tnologin\tresp=" + resp + "\n"
	})
	switch {
	case err != nil:
		return false, err
	case verb == "OK":
		return true, nil
	case verb == "FAIL" && !temporary(params):
		return false, nil
	}
	return false, fmt.Errorf("dovecot: authentication failed: %q", verb)
}

// temporary reports a FAIL that says nothing about the password: Dovecot's own backend is in trouble.
func temporary(params []string) bool {
	for _, p := range params {
		if p == "temp" || p == "code=temp_fail" {
			return true
		}
	}
	return false
}

// checkUser refuses names that would break the protocol's lines.
func checkUser(user string) error {
	if user == "" || len(user) > 1000 || strings.ContainsFunc(user, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }) {
		return fmt.Errorf("dovecot: invalid user name %q", user)
	}
	return nil
}

// ask sends a request and returns the reply's verb and parameters. A connection that breaks is tried once more with a new one: Dovecot
// may have been restarted since the last request.
func (c *Client) ask(ctx context.Context, of func(*sockets) *endpoint, request func(id string) string) (verb string, params []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	s := c.sockets.Load()
	if err := c.find(ctx, s); err != nil {
		return "", nil, err
	}
	for {
		l, fresh, err := of(s).connect(ctx)
		if err == nil {
			verb, params, err = l.do(ctx, request)
		} else {
			fresh = true
		}
		if errors.Is(err, errRetired) { // the paths have changed meanwhile
			return c.ask(ctx, of, request)
		}
		if err == nil || fresh || ctx.Err() != nil {
			return verb, params, err
		}
	}
}

func (s *sockets) userEndpoint() *endpoint     { return s.users }
func (s *sockets) passwordEndpoint() *endpoint { return s.password }

// find settles where the sockets are. Once both were found they stay.
func (c *Client) find(ctx context.Context, s *sockets) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pinned {
		return nil
	}
	users, err := c.first(ctx, s.userDB, userdbPaths)
	if err != nil {
		return err
	}
	password, err := c.first(ctx, s.client, clientPaths)
	if err != nil {
		return err
	}
	s.users.path, s.password.path, s.pinned = users, password, true
	return nil
}

func (c *Client) first(ctx context.Context, configured string, usual []string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	for _, path := range usual {
		if conn, err := c.cfg.Dial(ctx, "unix", path); err == nil {
			conn.Close()
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: tried %s", ErrNotFound, strings.Join(usual, ", "))
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
