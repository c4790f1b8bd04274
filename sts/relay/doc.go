// Package relay is the zero-code path to the chain, and its gateway: a proxy beside an application of any language, or in front
// of all of them.
//
// Inbound it ends TLS, finds out who asks (a service of the call graph by mTLS and its relay token; at a public listener a user
// by the access token of his provider), holds the request against its route, and hands it to the application with the
// identity in headers ([UserHeader] and its neighbours) that nobody outside can set. Outbound the application calls a plain local
// address per service with the token or the handle that the relay gave it; the relay verifies that token again, exchanges it for
// one that is good for that service only, and speaks mTLS. Who can reach the local addresses of a relay is the service: they
// are a loopback port or a Unix socket, and nothing tells two processes of one machine apart there.
//
// It never forwards a token that it did not exchange, never lets a request without a user go out as the service itself unless the
// configuration says so for that service, never believes an identity header, never keeps a token longer than the request it
// came with (and [App.Linger]), and has no option that leaves a check out. What can't be decided is refused.
package relay
