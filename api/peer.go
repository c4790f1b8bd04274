package api

import (
	"bytes"

	"github.com/labstack/echo/v4"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts"
)

// peer judges the client certificate that the request came with: the one of this connection, or the one that an allow-listed
// proxy forwards. sent is false if there is none; without one, or with one that is no good, the peer is nobody.
func (s *Server) peer(c echo.Context, r route, nobody countersign.Caller) (peer countersign.Caller, sent bool, err error) {
	rq := c.Request()
	if rq.TLS == nil || len(rq.TLS.PeerCertificates) == 0 {
		s.ignoreForwarded(c)
		return nobody, false, nil
	}
	leaf := rq.TLS.PeerCertificates[0]
	direct, err := s.CA.PeerCaller(rq.Context(), leaf, nobody)
	if _, proxy := s.TLSProxies[direct.ID]; err == nil && proxy {
		if forwards(rq.Header, s.TLSProxies[direct.ID].other()) {
			s.metrics.ignored.Inc()
		}
		return s.forwarded(c, r, direct, leaf.Raw, nobody)
	}
	s.ignoreForwarded(c)
	if err != nil && r.auth == authJoin && asError(err).Code == countersign.CodeExpiredPeer {
		direct, err = s.CA.ExpiredCaller(rq.Context(), leaf, nobody)
	}
	if err != nil {
		return nobody, true, err
	}
	return direct, true, nil
}

// stillPeer judges the certificate of caller again, if it came with one: after a wait it may be revoked or expired, or may
// no longer come through the proxy.
func (s *Server) stillPeer(c echo.Context, r route, caller countersign.Caller) error {
	if caller.Method != countersign.ByCertificate {
		return nil
	}
	leaf := c.Request().TLS.PeerCertificates[0]
	if caller.Proxy.IsZero() && s.CA.StillPeer(leaf, caller.Thumbprint) {
		return nil
	}
	direct, err := s.CA.PeerCaller(c.Request().Context(), leaf, countersign.Caller{})
	if err == nil && !caller.Proxy.IsZero() {
		_, _, err = s.forwarded(c, r, direct, leaf.Raw, countersign.Caller{})
	}
	return err
}

// ignoreForwarded counts headers from a peer that may not forward certificates. They have no effect.
func (s *Server) ignoreForwarded(c echo.Context) {
	if h := c.Request().Header; forwards(h, ClientCert) || forwards(h, XFCC) {
		s.metrics.ignored.Inc()
	}
}

// forwarded judges the client that a proxy vouches for. The certificate is judged as if it had come by itself, but that its
// sender holds the key is the proxy's word alone. So it proves an OAuth client and nothing else: with more, the proxy could
// get itself certificates of every service whose certificate it saw, or be any operator.
//
// The proxy is nobody by itself: else it would lend its identity to every client that it forgets to name. To be the client
// itself, as for a renewal, it names its own certificate; it removes what its clients send in its header (RFC 9440 4), so that
// nobody else can. The other header it may pass on as it came: that one is never read.
func (s *Server) forwarded(c echo.Context, r route, proxy countersign.Caller, own []byte, nobody countersign.Caller) (countersign.Caller, bool, error) {
	nobody.Proxy = proxy.ID
	refuse := func(format string, args ...any) (countersign.Caller, bool, error) {
		return nobody, true, countersign.Errorf(countersign.CodeForwarded, format, args...)
	}
	service, ok := s.Policy.Current().ServiceByID(proxy.ID)
	if !ok || service.Disabled != nil {
		return refuse("the proxy is no service that is in force")
	}
	leaf, err := forwardedCertificate(c.Request().Header, s.TLSProxies[proxy.ID])
	switch {
	case err != nil:
		return refuse("the forwarded client certificate can't be read: %v", err)
	case leaf == nil:
		return nobody, false, nil
	case bytes.Equal(leaf.Raw, own):
		return proxy, true, nil
	case !r.auth.open() && !r.auth.byForm():
		return refuse("this path takes no client certificate through a proxy")
	}
	peer, err := s.CA.PeerCaller(c.Request().Context(), leaf, nobody)
	if err != nil {
		return nobody, true, err
	}
	if peer.ID.Kind() != countersign.ServiceID {
		return refuse("only the certificate of a service is taken through a proxy")
	}
	return peer, true, nil
}

// proveClient settles who the client of an OAuth endpoint is, when its form was read: the service of the client certificate,
// or of the client assertion, or of both if they agree (RFC 6749 2.3 allows no two of different kinds; here the certificate is
// what tokens are bound to). Nobody has a shared secret. With an error, rq.caller is who it was before.
func (s *Server) proveClient(rq *request, a auth) error {
	sent, err := sts.ParseCredentials(rq.form)
	if err != nil {
		return err
	}
	certificate := rq.caller.Method != countersign.Anonymous
	switch {
	case sent.Secret && (certificate || sent.Assertion != ""):
		return countersign.Errorf(countersign.CodeTwoCredentials, "client_secret is no proof of a client here, and a second one besides")
	case sent.Secret:
		return countersign.Errorf(countersign.CodeWrongCredential, "clients have no secrets here").
			WithHint("send the client certificate, or a client assertion (RFC 7523)")
	case sent.Assertion == "" && !certificate:
		return missing(a, rq.caller)
	case sent.Assertion == "":
		return nil
	}
	caller, err := s.STS.Client(rq.Request().Context(), rq.caller, sent)
	if err == nil {
		err = rq.still() // keys of a workload's issuer may have been waited for
	}
	if err != nil {
		return err
	}
	if !certificate && !s.identities.allow(caller.ID.String(), s.Now()) {
		return tooMany(caller.ID)
	}
	rq.caller = caller
	known(rq, caller)
	return nil
}
