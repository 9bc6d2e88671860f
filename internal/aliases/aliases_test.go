package aliases

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/smtp"
	"github.com/google/go-cmp/cmp"
)

// world is a Resolver with its surroundings: local domains are those with a file.
type world struct {
	users   []string
	files   map[string]string // domain to aliases
	cfg     Config
	lookups []string // the users that were looked up
	fsys    fstest.MapFS
}

func (w *world) resolver(t testing.TB) *Resolver {
	t.Helper()
	w.fsys = fstest.MapFS{}
	var files []File
	for d, text := range w.files {
		path := "domains/" + d + "/aliases"
		w.fsys[path] = &fstest.MapFile{Data: []byte(text)}
		files = append(files, File{Domain: d, Path: path})
	}
	w.cfg.FS = w.fsys
	w.cfg.Local = func(d string) bool { _, ok := w.files[d]; return ok || d == "localhost" }
	w.cfg.User = func(_ context.Context, a address.Address) (bool, error) {
		w.lookups = append(w.lookups, a.String())
		if a.Local == "broken" {
			return false, errors.New("backend down")
		}
		return slices.Contains(w.users, a.String()), nil
	}
	r := New(w.cfg)
	if err := r.Load(t.Context(), files); err != nil {
		t.Fatal(err)
	}
	return r
}

func render(rcpts []mail.Recipient) string {
	var words []string
	for _, r := range rcpts {
		s := r.Target()
		if len(r.Via) > 0 {
			s += " via " + strings.Join(r.Via, "/")
		}
		if r.Detail != "" {
			s += " [" + r.Detail + "]"
		}
		words = append(words, s)
	}
	return strings.Join(words, ", ")
}

// exists is "yes", "no" or the error.
func exists(t *testing.T, r *Resolver, addr string) string {
	t.Helper()
	ok, err := r.Exists(t.Context(), address.MustParse(addr))
	switch {
	case err != nil:
		return err.Error()
	case ok:
		return "yes"
	}
	return "no"
}

func TestResolve(t *testing.T) {
	w := &world{
		users: []string{"user@d.test", "ab@d.test", "plus@d.test", "solo@e.test", "ñandú@d.test", "first@p.test"},
		files: map[string]string{
			"d.test": `
				# comments and blank lines are skipped
				one: user
				many: user, ab@d.test , user@d.test,, other@remote.test
				pipe: | /bin/prog "with args", and commas
				fwd: user@far.test via mx1/ mx2:2525 /[2001:db8::1]:26
				here: via_user via mx1
				out: USER@Remote.TEST
				a.b-x.y: exactish
				exactish: user
				chain: chain2
				chain2: one, pipe
				tagged+sales: sales@remote.test
				replaced: old@remote.test
				replaced: new@remote.test
				ÑANDÚ2: ñandú
				dead: nobody
				halfdead: nobody, user
				deadly: dead
				detail: user+lists
				star: *@remote.test
				starvia: * via mx9
				self: self, user
				loop: loop2
				loop2: loop3
				loop3: loop
				comma: ,
				quoted: "o'brien"@remote.test`,
			"e.test":     "*: *@d.test\nsolo2: solo",
			"f.test":     "*: * via mx1, all@remote.test",
			"p.test":     "",
			"empty.test": "",
		},
		cfg: Config{Settings: Settings{SuffixSeparators: "+-", DropCharacters: "._"}},
	}
	r := w.resolver(t)
	cases := []struct{ addr, want, exists string }{
		{"Any.One@remote.test", "Any.One@remote.test", "yes"}, // ALI-8
		{"user@d.test", "user@d.test", "yes"},
		{"us.er@d.test", "user@d.test", "yes"},
		{"user+tag@d.test", "user@d.test [tag]", "yes"},
		{"u_s.er-a.b+c@d.test", "user@d.test [a.b+c]", "yes"}, // ALI-7
		{"one@d.test", "user@d.test", "yes"},
		{"one+tag@d.test", "user@d.test", "yes"}, // ALI-9
		{"o.ne@d.test", "user@d.test", "yes"},
		{"many@d.test", "user@d.test, ab@d.test, other@remote.test", "yes"}, // no duplicates
		{"pipe@d.test", `|/bin/prog "with args", and commas`, "yes"},
		{"fwd@d.test", "user@far.test via mx1/mx2:2525/[2001:db8::1]:26", "yes"},
		{"here@d.test", "via_user@d.test via mx1", "yes"}, // ALI-12: final, not resolved
		{"out@d.test", "user@remote.test", "yes"},         // ALI-4
		{"ab-x.y@d.test", "user@d.test", "yes"},
		{"ab-z@d.test", "ab@d.test [z]", "yes"},
		{"chain@d.test", `user@d.test, |/bin/prog "with args", and commas`, "yes"},
		{"tagged+sales@d.test", "sales@remote.test", "yes"},
		{"tagged+other@d.test", "tagged@d.test [other]", "no"},
		{"replaced@d.test", "new@remote.test", "yes"},
		{"ñandú2@d.test", "ñandú@d.test", "yes"},
		{"detail@d.test", "user@d.test [lists]", "yes"},
		{"star@d.test", "star@remote.test", "yes"}, // ALI-6
		{"s.tar+x@d.test", "s.tar+x@remote.test", "yes"},
		{"starvia+y@d.test", "starvia+y@d.test via mx9", "yes"},
		{"comma@d.test", "comma@d.test", "no"},
		{"quoted@d.test", "o'brien@remote.test", "yes"},
		{"nobody@d.test", "nobody@d.test", "no"},
		{"nobody@empty.test", "nobody@empty.test", "no"},
		{"user@localhost", "user@localhost", "no"}, // CFG-12
		{"dead@d.test", "nobody@d.test", "no"},
		{"deadly@d.test", "nobody@d.test", "no"},
		{"halfdead@d.test", "nobody@d.test, user@d.test", "yes"},
		{"+x@d.test", "+x@d.test", "no"},
		{"solo@e.test", "solo@e.test", "yes"},
		{"solo+tag@e.test", "solo@e.test [tag]", "yes"}, // R-11, not ALI-11: the user wins over the catch-all
		{"so.lo@e.test", "solo@e.test", "yes"},
		{"solo2@e.test", "solo@e.test", "yes"},
		{"u.ser+q@e.test", "user@d.test [q]", "yes"}, // the catch-all's "*" keeps what was given
		{"unknown@e.test", "unknown@d.test", "no"},
		{"pipe@e.test", `|/bin/prog "with args", and commas`, "yes"},
		{"any.one+x@f.test", "any.one+x@f.test via mx1, all@remote.test", "yes"},
		{"self@d.test", "recursion limit exceeded: self@d.test -> self@d.test", ""},
		{"loop@d.test", "recursion limit exceeded: loop@d.test -> loop2@d.test -> loop3@d.test -> loop@d.test", ""},
	}
	for _, c := range cases {
		got, err := r.Resolve(t.Context(), address.MustParse(c.addr))
		text := render(got)
		if err != nil {
			text = err.Error()
		}
		if text != c.want {
			t.Errorf("Resolve(%s) = %s; want %s", c.addr, text, c.want)
		}
		for _, g := range got {
			if g.Orig != address.MustParse(c.addr) {
				t.Errorf("Resolve(%s): Orig is %v", c.addr, g.Orig)
			}
		}
		if c.exists == "" {
			c.exists = c.want
		}
		if got := exists(t, r, c.addr); got != c.exists {
			t.Errorf("Exists(%s) = %s; want %s", c.addr, got, c.exists)
		}
		sameMeaning(t, r, c.addr)
	}
}

// sameMeaning checks that Expand in a transaction says the same after Exists as without.
func sameMeaning(t *testing.T, r *Resolver, addr string) {
	t.Helper()
	in := []mail.Recipient{{To: address.MustParse(addr), Params: smtp.Params{{Keyword: "NOTIFY", Value: "NEVER", HasValue: true}}}}
	ctx := Pin(t.Context())
	r.Exists(ctx, in[0].To)
	for range 2 { // what is kept is not changed by who gets it
		want, wantErr := r.Expand(t.Context(), in)
		got, err := r.Expand(ctx, in)
		if diff := cmp.Diff(want, got); diff != "" || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("Expand(%s) after Exists: %v, want %v\n%s", addr, err, wantErr, diff)
		}
	}
}

// What a transaction found out at RCPT is not looked up again when the message is queued.
func TestResolvedOnce(t *testing.T) {
	w := &world{users: []string{"user@d.test"}, files: map[string]string{"d.test": "*: user"}}
	r := w.resolver(t)
	in := []mail.Recipient{{To: address.MustParse("user@d.test")}}
	for _, c := range []struct {
		name string
		ctx  context.Context
		want int
	}{{"transaction", Pin(t.Context()), 1}, {"another", Pin(t.Context()), 1}, {"none", t.Context(), 2}} {
		w.lookups = nil
		r.Exists(c.ctx, in[0].To)
		if l, err := r.Expand(c.ctx, in); render(l) != "user@d.test" || err != nil || len(w.lookups) != c.want {
			t.Errorf("%s: %s, %v, %d look-ups; want %d", c.name, render(l), err, len(w.lookups), c.want)
		}
	}
}

// TestKeptBounds: a transaction keeps so much and no more, and finds the rest anew.
func TestKeptBounds(t *testing.T) {
	w := &world{users: []string{"user@d.test"}, files: map[string]string{"d.test": "*: user"}}
	w.files["d.test"] += "\nwide: "
	for i := range 300 {
		w.files["d.test"] += fmt.Sprintf("w%d@far.test, ", i)
	}
	r := w.resolver(t)
	ctx := Pin(t.Context())
	var in []mail.Recipient
	for i := range 2 * maxKept {
		in = append(in, mail.Recipient{To: address.Address{Local: fmt.Sprintf("u%d", i), Domain: "d.test"}})
	}
	for _, rcpt := range in {
		if ok, err := r.Exists(ctx, rcpt.To); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if n := len(pinOf(ctx).kept); n != maxKept {
		t.Errorf("%d addresses are kept", n)
	}
	if l, err := r.Expand(ctx, in); err != nil || render(l) != "user@d.test" {
		t.Errorf("%s, %v", render(l), err)
	}
	ctx = Pin(t.Context())
	for range 10 {
		r.Exists(ctx, address.MustParse("wide@d.test"))
	}
	if n := pinOf(ctx).finals; n != 900 {
		t.Errorf("%d final recipients are kept", n)
	}
}

// a postmaster nobody set up is answered by that of the primary domain, else by its first user.
func TestPostmaster(t *testing.T) {
	first := func(d string) (address.Address, bool) {
		if d == "p.test" {
			return address.MustParse("admin@p.test"), true
		}
		return address.Address{}, false
	}
	users := []string{"admin@p.test", "chief@q.test"}
	for _, c := range []struct {
		name  string
		files map[string]string
		addr  string
		want  string
	}{
		{"alias", map[string]string{"p.test": "postmaster: chief@q.test", "q.test": ""}, "postmaster", "chief@q.test"},
		{"first user", map[string]string{"p.test": "", "q.test": ""}, "postmaster", "admin@p.test"},
		{"other domain", map[string]string{"p.test": "", "q.test": ""}, "Postmaster@q.test", "admin@p.test"},
		{"other domain by alias", map[string]string{"p.test": "postmaster: chief@q.test", "q.test": ""}, "postmaster@q.test", "chief@q.test"},
		{"own alias", map[string]string{"p.test": "", "q.test": "postmaster: chief"}, "postmaster@q.test", "chief@q.test"},
		{"catch-all", map[string]string{"p.test": "", "q.test": "*: chief"}, "postmaster@q.test", "chief@q.test"},
		{"other user", map[string]string{"p.test": "", "q.test": ""}, "someone@q.test", "someone@q.test"},
	} {
		w := &world{users: users, files: c.files, cfg: Config{First: first, Primary: func() string { return "p.test" }}}
		got, err := w.resolver(t).Resolve(t.Context(), address.MustParse(c.addr))
		if err != nil || render(got) != c.want {
			t.Errorf("%s: %s, %v; want %s", c.name, render(got), err, c.want)
		}
	}
	w := &world{files: map[string]string{"p.test": ""}, cfg: Config{Primary: func() string { return "p.test" }}}
	if got, err := w.resolver(t).Resolve(t.Context(), address.MustParse("postmaster")); err != nil || render(got) != "postmaster@p.test" {
		t.Errorf("nobody at all: %s, %v", render(got), err)
	}
}

// D42: depth, width and work are bounded, whatever the aliases.
func TestD42ExponentialAliases(t *testing.T) {
	var deep, wide strings.Builder
	for i := range 40 {
		fmt.Fprintf(&deep, "a%d: a%d\n", i, i+1)
		fmt.Fprintf(&wide, "w%d: w%d, w%d, x%d@remote.test\n", i, i+1, i+1, i)
	}
	var many strings.Builder
	for i := range 30 {
		fmt.Fprintf(&many, "m%d: ", i)
		for j := range 10 {
			fmt.Fprintf(&many, "r%d.%d@remote.test, ", i, j)
		}
		fmt.Fprintln(&many)
		fmt.Fprintf(&many, "all%d: m%d, m%d, m%d\n", i/3, i/3*3, i/3*3+1, i/3*3+2)
	}
	for i := range 100 { // a hundred aliases to walk for a single recipient
		fmt.Fprintf(&many, "f%d: one@remote.test\n", i)
	}
	many.WriteString("fan: f0")
	for i := range 99 {
		fmt.Fprintf(&many, ", f%d", i+1)
	}
	w := &world{files: map[string]string{"d.test": deep.String() + wide.String() + many.String()}, cfg: Config{MaxRecipients: 29}}
	r := w.resolver(t)
	for addr, want := range map[string]error{
		"a30@d.test":  ErrRecursion, // ten more
		"a31@d.test":  nil,
		"w0@d.test":   ErrRecursion,
		"w31@d.test":  nil,
		"m0@d.test":   nil,
		"all0@d.test": ErrTooMany,
		"fan@d.test":  ErrTooMany,
	} {
		rcpts, err := r.Resolve(t.Context(), address.MustParse(addr))
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", addr, err, want)
		}
		if err != nil && (rcpts != nil || Reply(err).Enh.String() != "5.4.6") {
			t.Errorf("%s: %d recipients with reply %v", addr, len(rcpts), Reply(err))
		}
		if _, err := r.Exists(t.Context(), address.MustParse(addr)); !errors.Is(err, want) {
			t.Errorf("Exists(%s): %v, want %v", addr, err, want)
		}
	}
}

func TestBackendError(t *testing.T) {
	w := &world{files: map[string]string{"d.test": "alias: broken\nok: broken, x@remote.test\nok2: x@remote.test, broken"}}
	r := w.resolver(t)
	for addr, want := range map[string]string{
		"broken@d.test": "looking up user broken@d.test: backend down",
		"alias@d.test":  "looking up user broken@d.test: backend down",
		"ok2@d.test":    "yes", // one live end is enough, nothing else is looked up
	} {
		if got := exists(t, r, addr); got != want {
			t.Errorf("Exists(%s) = %s; want %s", addr, got, want)
		}
	}
	_, err := r.Exists(t.Context(), address.MustParse("broken@d.test"))
	if rep := Reply(err); rep.Code != 451 || rep.Enh.String() != "4.4.3" {
		t.Errorf("reply %v", rep)
	}
}

// Without a catch-all it makes no difference at queueing whether the mailbox exists: nobody is asked.
func TestNoNeedlessLookups(t *testing.T) {
	w := &world{users: []string{"user@d.test"}, files: map[string]string{"d.test": "list: user, a, b, c", "e.test": "*: user@d.test"}}
	r := w.resolver(t)
	if _, err := r.Resolve(t.Context(), address.MustParse("list@d.test")); err != nil || len(w.lookups) != 0 {
		t.Errorf("Resolve looked up %v, %v", w.lookups, err)
	}
	if exists(t, r, "list@d.test") != "yes" || len(w.lookups) != 1 {
		t.Errorf("Exists looked up %v", w.lookups)
	}
	if _, err := r.Resolve(t.Context(), address.MustParse("x@e.test")); err != nil || len(w.lookups) != 2 {
		t.Errorf("with a catch-all: %v, %v", w.lookups, err)
	}
}

func TestParseErrors(t *testing.T) {
	for line, want := range map[string]string{
		"no colon":                             "missing ':' in line",
		": target":                             "missing address or alias",
		"name:":                                "missing address or alias",
		"name@d.test: x":                       "left-side: cannot contain @",
		"na me: x":                             `left-side: normalizing "na me": `,
		"a: |":                                 "right-side: the pipe alias is missing a command",
		"a: | ":                                "right-side: the pipe alias is missing a command",
		"a: b via ":                            "right-side: empty server in via list",
		"a: b via c//d":                        "right-side: empty server in via list",
		"a: b via c/ /d":                       "right-side: empty server in via list",
		"a: b via c d":                         "right-side: bad server \"c d\" in via list",
		"a:  via c":                            "right-side: forwarding alias is missing the address",
		"a: b, via c":                          "right-side: forwarding alias is missing the address",
		"a: b c":                               `right-side: normalizing address "b c": `,
		"a: b, | prog":                         "right-side: a pipe cannot be part of a list",
		"a: b@":                                `right-side: normalizing address "b@": `,
		"a: @d.test":                           `right-side: normalizing address "@d.test": `,
		"a: b@c@d.test":                        `right-side: normalizing address "b@c@d.test": `,
		"a: b@x/y":                             `right-side: normalizing address "b@x/y": `,
		"a: henry\u2163@x.test":                "right-side: normalizing address \"henry\u2163@x.test\": ",
		strings.Repeat("a", maxLine+1) + ": b": "token too long",
	} {
		_, err := parseFile("domains/d/aliases", "d.test", rules{}, strings.NewReader("# comment\n\n"+line+"\nok: fine\n"))
		if err == nil || !strings.HasPrefix(err.Error(), `"domains/d/aliases" line 3: `) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error %v, want line 3: %s", line, err, want)
		}
	}
}

func TestRules(t *testing.T) {
	for _, c := range []struct{ sep, drop, in, exact, clean, detail string }{
		{"+-", "._", "a.b+c.d", "ab+c.d", "ab", "c.d"}, // ALI-7
		{"+-", "._", "a.b-c+d", "ab-c+d", "ab", "c+d"},
		{"+", ".", "A.B+C", "ab+c", "ab", "C"},
		{"", "", "a.b+c", "a.b+c", "a.b+c", ""},
		{"", ".", "a.b+c", "ab+c", "ab+c", ""},
		{"+", "", "a.b+c", "a.b+c", "a.b", "c"},
		{"+", ".", "a+", "a+", "a", ""},
		{"+", ".", "+a", "+a", "+a", ""},
		{"+", ".", ".+a", "+a", "+a", ""},
		{"+", ".", "...", "...", "...", ""},
		{"ñ", "é", "aébñc", "abñc", "ab", "c"},
	} {
		r := rules{sep: c.sep, drop: c.drop}
		exact, err := r.exact(c.in)
		clean, detail, err2 := r.clean(c.in)
		if exact != c.exact || clean != c.clean || detail != c.detail || err != nil || err2 != nil {
			t.Errorf("%q %q: %q → %q, %q, %q (%v, %v)", c.sep, c.drop, c.in, exact, clean, detail, err, err2)
		}
	}
}

// N-2: a bad file keeps the last good table, reports itself, and disturbs no other domain.
func TestReloadKeepsLastGood(t *testing.T) {
	w := &world{users: []string{"u@d.test"}, files: map[string]string{"d.test": "a: u", "e.test": "a: u@d.test"}}
	r := w.resolver(t)
	w.fsys["domains/d.test/aliases"] = &fstest.MapFile{Data: []byte("a: u\nb: u\nbad line")}
	w.fsys["domains/e.test/aliases"] = &fstest.MapFile{Data: []byte("a: u@d.test\nb: u@d.test")}
	err := r.Reload(t.Context())
	if err == nil || !strings.Contains(err.Error(), `"domains/d.test/aliases" line 3: missing ':' in line`) {
		t.Errorf("error: %v", err)
	}
	if r.Count("d.test") != 1 || r.Count("e.test") != 2 {
		t.Errorf("counts %d, %d", r.Count("d.test"), r.Count("e.test"))
	}
	delete(w.fsys, "domains/d.test/aliases") // CFG-20: a file that has disappeared means empty
	if err := r.Reload(t.Context()); err != nil || r.Count("d.test") != 0 {
		t.Errorf("%v, %d aliases", err, r.Count("d.test"))
	}
	w.fsys["domains/d.test/aliases"] = &fstest.MapFile{Data: []byte("a: u")}
	if err := r.Reload(t.Context()); err != nil || r.Count("d.test") != 1 {
		t.Errorf("%v, %d aliases", err, r.Count("d.test"))
	}
}

// A new domain whose file is bad must not refuse its mail for good: nobody knows its aliases.
func TestNeverLoaded(t *testing.T) {
	w := &world{users: []string{"u@d.test"}, files: map[string]string{"d.test": "a: u"}}
	r := w.resolver(t)
	w.files["n.test"] = ""
	w.fsys["domains/n.test/aliases"] = &fstest.MapFile{Data: []byte("bad")}
	err := r.Load(t.Context(), []File{{"d.test", "domains/d.test/aliases"}, {"n.test", "domains/n.test/aliases"}})
	if err == nil {
		t.Fatal("no error")
	}
	if got := exists(t, r, "a@n.test"); !strings.Contains(got, "line 1: missing ':'") {
		t.Errorf("Exists: %s", got)
	}
	if got := exists(t, r, "a@d.test"); got != "yes" {
		t.Errorf("the other domain: %s", got)
	}
}

func TestExpand(t *testing.T) {
	w := &world{users: []string{"u@d.test", "v@d.test"}, files: map[string]string{"d.test": "list: u, v, x@remote.test\nloop: loop"}}
	r := w.resolver(t)
	never := smtp.Params{{Keyword: "NOTIFY", Value: "NEVER", HasValue: true}}
	due := time.Unix(1e9, 0)
	in := []mail.Recipient{
		{To: address.MustParse("Far@remote.test")},
		{To: address.MustParse("list@d.test"), Params: never, GiveUp: due},
		{To: address.MustParse("v@d.test"), Params: never},                                    // a duplicate of one in the list
		{To: address.MustParse("u@d.test")},                                                   // not: it wants notices
		{To: address.MustParse("back@remote.test"), Orig: address.MustParse("srs0=x@d.test")}, // a reversed address
		{To: address.MustParse("Far@remote.test")},
	}
	out, err := r.Expand(t.Context(), in)
	if want := "Far@remote.test, u@d.test, v@d.test, x@remote.test, u@d.test, back@remote.test"; err != nil || render(out) != want {
		t.Fatalf("%s, %v; want %s", render(out), err, want)
	}
	for i, want := range []string{"Far@remote.test", "list@d.test", "list@d.test", "list@d.test", "u@d.test", "srs0=x@d.test"} {
		if out[i].Orig.String() != want {
			t.Errorf("%v: Orig %v, want %s", out[i].To, out[i].Orig, want)
		}
		if list := want == "list@d.test"; out[i].Params.Has("NOTIFY") != list || out[i].GiveUp.Equal(due) != list {
			t.Errorf("%v: parameters %v, give up %v", out[i].To, out[i].Params, out[i].GiveUp)
		}
	}
	in[0].To = address.MustParse("loop@d.test")
	_, err = r.Expand(t.Context(), in)
	var rep smtp.Reply
	if !errors.As(err, &rep) || rep.Code != 554 || !errors.Is(err, ErrRecursion) || !strings.Contains(err.Error(), "loop@d.test -> loop@d.test") {
		t.Errorf("loop: %v, reply %v", err, rep)
	}
	if strings.Contains(rep.Text, "@") {
		t.Errorf("the reply carries an address: %q", rep.Text)
	}
}

// Mail that only passes through costs one allocation, for the result.
func TestExpandAllocations(t *testing.T) {
	r := (&world{files: map[string]string{"d.test": ""}}).resolver(t)
	ctx, in := t.Context(), []mail.Recipient{{To: address.MustParse("far@remote.test")}}
	if n := testing.AllocsPerRun(100, func() { r.Expand(ctx, in) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

func TestExplain(t *testing.T) {
	w := &world{
		users: []string{"user@d.test"},
		files: map[string]string{"d.test": "\nlist: user+x, nobody, out@remote.test, list2\nlist2: user+x, away via mx2", "e.test": "*: * via mx1"},
		cfg:   Config{Settings: Settings{SuffixSeparators: "+"}},
	}
	r := w.resolver(t)
	for addr, want := range map[string]string{
		"list@d.test": `list@d.test line 2 of domains/d.test/aliases: user+x@d.test, nobody@d.test, out@remote.test, list2@d.test
  user+x@d.test is the mailbox user@d.test
  nobody@d.test does not exist
  out@remote.test is not ours: delivered over SMTP
  list2@d.test line 3 of domains/d.test/aliases: user+x@d.test, away@d.test via mx2
    user+x@d.test was resolved above
`,
		"x@e.test": "*@e.test line 1 of domains/e.test/aliases: *@e.test via mx1\n",
	} {
		steps, rcpts, err := r.Explain(t.Context(), address.MustParse(addr))
		var b strings.Builder
		for _, s := range steps {
			fmt.Fprintf(&b, "%s%s %s\n", strings.Repeat("  ", s.Depth), s.Address, s.Text)
		}
		if b.String() != want || err != nil || len(rcpts) == 0 {
			t.Errorf("%s: %v\n%s; want\n%s", addr, err, b.String(), want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a: b", "a: b, c@d via e/f", "a: | prog", "*: *@x", "# c\n\na.b+c: d", "a: \"x y\"@z", "ñ: ñ@ñ.test"} {
		f.Add(s)
	}
	ru := rules{sep: "+-", drop: "._"}
	f.Fuzz(func(t *testing.T, s string) {
		tab, err := parseFile("p", "d.test", ru, strings.NewReader(s))
		if err != nil {
			if !strings.HasPrefix(err.Error(), `"p" line `) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		for name, e := range tab.entries {
			if again, err := ru.exact(name); err != nil || again != name {
				t.Fatalf("%q: name %q is not in exact form: %q, %v", s, name, again, err)
			}
			for _, ta := range e.targets {
				checkTarget(t, s, ta)
			}
		}
	})
}

// checkTarget checks that a target survives being written and parsed, and is safe to hand on.
func checkTarget(t *testing.T, s string, ta target) {
	if strings.ContainsAny(ta.String(), "\r\n\x00") {
		t.Fatalf("%q: unsafe target %q", s, ta)
	}
	if strings.Contains(ta.addr.Local, ",") || strings.Contains(ta.addr.String(), " via ") {
		return
	}
	again, err := parseTargets(ta.String(), "other.test")
	if err != nil || len(again) != 1 || !reflect.DeepEqual(again[0], ta) {
		t.Fatalf("%q: %+v is read back as %+v, %v", s, ta, again, err)
	}
}

func TestOwns(t *testing.T) {
	w := &world{
		users: []string{"user@d.test", "bob@d.test", "boss@d.test"},
		files: map[string]string{
			"d.test": "sales: user, bob\nsales2: sales\nuser+fax: | fax\nbob: bob@far.test\npipe: | prog\nloop: loop", "e.test": "*: *@d.test",
		},
		cfg: Config{Settings: Settings{SuffixSeparators: "+", DropCharacters: "."}},
	}
	r := w.resolver(t)
	for _, c := range []struct {
		user, from string
		want       string
	}{
		{"user@d.test", "user@d.test", "true"},
		{"user@d.test", "USER@d.test", "true"},
		{"us.er@d.test", "u.ser@d.test", "true"},
		{"user@d.test", "user+tag@d.test", "true"},
		{"user@d.test", "user+fax@d.test", "false"}, // that goes elsewhere
		{"user@d.test", "sales2@d.test", "true"},
		{"user@d.test", "user@e.test", "true"},
		{"user@d.test", "bob@e.test", "false"},
		{"user@d.test", "boss@d.test", "false"},
		{"user@d.test", "pipe@d.test", "false"},
		{"user@d.test", "user@far.test", "false"},
		{"user@d.test", "nobody@d.test", "false"},
		{"bob@d.test", "bob@d.test", "true"}, // his name, although his mail goes elsewhere
		{"bob@d.test", "bob@far.test", "false"},
		{"user", "user@d.test", "true"}, // a user of Dovecot without domain
		{"user", "user@far.test", "false"},
		{"user", "boss@d.test", "false"},
		{"x@far.test", "x@far.test", "true"},
		{"user@d.test", `"a b"@d.test`, "false"},
		{"user@d.test", "loop@d.test", "recursion limit exceeded: loop@d.test -> loop@d.test"},
	} {
		ok, err := r.Owns(t.Context(), address.MustParse(c.user), address.MustParse(c.from))
		got := fmt.Sprint(ok)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s as %s: %s, want %s", c.user, c.from, got, c.want)
		}
	}
}

// The common case: a recipient of ours, looked up at RCPT and again when the message is queued.
func BenchmarkLocalUser(b *testing.B) {
	w := &world{users: []string{"user@d.test"}, files: map[string]string{"d.test": "list: user"}, cfg: Config{Settings: Settings{SuffixSeparators: "+", DropCharacters: "."}}}
	r := w.resolver(b)
	r.cfg.User = func(context.Context, address.Address) (bool, error) { return true, nil }
	rcpts := []mail.Recipient{{To: address.MustParse("user@d.test")}}
	b.ReportAllocs()
	for b.Loop() {
		ctx := Pin(b.Context())
		if ok, err := r.Exists(ctx, rcpts[0].To); !ok || err != nil {
			b.Fatal(ok, err)
		}
		if _, err := r.Expand(ctx, rcpts); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkForward is what a transaction for an alias that leads elsewhere costs: looked up at RCPT, expanded when it is queued, with a
// hook that is not there.
func BenchmarkForward(b *testing.B) {
	w := &world{files: map[string]string{"d.test": "list: user@far.test"}, cfg: Config{Settings: Settings{SuffixSeparators: "+", DropCharacters: "."}}}
	w.cfg.Hook = filepath.Join(b.TempDir(), "alias-resolve")
	r := w.resolver(b)
	rcpts := []mail.Recipient{{To: address.MustParse("list@d.test")}}
	b.ReportAllocs()
	for b.Loop() {
		ctx := Pin(b.Context())
		if ok, err := r.Exists(ctx, rcpts[0].To); !ok || err != nil {
			b.Fatal(ok, err)
		}
		if l, err := r.Expand(ctx, rcpts); err != nil || l[0].To.Domain != "far.test" {
			b.Fatal(l, err)
		}
	}
}
