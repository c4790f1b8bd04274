package countersign

import "strings"

// ReservedClaims are the claims that no issuer's token may hand on to a relay token by `carry`, because somebody
// already gives them a meaning: we set them, or verifiers and resource servers act on them. Claims that describe a
// person (OpenID Connect Core 5.1: email, name and so on) are not among them; they are what `carry` is for.
func ReservedClaims() []string {
	return []string{
		// RFC 7519 4.1
		"iss", "sub", "aud", "exp", "nbf", "iat", "jti",
		// RFC 8693 4; `scp` is another spelling of `scope` that resource servers grant by, too
		"act", "may_act", "scope", "scp", "client_id",
		// RFC 7800 3.1, used by RFC 8705 3.1
		"cnf",
		// RFC 9068 2.2.1, 2.2.3.1
		"auth_time", "acr", "amr", "groups", "roles", "entitlements",
		// OpenID Connect Core 2, 3.1.3.6, 3.3.2.11, 5.6.2, 7.4; Front- and Back-Channel Logout
		"nonce", "azp", "at_hash", "c_hash", "s_hash", "_claim_names", "_claim_sources", "sub_jwk", "sid", "events",
		// RFC 8417 2.2, RFC 9396 9.1, RFC 9493 4, RFC 7662 2.2
		"txn", "toe", "authorization_details", "sub_id", "active", "token_type",
		// our own, and the payload `typ` by which kinds of token are told apart
		"sub_iss", "typ",
	}
}

// ReservedClaim tells whether name is one of [ReservedClaims] in any case: encoding/json, and so many a verifier, reads
// "Scope" into a field for "scope".
func ReservedClaim(name string) bool {
	for _, reserved := range ReservedClaims() {
		if strings.EqualFold(name, reserved) {
			return true
		}
	}
	return false
}
