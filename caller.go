package countersign

import (
	"fmt"
	"net/netip"
)

// Method tells how a [Caller] proved who it is.
type Method uint8

// The ways in which the transport proves a caller.
const (
	Anonymous     Method = iota // it did not
	BySocket                    // peer credentials of the admin socket
	ByCertificate               // a client certificate of ours, judged on this request
	ByJoinToken                 // a join token, not yet used up
	ByDaemon                    // the daemon itself: schedules, its own certificate
	ByAssertion                 // a client assertion (RFC 7521 4.2), verified on this request
	ByExpired                   // a client certificate of ours that has ended within the grace: for a certificate and nothing else
	ByProof                     // a proof of renewal, signed with the key of a client certificate of ours: for a certificate and nothing else
	ByAttestation               // the token of a workload, verified on this request: for a certificate and nothing else
)

// String is the method's name in the audit log.
func (m Method) String() string {
	switch m {
	case BySocket:
		return "socket"
	case ByCertificate:
		return "certificate"
	case ByJoinToken:
		return "join-token"
	case ByDaemon:
		return "daemon"
	case ByAssertion:
		return "assertion"
	case ByAttestation:
		return "attestation"
	case ByProof:
		return "renewal-proof"
	case ByExpired:
		return "expired-certificate"
	}
	return "anonymous"
}

// Role is what an operator may do. Roles are ordered: each may do what the lower ones may.
type Role uint8

// The roles of interfaces.md. A service has RoleNone.
const (
	RoleNone Role = iota
	RoleViewer
	RoleOperator
	RoleAdmin
)

// String is the role's name on the command line and in the API.
func (r Role) String() string {
	switch r {
	case RoleViewer:
		return "viewer"
	case RoleOperator:
		return "operator"
	case RoleAdmin:
		return "admin"
	}
	return "none"
}

// ParseRole reads one of "viewer", "operator" and "admin".
func ParseRole(s string) (Role, error) {
	for _, r := range []Role{RoleViewer, RoleOperator, RoleAdmin} {
		if s == r.String() {
			return r, nil
		}
	}
	return RoleNone, fmt.Errorf("%q is no role: viewer, operator and admin are", s)
}

// Caller is who asks, exactly as the transport proved it. Every domain function that decides or changes something
// takes one, so that authorisation and audit can't be forgotten by a handler. Nothing in it is secret.
type Caller struct {
	Method     Method
	ID         ID       // the certificate's ID, or the service that a join token is for, or that an assertion or attestation proves; zero otherwise
	Role       Role     // of an operator or of the admin socket
	Name       string   // as the audit log shows it: the ID, or "uid 0 pid 12 /usr/bin/countersign"
	Serial     string   // of the client certificate: lower-case hex
	Thumbprint [32]byte // SHA-256 of the client certificate (RFC 8705 3.1); zero: it came without one
	Proxy      ID       // the proxy that ended the TLS connection and vouches for the certificate; zero: none
	Assertion  string   // the jti of the client assertion, workload token or proof of renewal
	JoinToken  string   // the id of the join token: the lower-case hex SHA-256 of its secret
	Addr       netip.Addr
	RequestID  string
}

// Daemon is the caller of what the daemon does by itself; why is shown in the audit log.
func Daemon(why string) Caller {
	return Caller{Method: ByDaemon, Role: RoleAdmin, Name: "countersign: " + why}
}
