package conformance

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// token is a compact JWS, read and not verified: what a client may look at, and nobody may trust.
type token struct {
	parts  []string // header, payload, signature
	header map[string]json.RawMessage
	claims map[string]json.RawMessage
}

func parseToken(compact string) (token, bool) {
	t := token{parts: strings.Split(compact, ".")}
	if len(t.parts) != 3 {
		return token{}, false
	}
	for i, out := range []*map[string]json.RawMessage{&t.header, &t.claims} {
		raw, err := base64.RawURLEncoding.DecodeString(t.parts[i])
		if err != nil || json.Unmarshal(raw, out) != nil || *out == nil {
			return token{}, false
		}
	}
	return t, true
}

// issuedToken is the token of an answer; the checks that use it need "jwt".
func (r *reply) issuedToken() token {
	t, _ := parseToken(r.text("access_token"))
	return t
}

func (t token) text(name string) string {
	var s string
	if json.Unmarshal(t.claims[name], &s) != nil {
		return ""
	}
	return s
}

func (t token) headerText(name string) string {
	var s string
	if json.Unmarshal(t.header[name], &s) != nil {
		return ""
	}
	return s
}

func (t token) time(name string) (time.Time, bool) {
	n, ok := number(t.claims[name])
	return time.Unix(int64(n), 0), ok
}

// scope is what stands in a JWT of an answer, or "".
func (r *reply) scope() string { return r.issuedToken().text("scope") }

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// withHeader puts another header before payload and signature.
func (t token) withHeader(change func(map[string]json.RawMessage)) string {
	header := map[string]json.RawMessage{}
	for name, raw := range t.header {
		header[name] = raw
	}
	change(header)
	raw, _ := json.Marshal(header) // of what was JSON
	return encode(raw) + "." + t.parts[1] + "." + t.parts[2]
}

// unsigned is the token with the algorithm alg, and no signature.
func (t token) unsigned(alg string) string {
	forged := t.withHeader(func(h map[string]json.RawMessage) { h["alg"], _ = json.Marshal(alg) })
	return forged[:strings.LastIndexByte(forged, '.')+1]
}

// tamperedPayload names another subject under the same signature.
func (t token) tamperedPayload() string {
	claims := map[string]json.RawMessage{}
	for name, raw := range t.claims {
		claims[name] = raw
	}
	claims["sub"] = json.RawMessage(`"` + nobody + `"`)
	raw, _ := json.Marshal(claims)
	return t.parts[0] + "." + encode(raw) + "." + t.parts[2]
}

// tamperedSignature changes one bit in the middle of the signature.
func tamperedSignature(compact string) string {
	dot := strings.LastIndexByte(compact, '.')
	raw, err := base64.RawURLEncoding.DecodeString(compact[dot+1:])
	if err != nil || len(raw) == 0 {
		return compact + "AA"
	}
	raw = slices.Clone(raw)
	raw[len(raw)/2] ^= 1
	return compact[:dot+1] + encode(raw)
}

// forged is the same header and claims, signed with a key of our own; with embed, the header has the key (RFC 7515 4.1.3).
func (t token) forged(embed bool) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	options := &jose.SignerOptions{EmbedJWK: embed}
	for _, name := range []string{"typ", "kid"} {
		if s := t.headerText(name); s != "" && !(embed && name == "kid") {
			options.WithHeader(jose.HeaderKey(name), s)
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options)
	if err != nil {
		return "", err
	}
	payload, err := base64.RawURLEncoding.DecodeString(t.parts[1])
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// flattened is the token in the JWS JSON Serialization, its signature good (RFC 7515 7.2.2).
func (t token) flattened() string {
	raw, _ := json.Marshal(map[string]string{"protected": t.parts[0], "payload": t.parts[1], "signature": t.parts[2]})
	return string(raw)
}

// signedBy verifies a token with a JWK Set (RFC 7515 5.2).
func signedBy(compact string, set []byte) error {
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(set, &keys); err != nil {
		return err
	}
	jws, err := jose.ParseSignedCompact(compact, asymmetric())
	if err != nil {
		return err
	}
	candidates := keys.Keys
	if kid := jws.Signatures[0].Header.KeyID; kid != "" {
		candidates = keys.Key(kid)
	}
	err = jose.ErrCryptoFailure
	for _, key := range candidates {
		if _, err = jws.Verify(key); err == nil {
			return nil
		}
	}
	return err
}

func asymmetric() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA}
}

// bytesEqual is for JSON values as they stand.
func bytesEqual(a, b json.RawMessage) bool {
	return bytes.Equal(bytes.TrimSpace(a), bytes.TrimSpace(b))
}
