package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"time"
)

// send submits one message to the user as the user, over STARTTLS with the certificate verified, and returns its Message-ID.
func (s *site) send(ctx context.Context) (id string, err error) {
	pool := x509.NewCertPool()
	b, err := os.ReadFile(s.certFile())
	if err != nil {
		return "", err
	}
	if !pool.AppendCertsFromPEM(b) {
		return "", errors.New("no certificate in " + s.certFile())
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.submission)
	if err != nil {
		return "", err
	}
	if d, ok := ctx.Deadline(); ok {
		conn.SetDeadline(d)
	}
	c, err := smtp.NewClient(conn, "localhost")
	if err != nil {
		conn.Close()
		return "", err
	}
	defer c.Close()
	id = "<" + rand.Text() + "@" + domain + ">"
	steps := []func() error{
		func() error { return c.Hello("localhost") },
		func() error { return c.StartTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"}) },
		func() error { return c.Auth(smtp.PlainAuth("", s.user, s.password, "localhost")) },
		func() error { return c.Mail(s.user) },
		func() error { return c.Rcpt(s.user) },
		func() error { return s.data(c, id) },
		c.Quit,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return "", err
		}
	}
	return id, nil
}

func (s *site) data(c *smtp.Client, id string) error {
	w, err := c.Data()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "From: <%s>\r\nTo: <%s>\r\nSubject: It works\r\nDate: %s\r\nMessage-ID: %s\r\n\r\n"+
		"This message was submitted with STARTTLS and AUTH, queued, and delivered.\r\n",
		s.user, s.user, time.Now().Format(time.RFC1123Z), id)
	return errors.Join(err, w.Close())
}

// waitDelivered waits until the message with the id is in the Maildir, and returns its file.
func (s *site) waitDelivered(ctx context.Context, id string) (string, error) {
	for {
		files, err := filepath.Glob(filepath.Join(s.maildir(), "new", "*"))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(id)) {
				return f, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the message did not arrive in %s within %v", s.maildir(), startTime)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
