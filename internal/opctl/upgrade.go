package opctl

import "time"

// Upgrade is the method that replaces the running server by the program that is now where it was started from: no arguments; Upgraded.
const Upgrade = "Upgrade"

// Upgraded is what an upgrade did.
type Upgraded struct {
	From   string        `json:"from"` // version
	To     string        `json:"to"`
	PID    int           `json:"pid"`       // of the new process
	Took   time.Duration `json:"took_ns"`   // altogether
	Paused time.Duration `json:"paused_ns"` // for how long no mail was taken
}
