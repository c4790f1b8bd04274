// Package local serves the identities of one host to the processes on it, over one Unix socket: the SPIFFE Workload API and
// Envoy's SDS v3 as gRPC, and POST /exchange as plain HTTP.
//
// A caller is who the kernel says connected (SO_PEERCRED): its user, its primary group, its program. The rules of the
// configuration give it one identity; who matches none is denied. Nothing that a caller sends says who it is.
//
// The package never issues or renews anything: identities come from ca/mtls, JWT-SVIDs and relay tokens from the daemon. It
// never gives one caller what belongs to the identity of another, never writes a token or a key into a log or an error, never
// listens on anything but a Unix socket, and keeps bounded what callers may cost: see [Limits].
package local
