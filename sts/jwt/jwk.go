package jwt

import (
	"encoding/json"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// readKey reads one entry of a JWK Set; false: it is not for tokens.
func readKey(jwk Claims) (PublicKey, bool, error) {
	text := make(map[string]string)
	for _, name := range []string{"kty", "kid", "use", "alg", "crv"} {
		s, _, err := jwk.String(name)
		if err != nil {
			return PublicKey{}, false, refuse(ReasonKey, "a key's %q is not a string", name)
		}
		text[name] = s
	}
	if text["kty"] == "" {
		return PublicKey{}, false, refuse(ReasonKey, `a key has no "kty"`)
	}
	if err := refuseSecrets(jwk, text["kty"]); err != nil {
		return PublicKey{}, false, err
	}
	if jwk.Has("kid") && text["kid"] == "" {
		return PublicKey{}, false, refuse(ReasonKey, "a kid is empty")
	}
	numbers, ok := keyNumbers(text["kty"], text["crv"])
	if !ok || !signs(jwk, text["use"], text["alg"]) {
		return PublicKey{}, false, nil
	}
	key, err := readNumbers(jwk, text["kty"], text["crv"], numbers)
	if err != nil {
		return PublicKey{}, false, err
	}
	return PublicKey{KID: text["kid"], Alg: text["alg"], Key: key}, true, nil
}

// refuseSecrets finds symmetric keys and the private members of RFC 7518 6.
func refuseSecrets(jwk Claims, kty string) error {
	if kty == "oct" {
		return refuse(ReasonKey, "a key is symmetric")
	}
	for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if jwk.Has(name) {
			return refuse(ReasonKey, "a key is published with its private member %q", name)
		}
	}
	return nil
}

// keyNumbers names the members that hold the numbers of a key; false: the type or curve is none of ours.
func keyNumbers(kty, crv string) ([]string, bool) {
	switch {
	case kty == "RSA":
		return []string{"n", "e"}, true
	case kty == "EC" && slices.Contains([]string{"P-256", "P-384", "P-521"}, crv):
		return []string{"x", "y"}, true
	case kty == "OKP" && crv == "Ed25519":
		return []string{"x"}, true
	}
	return nil, false
}

// signs tells whether a key may verify signatures (RFC 7517 4.2 to 4.4). An alg that is symmetric or "none" is left
// in, so that it refuses the set.
func signs(jwk Claims, use, alg string) bool {
	if use != "" && use != "sig" {
		return false
	}
	if jwk.Has("key_ops") {
		if ops, _, err := jwk.Strings("key_ops"); err != nil || !slices.Contains(ops, "verify") {
			return false
		}
	}
	_, known := algorithmOf(alg)
	return known || slices.Contains([]string{"", "none", "HS256", "HS384", "HS512"}, alg)
}

// readNumbers has go-jose read the key from nothing but its numbers: what else stands in the entry, like
// certificates, has no say.
func readNumbers(jwk Claims, kty, crv string, numbers []string) (any, error) {
	plain := map[string]string{"kty": kty}
	if kty != "RSA" {
		plain["crv"] = crv
	}
	for _, name := range numbers {
		s, ok, err := jwk.String(name)
		if err != nil || !ok {
			return nil, refuse(ReasonKey, "a key's %q is missing or not a string", name)
		}
		if _, err := decodeBase64(s); err != nil {
			return nil, refuse(ReasonKey, "a key's %q is not canonical base64url", name)
		}
		plain[name] = s
	}
	text, err := json.Marshal(plain)
	if err != nil {
		return nil, refuse(ReasonKey, "a key can't be read")
	}
	var read jose.JSONWebKey
	if read.UnmarshalJSON(text) != nil || !read.IsPublic() {
		return nil, refuse(ReasonKey, "a %s key is broken", kty)
	}
	return read.Key, nil
}
