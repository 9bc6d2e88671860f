package spool

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/chasquid/internal/queue"
	"blitiri.com.ar/go/chasquid/internal/vfs"
)

// testConfig is a store in memory with small segments and no goroutine of its own.
func testConfig(fsys vfs.FS) Config {
	return Config{Dir: "data/queue", FS: fsys, MinFree: -1, SegmentSize: minSegmentSize, NoPrefill: true, manual: true, spaceCheck: -1}
}

func openTest(t testing.TB, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, queue.ErrClosed) && !errors.Is(err, queue.ErrBroken) {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func entry(id string, rcpts ...string) *queue.Entry {
	e := &queue.Entry{ID: mail.ID(id), Env: mail.Envelope{From: address.MustParse("from@example.org"), Arrived: time.Unix(1e9, 5).UTC()}}
	if len(rcpts) == 0 {
		rcpts = []string{"to@example.net"}
	}
	for _, r := range rcpts {
		a := address.MustParse(r)
		e.Env.Rcpts = append(e.Env.Rcpts, mail.Recipient{To: a, Orig: a})
	}
	e.Status = make([]queue.RcptStatus, len(rcpts))
	return e
}

func put(s *Store, e *queue.Entry, prefix, body string) error {
	d, err := s.Create()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := io.WriteString(d, body); err != nil {
		return err
	}
	return d.Commit(e, []byte(prefix))
}

func read(s *Store, id mail.ID) (string, error) {
	r, err := s.Open(id)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func randomBody(n int) string {
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}

// contents returns all ids with body lengths, or the errors, as one string.
func contents(t testing.TB, s *Store) string {
	t.Helper()
	var b strings.Builder
	for e, err := range s.All() {
		if err != nil {
			fmt.Fprintf(&b, "%s!%v\n", e.ID, err)
			continue
		}
		body, err := read(s, e.ID)
		if err != nil || int64(len(body)) != e.Size {
			t.Errorf("reading %s: %d bytes of %d, %v", e.ID, len(body), e.Size, err)
		}
		fmt.Fprintf(&b, "%s %d\n", e.ID, len(body))
	}
	return b.String()
}

func TestSizes(t *testing.T) {
	for _, n := range []int{0, 1, smallBuf, smallBuf + 1, blockSize - 1, blockSize, blockSize + 1, 3 * blockSize, 3*blockSize + 5, 5 * blockSize, 9*blockSize + 77} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			m := vfs.NewMem()
			c := testConfig(m)
			c.LargeBody = 4 * blockSize
			s := openTest(t, c)
			body := randomBody(n)
			d, err := s.Create()
			must(t, err)
			for rest := body; rest != ""; {
				k := min(len(rest), 10007)
				_, err := io.WriteString(d, rest[:k])
				must(t, err)
				rest = rest[k:]
			}
			if d.Size() != int64(n) {
				t.Errorf("Size %d", d.Size())
			}
			r := d.Content()
			if got, err := io.ReadAll(r); err != nil || string(got) != body {
				t.Fatalf("Content: %d bytes, %v", len(got), err)
			}
			_, err = r.Seek(int64(n/2), io.SeekStart)
			must(t, err)
			if got, err := io.ReadAll(r); err != nil || string(got) != body[n/2:] {
				t.Fatalf("Content from the middle: %d bytes, %v", len(got), err)
			}
			must(t, d.Commit(entry("one"), []byte("Prefix: x\r\n")))
			d.Discard()
			check := func(s *Store) {
				t.Helper()
				if got, err := read(s, "one"); err != nil || got != "Prefix: x\r\n"+body {
					t.Errorf("read back %d bytes of %d, %v", len(got), n+11, err)
				}
			}
			check(s)
			must(t, s.Close())
			s = openTest(t, c)
			check(s)
			must(t, s.Remove("one"))
			s.care()
			if st := s.Stats(); st.Messages != 0 || st.LiveBytes != 0 {
				t.Errorf("after Remove: %+v", st)
			}
			must(t, s.Close())
			s = openTest(t, c)
			if got := contents(t, s); got != "" {
				t.Errorf("after Remove and restart: %s", got)
			}
		})
	}
}
