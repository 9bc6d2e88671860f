package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"blitiri.com.ar/go/chasquid/internal/message"
	"blitiri.com.ar/go/chasquid/internal/smtp"
)

// Header returns the header block of the message with Added on top. It is read once for all checks of the transaction. The error
// is message.ErrTooBig or one of reading.
func (t *Transaction) Header(c Content) (*message.Header, error) {
	if t.header == nil && t.headerErr == nil {
		var r io.Reader = c.Content()
		if len(t.Added) > 0 {
			r = io.MultiReader(bytes.NewReader(t.Added), r)
		}
		t.header, t.headerErr = message.Read(r)
	}
	return t.header, t.headerErr
}

// Body returns a reader of the message behind its header block.
func (t *Transaction) Body(c Content) (io.Reader, error) {
	h, err := t.Header(c)
	if err != nil {
		return nil, err
	}
	r := c.Content()
	if _, err := r.Seek(int64(h.Len()-len(t.Added)), io.SeekStart); err != nil {
		return nil, fmt.Errorf("seeking to the body: %w", err)
	}
	return r, nil
}

// refuseHeader is the verdict about a message whose header could not be read.
func refuseHeader(err error) Verdict {
	if errors.Is(err, message.ErrTooBig) {
		return Verdict{
			Refuse: &smtp.Reply{Code: 554, Enh: smtp.EnhancedCode{5, 6, 0}, Text: fmt.Sprintf("The header of the message is too big: at most %d KiB and %d fields are accepted", message.MaxHeader>>10, message.MaxFields)},
			Reason: err.Error(),
			Label:  "bad_content",
		}
	}
	return Verdict{
		Refuse: &smtp.Reply{Code: 451, Enh: smtp.EnhancedCode{4, 3, 0}, Text: "Temporary error reading the message, please try again later"},
		Reason: err.Error(),
		Label:  "other",
	}
}
