package api

import (
	"net/http"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
)

// issue gives the caller a certificate for the ID that he proved.
func (s *Server) issue(rq *request) error {
	var in wire.CertificateRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	lifetime, err := ttl(in.TTL)
	if err != nil {
		return err
	}
	request := ca.IssueRequest{CSR: []byte(in.CSR), TTL: lifetime}
	if t := trackOf(rq); t != nil && t.proof != nil {
		request.Proof = t.proof
	}
	if t := trackOf(rq); t != nil {
		request.SPKI = t.renewal.SPKI
	}
	issued, err := s.CA.Issue(rq.Request().Context(), rq.caller, request)
	if err != nil && rq.caller.Method == countersign.ByAttestation && asError(err).Kind == countersign.Unauthenticated {
		// Who comes with a token that is used up is a stranger, whose refusals must not fill the audit log.
		return s.refused(rq.Context, countersign.Caller{Addr: rq.caller.Addr, RequestID: rq.caller.RequestID}, err)
	}
	if err != nil {
		return err
	}
	return rq.answer(http.StatusCreated, s.issued(issued))
}

func (s *Server) issued(c *ca.Certificate) wire.Certificate {
	return wire.Certificate{
		Certificate: pemOf(c.Chain), Roots: pemOf(s.CA.Roots()), ID: c.ID, Serial: c.Serial,
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), RenewAfter: c.RenewAfter.UTC(), RenewBefore: c.RenewBefore.UTC(),
	}
}

// certificates lists the inventory.
func (s *Server) certificates(rq *request) error {
	limit, err := rq.number("limit", 1, 1000, 100)
	if err != nil {
		return err
	}
	state, err := rq.choice("state", "valid", "revoked", "expired")
	if err != nil {
		return err
	}
	records, next, err := s.CA.Certificates(rq.Request().Context(), ca.Query{
		Service: rq.query["service"], State: state, After: rq.query["after"], Limit: limit,
	})
	if err != nil {
		return err
	}
	out := wire.Certificates{Certificates: make([]wire.CertificateRecord, 0, len(records)), Next: next}
	for _, r := range records {
		out.Certificates = append(out.Certificates, wire.CertificateRecord(r))
	}
	return rq.answer(http.StatusOK, out)
}

// certificate shows one record.
func (s *Server) certificate(rq *request) error {
	serial, err := rq.serial()
	if err != nil {
		return err
	}
	record, err := s.CA.Certificate(rq.Request().Context(), serial)
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, wire.CertificateRecord(record))
}

// revoke revokes one certificate; of a service only its own, which the domain sees to.
func (s *Server) revoke(rq *request) error {
	serial, err := rq.serial()
	if err != nil {
		return err
	}
	var in wire.Revocation
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if err := s.CA.Revoke(rq.Request().Context(), rq.caller, serial, in.Reason); err != nil {
		return err
	}
	return rq.NoContent(http.StatusNoContent)
}

// revokeMany revokes a lineage, a service's lineages or a key.
func (s *Server) revokeMany(rq *request) error {
	var in wire.Revocations
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	target := ca.Target{Lineage: in.Lineage, Service: in.Service, Key: in.Key}
	n, err := s.CA.RevokeMany(rq.Request().Context(), rq.caller, target, in.Reason)
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, wire.RevokedLineages{Lineages: n})
}

// createJoinToken makes a join token. Its secret leaves here and nowhere else.
func (s *Server) createJoinToken(rq *request) error {
	var in wire.JoinTokenRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	lifetime, err := ttl(in.TTL)
	if err != nil {
		return err
	}
	if err := countersign.CheckName(in.Service); err != nil {
		return countersign.Errorf(countersign.CodeParameter, "service: %v", err)
	}
	made, err := s.CA.CreateJoinToken(rq.Request().Context(), rq.caller, in.Service, lifetime)
	if err != nil {
		return err
	}
	out := wire.JoinToken{Token: made.Secret, ID: made.ID, Service: made.Service, ExpiresAt: made.Expires.UTC()}
	out.Fingerprint = fingerprint(s.CA.PinnedRoot()) // the daemon's chain leads to it also after a rollover
	if s.URL != "" {
		out.Join = s.URL + "#" + out.Token + "." + out.Fingerprint
	}
	return rq.answer(http.StatusCreated, out)
}

// addOperator certifies an operator's key. No one grants above his own role, which the domain sees to.
func (s *Server) addOperator(rq *request) error {
	var in wire.OperatorRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if err := countersign.CheckName(in.Name); err != nil {
		return countersign.Errorf(countersign.CodeParameter, "name: %v", err)
	}
	role, err := countersign.ParseRole(in.Role)
	if err != nil {
		return countersign.Errorf(countersign.CodeParameter, "role: %v", err)
	}
	issued, err := s.CA.AddOperator(rq.Request().Context(), rq.caller, in.Name, role, []byte(in.CSR))
	if err != nil {
		return err
	}
	return rq.answer(http.StatusCreated, s.issued(issued))
}
