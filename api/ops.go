package api

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/countersign/countersign/api/wire"
)

// opsHandler serves the operations listener. What it shows is for whoever can reach the loopback interface.
func (s *Server) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeOps(w, http.StatusOK, map[string]bool{"live": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		state := s.readiness()
		status := http.StatusOK
		if !state.Ready {
			status = http.StatusServiceUnavailable
		}
		writeOps(w, status, state)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	return mux
}

func writeOps(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // the values are strings and booleans
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", wire.JSON)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the peer is gone; nothing to tell it
}

// readiness names everything for which a load balancer should look elsewhere.
func (s *Server) readiness() wire.Readiness {
	var reasons []string
	select {
	case <-s.stopping:
		reasons = append(reasons, "stopping")
	default:
	}
	if s.Keys.Sealed() {
		reasons = append(reasons, "sealed: there is no key-encryption key")
	}
	reasons = append(reasons, s.Keys.Lost()...)
	if !s.canIssue() {
		reasons = append(reasons, "there is no intermediate that is valid now")
	}
	if err := s.Audit.Err(); err != nil {
		reasons = append(reasons, "the audit log can't be written")
	}
	if s.Clock != nil {
		if state := s.Clock.State(); !state.Trusted {
			reasons = append(reasons, state.Why)
		}
	}
	if s.Ready != nil {
		if err := s.Ready(); err != nil {
			reasons = append(reasons, err.Error())
		}
	}
	return wire.Readiness{Ready: len(reasons) == 0, Reasons: reasons}
}

func (s *Server) canIssue() bool {
	now := s.Now()
	for _, cert := range s.CA.Intermediates() {
		if !now.Before(cert.NotBefore) && !now.After(cert.NotAfter) {
			return true
		}
	}
	return false
}

// status is the daemon's state in short.
func (s *Server) status(rq *request) error {
	authority, err := s.CA.Status(rq.Request().Context())
	if err != nil {
		return err
	}
	current, ready := s.Policy.Current(), s.readiness()
	var issuers []wire.IssuerKeys
	for _, keys := range s.STS.IssuerKeys() {
		issuers = append(issuers, wire.IssuerKeys(keys))
	}
	return rq.answer(http.StatusOK, wire.Status{
		Version: s.Version, Issuer: s.Issuer, URL: s.URL, TrustDomain: s.TrustDomain, Time: s.Now().UTC(),
		Sealed: s.Keys.Sealed(), Ready: ready.Ready, Reasons: ready.Reasons,
		Frozen: current.Frozen, PolicyVersion: current.Version, Services: len(current.Services),
		Issued: authority.Issued, Denied: authority.Denied, AuditSeq: s.Audit.Head().Seq, Issuers: issuers,
	})
}
