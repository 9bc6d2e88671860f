//go:build !race

package smtpsrv

const raceEnabled = false
