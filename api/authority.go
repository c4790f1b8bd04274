package api

import (
	"crypto/x509"
	"net/http"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
)

// authority describes the roots and intermediates; with ?holders=true also who has live certificates of them.
func (s *Server) authority(rq *request) error {
	detailed, err := rq.flag("holders")
	if err != nil {
		return err
	}
	status, err := s.CA.Status(rq.Request().Context())
	if err != nil {
		return err
	}
	var holders map[string][]ca.Holder
	if detailed {
		if holders, err = s.CA.Holders(rq.Request().Context()); err != nil {
			return err
		}
	}
	out := wire.Authority{TrustDomain: s.TrustDomain, Roots: []wire.AuthorityCertificate{}, Intermediates: []wire.AuthorityCertificate{}}
	for _, i := range status.Issuers {
		shown := authorityCertificate(i)
		for _, h := range holders[i.Serial] {
			shown.Holders = append(shown.Holders, wire.Holder{ID: h.ID, Count: h.Count, Until: h.Until.UTC()})
		}
		if i.Role == ca.ProfileRoot {
			out.Roots = append(out.Roots, shown)
		} else {
			out.Intermediates = append(out.Intermediates, shown)
		}
	}
	return rq.answer(http.StatusOK, out)
}

func authorityCertificate(i ca.Issuer) wire.AuthorityCertificate {
	return wire.AuthorityCertificate{
		Subject: i.Cert.Subject.String(), Serial: i.Serial, State: i.State, Fingerprint: fingerprint(i.Cert),
		NotBefore: i.Cert.NotBefore.UTC(), NotAfter: i.Cert.NotAfter.UTC(), SignsFrom: i.SignsFrom, Root: i.By, KeyID: i.KeyID, Own: i.Own, Offline: i.Offline,
		PEM: pemOf([]*x509.Certificate{i.Cert}),
	}
}

// rotateAuthority makes the successor of the signing intermediate or of its root. What role that takes depends on which,
// so that the domain judges it.
func (s *Server) rotateAuthority(rq *request) error {
	var in wire.AuthorityRotation
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if in.Role != string(ca.ProfileRoot) && in.Role != string(ca.ProfileIntermediate) {
		return countersign.Errorf(countersign.CodeParameter, "role: intermediate and root can be rotated, not %.20q", in.Role)
	}
	plan, err := s.CA.Rotate(rq.Request().Context(), rq.caller, ca.Rotation{
		Role: ca.Profile(in.Role), At: in.At, Now: in.Now, DryRun: in.DryRun,
	})
	if err != nil {
		return err
	}
	out := wire.AuthorityPlan{
		Role: in.Role, At: plan.At, SignsFrom: plan.SignsFrom, DryRun: plan.DryRun, New: []wire.AuthorityCertificate{},
	}
	for _, i := range plan.New {
		out.New = append(out.New, authorityCertificate(i))
	}
	return rq.answer(http.StatusOK, out)
}

// rollbackAuthority takes the last rotation back.
func (s *Server) rollbackAuthority(rq *request) error {
	i, err := s.CA.Rollback(rq.Request().Context(), rq.caller)
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, authorityCertificate(i))
}

// retireAuthority takes a root or intermediate out of bundle and chains.
func (s *Server) retireAuthority(rq *request) error {
	serial, err := rq.serial()
	if err != nil {
		return err
	}
	if err := s.CA.Retire(rq.Request().Context(), rq.caller, serial); err != nil {
		return err
	}
	return rq.NoContent(http.StatusNoContent)
}

// requestIntermediate gives the open request of an intermediate, which it makes if there is none.
func (s *Server) requestIntermediate(rq *request) error {
	made, err := s.CA.Request(rq.Request().Context(), rq.caller)
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, wire.IntermediateRequest{CSR: made.CSR, KeyID: made.KeyID, Made: made.Made})
}

// importIntermediate takes the certificate that a root elsewhere made for that request.
func (s *Server) importIntermediate(rq *request) error {
	var in wire.IntermediateImport
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	i, err := s.CA.ImportIntermediate(rq.Request().Context(), rq.caller, []byte(in.Certificate))
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, authorityCertificate(i))
}
