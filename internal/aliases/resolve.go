package aliases

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/trace"
)

// Resolve returns the final recipients of an address, without duplicates. Each has Orig set to addr.
//
// An address elsewhere is its own only recipient, unchanged. For one of ours, aliases count first: of the user with its suffix, then of the
// user without. Next comes the user's own mailbox, and last the domain's catch-all "*". Where nothing is left, the result is the
// mailbox nevertheless: its delivery will say what is wrong. See Exists for how such addresses are not accepted in the first place.
func (r *Resolver) Resolve(ctx context.Context, addr address.Address) ([]mail.Recipient, error) {
	if r.elsewhere(addr) {
		return []mail.Recipient{{To: addr, Orig: addr}}, nil
	}
	p := pinOf(ctx)
	ctx, span := trace.Start(ctx, trace.Aliases, title("resolve ", addr))
	defer span.Finish()
	x := r.newResolution(ctx, p)
	var room [2]address.Address
	if err := x.walk(addr, room[:0]); err != nil {
		return nil, span.Error(err)
	}
	for i := range x.out {
		x.out[i].Orig = addr
	}
	span.Debugf("%d recipients", len(x.out))
	return x.out, nil
}

// Exists reports whether mail for the address ends at somebody: elsewhere, in a command, or in a mailbox that exists. An alias all of
// whose ends are mailboxes that do not exist is as good as none.
//
// A hook that fails counts as "no alias" here; one that cannot be run, or not in time, makes the answer an error: we do not know.
func (r *Resolver) Exists(ctx context.Context, addr address.Address) (bool, error) {
	if r.elsewhere(addr) {
		return true, nil
	}
	p := pinOf(ctx)
	ctx, span := trace.Start(ctx, trace.Aliases, title("exists ", addr))
	defer span.Finish()
	x := r.newResolution(ctx, p)
	x.asking = true
	var room [2]address.Address
	if err := x.walk(addr, room[:0]); err != nil {
		return false, span.Error(err)
	}
	if x.live && !x.forgave { // then Resolve would find the same
		p.keep(meaning{addr, x.hooked, x.out})
	}
	span.Debugf("%v, %d recipients", x.live, len(x.out))
	return x.live, nil
}

// title makes the title of a span in one piece.
func title(what string, addr address.Address) string {
	var room [96]byte
	return string(addr.AppendTo(append(room[:0], what...)))
}

// elsewhere reports an address we are not responsible for. A bare local part is ours.
func (r *Resolver) elsewhere(addr address.Address) bool {
	return addr.Domain != "" && !r.cfg.Local(addr.Domain)
}

// resolution is one run over the aliases.
type resolution struct {
	r      *Resolver
	ctx    context.Context
	state  *state
	hooked bool // the hook exists
	pin    *pin

	asking  bool // for Exists: hook failures are forgiven
	forgave bool // one was
	explain bool // for Explain: every step is noted, and every mailbox looked up
	steps   []Step

	out   []mail.Recipient
	keys  map[recipientKey]struct{} // of out, made when it has more than one
	done  map[address.Address]struct{}
	count int  // addresses walked
	live  bool // some end of the walk exists
}

type recipientKey struct {
	kind mail.Kind
	to   address.Address
	text string
}

func (r *Resolver) newResolution(ctx context.Context, p *pin) resolution {
	return resolution{r: r, ctx: ctx, state: r.stateFor(p), hooked: r.program.Exists(), pin: p}
}

// walk adds the final recipients of addr; path is the aliases that lead to it.
func (x *resolution) walk(addr address.Address, path []address.Address) error {
	if addr.Domain == "" {
		addr = x.r.qualify(addr)
	}
	if x.r.elsewhere(addr) {
		x.note(len(path), addr, "is not ours: delivered over SMTP")
		x.live = true
		return x.add(mail.Recipient{Kind: mail.Email, To: addr})
	}
	if len(path) >= MaxDepth || slices.Contains(path, addr) {
		return fmt.Errorf("%w: %s", ErrRecursion, chain(path, addr))
	}
	if _, ok := x.done[addr]; ok {
		x.note(len(path), addr, "was resolved above")
		return nil
	}
	if x.count++; x.count > 2*x.r.cfg.MaxRecipients {
		return fmt.Errorf("%w: %s", ErrTooMany, chain(path[:min(1, len(path))], addr))
	}
	targets, mailbox, err := x.aliasesOf(addr, path)
	if err != nil {
		return err
	}
	path = append(path, addr)
	if len(targets) == 0 {
		err = x.end(addr, mailbox, path)
	} else {
		err = x.follow(targets, addr, path)
	}
	if len(path) > 1 { // the first address cannot be met twice but as a loop
		if x.done == nil {
			x.done = map[address.Address]struct{}{}
		}
		x.done[addr] = struct{}{}
	}
	return err
}

// aliasesOf looks up the address with its suffix, then without. mailbox is the recipient if there is no alias.
func (x *resolution) aliasesOf(addr address.Address, path []address.Address) (ts []target, mailbox mail.Recipient, err error) {
	exact, clean, detail, err := x.state.rules.both(addr.Local)
	if err != nil {
		return nil, mailbox, err
	}
	mailbox = mail.Recipient{Kind: mail.Email, To: address.Address{Local: clean, Domain: addr.Domain}, Detail: detail}
	ts, err = x.lookup(address.Address{Local: exact, Domain: addr.Domain}, len(path))
	if err == nil && len(ts) == 0 && clean != exact {
		ts, err = x.lookup(mailbox.To, len(path))
	}
	return ts, mailbox, err
}

// follow walks on from an alias. star is the address it is an alias of, which a "*" among the targets takes its user from.
func (x *resolution) follow(ts []target, star address.Address, path []address.Address) error {
	for _, t := range ts {
		if t.addr.Local == "*" {
			t.addr.Local = star.Local
		}
		var err error
		switch t.kind {
		case mail.Email:
			err = x.walk(t.addr, path)
		case mail.Forward:
			x.live = true
			err = x.add(mail.Recipient{Kind: mail.Forward, To: t.addr, Via: t.via})
		case mail.Pipe:
			x.live = true
			err = x.add(mail.Recipient{Kind: mail.Pipe, Command: t.command})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// end handles a local address without an alias: its mailbox, the catch-all, or a dead end. The order makes an existing user win over a
// catch-all, with or without a suffix.
func (x *resolution) end(addr address.Address, mailbox mail.Recipient, path []address.Address) error {
	all := address.Address{Local: "*", Domain: addr.Domain}
	postmaster := mailbox.To.Local == "postmaster"
	mayCatch := x.hooked || x.state.tables[addr.Domain].has("*") || postmaster
	if !mayCatch && !x.explain && (!x.asking || x.live) {
		return x.add(mailbox) // whether it exists makes no difference any more
	}
	exists, err := x.r.cfg.User(x.ctx, mailbox.To)
	if err != nil {
		return fmt.Errorf("looking up user %s: %w", mailbox.To, err)
	}
	if exists {
		if x.explain {
			x.note(len(path)-1, addr, "is the mailbox "+mailbox.To.String())
		}
		x.live = true
		return x.add(mailbox)
	}
	ts, err := x.lookup(all, len(path)-1)
	if err != nil {
		return err
	}
	if len(ts) > 0 {
		return x.follow(ts, addr, path)
	}
	if postmaster {
		if a, ok := x.r.standIn(addr.Domain, path); ok {
			x.note(len(path)-1, addr, "is answered by "+a.String())
			return x.walk(a, path)
		}
	}
	x.note(len(path)-1, addr, "does not exist")
	return x.add(mailbox)
}

// qualify gives a bare local part the primary domain (RFC 5321 section 4.1.1.3).
func (r *Resolver) qualify(addr address.Address) address.Address {
	if r.cfg.Primary != nil {
		addr.Domain = r.cfg.Primary()
	}
	return addr
}

// standIn returns who takes the mail for a postmaster nobody set up: that of the primary domain, then some user of either domain. path
// holds who was asked before.
func (r *Resolver) standIn(domain string, path []address.Address) (address.Address, bool) {
	primary := r.qualify(address.Address{Local: "postmaster"})
	if primary.Domain != "" && r.cfg.Local(primary.Domain) && !slices.Contains(path, primary) {
		return primary, true
	}
	if r.cfg.First != nil {
		for _, d := range []string{primary.Domain, domain} {
			if a, ok := r.cfg.First(d); ok && !slices.Contains(path, a) {
				return a, true
			}
		}
	}
	return address.Address{}, false
}

// add appends a recipient that is not there yet.
func (x *resolution) add(rcpt mail.Recipient) error {
	if len(x.out) > 0 {
		if x.keys == nil {
			x.keys = map[recipientKey]struct{}{keyOf(x.out[0]): {}}
		}
		key := keyOf(rcpt)
		if _, ok := x.keys[key]; ok {
			return nil
		}
		x.keys[key] = struct{}{}
	}
	if len(x.out) == x.r.cfg.MaxRecipients {
		return fmt.Errorf("%w: more than %d", ErrTooMany, len(x.out))
	}
	x.out = append(x.out, rcpt)
	return nil
}

func keyOf(rcpt mail.Recipient) recipientKey {
	k := recipientKey{kind: rcpt.Kind, to: rcpt.To, text: rcpt.Command}
	if len(rcpt.Via) > 0 {
		k.text = strings.Join(rcpt.Via, "/")
	}
	return k
}

// lookup returns the aliases of exactly this address: those of the file, then those of the hook.
func (x *resolution) lookup(addr address.Address, depth int) ([]target, error) {
	var ts []target
	if t := x.state.tables[addr.Domain]; t != nil {
		if t.err != nil {
			return nil, t.err
		}
		e := t.entries[addr.Local]
		ts = e.targets
		if x.explain && len(ts) > 0 {
			x.noteTargets(depth, addr, fmt.Sprintf("line %d of %s", e.line, t.path), ts)
		}
	}
	if !x.hooked {
		x.r.metrics.skipped(x.r.cfg.Hook)
		return ts, nil
	}
	more, err := x.hook(addr)
	if err != nil {
		return nil, err
	}
	if len(more) > 0 {
		x.noteTargets(depth, addr, "the alias-resolve hook", more)
		ts = append(slices.Clip(ts), more...)
	}
	return ts, nil
}

// has reports whether the table has an entry of this name, or could not be read and might have one.
func (t *table) has(name string) bool {
	return t != nil && (t.err != nil || len(t.entries[name].targets) > 0)
}

// chain renders the way from the first address to addr.
func chain(path []address.Address, addr address.Address) string {
	var b strings.Builder
	for _, a := range path {
		b.WriteString(a.String())
		b.WriteString(" -> ")
	}
	return b.String() + addr.String()
}
