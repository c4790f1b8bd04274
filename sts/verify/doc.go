// Package verify is the public SDK for services that receive tokens: it tells whether a token is one of the configured
// issuer for the configured audience, still in force and held by who sends it, and what it says.
//
//	v, err := verify.New(verify.Config{Issuer: "https://countersign.shop.internal:8443", Audience: "orders", Roots: roots})
//	...
//	http.ListenAndServeTLS(address, cert, key, v.Middleware(mux))     // and in a handler: verify.FromContext(r.Context())
//
// [New] is for relay tokens, which Countersign made for this service. [NewExternal] is for the entry of the chain: the
// access tokens of users, which an identity provider made.
//
// # Bound tokens
//
// A token with `cnf` is good only together with the proof of a key. [Verifier.VerifyRequest] and the middleware look for
// it where it must be, and [Verifier.Verify], which sees the token alone, refuses such a token:
//
//   - `x5t#S256` (RFC 8705 3): the client certificate of the request's own TLS connection, which the server must have asked
//     for and verified (tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert). Of relay tokens the successor of the
//     certificate is taken too, so that a renewal between the minting of a token and its use costs nothing: a certificate of
//     the service that the token was issued to (its one URI SAN is `client_id`) which was issued at or after `iat`.
//   - `jkt` (RFC 9449), external tokens only: the scheme DPoP instead of Bearer, and a proof that passes all of RFC 9449 4.3.
//
// # Revocation
//
// Countersign publishes what it revoked. A verifier made by New asks for that list every few seconds while tokens come,
// and refuses all tokens when the list it has is older than [Config.MaxStale]. An issuer whose metadata names no list has
// none, and nothing is asked for.
//
// # What it never does
//
// It never takes a token of another issuer or for another audience, never one without a lifetime, never one from the URL
// or the body of a request, never follows what a token names, never believes a header about the client's certificate, never
// tells a client why it was refused beyond the words of RFC 6750, and has no option that leaves a check out. It imports
// neither echo nor gRPC: their adapters are in echoverify and grpcverify.
package verify
