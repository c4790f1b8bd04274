package sts

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"slices"
	"sync"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

// maxClaims is what fits into a token of [jwt.MaxToken] bytes beside its header and the longest signature: base64url takes
// four characters for three bytes.
const maxClaims = 11 << 10

// payloadRoom is what a goroutine's stack is asked for, in bytes: most claims fit.
const payloadRoom = 1 << 10

// minted is a signed token and what names it.
type minted struct {
	compact, kid, id, transaction string
}

// bind makes the token good only in the hands of who holds the key of this connection (`bind` of its audience). The subject
// token's own cnf has no part in it: its holder was the hop before. A client that came without a certificate has nothing to
// bind to, and an unbound token would not do.
func (g *Grant) bind(thumbprint [32]byte) Step {
	rule := "service " + g.Audience.Name
	switch {
	case g.Audience.Bind != countersign.BindMTLS:
		return denied(countersign.CodeInternal, rule, "tokens can't be bound by %s", quote(g.Audience.Bind))
	case thumbprint == [32]byte{}:
		return denied(countersign.CodeUnbound, rule, "tokens for %s are bound to the client's certificate, and none was sent", g.Audience.Name).
			hint("send the client certificate too; a client assertion may stand next to it")
	}
	g.Thumbprint = &thumbprint
	return passed(rule, "bound to the client's certificate")
}

// identify gives the token its jti, which begins with its parent's so that revoking one reaches all under it, and the
// transaction that it belongs to.
func (g Grant) identify() (id, transaction string) {
	if transaction = g.Transaction; transaction == "" {
		transaction = random(16)
	}
	if g.Parent == "" {
		return random(16), transaction
	}
	return g.Parent + "." + random(8), transaction
}

func random(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails: it ends the process rather than give no randomness
	return base64.RawURLEncoding.EncodeToString(b)
}

// marshal is json.Marshal without the escapes for HTML: with them a carried value would get longer on its way, and one that
// was taken at the entry would be refused at the next hop.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// signer is the key that signs alg now. A verifier that gets the token must find the key, so the set that is served is made
// to hold it first. Between the two looks the key may be retired as compromised; then the one that took its place in the
// same instant is asked for.
func (s *Service) signer(alg string) (keyring.Key, crypto.Signer, error) {
	for last := false; ; last = true {
		key, signer, err := s.cfg.Keys.Signer(keyring.Token, alg)
		if err != nil {
			return keyring.Key{}, nil, err
		}
		if _, err = s.keys.with(key.ID); err == nil {
			return key, signer, nil
		}
		if last || countersign.AsError(err).Code != countersign.CodeNoKey {
			return keyring.Key{}, nil, err
		}
	}
}

// signers are the ready signers of our tokens, one for each alg and typ: those of the keys that signed last.
type signers struct {
	mu sync.Mutex
	of map[[2]string]readySigner
}

type readySigner struct {
	kid   string
	token *jwt.Signer
}

// get is the signer of a key that was found to be the one that signs now. Nothing of another key is kept.
func (s *signers) get(key keyring.Key, signer crypto.Signer, typ string) (*jwt.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := [2]string{key.Alg, typ}
	if ready, ok := s.of[of]; ok && ready.kid == key.ID {
		return ready.token, nil
	}
	made, err := jwt.NewSigner(signer, key.Alg, key.ID, typ)
	if err != nil {
		return nil, err
	}
	if s.of == nil {
		s.of = map[[2]string]readySigner{}
	}
	s.of[of] = readySigner{key.ID, made}
	return made, nil
}

// mint signs what was granted. Nothing of it may leave before it is recorded.
func (s *Service) mint(x *exchange) (minted, error) {
	g := &x.grant
	key, signer, err := s.signer(g.Audience.Alg)
	if err != nil {
		return minted{}, err
	}
	if x.ruling != nil {
		x.claims = x.ruling.claims
	} else {
		x.claims = g.draft(s.cfg.Issuer)
	}
	id, transaction := g.identify()
	var room [payloadRoom]byte
	payload := x.claims.payload(room[:0], g.Expires, g.IssuedAt, id, transaction)
	if len(payload) > maxClaims {
		return minted{}, countersign.Errorf(countersign.CodeCarry, "the new token's claims would have %d bytes; at most %d fit", len(payload), maxClaims).
			WithHint("ask for fewer scopes")
	}
	ready, err := s.signers.get(key, signer, g.Audience.Typ)
	if err != nil {
		return minted{}, err
	}
	var compact string
	if x.ruling != nil { // another token of the same grant was signed
		compact, err = ready.SignAlike(payload)
	} else {
		compact, err = ready.Sign(slices.Clone(payload)) // the copy keeps the room on the stack
	}
	if err != nil {
		return minted{}, err
	}
	return minted{compact: compact, kid: key.ID, id: id, transaction: transaction}, nil
}
