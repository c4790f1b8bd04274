package jwt

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	_ "crypto/sha512" // the hashes of RS384, ES384 and so on
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Signer makes tokens with one key and one typ. It is immutable; keys that live elsewhere (KMS, PKCS#11) sign through
// their [crypto.Signer].
type Signer struct {
	key    crypto.Signer
	hash   crypto.Hash // 0: the message itself is signed
	half   int         // of an ECDSA signature: the bytes of r and of s; 0 for the others
	size   int         // of a signature, at most
	header string      // as it begins each token, with its dot
}

// NewSigner checks what every token of the signer needs. alg must be the one of ES256, ES384, ES512, EdDSA, or one of
// RS256, RS384, RS512, that key is for; the header will hold exactly alg, kid and typ.
func NewSigner(key crypto.Signer, alg, kid, typ string) (*Signer, error) {
	if err := checkSigning(key, alg); err != nil {
		return nil, err
	}
	if kid == "" || len(kid) > maxKID || !printable(kid) || typ == "" || len(typ) > maxTyp || !printable(typ) {
		return nil, fmt.Errorf("sign a token: kid and typ must be printable and at most %d and %d long", maxKID, maxTyp)
	}
	header, err := marshal(struct {
		Alg string `json:"alg"`
		KID string `json:"kid"`
		Typ string `json:"typ"`
	}{alg, kid, typ})
	if err != nil {
		return nil, fmt.Errorf("sign a token: write its header: %w", err)
	}
	a, _ := algorithmOf(alg)
	s := &Signer{key: key, size: maxSignature(key.Public()), header: base64.RawURLEncoding.EncodeToString(header) + "."}
	if a.curve != nil {
		s.half = (a.curve.Params().BitSize + 7) / 8
	}
	switch alg[len(alg)-3:] {
	case "256":
		s.hash = crypto.SHA256
	case "384":
		s.hash = crypto.SHA384
	case "512":
		s.hash = crypto.SHA512
	}
	return s, nil
}

// tokenRoom is what a goroutine's stack is asked for, in bytes.
const tokenRoom = 2 << 10

// MaxDocument is the most bytes that a signed document which is no token may have.
const MaxDocument = 512 << 10

// Sign makes a token of payload that [Parse] takes. What Parse would refuse is an error.
func (s *Signer) Sign(payload []byte) (string, error) { return s.compact(payload, MaxToken) }

// SignDocument is Sign for what is no token and may be longer, up to [MaxDocument] bytes. Parse does not take what is longer
// than a token; the typ says what it is.
func (s *Signer) SignDocument(payload []byte) (string, error) { return s.compact(payload, MaxDocument) }

// SignAlike is Sign for a payload that differs from one that [CheckPayload] took in nothing but the digits of numbers and the
// letters, digits, "-", "_" and "." of strings: it is not read again.
func (s *Signer) SignAlike(payload []byte) (string, error) { return s.encode(payload, MaxToken) }

// CheckPayload tells why Sign would not take a payload, whatever its length.
func CheckPayload(payload []byte) error {
	if _, err := parseObject(payload); err != nil {
		return fmt.Errorf("sign a token: its claims: %w", err)
	}
	return nil
}

func (s *Signer) compact(payload []byte, most int) (string, error) {
	if err := CheckPayload(payload); err != nil {
		return "", err
	}
	return s.encode(payload, most)
}

func (s *Signer) encode(payload []byte, most int) (string, error) {
	enc := base64.RawURLEncoding
	size := len(s.header) + enc.EncodedLen(len(payload)) + 1 + enc.EncodedLen(s.size)
	var room [tokenRoom]byte // most tokens are built here, and only the string is kept
	token := room[:0]
	if size > len(room) {
		token = make([]byte, 0, size)
	}
	token = append(token, s.header...)
	token = enc.AppendEncode(token, payload)
	signature, err := s.sign(token)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	token = append(token, '.')
	token = enc.AppendEncode(token, signature)
	if len(token) > most {
		return "", fmt.Errorf("sign a token: it would have %d bytes; at most %d are taken", len(token), most)
	}
	return string(token), nil
}

// sign makes the signature of input as JWS writes it (RFC 7518 3.3, 3.4; RFC 8037 3.1).
func (s *Signer) sign(input []byte) ([]byte, error) {
	var digest []byte // never input itself, which would no longer live on the stack
	switch s.hash {
	case 0:
		digest = bytes.Clone(input)
	case crypto.SHA256:
		sum := sha256.Sum256(input)
		digest = sum[:]
	default:
		h := s.hash.New()
		h.Write(bytes.Clone(input))
		digest = h.Sum(make([]byte, 0, 64))
	}
	signature, err := s.key.Sign(rand.Reader, digest, s.hash)
	if err != nil || s.half == 0 {
		return signature, err
	}
	return fixedECDSA(signature, s.half)
}

// fixedECDSA turns the SEQUENCE of r and s that a crypto.Signer gives (RFC 3279 2.2.3) into both as big-endian numbers
// of half bytes each (RFC 7518 3.4).
func fixedECDSA(der []byte, half int) ([]byte, error) {
	var r, s []byte
	outer, inner := cryptobyte.String(der), cryptobyte.String(nil)
	if !outer.ReadASN1(&inner, asn1.SEQUENCE) || !outer.Empty() || !inner.ReadASN1Integer(&r) || !inner.ReadASN1Integer(&s) ||
		!inner.Empty() || len(r) > half || len(s) > half {
		return nil, errors.New("the key gave something else than an ECDSA signature")
	}
	fixed := make([]byte, 2*half)
	copy(fixed[half-len(r):], r)
	copy(fixed[2*half-len(s):], s)
	return fixed, nil
}

// maxSignature is the size of a signature by the key, at most.
func maxSignature(key crypto.PublicKey) int {
	if _, ok := key.(ed25519.PublicKey); ok {
		return ed25519.SignatureSize
	}
	if sized, ok := key.(interface{ Size() int }); ok { // RSA
		return sized.Size()
	}
	return 2 * 66 // P-521
}

// Sign makes one token: see [NewSigner]. claims is anything that encoding/json writes as an object.
func Sign(key crypto.Signer, alg, kid, typ string, claims any) (string, error) {
	s, err := NewSigner(key, alg, kid, typ)
	if err != nil {
		return "", err
	}
	payload, err := marshal(claims)
	if err != nil {
		return "", fmt.Errorf("sign a token: write its claims: %w", err)
	}
	return s.Sign(payload)
}

// checkSigning leaves PS256, PS384 and PS512 out: nothing here signs with them.
func checkSigning(signer crypto.Signer, alg string) error {
	a, known := algorithmOf(alg)
	if !known || a.rsa && alg[0] == 'P' {
		return fmt.Errorf("sign a token: the algorithm %q is not one that is signed with", alg)
	}
	if err := checkKey(signer.Public()); err != nil {
		return fmt.Errorf("sign a token: %w", err)
	}
	if !a.fits(signer.Public()) {
		return fmt.Errorf("sign a token: the key is not for the algorithm %q", alg)
	}
	return nil
}

// marshal is json.Marshal without the escapes for HTML, which only make tokens longer.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
