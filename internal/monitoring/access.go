package monitoring

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// contentPolicy forbids scripts and everything foreign. The pages made here replace 'unsafe-inline' by the hash of their style sheet.
const contentPolicy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

func setSecurityHeaders(h http.Header) {
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
}

// publicPaths are what a peer without credentials may see from outside this machine.
var publicPaths = []string{"/metrics", "/healthz", "/readyz"}

// refuse says why the request is not served, "" if it is. Peers with credentials see everything, and so do peers on loopback, unless the
// Host they ask for is a name that is not ours: that is how a web page elsewhere reaches a server on loopback (DNS rebinding).
func (s *Server) refuse(r *http.Request) string {
	if s.hasCredentials(r) {
		return ""
	}
	if !isLoopback(r.RemoteAddr) {
		if slices.Contains(publicPaths, r.URL.Path) || s.isPublic(r.URL.Path) {
			return ""
		}
		return "This page is served to this machine (loopback) only. Set monitoring_web_config to allow it with a password or client certificate."
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local != nil && !isLoopback(local.String()) {
		return ""
	}
	if !s.knownHost(r.Host) {
		return "This host name is not served here. Use localhost or an IP address, or add the name to monitoring_allowed_hosts."
	}
	return ""
}

// trusted reports a peer that may see everything.
func (s *Server) trusted(r *http.Request) bool {
	return isLoopback(r.RemoteAddr) || s.hasCredentials(r)
}

// hasCredentials reports a peer that showed a client certificate or a password that were found good.
func (s *Server) hasCredentials(r *http.Request) bool {
	web, _ := r.Context().Value(webKey{}).(string)
	if web == "" {
		return false
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	// The toolkit's handler in front lets nobody through without a good password, if there are passwords at all.
	_, _, ok := r.BasicAuth()
	return ok && (&webConfig{web}).hasUsers()
}

// operator names who asks, for the log.
func (s *Server) operator(r *http.Request) string {
	who := r.RemoteAddr
	if host, _, err := net.SplitHostPort(who); err == nil {
		who = host
	}
	if user, _, ok := r.BasicAuth(); ok && s.hasCredentials(r) {
		who = user + " at " + who
	}
	return "the monitoring page, " + clip(who)
}

func (s *Server) isPublic(path string) bool {
	return slices.ContainsFunc(s.conf.Pages, func(p Page) bool { return p.Public && p.Path == path })
}

func isLoopback(hostport string) bool {
	ap, err := netip.ParseAddrPort(hostport)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// knownHost reports whether a Host header names this server: localhost, an IP literal, the host name, or a configured name.
func (s *Server) knownHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	own := s.names.Load()
	return name == "localhost" || name == strings.ToLower(own.hostname) ||
		slices.ContainsFunc(own.allowed, func(h string) bool { return strings.EqualFold(h, name) })
}
