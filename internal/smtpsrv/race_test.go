//go:build race

package smtpsrv

const raceEnabled = true
