package verify_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/verify"
)

// bound is a service behind real mutual TLS, with a token for it that is bound to a certificate of orders.
type bound struct {
	*authority
	*verify.Verifier
	pki   *pki
	now   time.Time
	iat   time.Time
	own   tls.Certificate // that the token is bound to
	token string
	last  atomic.Pointer[verify.Error] // why the last request was refused
}

func newBound(t *testing.T) *bound {
	t.Helper()
	b := &bound{authority: newAuthority(), pki: newPKI(), now: time.Now().Truncate(time.Second)}
	t.Cleanup(b.Close)
	v, err := verify.New(verify.Config{Issuer: b.URL, Audience: "inventory", Roots: b.roots()})
	if err != nil {
		t.Fatal(err)
	}
	b.Verifier = v
	b.iat = b.now.Add(-30 * time.Second)
	b.own = b.pki.client(b.now.Add(-10*time.Minute), orders)
	b.token = b.bind(t, b.own)
	return b
}

func (b *bound) bind(t *testing.T, c tls.Certificate) string {
	t.Helper()
	claims := b.claims(b.iat)
	claims["cnf"] = map[string]any{"x5t#S256": thumbprint(c)}
	return b.sign(t, "at+jwt", claims)
}

func (b *bound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, err := b.VerifyRequest(r)
	b.last.Store(nil)
	if err != nil {
		b.last.Store(err.(*verify.Error))
		b.Refuse(w, err)
	}
}

func (b *bound) want(t *testing.T, resp *http.Response, reason verify.Reason) {
	t.Helper()
	e := b.last.Load()
	switch {
	case reason == "" && (resp.StatusCode != http.StatusOK || e != nil):
		t.Errorf("refused: %d, %v", resp.StatusCode, e)
	case reason != "" && (e == nil || e.Reason != reason || resp.StatusCode != http.StatusUnauthorized):
		t.Errorf("got %d, %v, want %s", resp.StatusCode, e, reason)
	}
}

// TestBoundToCertificate holds what policy.md says under "cnf", over real mutual TLS.
func TestBoundToCertificate(t *testing.T) {
	b := newBound(t)
	for name, tt := range map[string]struct {
		cert tls.Certificate
		want verify.Reason
	}{
		"its own certificate":                           {b.own, ""},
		"a successor":                                   {b.pki.client(b.iat.Add(time.Second), orders), ""},
		"a successor of the same second":                {b.pki.client(b.iat, orders), ""},
		"one that was asked for 5 s before":             {b.pki.client(b.iat.Add(-5*time.Second), orders), ""},
		"an older certificate of the service":           {b.pki.client(b.iat.Add(-6*time.Second), orders), verify.ReasonBinding},
		"a newer certificate of another service":        {b.pki.client(b.now, gateway), verify.ReasonBinding},
		"a newer certificate with two IDs":              {b.pki.client(b.now, orders, gateway), verify.ReasonBinding},
		"a newer certificate with the ID last":          {b.pki.client(b.now, gateway, orders), verify.ReasonBinding},
		"a newer certificate without an ID":             {b.pki.client(b.now), verify.ReasonBinding},
		"a newer certificate with the ID in upper case": {b.pki.client(b.now, "spiffe://shop.internal/ORDERS"), verify.ReasonBinding},
		"a newer certificate with a longer ID":          {b.pki.client(b.now, orders+"/x"), verify.ReasonBinding},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, b, tls.RequireAndVerifyClientCert, b.pki.pool())
			b.want(t, ask(t, clientOf(t, s, tt.cert), s.URL, "Authorization", "Bearer "+b.token), tt.want)
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		s := serve(t, b, tls.VerifyClientCertIfGiven, b.pki.pool())
		b.want(t, ask(t, clientOf(t, s), s.URL, "Authorization", "Bearer "+b.token), verify.ReasonBinding)
		s.Close()
	})
	t.Run("a certificate that the server did not verify", func(t *testing.T) {
		s := serve(t, b, tls.RequireAnyClientCert, nil)
		b.want(t, ask(t, clientOf(t, s, b.own), s.URL, "Authorization", "Bearer "+b.token), verify.ReasonBinding)
	})
	t.Run("a resumed connection keeps the certificate", func(t *testing.T) {
		s := serve(t, b, tls.RequireAndVerifyClientCert, b.pki.pool())
		c := clientOf(t, s, b.own)
		transport := c.Transport.(*http.Transport)
		transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		transport.DisableKeepAlives = true
		for i := range 3 {
			resp := ask(t, c, s.URL, "Authorization", "Bearer "+b.token)
			b.want(t, resp, "")
			if i > 0 && !resp.TLS.DidResume {
				t.Error("the connection was not resumed")
			}
		}
	})
	t.Run("headers about a certificate count for nothing", func(t *testing.T) {
		s := serve(t, b, tls.VerifyClientCertIfGiven, b.pki.pool())
		der, _ := json.Marshal(b.own.Certificate[0])
		b.want(t, ask(t, clientOf(t, s), s.URL, "Authorization", "Bearer "+b.token,
			"Client-Cert", ":"+string(der[1:len(der)-1])+":", "X-Forwarded-Client-Cert", "Hash="+thumbprint(b.own)+";URI="+orders), verify.ReasonBinding)
	})
}

// TestBoundNeedsConnection: what sees the token alone refuses a bound one, whoever sends it.
func TestBoundNeedsConnection(t *testing.T) {
	b := newBound(t)
	_, err := b.Verify(t.Context(), b.token)
	wantReason(t, err, verify.ReasonBinding)
	_, err = b.VerifyPeer(t.Context(), b.token, nil)
	wantReason(t, err, verify.ReasonBinding)
	claims, err := b.VerifyPeer(t.Context(), b.token, b.own.Leaf)
	if err != nil || claims.Confirmation != thumbprint(b.own) {
		t.Errorf("%+v, %v", claims, err)
	}
	// A token that is not bound is good over any connection: it is a bearer token.
	free := b.sign(t, "at+jwt", b.claims(b.iat))
	for _, peer := range []*x509.Certificate{nil, b.own.Leaf} {
		if _, err := b.VerifyPeer(t.Context(), free, peer); err != nil {
			t.Error(err)
		}
	}
}

// TestBoundOutlivesNoCertificate: a kept connection ends with its certificate as far as bound tokens go, and one that is not
// valid yet is none.
func TestBoundOutlivesNoCertificate(t *testing.T) {
	p := newPKI()
	for name, tt := range map[string]struct {
		at   func(*x509.Certificate) time.Time
		want verify.Reason
	}{
		"at its end":      {func(c *x509.Certificate) time.Time { return c.NotAfter.Add(time.Second) }, ""},
		"after its end":   {func(c *x509.Certificate) time.Time { return c.NotAfter.Add(2 * time.Second) }, verify.ReasonBinding},
		"at its begin":    {func(c *x509.Certificate) time.Time { return c.NotBefore.Add(-time.Second) }, ""},
		"before it began": {func(c *x509.Certificate) time.Time { return c.NotBefore.Add(-2 * time.Second) }, verify.ReasonBinding},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			own := p.client(b.now, orders)
			b.now = tt.at(own.Leaf)
			claims := b.claims(b.now)
			claims["cnf"] = map[string]any{"x5t#S256": thumbprint(own)}
			_, err := b.VerifyPeer(t.Context(), b.sign(t, "at+jwt", claims), own.Leaf)
			if tt.want != "" {
				wantReason(t, err, tt.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSuccessorOfShortLife: a certificate under ten minutes is backdated by a tenth of its life.
func TestSuccessorOfShortLife(t *testing.T) {
	b := newBench(t, nil)
	p := newPKI()
	claims := b.claims(b.now)
	claims["cnf"] = map[string]any{"x5t#S256": thumbprint(p.client(b.now.Add(-time.Hour), orders))}
	token := b.sign(t, "at+jwt", claims)
	short := func(issued time.Time) *x509.Certificate {
		leaf := *p.client(issued, orders).Leaf
		leaf.NotBefore, leaf.NotAfter = issued.Add(-6*time.Second), issued.Add(53*time.Second) // 60 s
		return &leaf
	}
	if _, err := b.VerifyPeer(t.Context(), token, short(b.now)); err != nil {
		t.Error(err)
	}
	_, err := b.VerifyPeer(t.Context(), token, short(b.now.Add(-6*time.Second)))
	wantReason(t, err, verify.ReasonBinding)
}

func TestPeer(t *testing.T) {
	leaf, other := newPKI().cert, newPKI().cert
	chains := [][]*x509.Certificate{{leaf}}
	for name, state := range map[string]*tls.ConnectionState{
		"no TLS":              nil,
		"before the end":      {PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: chains},
		"not verified":        {HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}},
		"an empty chain":      {HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{}}},
		"no certificate":      {HandshakeComplete: true, VerifiedChains: chains},
		"a chain of somebody": {HandshakeComplete: true, PeerCertificates: []*x509.Certificate{other}, VerifiedChains: chains},
	} {
		if verify.Peer(state) != nil {
			t.Errorf("%s: a peer was found", name)
		}
	}
	if verify.Peer(&tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: chains}) != leaf {
		t.Error("no peer was found")
	}
}
