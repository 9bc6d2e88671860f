package policy

import (
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
)

// C37: who submits a line that other servers do not take is told so; what stays here, and what others send, is taken.
func TestC37Lines(t *testing.T) {
	here, there := address.Address{Local: "a", Domain: "here.test"}, address.Address{Local: "b", Domain: "there.test"}
	for _, c := range []struct {
		name string
		user string
		long bool
		send bool
		to   []address.Address
		want string
	}{
		{"submitted for elsewhere", "u@here.test", true, false, []address.Address{here, there}, "554 5.6.0"},
		{"submitted for here", "u@here.test", true, false, []address.Address{here}, ""},
		{"nothing long", "u@here.test", false, false, []address.Address{there}, ""},
		{"from elsewhere", "", true, false, []address.Address{here, there}, ""},
		{"sent as it is", "u@here.test", true, true, []address.Address{there}, ""},
	} {
		tx := &Transaction{Session: &Session{User: c.user}, Env: &mail.Envelope{LongLines: c.long}}
		for _, a := range c.to {
			tx.Env.Rcpts = append(tx.Env.Rcpts, mail.Recipient{To: a, Orig: a})
		}
		check := Lines{Local: func(d string) bool { return d == "here.test" }, Send: c.send}
		if got := verdictCode(check.Body(t.Context(), tx, text(""))); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
