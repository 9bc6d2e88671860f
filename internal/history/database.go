package history

import (
	"bytes"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"blitiri.com.ar/go/chasquid/internal/mail"
	"blitiri.com.ar/go/log"
	"modernc.org/sqlite"
)

// Messages are kept in batches: one row for many, with a Bloom filter of everything they can be found by. That costs a fraction
// of a row with indexes for each message, and a search reads only the filters and the few batches that match.
const (
	batchMessages = 512
	batchAge      = 10 * time.Minute // a batch that filled slowly is not rewritten any more
)

const schema = `
create table if not exists meta (name text primary key, value blob) without rowid;
create table if not exists batches (id integer primary key, began integer, ended integer, n integer, bytes integer);
create table if not exists filters (id integer primary key, bloom blob);
create table if not exists data (id integer primary key, events blob);
create table if not exists live (id text primary key, since integer, events blob) without rowid;
`

// batch is the messages of one row: each with its length before it.
type batch struct {
	id    int64
	n     int
	data  []byte
	keys  keySet
	found []uint64 // keys of one message, for reuse
	began time.Time
	ended []mail.ID // messages that leave the table of unfinished ones with this batch
	dirty bool
}

func (b *batch) add(events []byte) {
	if b.n == 0 {
		b.began = time.Now()
	}
	b.n++
	b.data = binary.AppendUvarint(b.data, uint64(len(events)))
	b.data = append(b.data, events...)
	b.found = appendKeys(b.found[:0], events)
	for _, k := range b.found {
		b.keys.add(k)
	}
	b.dirty = true
}

// next begins the batch after this one, in the same memory.
func (b *batch) next() {
	b.keys.reset()
	*b = batch{id: b.id + 1, data: b.data[:0], keys: b.keys, found: b.found, ended: b.ended[:0]}
}

// messages calls f for each message of a batch's data until f returns false.
func messages(data []byte, f func(events []byte) bool) {
	for len(data) > 0 {
		l, n := binary.Uvarint(data)
		if n <= 0 || l > uint64(len(data)-n) {
			return
		}
		if !f(data[n : n+int(l)]) {
			return
		}
		data = data[n+int(l):]
	}
}

// database is the file. The connection is replaced when the file turns out to be damaged.
type database struct {
	path string
	mu   sync.RWMutex
	sql  *sql.DB
}

func openDatabase(path string) (*database, error) {
	d := &database{path: path}
	err := d.open()
	if err == nil || !d.damaged(err) {
		return d, err
	}
	return d, d.replace()
}

func (d *database) open() error {
	db, err := sql.Open("sqlite", "file:"+(&urlPath{d.path}).String()+"?_pragma=journal_mode(wal)&_pragma=synchronous(off)&_pragma=busy_timeout(2000)&_pragma=auto_vacuum(incremental)")
	if err != nil {
		return err
	}
	if _, err := db.Exec(schema); err != nil {
		db.Close()
		return fmt.Errorf("history database %s: %w", d.path, err)
	}
	d.sql = db
	return nil
}

// urlPath escapes a path for SQLite's URI syntax.
type urlPath struct{ path string }

func (p *urlPath) String() string {
	return strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(p.path)
}

// Result codes of SQLite that mean the file itself is no good.
const (
	sqliteCorrupt = 11
	sqliteNotADB  = 26
)

// damaged reports whether the file is no usable database.
func (d *database) damaged(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && (e.Code()&0xff == sqliteCorrupt || e.Code()&0xff == sqliteNotADB)
}

// replace sets the file aside and starts a new one.
func (d *database) replace() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sql != nil {
		d.sql.Close()
		d.sql = nil
	}
	aside := fmt.Sprintf("%s.damaged-%d", d.path, time.Now().UnixNano())
	if err := os.Rename(d.path, aside); err != nil {
		return err
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(d.path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	log.Errorf("history: the database is damaged; it was set aside as %s and a new one is started", aside)
	return d.open()
}

func (d *database) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sql != nil {
		if err := d.sql.Close(); err != nil {
			log.Errorf("history: closing the database: %v", err)
		}
		d.sql = nil
	}
}

var errNoDatabase = errors.New("the history database is not open")

// use calls f with the connection.
func (d *database) use(f func(*sql.DB) error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.sql == nil {
		return errNoDatabase
	}
	return f(d.sql)
}

// secret returns the key of address hashes, made at the first use.
func (d *database) secret() (key []byte, err error) {
	err = d.use(func(db *sql.DB) error {
		fresh := make([]byte, 32)
		rand.Read(fresh)
		if _, err := db.Exec(`insert or ignore into meta values ('hash-key', ?)`, fresh); err != nil {
			return err
		}
		return db.QueryRow(`select value from meta where name = 'hash-key'`).Scan(&key)
	})
	return key, err
}

func (d *database) lastBatch() (id int64) {
	err := d.use(func(db *sql.DB) error { return db.QueryRow(`select coalesce(max(id), 0) from batches`).Scan(&id) })
	if err != nil {
		log.Errorf("history: %v", err)
	}
	return id
}

// write writes the batch, replacing what was written of it before.
func (d *database) write(b *batch) error {
	err := d.use(func(db *sql.DB) error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		now := time.Now().UnixMicro()
		if _, err := tx.Exec(`insert or replace into batches values (?, ?, ?, ?, ?)`, b.id, b.began.UnixMicro(), now, b.n, len(b.data)); err != nil {
			return err
		}
		if _, err := tx.Exec(`insert or replace into filters values (?, ?)`, b.id, newBloom(&b.keys)); err != nil {
			return err
		}
		if _, err := tx.Exec(`insert or replace into data values (?, ?)`, b.id, b.data); err != nil {
			return err
		}
		for _, id := range b.ended {
			if _, err := tx.Exec(`delete from live where id = ?`, string(id)); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
	if err == nil {
		b.dirty, b.ended = false, b.ended[:0]
	}
	return err
}

// live returns the events of an unfinished message written earlier.
func (d *database) live(id mail.ID) (events []byte) {
	err := d.use(func(db *sql.DB) error {
		return db.QueryRow(`select events from live where id = ?`, string(id)).Scan(&events)
	})
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		log.Errorf("history: %v", err)
	}
	return events
}

func (d *database) writeLive(ids []mail.ID, pending map[mail.ID]*pendingMessage) error {
	return d.use(func(db *sql.DB) error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		stmt, err := tx.Prepare(`insert or replace into live values (?, ?, ?)`)
		if err != nil {
			return err
		}
		defer stmt.Close()
		for _, id := range ids {
			p := pending[id]
			if _, err := stmt.Exec(string(id), p.since.UnixMicro(), bytes.Clone(p.events)); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
}

// trim forgets batches that ended before the time, and the oldest while the whole is larger than max bytes.
func (d *database) trim(before time.Time, max int64) error {
	return d.use(func(db *sql.DB) error {
		var total, last int64
		if err := db.QueryRow(`select coalesce(sum(bytes), 0), coalesce(max(id), 0) from batches`).Scan(&total, &last); err != nil {
			return err
		}
		rows, err := db.Query(`select id, ended, bytes from batches order by id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		upTo := int64(-1)
		for rows.Next() {
			var id, ended, size int64
			if err := rows.Scan(&id, &ended, &size); err != nil {
				return err
			}
			if id == last || ended >= before.UnixMicro() && total <= max {
				break
			}
			upTo, total = id, total-size
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil || upTo < 0 {
			return err
		}
		for _, table := range []string{"batches", "filters", "data"} {
			if _, err := db.Exec(`delete from `+table+` where id <= ?`, upTo); err != nil {
				return err
			}
		}
		_, err = db.Exec(`pragma incremental_vacuum`)
		return err
	})
}
