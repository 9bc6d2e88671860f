package sandbox

import (
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// TestBox: commands run in a root and a network of their own.
func TestBox(t *testing.T) {
	b := New(t, Options{Zone: "more.test A 192.0.2.99\n"})
	if out := b.Run("hostname; ls /usr/local/bin; id -un; getent hosts mx.example.net more.test"); !strings.HasPrefix(out, "mail.example.org\nsudo\nsystemctl\nroot\n198.51.100.25 ") || !strings.Contains(out, "192.0.2.99") {
		t.Error(out)
	}
	if out, exit := b.Try("echo x; exit 3"); out != "x\n" || exit != 3 {
		t.Error(out, exit)
	}
	b.Publish("later.test A 192.0.2.77")
	b.Run("getent hosts later.test")
	b.Run("printf 'Subject: x\\r\\n\\r\\n..dot\\r\\n' > m; curl -sS --ssl-reqd --mail-from a@b --mail-rcpt c@example.net -T m smtp://mx.example.net")
	if m := b.Sent(); len(m) != 1 || m[0].From != "a@b" || m[0].To[0] != "c@example.net" || !strings.HasSuffix(m[0].Data, "\r\n..dot\r\n") {
		t.Errorf("%+v", m)
	}
	if out := b.Outside("ip -o addr show"); !strings.Contains(out, gateway) || strings.Contains(out, IP+"/") {
		t.Error(out)
	}
}

// TestSystemctl: the stand-in runs the unit as its user, waits for readiness, passes sockets, and stops it.
func TestSystemctl(t *testing.T) {
	b := New(t, Options{Install: true})
	b.Run(`chasquid setup -owner=mail -password=x example.org
sed -i '/_address/d' /etc/chasquid/chasquid.conf
systemctl enable --now chasquid-smtp.socket chasquid-submission.socket chasquid-submission_tls.socket
systemctl enable --now chasquid`)
	if out := b.Run("ps -C chasquid -o user= ; systemctl is-active chasquid"); out != "mail\n" {
		t.Errorf("%q", out)
	}
	b.Outside("swaks --server 192.0.2.10 --to postmaster@example.org --from a@example.net --helo x --quit-after RCPT; swaks --server 192.0.2.10:465 --tls-on-connect --quit-after HELO")
	b.Run("systemctl restart chasquid; systemctl reload chasquid; systemctl stop chasquid")
	if out, exit := b.Try("systemctl is-active chasquid"); exit == 0 {
		t.Error(out)
	}
	if _, exit := b.Try("systemctl start nothing"); exit == 0 {
		t.Error("a unit that is not there started")
	}
}
