package monitoring

import (
	"bytes"
	"net/http"
)

// Buffered makes a handler whose output is rendered into memory first, so that no lock it takes is held while a slow client reads.
func Buffered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := &memoryWriter{header: w.Header(), code: http.StatusOK}
		h.ServeHTTP(b, r)
		w.WriteHeader(b.code)
		w.Write(b.Bytes())
	})
}

type memoryWriter struct {
	bytes.Buffer
	header http.Header
	code   int
}

func (m *memoryWriter) Header() http.Header  { return m.header }
func (m *memoryWriter) WriteHeader(code int) { m.code = code }
