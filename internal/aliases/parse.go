package aliases

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

const maxLine = 64 << 10 // bytes of one line of an alias file

// table is the aliases of one domain. It is immutable.
type table struct {
	path    string
	entries map[string]entry // by user name, in exact form
	sum     [32]byte         // SHA-256 of the file
	err     error            // why the file was never read; then there are no entries
}

type entry struct {
	line    int
	targets []target
}

// target is one element of the right side of an alias.
type target struct {
	kind    mail.Kind
	addr    address.Address // normalised; a Local of "*" stands for the user that is being resolved
	via     []string        // of a forward
	command string          // of a pipe
}

func (t target) String() string {
	switch t.kind {
	case mail.Pipe:
		return "| " + t.command
	case mail.Forward:
		return t.addr.String() + " via " + strings.Join(t.via, "/")
	}
	return t.addr.String()
}

// parseFile parses a file of lines "name: target[, target]…". Empty lines and those that start with # are skipped. A later definition of a
// name replaces an earlier one.
func parseFile(path, domain string, ru rules, r io.Reader) (*table, error) {
	t := &table{path: path, entries: map[string]entry{}}
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxLine)
	n := 0
	fail := func(err error) (*table, error) { return nil, fmt.Errorf("%q line %d: %w", path, n, err) }
	for sc.Scan() {
		n++
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, targets, err := parseLine(line, domain, ru)
		if err != nil {
			return fail(err)
		}
		t.entries[name] = entry{line: n, targets: targets}
	}
	if err := sc.Err(); err != nil {
		n++
		return fail(err)
	}
	return t, nil
}

func parseLine(line, domain string, ru rules) (name string, targets []target, err error) {
	left, right, ok := strings.Cut(line, ":")
	if !ok {
		return "", nil, errors.New("missing ':' in line")
	}
	left, right = strings.TrimSpace(left), strings.TrimSpace(right)
	if left == "" || right == "" {
		return "", nil, errors.New("missing address or alias")
	}
	if strings.Contains(left, "@") {
		return "", nil, errors.New("left-side: cannot contain @")
	}
	if name, err = ru.exact(left); err != nil {
		return "", nil, fmt.Errorf("left-side: normalizing %q: %w", left, err)
	}
	if targets, err = parseTargets(right, domain); err != nil {
		return "", nil, fmt.Errorf("right-side: %w", err)
	}
	return name, targets, nil
}

// parseTargets parses the right side of an alias: one pipe, or a list of addresses and forwards. Addresses without a domain are of
// the domain given.
func parseTargets(s, domain string) ([]target, error) {
	if s != "" && s[0] == '|' {
		cmd := strings.TrimSpace(s[1:])
		if cmd == "" {
			return nil, errors.New("the pipe alias is missing a command")
		}
		if strings.ContainsAny(cmd, "\r\n\x00") {
			return nil, errors.New("the pipe alias spans lines")
		}
		return []target{{kind: mail.Pipe, command: cmd}}, nil
	}
	var ts []target
	for el := range strings.SplitSeq(s, ",") {
		el = strings.TrimSpace(el)
		if el == "" {
			continue
		}
		t, err := parseElement(el, domain)
		if err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func parseElement(el, domain string) (target, error) {
	if el[0] == '|' {
		return target{}, errors.New("a pipe cannot be part of a list")
	}
	if el == "via" || strings.HasPrefix(el, "via ") {
		return target{}, errors.New("forwarding alias is missing the address")
	}
	a, servers, forward := strings.Cut(el, " via ")
	if rest, ok := strings.CutSuffix(el, " via"); ok && !forward { // the space after "via" was trimmed with what is missing
		a, servers, forward = rest, "", true
	}
	addr, err := parseTarget(strings.TrimSpace(a), domain)
	if err != nil {
		return target{}, fmt.Errorf("normalizing address %q: %w", a, err)
	}
	if !forward {
		return target{kind: mail.Email, addr: addr}, nil
	}
	t := target{kind: mail.Forward, addr: addr}
	for s := range strings.SplitSeq(servers, "/") {
		if s = strings.TrimSpace(s); s == "" {
			return target{}, errors.New("empty server in via list")
		}
		if !validServer(s) {
			return target{}, fmt.Errorf("bad server %q in via list", s)
		}
		t.via = append(t.via, s)
	}
	return t, nil
}

// validServer reports text that can be a host name or address, perhaps with a port: nothing that could break a log line or a path.
func validServer(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c == 0x7f || strings.IndexByte(`"\@|<>`, c) >= 0 {
			return false
		}
	}
	return len(s) <= 262 // a host name of 253 bytes, brackets and port
}

func parseTarget(s, domain string) (address.Address, error) {
	user, d, ok := s, domain, false
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		user, d, ok = s[:i], s[i+1:], true
	}
	if user != "*" {
		a, err := address.Parse(user)
		if err != nil {
			return address.Address{}, err
		}
		if a.Domain != "" {
			return address.Address{}, fmt.Errorf("%w: more than one @", address.ErrSyntax)
		}
		user = a.Local
	}
	user, err := address.NormalizeUser(user)
	if err == nil && ok {
		d, err = address.NormalizeDomain(d)
	}
	if err != nil {
		return address.Address{}, err
	}
	return address.Address{Local: user, Domain: d}, nil
}
