package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"blitiri.com.ar/go/chasquid/internal/address"
	"blitiri.com.ar/go/chasquid/internal/auth/userdb"
	"golang.org/x/sys/unix"
)

// account is a user and where it is kept.
type account struct {
	user, domain string // the user normalised, the domain as given
	dir, file    string
}

// account reads the first argument.
func (u *util) account() (account, error) {
	user, domain, ok := strings.Cut(u.arg(0), "@")
	if !ok || domain == "" {
		return account{}, errors.New("Domain missing, username should be of the form 'user@domain'")
	}
	if err := checkDirName(domain); err != nil {
		return account{}, err
	}
	return newAccount(u.configDir, user, domain)
}

func newAccount(configDir, user, domain string) (account, error) {
	name, err := address.NormalizeUser(user)
	if err != nil {
		return account{}, fmt.Errorf("Error normalizing user: %s", strings.TrimPrefix(err.Error(), address.ErrUser.Error()+": "))
	}
	dir := filepath.Join(configDir, "domains", domain)
	return account{user: name, domain: domain, dir: dir, file: filepath.Join(dir, "users")}, nil
}

// checkDirName refuses domains that would name another place than a directory below domains/.
func checkDirName(domain string) error {
	if domain == "." || domain == ".." || strings.ContainsAny(domain, "/\x00") {
		return fmt.Errorf("Error: %q is not a domain", domain)
	}
	return nil
}

// change reads the users of the account's domain, lets f change them, and writes them back. Two of them do not lose each other's work.
func (a account) change(f func(db *userdb.DB) error) error {
	d, err := os.Open(a.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return f(&userdb.DB{})
	} else if err != nil {
		return fmt.Errorf("Error loading database: %w", err)
	}
	defer d.Close() // and with it the lock
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("Error locking database: %w", err)
	}
	db, err := loadUsers(a.file)
	if err != nil {
		return err
	}
	if err := f(db); err != nil {
		return err
	}
	if err := db.WriteFile(a.file); err != nil {
		return fmt.Errorf("Error writing database: %w", err)
	}
	return nil
}

// loadUsers reads a users file; one that is missing has no users.
func loadUsers(path string) (*userdb.DB, error) {
	db, err := userdb.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &userdb.DB{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("Error loading database: %w", err)
	}
	return db, nil
}

func (u *util) userAdd() error {
	a, err := u.account()
	if err != nil {
		return err
	}
	_, receiveOnly := u.options["--receive_only"]
	password, given := u.options["--password"]
	if receiveOnly && given {
		return errors.New("Cannot specify both --receive_only and --password")
	}
	pass := userdb.NewDenied()
	if !receiveOnly {
		if password == "" {
			if password, err = u.newPassword(); err != nil {
				return err
			}
		}
		if pass, err = userdb.NewScrypt(password); err != nil {
			return fmt.Errorf("Error adding user: %w", err)
		}
	}
	if _, err := os.Stat(a.dir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(u.Stdout, "Creating database")
		if err := os.MkdirAll(a.dir, 0o755); err != nil {
			return fmt.Errorf("Error creating database dir: %w", err)
		}
	}
	err = a.change(func(db *userdb.DB) error {
		if err := db.Set(a.user, pass); err != nil {
			return fmt.Errorf("Error adding user: %w", err)
		}
		return nil
	})
	if err == nil {
		fmt.Fprintln(u.Stdout, "Added user")
	}
	return err
}

func (u *util) userRemove() error {
	a, err := u.account()
	if err != nil {
		return err
	}
	err = a.change(func(db *userdb.DB) error {
		if !db.Remove(a.user) {
			return errors.New("Unknown user")
		}
		return nil
	})
	if err == nil {
		fmt.Fprintln(u.Stdout, "Removed user")
	}
	return err
}

func (u *util) authenticate() error {
	a, err := u.account()
	if err != nil {
		return err
	}
	db, err := loadUsers(a.file)
	if err != nil {
		return err
	}
	password := u.options["--password"]
	if password == "" {
		if password, err = u.newPassword(); err != nil {
			return err
		}
	}
	if !db.Lookup(a.user).Verify(password) {
		return errors.New("Authentication failed")
	}
	fmt.Fprintln(u.Stdout, "Authentication succeeded")
	return nil
}

func (u *util) checkUserDB() error {
	if u.arg(0) == "" {
		return errors.New("Error: missing domain parameter")
	}
	if err := checkDirName(u.arg(0)); err != nil {
		return err
	}
	path := filepath.Join(u.configDir, "domains", u.arg(0), "users")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("Error: file %q does not exist", path)
	}
	db, err := userdb.ReadFile(path)
	if err != nil {
		return fmt.Errorf("Error loading database: %w", err)
	}
	fmt.Fprintf(u.Stdout, "Database loaded (%d users)\n", db.Len())
	return nil
}
