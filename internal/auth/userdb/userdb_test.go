package userdb

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/address"
)

// The spellings of protobuf text that existing files use (DAT-9).
func TestParse(t *testing.T) {
	for name, text := range map[string]string{
		"multi-line":  "users: {\n  key: \"u\"\n  value: {\n    plain: {\n      password: \"secret\"\n    }\n  }\n}\n",
		"two spaces":  "users:  {\n  key:  \"u\"\n  value:  {\n    plain:  {\n      password:  \"secret\"\n    }\n  }\n}\n",
		"one line":    `users:{key:"u" value:{plain:{password:"secret"}}}`,
		"angles":      "users: < key: 'u' value: < plain: < password: 'secret' > > >",
		"no colons":   `users { key: "u", value { plain { password: "sec" "ret" } } }; # comment`,
		"escapes":     `users: { key: "\165" value: { plain: { password: "\x73ecret" } } }`,
		"last counts": `users: {key:"u" value:{denied:{}}} users: {key:"u" value:{plain:{password:"secret"}}}`,
	} {
		db, err := Parse([]byte(text))
		if err != nil || db.Len() != 1 || !db.Has("u") || db.Lookup("u").scheme != PlainText || string(db.Lookup("u").encrypted) != "secret" {
			t.Errorf("%s: %v, %+v", name, err, db)
		}
	}
}

func TestParseErrors(t *testing.T) {
	scrypt := func(params string) string { return "users: { key: 'u' value: { scrypt: { " + params + " } } }" }
	for text, want := range map[string]string{
		"users: {\n  key: \"u\"\n  value: {\n    bcrypt: {}\n  }\n}": "line 4: unknown field: bcrypt",
		"users: {\n":   "parsing: unexpected EOF",
		"\n\nnonsense": "line 3: ",
		"users: { key: \"\xff\" value: { denied: {} } }": "line 1: ",
		scrypt("logN: 0 r: 8 p: 1 keyLen: 32"):           `user "u": scrypt parameters are out of bounds`,
		scrypt("logN: 40 r: 8 p: 1 keyLen: 32"):          `user "u": scrypt parameters are out of bounds`,
		scrypt("logN: 20 r: 100000 p: 1 keyLen: 32"):     `user "u": scrypt parameters are out of bounds`,
		scrypt("logN: 20 r: 1 p: 1000 keyLen: 32"):       `user "u": scrypt parameters are out of bounds`,
		scrypt("logN: 14 r: -8 p: 1 keyLen: 32"):         `user "u": scrypt parameters are out of bounds`,
		scrypt("logN: 18446744073709551615 r: 8 p: 1"):   `user "u": scrypt parameters are out of bounds`,
	} {
		_, err := Parse([]byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// The vector of RFC 7914 section 12 with N=16384: stored parameters are honoured (DAT-10).
func TestScryptVector(t *testing.T) {
	key, err := hex.DecodeString("7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2" +
		"d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887")
	if err != nil {
		t.Fatal(err)
	}
	var quoted strings.Builder
	for _, c := range key {
		fmt.Fprintf(&quoted, `\x%02x`, c)
	}
	db, err := Parse(fmt.Appendf(nil, "users: { key: 'u' value: { scrypt: { logN: 14 r: 8 p: 1 keyLen: 64 salt: 'SodiumChloride' encrypted: '%s' } } }", &quoted))
	if err != nil {
		t.Fatal(err)
	}
	if p := db.Lookup("u"); !p.Verify("pleaseletmein") || p.Verify("pleaseletmeout") || p.Scheme() != ScryptHash {
		t.Errorf("%+v", p)
	}
}

// What must never match, whatever the password.
func TestNeverMatches(t *testing.T) {
	db, err := Parse([]byte(`
		users: { key: "denied" value: { denied: {} } }
		users: { key: "none" value: {} }
		users: { key: "novalue" }
		users: { key: "emptyplain" value: { plain: {} } }
		users: { key: "nokey" value: { scrypt: { logN: 1 r: 1 p: 1 } } }
		users: { key: "shortkey" value: { scrypt: { logN: 1 r: 1 p: 1 keyLen: 1 encrypted: "x" } } }
		users: { key: "mismatch" value: { scrypt: { logN: 1 r: 1 p: 1 keyLen: 8 encrypted: "x" } } }`))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(db.Names(), "unknown") {
		pw := "x"
		if name == "emptyplain" || name == "nokey" {
			pw = ""
		}
		if db.Lookup(name).Verify(pw) {
			t.Errorf("%s: %q matches", name, pw)
		}
	}
	if db.Lookup("denied").Scheme() != DeniedTo || db.Lookup("novalue").Scheme() != DeniedTo || db.Lookup("unknown").Scheme() != Unknown {
		t.Error("wrong schemes")
	}
}

func TestWriteAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	var db DB
	pw, err := NewScrypt("pass\x00word\xff")
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]Password{"zoe": pw, "ñandú": NewPlain("secret"), "info": NewDenied()} {
		if err := db.Set(name, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != FileMode {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	squeezed := bytes.Join(bytes.Fields(text), []byte(" "))
	if !bytes.HasPrefix(squeezed, []byte(`users: { key: "info" value: { denied: {} } } users: { key: "zoe" value: { scrypt: { logN: 14 r: 8 p: 1 keyLen: 32 salt: "`)) {
		t.Errorf("wrote %s", squeezed)
	}
	got, err := ReadFile(path)
	if err != nil || !reflect.DeepEqual(*got, db) {
		t.Errorf("read back %+v, %v", got, err)
	}
	if !got.Lookup("zoe").Verify("pass\x00word\xff") {
		t.Error("the password does not match")
	}
	if p := got.Lookup("ñandú"); !p.Verify("secret") || p.Verify("secreT") {
		t.Error("the plain password")
	}
	if !got.Remove("zoe") || got.Remove("zoe") || got.Len() != 2 {
		t.Error("removal")
	}
	if _, err := ReadFile(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestSetWantsNormalForm(t *testing.T) { // DAT-12
	var db DB
	for _, name := range []string{"User", "a b", "", "henry\u2163"} {
		if err := db.Set(name, NewDenied()); err == nil {
			t.Errorf("%q accepted", name)
		}
	}
	if err := db.Set("a b", NewDenied()); !errors.Is(err, address.ErrUser) {
		t.Errorf("%v", err)
	}
}

// DAT-1: the owner stays, a failed write changes nothing, a link stays a link.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "real"), filepath.Join(dir, "users")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	root := os.Getuid() == 0
	if root {
		if err := os.Chown(path, 1234, 5678); err != nil {
			t.Fatal(err)
		}
	}
	var db DB
	if err := db.Set("u", NewDenied()); err != nil {
		t.Fatal(err)
	}
	if err := db.WriteFile(link); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", fi, err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Size() == 0 {
		t.Fatalf("%v, %v", fi, err)
	}
	if st := fi.Sys().(*syscall.Stat_t); root && (st.Uid != 1234 || st.Gid != 5678) {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	if err := db.WriteFile(filepath.Join(dir, "none", "users")); err == nil {
		t.Error("wrote into a directory that is not there")
	}
	if err := db.WriteFile(dir); err == nil {
		t.Error("replaced a directory")
	}
	names, err := filepath.Glob(filepath.Join(dir, "..", ".*"))
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left)+len(names) != 0 || err != nil {
		t.Errorf("left behind: %v %v", left, names)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`users: { key: "u" value: { plain: { password: "secret" } } }`))
	f.Add([]byte(`users: < key: 'u' value: < denied: <> > >`))
	f.Add([]byte(`users: { key: "u" value: { scrypt: { logN: 14 r: 8 p: 1 keyLen: 8 salt: "\000s" encrypted: "\xff2345678" } } }`))
	f.Fuzz(func(t *testing.T, data []byte) {
		db, err := Parse(data)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Fatalf("error over lines: %q", err)
			}
			return
		}
		out, err := db.Marshal()
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		again, err := Parse(out)
		if err != nil || again.Len() != db.Len() {
			t.Fatalf("%q: %q: %v", data, out, err)
		}
		for _, n := range db.Names() {
			a, b := db.Lookup(n), again.Lookup(n)
			if a.Scheme() != b.Scheme() || !bytes.Equal(a.encrypted, b.encrypted) || !bytes.Equal(a.salt, b.salt) {
				t.Fatalf("%q: user %q: %+v became %+v", data, n, a, b)
			}
		}
	})
}
