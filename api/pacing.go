package api

import (
	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/pace"
)

// enter waits until the pacer lets a request in, if its route is paced. It is asked when it is proven who asks, or strangers
// could take the places, and when the body is there, or a slow sender would hold one.
func (s *Server) enter(rq *request, r route) (leave func(), err error) {
	if !r.paced {
		return func() {}, nil
	}
	return s.pacer.Enter(rq.Request().Context(), s.pacedAs(rq))
}

// pacedAs says in which line the caller stands, and how urgently.
func (s *Server) pacedAs(rq *request) pace.Request {
	switch caller := rq.caller; caller.Method {
	case countersign.ByCertificate, countersign.ByExpired, countersign.ByProof:
		as := pace.Request{Line: pace.Renewals, Key: caller.Serial}
		if t := trackOf(rq); caller.Assertion != "" && t != nil { // by a proof
			as.Left = t.renewal.Left
		} else {
			as.Left = rq.Request().TLS.PeerCertificates[0].NotAfter.Sub(s.Now())
		}
		return as
	case countersign.ByJoinToken:
		return pace.Request{Line: pace.Enrolments, Key: caller.JoinToken}
	default: // by attestation
		return pace.Request{Line: pace.Enrolments, Key: caller.Assertion}
	}
}
