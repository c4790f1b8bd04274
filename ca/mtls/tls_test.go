package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

// get asks once and gives the body or the error.
func get(c *http.Client, url string) (string, error) {
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		return "", io.ErrUnexpectedEOF
	}
	return string(body), err
}

func TestRenewsItsDirectory(t *testing.T) {
	k := newKit(t, nil)
	s := k.ready("orders")
	before, err := s.Identity()
	k.must(err)
	changed := s.Changed()
	k.must(s.Renew(t.Context()))
	<-changed
	after, err := s.Identity()
	k.must(err)
	if before.Serial == after.Serial || string(before.Chain[0].RawSubjectPublicKeyInfo) == string(after.Chain[0].RawSubjectPublicKeyInfo) {
		t.Error("the certificate or the key is the same after a renewal")
	}
	if st := s.Status(); st.Serial != after.Serial || st.LastError != nil || st.Budget < 23*time.Hour || st.Server != k.url {
		t.Errorf("%+v", st)
	}
}

func TestPeers(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway, reports := k.ready("orders"), k.ready("gateway"), k.ready("reports")
	e := k.serveAs(orders, Only(k.id("gateway")), "orders.shop.internal", nil)
	if got, err := get(k.client(e, Client(gateway, Only(k.id("orders")))), e.url()); err != nil || got != "spiffe://shop.internal/gateway" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := get(k.client(e, Client(reports, InDomain())), e.url()); err == nil {
		t.Error("a service that may not call was served")
	}
	if _, err := get(k.client(e, Client(gateway, Only(k.id("inventory")))), e.url()); err == nil || !strings.Contains(err.Error(), "not admitted") {
		t.Errorf("another service than the one meant was called: %v", err)
	}
}

// operator is an identity of an operator of the same authority.
func (k *kit) operator() tls.Certificate {
	k.Helper()
	key, err := identity.NewKey("")
	k.must(err)
	csr, err := identity.CSR(key)
	k.must(err)
	got, err := k.adminC.AddOperator(context.Background(), wire.OperatorRequest{Name: "ann", Role: "admin", CSR: string(csr)})
	k.must(err)
	chain, err := identity.ParseCertificates([]byte(got.Certificate))
	k.must(err)
	return (&identity.Identity{Key: key, Chain: chain}).TLS()
}

// with is a client of these certificates, which demands no ID.
func (k *kit) with(e *echo, certs ...tls.Certificate) *http.Client {
	return k.client(e, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: poolOf(k.ca.Roots()), Certificates: certs})
}

func TestStrangersAreNotAdmitted(t *testing.T) {
	k, other := newKit(t, nil), newKit(t, nil)
	orders := k.ready("orders")
	own, err := k.ready("gateway").Identity()
	k.must(err)
	foreign, err := other.ready("gateway").Identity()
	k.must(err)
	for name, a := range map[string]Authorizer{"InDomain": InDomain(), "Only": Only(k.id("gateway"))} {
		e := k.serveAs(orders, a, "orders.shop.internal", nil)
		if _, err := get(k.with(e, own.TLS()), e.url()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for who, c := range map[string]*http.Client{
			"nobody":                       k.with(e),
			"an operator":                  k.with(e, k.operator()),
			"the authority itself":         k.with(e, *k.served),
			"a service of other roots":     k.with(e, foreign.TLS()),
			"a certificate without a key":  k.with(e, tls.Certificate{Certificate: own.TLS().Certificate, PrivateKey: foreign.Key}),
			"a service by TLS 1.2 at most": k.client(e, &tls.Config{MaxVersion: tls.VersionTLS12, RootCAs: poolOf(k.ca.Roots()), Certificates: []tls.Certificate{own.TLS()}}),
		} {
			if _, err := get(c, e.url()); err == nil {
				t.Errorf("%s: %s was served", name, who)
			}
		}
	}
	if e := k.serveAs(orders, Only(), "orders.shop.internal", nil); e != nil {
		if _, err := get(k.with(e, own.TLS()), e.url()); err == nil {
			t.Error("Only() without IDs admits somebody")
		}
	}
}

// What a client refuses of a server, each before a byte of the request is sent.
func TestClientsRefuseServers(t *testing.T) {
	k, other := newKit(t, nil), newKit(t, nil)
	gateway := k.ready("gateway")
	var served atomic.Int64
	count := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served.Add(1) })
	orders := k.serveAs(k.ready("orders"), InDomain(), "orders.shop.internal", count)
	foreign := k.serveAs(other.ready("orders"), InDomain(), "orders.shop.internal", count)
	if _, err := get(k.client(orders, Client(gateway, Only(k.id("orders")))), orders.url()); err != nil || served.Load() != 1 {
		t.Fatalf("%v", err)
	}
	renamed, byAddress, own := *orders, *orders, *orders
	renamed.name, byAddress.name = "inventory.shop.internal", orders.address
	for name, c := range map[string]struct {
		e *echo
		a Authorizer
	}{
		"another ID":           {orders, Only(k.id("inventory"))},
		"another name":         {&renamed, InDomain()},
		"an address":           {&byAddress, InDomain()},
		"other roots":          {foreign, InDomain()},
		"Callers() of clients": {&own, Callers()},
		"nobody":               {&own, Only()},
	} {
		if _, err := get(k.client(c.e, Client(gateway, c.a)), c.e.url()); err == nil {
			t.Errorf("%s: it was called", name)
		}
	}
	if served.Load() != 1 {
		t.Error("a refused server got a request")
	}
	// The gateway may call orders; that does not mean that orders may call it by the same list.
	src := k.ready("orders")
	k.admitted(src, gateway)
	back := k.serveAs(gateway, InDomain(), "gateway.shop.internal", nil)
	if _, err := get(k.client(back, Client(src, InDomain())), back.url()); err != nil {
		t.Error(err)
	}
	if _, err := get(k.client(back, Client(src, Callers())), back.url()); err == nil {
		t.Error("a client with Callers() called one of its callers")
	}
	// The daemon has a certificate of the same roots, and is no service.
	daemon := &echo{name: "localhost", address: strings.TrimPrefix(k.url, "https://")}
	if _, err := get(k.client(daemon, Client(gateway, InDomain())), k.url+"/roots.pem"); err == nil || !strings.Contains(err.Error(), "no service") {
		t.Errorf("the authority as a peer: %v", err)
	}
}

// sessions is a cache that counts tickets.
type sessions struct{ put atomic.Int64 }

func (s *sessions) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (s *sessions) Put(_ string, state *tls.ClientSessionState) {
	if state != nil {
		s.put.Add(1)
	}
}

func TestHandshakesAreModernAndWithoutTickets(t *testing.T) {
	k := newKit(t, nil)
	e := k.serveAs(k.ready("orders"), InDomain(), "orders.shop.internal", nil)
	config := Client(k.ready("gateway"), InDomain())
	tickets := &sessions{}
	config.ClientSessionCache = tickets
	response, err := k.client(e, config).Get(e.url())
	k.must(err)
	defer response.Body.Close()
	_, err = io.ReadAll(response.Body)
	k.must(err)
	if s := response.TLS; s.Version != tls.VersionTLS13 || s.CurveID != tls.X25519MLKEM768 || s.NegotiatedProtocol != "h2" || tickets.put.Load() != 0 {
		t.Errorf("version %x, curve %s, protocol %q, %d tickets", s.Version, s.CurveID, s.NegotiatedProtocol, tickets.put.Load())
	}
	if id, ok := Peer(response.TLS); !ok || id != k.id("orders") {
		t.Errorf("the peer is %s", id)
	}
	if _, ok := Peer(nil); ok {
		t.Error("without TLS there is a peer")
	}
}

// Configs follow renewals and roots: they are made once, and live as long as the process.
func TestConfigsFollowTheSource(t *testing.T) {
	k, next := newKit(t, nil), newKit(t, nil)
	orders, gateway := k.ready("orders"), k.ready("gateway")
	e := k.serveAs(orders, InDomain(), "orders.shop.internal", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].SerialNumber.String())
	}))
	c := k.client(e, Client(gateway, Only(k.id("orders"))))
	before, err := get(c, e.url())
	k.must(err)
	k.must(orders.Renew(t.Context()))
	k.must(gateway.Renew(t.Context()))
	c.CloseIdleConnections()
	after, err := get(c, e.url())
	if err != nil || before == after {
		t.Fatalf("%v; the client's serials are %s and %s", err, before, after)
	}
	// A rollover: both trust the next root before a certificate under it is around, then the server has one.
	for _, s := range []*Source{orders, gateway} {
		i, err := s.Identity()
		k.must(err)
		grown, err := withRoots(i, next.ca.Roots())
		k.must(err)
		s.mu.Lock()
		s.replace(grown)
		s.mu.Unlock()
	}
	b := next.bundle("orders", 0)
	b.Roots = append(b.Roots, k.ca.Roots()...)
	moved, err := identity.New(b)
	k.must(err)
	orders.mu.Lock()
	orders.replace(moved)
	orders.mu.Unlock()
	c.CloseIdleConnections()
	if _, err := get(c, e.url()); err != nil {
		t.Errorf("after the rollover: %v", err)
	}
}

// A certificate that is over proves nothing, in either direction.
func TestOverIsNoPeer(t *testing.T) {
	clock := &turned{}
	k := newKit(t, clock.now)
	orders := k.source(Config{Dir: k.dir("orders", time.Minute)})
	gateway := k.source(Config{Dir: k.dir("gateway", 0)})
	e := k.serveAs(orders, InDomain(), "orders.shop.internal", nil)
	c := k.client(e, Client(gateway, InDomain()))
	if _, err := get(c, e.url()); err != nil {
		t.Fatal(err)
	}
	k.gone()
	clock.turn(2 * time.Minute)
	c.CloseIdleConnections()
	if _, err := get(c, e.url()); err == nil {
		t.Error("a server whose certificate is over served")
	}
	k.must(orders.Close())
	if _, err := get(c, e.url()); err == nil {
		t.Error("a closed source serves")
	}
}

// What holds for every authorizer, where no authority would issue such a certificate.
func TestAdmitDemandsAServiceOfTheDomain(t *testing.T) {
	k := newKit(t, nil)
	src := k.ready("orders")
	i, err := src.Identity()
	k.must(err)
	leaf := func(uris ...string) *x509.Certificate {
		c := *i.Chain[0]
		c.URIs = nil
		for _, s := range uris {
			u, err := url.Parse(s)
			k.must(err)
			c.URIs = append(c.URIs, u)
		}
		return &c
	}
	for name, c := range map[string]struct {
		leaf     *x509.Certificate
		verified bool
		good     bool
	}{
		"a service":               {leaf("spiffe://shop.internal/gateway"), true, true},
		"not verified":            {leaf("spiffe://shop.internal/gateway"), false, false},
		"another trust domain":    {leaf("spiffe://other/gateway"), true, false},
		"no URI":                  {leaf(), true, false},
		"two URIs":                {leaf("spiffe://shop.internal/gateway", "spiffe://shop.internal/orders"), true, false},
		"no ID":                   {leaf("https://shop.internal/gateway"), true, false},
		"an operator":             {leaf("spiffe://shop.internal/operator/ann"), true, false},
		"the authority":           {leaf("spiffe://shop.internal/countersign"), true, false},
		"an authority's own cert": {i.Roots[0], true, false},
	} {
		state := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{c.leaf}}
		if c.verified {
			state.VerifiedChains = [][]*x509.Certificate{{c.leaf}}
		}
		if _, err := admit(src, InDomain(), state, testDomain); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
