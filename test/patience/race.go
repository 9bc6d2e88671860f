//go:build race

package patience

const race = true
