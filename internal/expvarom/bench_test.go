package expvarom

import "testing"

// BenchmarkMessage is what one message moves, about: commands and stages timed, replies, commands and bytes counted. Both ways the sessions
// run on all processors.
func BenchmarkMessage(b *testing.B) {
	r := New()
	r.SetKept(func([16]byte, bool, float64) bool { return false })
	stages := r.HistogramVec("chasquid_stage_seconds", "h", Fast, []string{"stage"}, []string{"a", "b", "c"})
	var hs []*Histogram
	for _, s := range []string{"a", "b", "c"} {
		hs = append(hs, stages.With(s))
	}
	replies := r.Map("chasquid/replies", "code", "h", "220", "221", "235", "250", "334", "354", "421", "450", "451", "452", "500", "501", "502", "550", "554")
	commands := r.Map("chasquid/commands", "command", "h", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "QUIT", "RSET", "NOOP", "VRFY", "AUTH", "STARTTLS", "BDAT")
	bytes, running := r.Counter("chasquid_bytes_total", "h"), r.Gauge("chasquid_running", "h")
	message := func() {
		running.Inc()
		for i, verb := range []string{"EHLO", "MAIL", "RCPT", "DATA", "QUIT"} {
			commands.Inc(verb)
			replies.Inc("250")
			bytes.Add(30)
			hs[i%3].ObserveTrace(0.0003*float64(i), [16]byte{1})
			hs[(i+1)%3].ObserveTrace(0.001*float64(i), [16]byte{1})
		}
		running.Dec()
	}
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			message()
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				message()
			}
		})
	})
}
