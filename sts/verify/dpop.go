package verify

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

// proofAge is how old a DPoP proof may be, besides what clocks differ. It is made for one request.
const proofAge = time.Minute

const maxProofJTI = 256

// proofAlgorithms are those that are taken in DPoP proofs: asymmetric, as all that package jwt knows.
func proofAlgorithms() []string { return []string{"ES256", "ES384", "EdDSA", "PS256", "RS256"} }

// proofs is what a verifier remembers about DPoP proofs.
type proofs struct {
	seen   *replays
	nonces *nonces // nil: not demanded
}

func newProofs(cfg Config) *proofs {
	p := &proofs{seen: newReplays(proofAge+2*cfg.Leeway, maxReplays)}
	if cfg.Nonces {
		p.nonces = newNonces()
	}
	return p
}

// checkProof makes the 12 checks of RFC 9449 4.3 for a request with a bound token whose own checks are made. The numbers are
// the RFC's. What is cheap comes before the signature, and the memory of proofs last: only a proof that was good is used up.
func (v *Verifier) checkProof(c *Claims, token string, r *http.Request, now time.Time) error {
	if r == nil {
		return refuse(ReasonBinding, "the token is bound to a DPoP key, and there is no request with a proof")
	}
	values := r.Header.Values("DPoP")
	if len(values) != 1 { // 1
		return refuse(ReasonProof, "the request has %d DPoP headers, not 1", len(values))
	}
	p, err := jwt.ParseProof(values[0], proofAlgorithms()) // 2, 4, 5, 6, 7
	if err != nil {
		return &Error{Reason: ReasonProof, Msg: "the DPoP proof can't be taken", Err: err}
	}
	id, err := v.checkProofClaims(p, token, r, now)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(p.Thumbprint), []byte(c.ProofKey)) != 1 { // 12b
		return refuse(ReasonBinding, "the token is bound to another key than that of its DPoP proof")
	}
	switch v.proofs.seen.add(sha256.Sum256([]byte(p.Thumbprint+"."+id)), now) { // 11.1
	case replayed:
		return refuse(ReasonProof, "the DPoP proof was used before")
	case full:
		return refuse(ReasonReplays, "more DPoP proofs came within %s than are remembered", proofAge)
	}
	return nil
}

// checkProofClaims makes the checks 3, 8 to 11 and 12a, and returns the proof's jti.
func (v *Verifier) checkProofClaims(p *jwt.Proof, token string, r *http.Request, now time.Time) (string, error) {
	text := make(map[string]string, 5)
	for _, name := range [...]string{"jti", "htm", "htu", "ath"} { // 3
		s, err := nonEmpty(p.Claims, name)
		if err != nil {
			return "", refuse(ReasonProof, "the DPoP proof's %q is missing, empty or not a string", name)
		}
		text[name] = s
	}
	if len(text["jti"]) > maxProofJTI {
		return "", refuse(ReasonProof, "the DPoP proof's jti has more than %d bytes", maxProofJTI)
	}
	if text["htm"] != r.Method { // 8
		return "", refuse(ReasonProof, "the DPoP proof is for the method %.20q", text["htm"])
	}
	if !sameURI(text["htu"], v.base, r.URL.EscapedPath()) { // 9
		return "", refuse(ReasonProof, "the DPoP proof is for the URI %.200q", text["htu"])
	}
	if n := v.proofs.nonces; n != nil { // 10
		if nonce, _, err := p.Claims.String("nonce"); err != nil || !n.good(nonce, now) {
			return "", refuse(ReasonNonce, "the DPoP proof has no nonce of ours, or an old one")
		}
	}
	iat, ok, err := p.Claims.Time("iat") // 3, 11
	if err != nil || !ok {
		return "", refuse(ReasonProof, `the DPoP proof's "iat" is missing or not a time`)
	}
	if iat.After(now.Add(v.cfg.Leeway)) || iat.Before(now.Add(-proofAge-v.cfg.Leeway)) {
		return "", refuse(ReasonProof, "the DPoP proof was made at %s", iat.Format(time.RFC3339))
	}
	sum := sha256.Sum256([]byte(token))
	ath := base64.RawURLEncoding.EncodeToString(sum[:])
	if subtle.ConstantTimeCompare([]byte(ath), []byte(text["ath"])) != 1 { // 12a
		return "", refuse(ReasonProof, "the DPoP proof is for another token")
	}
	return text["jti"], nil
}
