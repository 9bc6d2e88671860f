package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// disk is a closed store whose files a test damages.
type disk struct {
	t   *testing.T
	mem *vfs.Mem
	c   Config
}

// newDisk makes a store with messages m0.. of the sizes and closes it.
func newDisk(t *testing.T, sizes ...int) *disk {
	mem := vfs.NewMem()
	d := &disk{t, mem, testConfig(mem)}
	d.c.LargeBody = 2 * blockSize
	s := openTest(t, d.c)
	for i, n := range sizes {
		must(t, put(s, entry(fmt.Sprint("m", i)), "", randomBody(n)))
	}
	must(t, s.Close())
	return d
}

func (d *disk) edit(name string, f func(b []byte) []byte) {
	d.t.Helper()
	b, err := vfs.ReadFile(d.mem, "data/queue/"+name)
	must(d.t, err)
	must(d.t, vfs.WriteFile(d.mem, "data/queue/"+name, f(b), 0600))
}

// flip damages the byte at off in the record that holds the text, counted from the text.
func (d *disk) flip(name, text string, off int) {
	d.t.Helper()
	d.edit(name, func(b []byte) []byte {
		i := bytes.Index(b, []byte(text))
		if i < 0 {
			d.t.Fatalf("%q is not in %s", text, name)
		}
		b[i+off] ^= 0x10
		return b
	})
}

// names lists the queue directory and what was set aside.
func (d *disk) names() string {
	var all []string
	for _, dir := range []string{"", "/corrupt"} {
		infos, err := d.mem.ReadDir("data/queue" + dir)
		if err != nil {
			continue
		}
		for _, i := range infos {
			all = append(all, strings.TrimPrefix(dir+"/"+i.Name, "/"))
		}
	}
	return strings.Join(all, " ")
}

// TestDamagedRecord: a bad record between good ones is set aside, reported once, counted, and the rest goes on.
func TestDamagedRecord(t *testing.T) {
	d := newDisk(t, 100, 200, 300)
	d.flip("00000001.seg", "\x02m1\x01", 1) // the id in the meta part
	s := openTest(t, d.c)
	var bad []string
	for e, err := range s.All() {
		if err != nil {
			if !errors.Is(err, queue.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			bad = append(bad, string(e.ID))
		}
	}
	if len(bad) != 1 || bad[0] != "}1" { // as far as it can be read
		t.Errorf("reported: %q", bad)
	}
	if got := s.m.errors[diskParse].Value(); got != 1 {
		t.Errorf("%v errors counted", got)
	}
	if st := s.Stats(); st.Corrupt != 1 || st.Messages != 2 {
		t.Errorf("Stats %+v", st)
	}
	if !strings.Contains(d.names(), "corrupt/00000001-") {
		t.Errorf("nothing set aside: %s", d.names())
	}
	must(t, s.Close())
	s = openTest(t, d.c)
	if got := contents(t, s); got != "m0 100\nm2 300\n" {
		t.Errorf("second start:\n%s", got)
	}
	if st := s.Stats(); st.Corrupt != 1 {
		t.Errorf("the second start forgot what was set aside: %+v", st)
	}
}

// TestDamagedBody: bytes of a message that are wrong are never returned as if they were right, wherever they are.
func TestDamagedBody(t *testing.T) {
	d := newDisk(t, 1000, 150_000, 400_000, 2000)
	sample := func(n, at int) string { return randomBody(n)[at : at+16] }
	d.flip("00000001.seg", sample(1000, 500), 3)
	d.flip("00000001.seg", sample(150_000, 70_000), 0)               // a chunk
	d.flip("0000000000000003.body", sample(400_000, 2*blockSize), 0) // the body file
	s := openTest(t, d.c)
	for i, want := range []error{queue.ErrCorrupt, queue.ErrCorrupt, queue.ErrCorrupt, nil} {
		id := mail.ID(fmt.Sprint("m", i))
		got, err := read(s, id)
		if !errors.Is(err, want) {
			t.Errorf("%s: %d bytes, %v", id, len(got), err)
		}
		if e, err := s.Load(id); err != nil || !strings.HasPrefix(randomBody(int(e.Size)), got) {
			t.Errorf("%s: wrong bytes, or %v", id, err)
		}
	}
	if got := s.m.errors[diskParse].Value(); got != 3 {
		t.Errorf("%v errors counted", got)
	}
}

// TestMissingFile: messages of which a part is gone are set aside, those of which nothing is gone stay.
func TestMissingFile(t *testing.T) {
	d := newDisk(t, 1000, 400_000, 2000)
	must(t, d.mem.Remove("data/queue/0000000000000002.body"))
	for range 2 {
		s := openTest(t, d.c)
		if len(s.bad) > 0 && (s.bad[0].id != "m1" || !errors.Is(s.bad[0].err, queue.ErrCorrupt)) {
			t.Errorf("reported %v", s.bad)
		}
		s.bad = nil
		if got := contents(t, s); got != "m0 1000\nm2 2000\n" {
			t.Errorf("messages:\n%s", got)
		}
		must(t, s.Close())
	}
	if !strings.Contains(d.names(), "corrupt/") {
		t.Errorf("nothing set aside: %s", d.names())
	}
}

// TestSegmentHeader: one bad copy of a segment's header does no harm; without both the segment is set aside, never removed.
func TestSegmentHeader(t *testing.T) {
	d := newDisk(t, 1000)
	wreck := func(at int) {
		d.edit("00000001.seg", func(b []byte) []byte { b[at+3]++; return b })
	}
	wreck(0)
	s := openTest(t, d.c)
	if got := contents(t, s); got != "m0 1000\n" {
		t.Errorf("with one header:\n%s", got)
	}
	must(t, s.Close())
	wreck(secondHeaderAt)
	before, err := vfs.ReadFile(d.mem, "data/queue/00000001.seg")
	must(t, err)
	s = openTest(t, d.c)
	if len(s.bad) != 1 || s.Stats().Messages != 0 {
		t.Errorf("with no header: reported %v, %+v", s.bad, s.Stats())
	}
	aside, err := vfs.ReadFile(d.mem.PowerCut(nil), "data/queue/corrupt/00000001.seg")
	if err != nil || !bytes.Equal(before, aside) {
		t.Errorf("the segment was not kept: %v", err)
	}
}

// TestOthersFiles: names that are not ours stay; a format of the future is refused.
func TestOthersFiles(t *testing.T) {
	d := newDisk(t, 10)
	for _, name := range []string{"m:item", ".m:x", "readme", "0001.seg", "xyz.body"} {
		must(t, vfs.WriteFile(d.mem, "data/queue/"+name, []byte("x"), 0600))
	}
	s := openTest(t, d.c)
	s.care()
	must(t, s.Close())
	for _, name := range []string{"m:item", ".m:x", "readme", "0001.seg", "xyz.body"} {
		if !strings.Contains(" "+d.names()+" ", " "+name+" ") {
			t.Errorf("%s is gone", name)
		}
	}
	d.edit("00000002.seg", func(b []byte) []byte { // where care moved the message
		for _, at := range []int{0, secondHeaderAt} {
			binary.LittleEndian.PutUint32(b[at+8:], formatVersion+1)
			binary.LittleEndian.PutUint32(b[at+20:], checksum(b[at:at+20]))
		}
		return b
	})
	if s, err := Open(d.c); err == nil {
		s.Close()
		t.Error("a newer format is opened")
	} else if !strings.Contains(err.Error(), "version 2") {
		t.Errorf("a newer format: %v", err)
	}
}

// TestForgedRecord: a stranger who puts a record into the body of a message does not get it executed when the record around it is
// damaged.
func TestForgedRecord(t *testing.T) {
	mem := vfs.NewMem()
	c := testConfig(mem)
	s := openTest(t, c)
	must(t, put(s, entry("victim"), "", "important"))
	forged := appendRemoved(beginRecord(nil), removed{id: "victim", serial: 1})
	h := header{typ: recRemoved, number: 2, metaLen: uint32(len(forged) - recordHead)}
	body := ""
	for align := range recordAlign { // one of them is aligned
		sealRecord(forged, h, uint32(align))
		body += strings.Repeat("x", align) + string(forged)
	}
	must(t, put(s, entry("carrier"), "", body))
	must(t, put(s, entry("after"), "", "more"))
	must(t, s.Close())
	d := &disk{t, mem, c}
	d.flip("00000001.seg", "\x07carrier\x01", 1)
	s = openTest(t, c)
	s.bad = nil
	if got := contents(t, s); got != "victim 9\nafter 4\n" {
		t.Errorf("messages:\n%s", got)
	}
}

// TestBitFlips damages one bit after the other, at random. The store opens, or says why it cannot; what it returns is right, and no
// more than one message suffers.
func TestBitFlips(t *testing.T) {
	d := newDisk(t, 100, 3000, 70_000, 20)
	image, err := vfs.ReadFile(d.mem, "data/queue/00000001.seg")
	must(t, err)
	end := bytes.LastIndexByte(image, recordMagic) + 200
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		bit := rng.IntN(end * 8)
		if rng.IntN(2) == 0 {
			bit = segmentPage*8 + rng.IntN(2000*8)
		}
		mem := d.mem.Kill()
		damaged := bytes.Clone(image)
		damaged[bit/8] ^= 1 << (bit % 8)
		must(t, vfs.WriteFile(mem, "data/queue/00000001.seg", damaged, 0600))
		c := d.c
		c.FS = mem
		s, err := Open(c)
		if err != nil {
			t.Fatalf("bit %d: %v", bit, err)
		}
		good := 0
		for e, err := range s.All() {
			if err != nil {
				continue
			}
			body, err := read(s, e.ID)
			switch {
			case err == nil && body == randomBody(int(e.Size)) && e.Env.From.Local == "from" && len(e.Env.Rcpts) == 1:
				good++
			case !errors.Is(err, queue.ErrCorrupt):
				t.Errorf("bit %d: %s: %d bytes, %v, %+v", bit, e.ID, len(body), err, e.Env)
			}
		}
		if good < 3 {
			t.Errorf("bit %d: only %d messages are left", bit, good)
		}
		must(t, s.Close())
	}
}

// TestMinFree: mail from outside leaves a reserve, which notices and what frees the disk may use.
func TestMinFree(t *testing.T) {
	mem := vfs.NewMem()
	c := testConfig(mem)
	c.MinFree = 1 << 20
	s := openTest(t, c)
	must(t, put(s, entry("one"), "", "text"))
	must(t, put(s, entry("two"), "", "text"))
	if err := s.Err(); err != nil {
		t.Errorf("Err with space: %v", err)
	}
	mem.SetCapacity(mem.Used() + 900<<10)
	if err := put(s, entry("three"), "", "text"); !errors.Is(err, queue.ErrFull) {
		t.Errorf("mail from outside: %v", err)
	}
	if err := s.Err(); !errors.Is(err, queue.ErrFull) {
		t.Errorf("Err: %v", err)
	}
	notice := entry("notice")
	notice.Env.Source = mail.FromDSN
	must(t, put(s, notice, "", strings.Repeat("x", 200_000)))
	must(t, s.Update("one", queue.RcptUpdate{State: queue.RcptStatus{Attempts: 1}}))
	must(t, s.Remove("two"))
	mem.SetCapacity(mem.Used() + 200<<10) // below a quarter of the reserve
	if err := put(s, entry("four"), "", strings.Repeat("x", 200_000)); !errors.Is(err, queue.ErrFull) {
		t.Errorf("a long message on an almost full disk: %v", err)
	}
	s.SetMinFree(64 << 10)
	must(t, put(s, entry("less reserve"), "", "text"))
	mem.SetCapacity(0)
	must(t, put(s, entry("five"), "", "text"))
	if err := s.Err(); err != nil {
		t.Errorf("Err with space again: %v", err)
	}
}

// TestErrAfterWriteFailure: a failed write makes the store report trouble until one succeeds.
func TestErrAfterWriteFailure(t *testing.T) {
	fail := false
	c := testConfig(vfs.Hook(vfs.NewMem(), func(op vfs.Op) error {
		if fail && op.Verb == vfs.OpWrite {
			return os.ErrPermission
		}
		return nil
	}))
	s := openTest(t, c)
	fail = true
	if err := put(s, entry("a"), "", "x"); !errors.Is(err, queue.ErrBroken) {
		t.Errorf("commit: %v", err)
	}
	if err := s.Err(); !errors.Is(err, queue.ErrBroken) {
		t.Errorf("Err: %v", err)
	}
	fail = false
	must(t, put(s, entry("a"), "", "x"))
	if err := s.Err(); err != nil {
		t.Errorf("Err after a success: %v", err)
	}
}
