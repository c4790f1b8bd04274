package api

import (
	"net/http"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/keyring"
)

// keys lists the public halves of all keys.
func (s *Server) keys(rq *request) error {
	now := s.Now()
	out := wire.Keys{Keys: []wire.Key{}}
	for _, purpose := range keyring.Purposes() {
		for _, k := range s.Keys.Keys(purpose) {
			out.Keys = append(out.Keys, wire.Key{
				ID: k.ID, Purpose: string(k.Purpose), Alg: k.Alg, State: k.State(now).String(),
				Published: k.Published, SignsFrom: k.SignsFrom, SignsUntil: k.SignsUntil, VerifiesUntil: k.VerifiesUntil, KMS: k.KMS,
			})
		}
	}
	return rq.answer(http.StatusOK, out)
}

// rotate makes the next keys of a purpose. Signing with them at once breaks verifiers with old caches, so that needs
// more than the schedule does.
func (s *Server) rotate(rq *request) error {
	var in wire.RotateRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if in.Now {
		if err := s.require(rq, authAdmin); err != nil {
			return err
		}
	}
	plan, err := s.Keys.Rotate(rq.Request().Context(), rq.caller, keyring.Purpose(rq.Param("purpose")),
		keyring.RotateOptions{Now: in.Now, DryRun: in.DryRun})
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, keyPlan(plan))
}

// rotateKEK puts all keys under a new key-encryption key.
func (s *Server) rotateKEK(rq *request) error {
	n, err := s.Keys.RotateKEK(rq.Request().Context(), rq.caller)
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, wire.KEKRotation{Keys: n})
}

// retire takes a key out of the published ones, before its time only if it is said to be compromised.
func (s *Server) retire(rq *request) error {
	var in wire.RetireRequest
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	plan, err := s.Keys.Retire(rq.Request().Context(), rq.caller, rq.Param("kid"),
		keyring.RetireOptions{Compromised: in.Compromised, DryRun: in.DryRun})
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, keyPlan(plan))
}

func keyPlan(plan keyring.Plan) wire.KeyPlan {
	out := wire.KeyPlan{At: plan.At, DryRun: plan.DryRun, Note: plan.Note, Keys: make([]wire.Key, 0, len(plan.Keys))}
	for _, k := range plan.Keys {
		out.Keys = append(out.Keys, wire.Key{
			ID: k.ID, Purpose: string(k.Purpose), Alg: k.Alg, State: k.State, Published: k.Published, SignsFrom: k.SignsFrom,
			SignsUntil: k.SignsUntil, VerifiesUntil: k.VerifiesUntil, KMS: k.KMS, New: k.New,
		})
	}
	return out
}
