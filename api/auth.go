package api

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/storage/audit"
)

// deadline is how long a route that is no stream may work on one request. It is shorter than the write timeout, so that
// the caller gets an answer and not the end of the connection.
const deadline = 45 * time.Second

// guard puts everything before a route's handler that must hold whoever asks: limits, who it is, whether he may, the
// parameters and the body.
func (s *Server) guard(r route, l listener) echo.HandlerFunc {
	authenticate := s.publicCaller
	if l == adminSocket {
		authenticate = s.socketCaller
	}
	return func(c echo.Context) error {
		if !r.long {
			ctx, cancel := context.WithTimeout(c.Request().Context(), deadline)
			defer cancel()
			c.SetRequest(c.Request().WithContext(ctx))
		}
		caller, err := authenticate(c, r)
		// The credential of an OAuth client may stand in the form, which is read first then.
		later := r.auth.byForm() && caller.Method == countersign.Anonymous
		if err == nil && !later {
			err = authorise(r.auth, caller)
		}
		known(c, caller)
		if err != nil {
			return s.refused(c, caller, err)
		}
		rq := &request{Context: c, caller: caller, still: func() error { return s.stillPeer(c, r, caller) }}
		if rq.query, err = readQuery(c.Request(), r); err != nil {
			return err
		}
		room := s.rooms.of(r, !later)
		defer room.leave()
		if rq.body, err = readBody(c.Response(), c.Request(), r, room); err != nil {
			return err
		}
		leave, err := s.enter(rq, r)
		if err != nil {
			return err
		}
		defer leave()
		// A sender may take half a minute for the body, and what was revoked or expired meanwhile must get nothing.
		if r.body > 0 {
			if err = rq.still(); err != nil {
				return s.refused(c, caller, err)
			}
		}
		if r.auth.byForm() {
			rq.form, err = readForm(rq)
			s.rooms.giveBack(rq.body) // the form is a copy
			if rq.body = nil; err != nil {
				return err
			}
			if err = s.proveClient(rq, r.auth); err == nil {
				err = authorise(r.auth, rq.caller)
			}
			if err != nil {
				return s.refused(c, rq.caller, err)
			}
		}
		return r.handle(s, rq)
	}
}

// publicCaller proves who sent a request on the TLS listener. With an error, the caller is who it would be if the rest
// were right, or nobody.
func (s *Server) publicCaller(c echo.Context, r route) (countersign.Caller, error) {
	nobody := countersign.Caller{Addr: remoteAddr(c), RequestID: requestID(c)}
	peer, certificate, peerErr := s.peer(c, r, nobody)
	if peer.Method == countersign.Anonymous {
		if key := addressKey(nobody.Addr); key != "" && !s.addresses.allow(key, s.Now()) {
			return nobody, countersign.Errorf(countersign.CodeRateAddress, "too many requests from %s", key).
				WithHint("send fewer, or with a certificate").After(time.Second)
		}
	} else if !s.identities.allow(peer.ID.String(), s.Now()) {
		return peer, tooMany(peer.ID)
	}
	if r.auth.open() {
		return peer, nil
	}
	authorization := c.Request().Header.Values("Authorization")
	switch {
	case len(authorization) > 1, len(authorization) == 1 && certificate:
		return peer, countersign.Errorf(countersign.CodeTwoCredentials, "more than one credential was sent").
			WithHint("send either the client certificate or the Authorization header")
	case len(authorization) == 1 && r.auth == authJoin:
		return s.bearer(c, peer, authorization[0])
	case len(authorization) == 1:
		return peer, countersign.Errorf(countersign.CodeWrongCredential, "this path takes a client certificate and no Authorization header")
	case !certificate && !r.auth.byForm():
		return peer, missing(r.auth, peer)
	}
	return peer, peerErr
}

func tooMany(id countersign.ID) error {
	return countersign.Errorf(countersign.CodeRateIdentity, "too many requests by %s", id).After(time.Second)
}

// bearer proves a join token, or a JWT, which has dots and a join token none: a proof of renewal, by its typ, or else a
// workload's token.
func (s *Server) bearer(c echo.Context, nobody countersign.Caller, authorization string) (countersign.Caller, error) {
	scheme, secret, ok := strings.Cut(authorization, " ")
	workload := strings.Count(secret, ".") == 2
	if !ok || !strings.EqualFold(scheme, "Bearer") || secret == "" || len(secret) > 128 && !workload {
		return nobody, countersign.Errorf(countersign.CodeWrongCredential, "the Authorization header holds no join token").
			WithHint("send Authorization: Bearer <join token>, or a token of the workload")
	}
	if !workload {
		return s.CA.JoinCaller(c.Request().Context(), secret, nobody)
	}
	if ca.IsProof(secret) {
		caller, renewal, err := s.CA.ProofCaller(c.Request().Context(), secret, s.Issuer, nobody)
		if err == nil && !s.identities.allow(caller.ID.String(), s.Now()) {
			err = tooMany(caller.ID)
		}
		if t := trackOf(c); t != nil {
			t.renewal = renewal
		}
		return caller, err
	}
	caller, proof, err := s.STS.Attest(c.Request().Context(), nobody, secret)
	if err != nil {
		return nobody, err
	}
	if !s.identities.allow(caller.ID.String(), s.Now()) {
		return nobody, tooMany(caller.ID)
	}
	if t := trackOf(c); t != nil {
		t.proof = proof
	}
	return caller, nil
}

// missing is the refusal of nobody, who may have come through a proxy.
func missing(a auth, nobody countersign.Caller) error {
	if !nobody.Proxy.IsZero() {
		return countersign.Errorf(countersign.CodeProxyAlone, "the request came through a proxy that names no client certificate").
			WithHint("send one to the proxy; a proxy that asks for itself names its own, in the header that tls.proxies gives it")
	}
	e := countersign.Errorf(countersign.CodeNoCredential, "no credential was sent")
	switch {
	case a == authJoin:
		return e.WithHint("send a client certificate of this authority, or a join token or a token of the workload as Authorization: Bearer")
	case a.byForm():
		return e.WithHint("send a client certificate of this authority, or a client assertion (RFC 7523)")
	}
	return e.WithHint("send a client certificate of this authority")
}

// authorise tells why caller may not use a route that demands a. It is pure; what is not allowed here is denied.
func authorise(a auth, caller countersign.Caller) error {
	kind := caller.ID.Kind()
	service := caller.Method == countersign.ByCertificate && kind == countersign.ServiceID
	asserted := caller.Method == countersign.ByAssertion && kind == countersign.ServiceID
	operator := caller.Method == countersign.BySocket || caller.Method == countersign.ByCertificate && kind == countersign.OperatorID
	switch a {
	case authPublic, authLogout:
		return nil
	case authClient:
		if service || asserted {
			return nil
		}
		return countersign.Errorf(countersign.CodeWrongCredential, "%s is no service, and only services are clients here", caller.Name)
	case authService:
		if service {
			return nil
		}
		return countersign.Errorf(countersign.CodeWrongCredential, "%s is no service, and this path is about the service that asks", caller.Name)
	case authJoin:
		if service || caller.Method == countersign.ByJoinToken || caller.Method == countersign.ByAttestation || caller.Method == countersign.ByExpired || caller.Method == countersign.ByProof || caller.Method == countersign.ByCertificate && operator {
			return nil
		}
	case authIntrospect:
		if service || asserted {
			return nil
		}
	case authServiceOrOperator:
		if service {
			return nil
		}
	}
	least := a.role()
	switch {
	case least == countersign.RoleNone:
	case !operator:
		return countersign.Errorf(countersign.CodeWrongCredential, "%s is no operator", caller.Name).
			WithHint("use an operator's certificate, or the admin socket on the daemon's host")
	case caller.Role < least:
		return countersign.Errorf(countersign.CodeRole, "%s has the role %s; this needs %s", caller.Name, caller.Role, least)
	default:
		return nil
	}
	return countersign.Errorf(countersign.CodeWrongCredential, "the credential is of a kind that this path does not take")
}

// refused records a refusal before it is answered: of an authenticated caller durably, of strangers by number. Rates are
// no judgement of a caller and are only counted, or a flood of requests would become a flood of records.
func (s *Server) refused(c echo.Context, caller countersign.Caller, cause error) error {
	e := asError(cause)
	switch {
	case e.Kind != countersign.Unauthenticated && e.Kind != countersign.Denied && e.Code != countersign.CodeTwoCredentials:
	case caller.Method == countersign.Anonymous:
		s.Audit.Stranger(e.Code, caller.Addr)
	default:
		_, err := s.Audit.Append(context.WithoutCancel(c.Request().Context()), audit.Event{
			Type: "request.denied", Outcome: audit.Denied, By: caller,
			Subject: c.Request().Method + " " + c.Path(), Code: e.Code,
		})
		if err != nil {
			return errors.Join(err, cause)
		}
	}
	return cause
}

// require is for what a handler allows to fewer than its route does.
func (s *Server) require(rq *request, least auth) error {
	if err := authorise(least, rq.caller); err != nil {
		return s.refused(rq.Context, rq.caller, err)
	}
	return nil
}

// remoteAddr is the zero address on the admin socket.
func remoteAddr(c echo.Context) netip.Addr {
	addr, err := netip.ParseAddr(c.RealIP())
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap()
}
