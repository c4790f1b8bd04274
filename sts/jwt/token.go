package jwt

import (
	"encoding/base64"
	"slices"
	"strings"
)

// MaxToken is the most bytes that a token may have.
const MaxToken = 16 << 10

// longest is the most bytes that a signed document which is no token may have: twice what we make.
const longest = 1 << 20

const (
	maxKID = 256
	maxTyp = 64
)

// Token is a token whose shape was judged, and nothing else: until [Token.Verify] returns nil, all in it is what
// somebody wrote.
type Token struct {
	Alg, KID, Typ string // of the header; KID and Typ "" if they are not there
	Claims        Claims
	Payload       []byte // the exact JSON that is signed; must not be changed

	compact   string
	signature []byte
	digest    *[32]byte // nil: not computed yet. A token is shared, so it is set before anybody else has it
}

// Parse reads a JWS in compact serialization (RFC 7515 7.1) with a JSON object as its payload. It judges shape only.
// A token longer than [MaxToken] is refused before anything else is done with it. Each part has one spelling, so
// tokens that differ in text differ in content. Header parameters that are not known here are ignored (RFC 7515 4),
// those that name keys, extensions or compression are refused: jku x5u x5c jwk crit b64 zip enc. Errors are of type
// [*Error].
func Parse(compact string) (*Token, error) { return parse(compact, MaxToken) }

// ParseDocument reads what is signed and no token, like the list of an issuer's revocations, exactly as [Parse] reads a token;
// only that it may have up to 1 MiB. What it is the caller tells by its typ.
func ParseDocument(compact string) (*Token, error) { return parse(compact, longest) }

func parse(compact string, most int) (*Token, error) {
	if len(compact) > most {
		return nil, refuse(ReasonSize, "the token has more than %d bytes", most)
	}
	if strings.Count(compact, ".") != 2 {
		return nil, refuse(ReasonParts, "not a JWS in compact serialization: there are not exactly three parts")
	}
	var decoded [3][]byte
	rest := compact
	for i := range decoded {
		var part string
		part, rest, _ = strings.Cut(rest, ".")
		b, err := decodeBase64(part)
		if err != nil {
			return nil, err
		}
		decoded[i] = b
	}
	t := &Token{Payload: decoded[1], compact: compact, signature: decoded[2]}
	if err := t.readHeader(decoded[0]); err != nil {
		return nil, err
	}
	if len(t.signature) == 0 {
		return nil, refuse(ReasonSignature, "the token is not signed")
	}
	claims, err := parseObject(t.Payload)
	if err != nil {
		return nil, err
	}
	t.Claims = claims
	return t, nil
}

// decodeBase64 reads base64url in its one spelling. Strict refuses trailing bits that are not zero; what Go's decoder
// skips even then are CR and LF.
func decodeBase64(s string) ([]byte, error) {
	b, err := strictBase64.DecodeString(s)
	if err != nil || strings.IndexByte(s, '\n') >= 0 || strings.IndexByte(s, '\r') >= 0 {
		return nil, refuse(ReasonBase64, "not canonical base64url without padding")
	}
	return b, nil
}

var strictBase64 = base64.RawURLEncoding.Strict()

func (t *Token) readHeader(b []byte) error {
	header, err := parseObject(b)
	if err != nil {
		return err
	}
	for name := range header.All() {
		switch name {
		case "jku", "x5u", "x5c", "jwk", "crit", "b64", "zip", "enc":
			return refuse(ReasonHeader, "the header parameter %q is not taken here", name)
		}
	}
	if t.Alg, err = headerText(header, "alg", maxTyp); err != nil {
		return err
	}
	if _, known := algorithmOf(t.Alg); !known {
		return refuse(ReasonAlg, "the algorithm %.20q is not taken here", t.Alg)
	}
	if t.KID, err = headerText(header, "kid", maxKID); err != nil {
		return err
	}
	t.Typ, err = headerText(header, "typ", maxTyp)
	return err
}

// headerText reads a header parameter that is a string of 1 to longest printable ASCII characters, "" if it is not
// there.
func headerText(header Claims, name string, longest int) (string, error) {
	s, ok, err := header.String(name)
	if err != nil {
		return "", refuse(ReasonHeader, "the header parameter %q is not a string", name)
	}
	if ok && (len(s) == 0 || len(s) > longest || !printable(s)) {
		return "", refuse(ReasonHeader, "the header parameter %q is not 1 to %d printable characters", name, longest)
	}
	return s, nil
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

// HasType tells whether the token's typ is the media type application/<subtype>, written with or without
// "application/" and in any case (RFC 7515 4.1.9, RFC 9068 4). A token without typ has no type.
func (t *Token) HasType(subtype string) bool {
	typ := t.Typ
	if head, tail, ok := strings.Cut(typ, "/"); ok && strings.EqualFold(head, "application") {
		typ = tail
	}
	return subtype != "" && strings.EqualFold(typ, subtype)
}

// Verify judges the signature. The algorithm must be one of algs, and the one that the key is for: by its type, its
// curve and, where the set says so, its "alg". The key is the one that kid names; a token without kid is taken only
// where the issuer publishes a single key. A kid that names none is [ReasonKID].
func (t *Token) Verify(keys *Set, algs []string) error {
	key, err := t.key(keys, algs)
	if err != nil {
		return err
	}
	return t.verify(key)
}

// key is the one that must have signed the token; everything but the signature is judged.
func (t *Token) key(keys *Set, algs []string) (PublicKey, error) {
	if !slices.Contains(algs, t.Alg) {
		return PublicKey{}, refuse(ReasonAlg, "the algorithm %q is not one that is accepted from this issuer", t.Alg)
	}
	key, err := keys.find(t.KID)
	if err != nil {
		return PublicKey{}, err
	}
	alg, known := algorithmOf(t.Alg)
	if !known || !alg.fits(key.Key) || key.Alg != "" && key.Alg != t.Alg {
		return PublicKey{}, refuse(ReasonAlg, "the key %.40q is not for the algorithm %q", t.KID, t.Alg)
	}
	return key, nil
}

// verify judges the signature by a key that [Token.key] gave.
func (t *Token) verify(key PublicKey) error {
	if err := checkSignature(key.Key, t.signature); err != nil {
		return err
	}
	alg, _ := algorithmOf(t.Alg)
	input := t.compact[:strings.LastIndexByte(t.compact, '.')]
	if !alg.verify(key.Key, []byte(input), t.signature) {
		return refuse(ReasonSignature, "the signature is not the key's")
	}
	return nil
}
