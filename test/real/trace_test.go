package real

import (
	"encoding/json"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"blitiri.com.ar/go/chasquid/test/harness"
)

// TestTraceOverKill kills the server between taking a message and delivering it: both processes stand in one trace, which the
// message's page leads to.
func TestTraceOverKill(t *testing.T) {
	sink := harness.Need(t, "smtp-sink", "postfix")
	port := harness.FreePort(t, "127.0.0.9")
	s := harness.New(t, harness.Options{Conf: resolver(t, remoteZone), Args: []string{"-testing__outgoing_smtp_port=" + port}})
	s.Start()
	submit(t, s, "bob@remote.test", testMessage)
	find := func() (m struct {
		ID, Trace string
	}) {
		var page struct {
			Messages []struct{ ID, Trace string }
		}
		text := s.Get("/debug/messages?format=json&q=" + url.QueryEscape("bob@remote.test"))
		if err := json.Unmarshal([]byte(text), &page); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if len(page.Messages) > 0 {
			m = page.Messages[0]
		}
		return m
	}
	harness.WaitFor(t, deliveryTime, "a first attempt that fails", func() bool {
		return strings.Contains(s.Get("/debug/queue?format=text"), "refused")
	})
	first := find()
	s.Signal(syscall.SIGKILL)
	s.WaitExit(deliveryTime)

	background(t, sink, "-u", "root", "127.0.0.9:"+port, "100")
	waitListening(t, "127.0.0.9:"+port)
	s.Start()
	harness.Run(t, "", harness.Binary(t), "queue", "retry", "-config_dir", s.Dir, "-yes", "-recipient", "bob@remote.test")
	harness.WaitFor(t, deliveryTime, "delivery", func() bool { return strings.Contains(s.Get("/debug/queue?format=text"), "length: 0") })
	second := find()
	if first.Trace == "" || second.Trace != first.Trace || second.ID != first.ID {
		t.Fatalf("the message is %+v before and %+v after", first, second)
	}
	text := s.Get("/debug/traces/" + first.Trace + "?format=json")
	for _, generation := range []string{"1", "2"} {
		if !strings.Contains(text, `{"key":"chasquid.generation","value":{"intValue":"`+generation+`"}}`) {
			t.Errorf("the trace has nothing of process %s: %s", generation, text)
		}
	}
	if page := s.Get("/debug/traces/" + first.Trace); !strings.Contains(page, "process generation 2") || !strings.Contains(page, second.ID) {
		t.Errorf("the page of the trace does not say that it went on after a restart")
	}
}
