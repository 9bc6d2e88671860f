// Package expvarom is metrics with two faces: one atomic variable, seen by expvar under its old name and by Prometheus.
package expvarom
