//go:build !race

package patience

const race = false
