// Package mtls is the SDK with which a service is an identity: a certificate source that enrols, renews and reloads by
// itself, plain *tls.Config values for servers and clients with authorisation by ID, and tokens for the next hop.
//
//	src, err := mtls.Open(ctx, mtls.Config{Dir: "/etc/orders/identity"})
//	server := &http.Server{Handler: h, TLSConfig: mtls.Server(src, mtls.Callers())}
//	err = server.ListenAndServeTLS("", "")
//
// A [Source] draws the time of each renewal once per certificate, makes a new key for each, goes on trying whatever
// happens, and when its certificate is over it falls back to what it enrolled with: no way to a certificate needs a valid
// one. What it writes to the identity directory is whole or not there (package ca/identity).
//
// The package never admits an operator or the authority as a peer, never takes a root or a name from anywhere but the
// authority, never replaces a key that it can't read, never sends a token that was not exchanged for its receiver, nor to
// anybody but this receiver, and never logs a token or a key. It never ends the process.
package mtls
