package sts

import (
	"encoding/json"

	"github.com/countersign/countersign"
)

// Introspect answers for a token of ours as RFC 7662 2.2 says: its claims as they stand, with active and token_type. It is
// told to those whom the token concerns: the service that it is for, those that passed it on (act), its client, and
// operators. Everybody else, and everybody about a token that is over, revoked, of a retired key or unknown, gets
// {"active":false} and nothing more. Codes: those of the client, and of what keeps the keys and revocations from being read.
func (s *Service) Introspect(by countersign.Caller, r TokenForm) ([]byte, error) {
	p := s.cfg.Policy()
	viewer := by.Role >= countersign.RoleViewer
	if !viewer {
		var err error
		if p, _, err = s.client(by, r.ClientID); err != nil {
			return nil, err
		}
	}
	token, err := s.relay(p, r.Token, s.cfg.Now())
	if err != nil && countersign.AsError(err).Code != countersign.CodeTokenKind {
		return nil, err
	}
	active := token != nil && (viewer || token.concerns(p, by.ID))
	if active {
		_, found, err := s.revocations.find(token.facts)
		if err != nil {
			return nil, err
		}
		active = !found
	}
	if !active {
		s.metrics.introspections.WithLabelValues("inactive").Inc()
		return []byte(`{"active":false}`), nil
	}
	s.metrics.introspections.WithLabelValues("active").Inc()
	answer := make(map[string]json.RawMessage, 20)
	for _, name := range token.claims.Names() {
		answer[name], _ = token.claims.Raw(name)
	}
	// Last: no claim that was carried can say it. Who holds a bound token proves it (RFC 8705 3.2 has cnf), the type stays.
	answer["active"], answer["token_type"] = json.RawMessage("true"), json.RawMessage(`"Bearer"`)
	return marshal(answer)
}
