// Package incidents makes the real server meet trouble of every kind, and checks that it says so: in words on its index page, in its health
// checks, as an alert of a real Prometheus with the shipped rules, and with an example that is a few clicks away.
package incidents
