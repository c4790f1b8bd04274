package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/sts/jwt"
)

// ProofType is the typ of a proof of renewal: a JWT that the holder of a certificate signs with its key, where no TLS connection
// can carry the certificate. It opens nothing but the renewal, and only for the one new key that it names.
const ProofType = "countersign-renewal+jwt"

// ProofLife is the longest that a proof may be valid, from now.
const ProofLife = 5 * time.Minute

const (
	proofSkew = time.Minute
	maxProof  = 8 << 10 // bytes; RSA-4096 needs under 2 KiB
	maxJTI    = 128
)

// Renewal is what a proof says, found right.
type Renewal struct {
	SPKI string        // the one key that it is for: lower-case hex SHA-256 of its SubjectPublicKeyInfo
	Left time.Duration // until the end of the certificate; negative: it has ended
}

// renewalProof is a proof as it was sent: of the right form, and nothing in it is verified.
type renewalProof struct {
	token  *jwt.Token
	serial string
	id     countersign.ID
	jti    string
	spki   string
	exp    time.Time
}

// renewalUse is the record that a proof was used, until its exp refuses it.
type renewalUse struct {
	Serial string    `json:"serial"`
	At     time.Time `json:"at"`
}

func proofsTable() storage.Table[renewalUse] {
	return storage.Table[renewalUse]{Name: "renewal_proofs"}
}

// IsProof tells whether a JWT is to be judged as a proof of renewal: by what its typ says, also where the rest is none that
// would be taken, so that its sender hears what is wrong with a proof. It verifies nothing.
func IsProof(compact string) bool {
	head, _, ok := strings.Cut(compact, ".")
	if !ok || len(head) > maxProof {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return false
	}
	var header struct {
		Typ string `json:"typ"`
	}
	return json.Unmarshal(b, &header) == nil && strings.EqualFold(strings.TrimPrefix(header.Typ, "application/"), ProofType)
}

// parseProof is pure. Header: alg, typ, kid = the serial of the certificate; none that names or brings a key, as jwk and x5c, is
// taken. Claims: iss = sub = the certificate's ID; aud = audience alone; jti; exp; spki.
func parseProof(compact, audience string, now time.Time) (renewalProof, error) {
	var p renewalProof
	refuse := func(format string, args ...any) (renewalProof, error) {
		return p, countersign.Errorf(countersign.CodeProof, "the proof of renewal: "+format, args...)
	}
	if len(compact) > maxProof {
		return refuse("it has over %d bytes", maxProof)
	}
	t, err := jwt.Parse(compact)
	if err != nil {
		return refuse("%v", err)
	}
	if !t.HasType(ProofType) {
		return refuse("its typ is not %s", ProofType)
	}
	if raw, err := hex.DecodeString(t.KID); err != nil || len(raw) == 0 || len(raw) > 20 || strings.ToLower(t.KID) != t.KID {
		return refuse("its kid is not the serial of a certificate, in lower-case hex")
	}
	iss, _, err := t.Claims.String("iss")
	sub, _, err2 := t.Claims.String("sub")
	id, err3 := countersign.ParseID(sub)
	if err = errors.Join(err, err2, err3); err != nil || iss != sub {
		return refuse("its iss and sub are not both the certificate's ID")
	}
	aud, err := t.Claims.Audience()
	if err != nil || len(aud) != 1 || aud[0] != audience {
		return p, countersign.Errorf(countersign.CodeProofAudience, "the proof of renewal is not for this issuer alone").
			WithHint("its aud must be %s and nothing else", audience)
	}
	jti, _, err := t.Claims.String("jti")
	if err != nil || jti == "" || len(jti) > maxJTI || strings.ContainsFunc(jti, unicode.IsControl) {
		return refuse("its jti is not a string of 1 to %d bytes without control characters", maxJTI)
	}
	spki, _, err := t.Claims.String("spki")
	if raw, bad := hex.DecodeString(spki); err != nil || bad != nil || len(raw) != sha256.Size || strings.ToLower(spki) != spki {
		return refuse("its spki is not the SHA-256 of the new key's SubjectPublicKeyInfo, in lower-case hex")
	}
	exp, err := proofTimes(t, now)
	if err != nil {
		return p, err
	}
	return renewalProof{token: t, serial: t.KID, id: id, jti: jti, spki: spki, exp: exp}, nil
}

func proofTimes(t *jwt.Token, now time.Time) (time.Time, error) {
	exp, ok, err := t.Claims.Time("exp")
	if err == nil {
		err = t.Claims.CheckTimes(now, proofSkew)
	}
	if err != nil || !ok || exp.After(now.Add(ProofLife+proofSkew)) {
		return exp, countersign.Errorf(countersign.CodeProofTime, "the proof of renewal is not valid now, or for longer than %s", ProofLife).
			WithHint("make a fresh one, with exp %s from now at most; compare the clocks", ProofLife).Because(err)
	}
	return exp, nil
}

// ProofCaller adds to c what a proof of renewal proves: who may have the successor of the certificate whose serial it names, and
// nothing else. Its signature is judged by the key of the recorded certificate, then the certificate exactly as a TLS client's
// ([Authority.PeerCaller], and within the grace [Authority.ExpiredCaller]); then it is used up, durably. Crash point: after that
// its sender makes another. Whoever can't sign with the certificate's key learns of no serial whether it exists, and uses up
// nothing. Codes: CodeProof, CodeProofTime, CodeProofAudience, CodeProofUsed, and those of the certificate.
func (a *Authority) ProofCaller(ctx context.Context, compact, audience string, c countersign.Caller) (countersign.Caller, Renewal, error) {
	var none Renewal
	now := a.cfg.Now()
	p, err := parseProof(compact, audience, now)
	if err != nil {
		return c, none, err
	}
	leaf, err := a.proven(ctx, p)
	if err != nil {
		return c, none, err
	}
	known, err := a.PeerCaller(ctx, leaf, c)
	if countersign.AsError(err).Code == countersign.CodeExpiredPeer {
		known, err = a.ExpiredCaller(ctx, leaf, c)
	}
	if err != nil {
		return c, none, err
	}
	if known.ID != p.id {
		return c, none, errProof(errors.New("it names another ID than its certificate"))
	}
	if err := a.useProof(ctx, p); err != nil {
		return c, none, err
	}
	if known.Method == countersign.ByCertificate {
		known.Method, known.Role = countersign.ByProof, countersign.RoleNone
	}
	known.Assertion = p.jti
	return known, Renewal{SPKI: p.spki, Left: leaf.NotAfter.Sub(now)}, nil
}

// proven is the recorded certificate whose key signed the proof. The algorithm is the key's.
func (a *Authority) proven(ctx context.Context, p renewalProof) (*x509.Certificate, error) {
	entry, err := certificatesTable().Get(ctx, a.cfg.Store, p.serial)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, errProof(err)
	}
	if err != nil {
		return nil, storeError(err)
	}
	leaf, err := parseCertificate(entry.Value.PEM)
	if err != nil {
		return nil, countersign.Errorf(countersign.CodeDamaged, "the record of the certificate %s is damaged", p.serial).Because(err)
	}
	keys, err := jwt.NewSet(jwt.PublicKey{KID: p.serial, Key: leaf.PublicKey})
	if err != nil {
		return nil, errProof(err)
	}
	if err := p.token.Verify(keys, []string{"ES256", "ES384", "EdDSA", "RS256", "PS256"}); err != nil {
		return nil, errProof(err)
	}
	return leaf, nil
}

// errProof tells strangers the same whatever is wrong; the log has the cause.
func errProof(cause error) error {
	return countersign.Errorf(countersign.CodeProof, "the proof of renewal is not signed with the key of a certificate on record here").
		WithHint("kid is the certificate's serial, in lower-case hex; sign with its key, and an alg that fits that").Because(cause)
}

// useProof marks a proof as used. Of two that come at once one wins: the condition is judged in the commit. exp is judged with
// skew on our clock, the record's end by the store's: one skew for each.
func (a *Authority) useProof(ctx context.Context, p renewalProof) error {
	sum := sha256.Sum256([]byte(p.serial + "\x00" + p.jti))
	op, err := proofsTable().Put(hex.EncodeToString(sum[:]), renewalUse{Serial: p.serial, At: a.cfg.Now().UTC()},
		p.exp.Add(2*proofSkew), storage.Cond{Absent: true})
	if err != nil {
		return err
	}
	_, err = a.cfg.Store.Apply(ctx, op)
	if errors.Is(err, storage.ErrConflict) {
		a.cfg.Logger.Warn("a proof of renewal was sent again", "id", p.id, "serial", p.serial, "jti", p.jti)
		return countersign.Errorf(countersign.CodeProofUsed, "the proof of renewal was used before").
			WithHint("make one with a new jti for each request")
	}
	return storeError(err)
}

// forKey tells why a request by a proof can't have a certificate for its key: who ends the TLS connection sees the proof, and
// must not get a certificate for a key of his own with it.
func forKey(by countersign.Caller, r IssueRequest, c csr) error {
	proof := by.Method == countersign.ByProof || by.Method == countersign.ByExpired && by.Assertion != ""
	if proof && r.SPKI != c.spki {
		return countersign.Errorf(countersign.CodeProofKey, "the proof of renewal is for another key than the request's").
			WithHint("spki is the SHA-256 of the SubjectPublicKeyInfo in the certificate request")
	}
	return nil
}
