package monitoring

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"
)

// shownLevels is how many domains of the TLS ledger are shown.
const shownLevels = 500

// addInfo adds the pages that list what other parts know.
func (s *Server) addInfo() {
	s.addView(&view{path: "/debug/domains", title: "Domains", about: "users, aliases, keys and certificates of each", group: "Configuration",
		load: func(*http.Request) (any, error) { return listOf(s.conf.Domains), nil }, sheet: domainSheet})
	s.addView(&view{path: "/debug/certs", title: "Certificates", about: "which are in use and how long they last", group: "Configuration",
		load: func(*http.Request) (any, error) {
			if s.conf.Status == nil {
				return []CertificateStatus{}, nil
			}
			return s.conf.Status().Certificates, nil
		}, sheet: s.certSheet})
	s.addView(&view{path: "/debug/sts", title: "TLS policies", about: "MTA-STS policies and what TLS was seen with whom", group: "Mail", params: []string{"q"},
		load: s.loadTLS, sheet: tlsSheet})
	s.addView(&view{path: "/debug/dns", title: "DNS", about: "the servers asked, and what they did not answer", group: "Mail",
		load: func(*http.Request) (any, error) {
			if s.conf.DNS == nil {
				return DNS{}, nil
			}
			return s.conf.DNS(), nil
		}, sheet: dnsSheet})
	s.addView(&view{path: "/debug/auth", title: "Logins", about: "the last ones, who guesses passwords, who sends most", group: "Mail",
		load: s.loadAuth, sheet: authSheet})
}

// listOf calls f if there is one; without, and for nothing, the list is empty rather than nil, as JSON shows the difference.
func listOf[T any](f func() []T) []T {
	if f != nil {
		if l := f(); l != nil {
			return l
		}
	}
	return []T{}
}

func domainSheet(_ *http.Request, data any) *sheet {
	sh := &sheet{Title: "Domains"}
	t := &table{Columns: columns("domain", "#users", "#aliases", "DKIM keys", "certificates"), Empty: "No domain is served here."}
	for _, d := range data.([]Domain) {
		keys, class := []string{}, ""
		for _, k := range d.Keys {
			key := k.Selector + " (" + k.Algorithm
			if k.Published != "" {
				key += ", published: " + k.Published
				if k.Published != "yes" {
					class = "warn"
				}
			}
			keys = append(keys, key+")")
		}
		name := cell{Text: d.Name, Class: "b", Small: strings.Join(d.Notes, " ")}
		certs := cell{Text: strings.Join(d.Certificates, ", "), Href: "/debug/certs"}
		if len(d.Certificates) == 0 {
			certs = cell{Text: "none for its name", Class: "dim"}
		}
		keyCell := cell{Text: strings.Join(keys, ", "), Class: class}
		if len(keys) == 0 {
			keyCell = dim("none: its mail is not signed")
		}
		t.Rows = append(t.Rows, []cell{name, num(d.Users), num(d.Aliases), keyCell, certs})
	}
	sh.add(block{Table: t})
	return sh
}

func (s *Server) certSheet(_ *http.Request, data any) *sheet {
	sh := &sheet{Title: "Certificates"}
	sh.para(dim("A renewed certificate is taken by itself when its files change."))
	t := &table{Columns: columns("directory", "names", "#days left", "valid", "issuer", "key"), Empty: "There is none: nobody can use TLS."}
	for _, c := range data.([]CertificateStatus) {
		t.Rows = append(t.Rows, []cell{{Text: c.Name, Class: "b"}, txt(strings.Join(c.Names, ", ")), daysCell(c.NotAfter), {Text: "until " + utc(c.NotAfter), Small: "from " + utc(c.NotBefore)},
			txt(c.Issuer), {Text: c.Key, Small: c.SHA256}})
	}
	sh.add(block{Table: t})
	if s.conf.Status != nil {
		if list := s.conf.Status().Renewals; len(list) > 0 {
			sh.add(block{Heading: "By ACME", Table: renewalTable(list)})
		}
	}
	return sh
}

func renewalTable(list []Renewal) *table {
	t := &table{Columns: columns("host name", "state", "asked next", "what the last attempt said"), Wide: true}
	for _, r := range list {
		state, next := cell{Text: "in use", Class: "ok"}, txt(utc(r.Next))
		switch {
		case r.Covered:
			state, next = dim("not needed: certs/ has one"), dim("never")
		case r.Error != "":
			state = cell{Text: "failing", Class: "bad", Small: "since " + utc(r.Since)}
		case r.NotAfter.IsZero():
			state = cell{Text: "being asked for", Class: "warn"}
		}
		if !r.Covered && !r.Next.After(time.Now()) {
			next = txt("now")
		}
		t.Rows = append(t.Rows, []cell{{Text: r.Name, Class: "b"}, state, next, {Text: r.Error, Small: r.Remedy}})
	}
	return t
}

// tlsData is the page of TLS policies.
type tlsData struct {
	Policies []Policy   `json:"policies"`
	Levels   []TLSLevel `json:"levels"`
	More     int        `json:"more_levels,omitempty"`

	q string
}

func (s *Server) loadTLS(r *http.Request) (any, error) {
	d := &tlsData{q: strings.ToLower(r.URL.Query().Get("q"))}
	has := func(domain string) bool { return d.q == "" || strings.Contains(strings.ToLower(domain), d.q) }
	d.Policies = slices.DeleteFunc(slices.Clone(listOf(s.conf.Policies)), func(p Policy) bool { return !has(p.Domain) })
	d.Levels = slices.DeleteFunc(slices.Clone(listOf(s.conf.Levels)), func(l TLSLevel) bool { return !has(l.Domain) })
	if n := len(d.Levels); n > shownLevels {
		d.Levels, d.More = d.Levels[:shownLevels], n-shownLevels
	}
	return d, nil
}

func tlsSheet(_ *http.Request, data any) *sheet {
	d := data.(*tlsData)
	sh := &sheet{Title: "TLS policies"}
	sh.add(block{Form: &form{Action: "/debug/sts", Fields: []field{{Name: "q", Label: "part of a domain", Value: d.q, Wide: true}}, Buttons: []button{{Label: "Filter"}}}})
	t := &table{Columns: columns("domain", "mode", "MX", "fetched", "expires", "last error"), Empty: "None is in memory."}
	for _, p := range d.Policies {
		mode := cell{Text: p.Mode}
		if p.Mode == "enforce" {
			mode.Class = "ok"
		}
		t.Rows = append(t.Rows, []cell{{Text: p.Domain, Small: p.ID}, mode, txt(strings.Join(p.MX, ", ")), txt(ago(p.Fetched)), txt(ago(p.Expires)), {Text: p.Error, Class: "warn"}})
	}
	sh.add(block{Heading: "MTA-STS", Table: t})
	l := &table{Columns: columns("domain", "mail from it", "mail to it"), Empty: "Nothing is remembered yet."}
	for _, x := range d.Levels {
		l.Rows = append(l.Rows, []cell{txt(x.Domain), txt(x.Incoming), txt(x.Outgoing)})
	}
	sh.add(block{Heading: "Best protection seen", Table: l})
	sh.para(dim("Once a domain was reached in a protected way, less is refused: an attacker on the line would make it look so."))
	if d.More > 0 {
		sh.para(dim("and " + itoa(d.More) + " more"))
	}
	return sh
}

func dnsSheet(_ *http.Request, data any) *sheet {
	d := data.(DNS)
	sh := &sheet{Title: "DNS"}
	t := &table{Columns: columns("server", "DNSSEC"), Empty: "No server is known: the system's configuration names none.", Wide: true}
	for _, x := range d.Servers {
		believed := dim("its validation is not believed")
		if x.Trusted {
			believed = cell{Text: "its validation is believed", Class: "ok"}
		}
		t.Rows = append(t.Rows, []cell{txt(x.Address), believed})
	}
	sh.add(block{Heading: "Servers", Table: t})
	for _, n := range d.Notes {
		sh.para(txt(n))
	}
	f := &table{Columns: columns("when", "name", "for", "#took", "error"), Empty: "Every look-up was answered."}
	for _, x := range d.Failures {
		f.Rows = append(f.Rows, []cell{clock(x.At), {Text: x.Name, Small: x.Type}, txt(x.Purpose), {Text: span(x.Took), Class: "n"}, txt(x.Error)})
	}
	sh.add(block{Heading: "Last look-ups without an answer", Table: f})
	sh.para(anchor("metrics", "/debug/metrics?q=dns"))
	return sh
}

// authData is the page of logins.
type authData struct {
	Attempts []AuthAttempt `json:"attempts"`
	Networks []networkView `json:"networks"`
	Senders  []Sender      `json:"senders"`
}

// networkView is the failed logins from one network.
type networkView struct {
	Network string    `json:"network"`
	Failed  int       `json:"failed"`
	Users   int       `json:"changes_of_user"`
	User    string    `json:"last_user"`
	Last    time.Time `json:"last"`
}

func (s *Server) loadAuth(*http.Request) (any, error) {
	d := &authData{Attempts: s.conf.Recent.Auths(), Networks: s.conf.Recent.guessers(20), Senders: s.conf.Recent.Senders(time.Now(), 20)}
	return d, nil
}

// guessers are the networks with the most failed logins.
func (r *Recent) guessers(n int) []networkView {
	list := []networkView{}
	if r == nil {
		return list
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, t := range r.networks.all() {
		list = append(list, networkView{name, t.failed, t.users, t.user, t.last})
	}
	slices.SortFunc(list, func(a, b networkView) int {
		return cmp.Or(cmp.Compare(b.Failed, a.Failed), cmp.Compare(a.Network, b.Network))
	})
	return list[:min(n, len(list))]
}

func authSheet(_ *http.Request, data any) *sheet {
	d := data.(*authData)
	sh := &sheet{Title: "Logins"}
	n := &table{Columns: columns("network", "#failed", "#users tried", "the last one", "when"), Empty: "No login failed."}
	for _, x := range d.Networks {
		n.Rows = append(n.Rows, []cell{{Text: x.Network, Class: "mono"}, num(x.Failed), num(x.Users), txt(x.User), txt(ago(x.Last))})
	}
	sh.add(block{Heading: "Failed, by network", Table: n})
	u := &table{Columns: columns("user", "#recipients, last hour", "#in all", "last"), Empty: "No user sent anything."}
	for _, x := range d.Senders {
		c := cell{Text: x.User, Href: searchFor(x.User)}
		u.Rows = append(u.Rows, []cell{c, num(x.LastHour), num(x.Total), txt(ago(x.Seen))})
	}
	sh.add(block{Heading: "Who sends most", Table: u})
	t := &table{Columns: columns("when", "user", "client", "result"), Empty: "Nobody logged in yet."}
	for _, a := range d.Attempts {
		res := cell{Text: "ok", Class: "ok"}
		if a.Error != "" {
			res = cell{Text: a.Error, Class: "bad"}
		}
		t.Rows = append(t.Rows, []cell{clock(a.At), txt(a.User), {Text: a.Client, Small: a.Mode}, res})
	}
	sh.add(block{Heading: "Last logins", Table: t})
	return sh
}
