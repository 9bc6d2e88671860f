// Package patience scales the time limits of tests to how the tests are run.
package patience

import "time"

// Limit is how long something that should take at most d on an idle machine may take in a test: four times as long, as tests share
// the machine, and twenty times that under the race detector.
func Limit(d time.Duration) time.Duration {
	d *= 4
	if race {
		d *= 20
	}
	return d
}
