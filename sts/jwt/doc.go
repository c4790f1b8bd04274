// Package jwt reads and makes signed JWTs in the one strict form that standards.md allows ("JWT handling,
// everywhere"), and keeps the keys that issuers publish.
//
// A token is read in two steps. [Parse] judges its shape and makes a [Token], which proves nothing yet.
// [Token.Verify] judges the signature with the keys of one issuer. Who the token is from, for and about is the
// caller's to judge, from its [Claims]; [Claims.CheckTimes] does the times. go-jose reads and writes
// keys. Signatures are made and judged by the standard library alone, which is what makes that cheap, and shape and claims
// here, because go-jose takes non-canonical base64url, JWS JSON serialization and tokens without exp.
//
// A DPoP proof is another thing and has a parser of its own, [ParseProof].
//
// The package never takes symmetric keys, "none" or encrypted tokens; never follows a URL that a token names, or, but in
// a proof, a key; never tries several keys; has no option that leaves a check out; and never keys anything by a token's
// text.
package jwt
