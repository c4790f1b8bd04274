package api

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

func newProxied(t *testing.T) *asserting {
	t.Helper()
	return newAsserting(t, kitOptions{
		proxies: map[string]CertHeader{"edge": ClientCert, "front": XFCC},
		policy:  strings.Replace(testPolicy, "  - name: reports\n", "  - name: reports\n  - name: edge\n  - name: front\n", 1),
	})
}

// byHeader chooses the proxy that speaks the header of a request: edge RFC 9440, front Envoy's.
func (a *asserting) byHeader() func(header []string) *http.Client {
	edge, front := a.raw(a.join("edge")), a.raw(a.join("front"))
	return func(header []string) *http.Client {
		if slices.Contains(header, headerXFCC) {
			return front
		}
		return edge
	}
}

// clientCert is the header of RFC 9440.
func clientCert(id *identity.Identity) string {
	return ":" + base64.StdEncoding.EncodeToString(id.Chain[0].Raw) + ":"
}

// xfcc is the header as Envoy writes it with SANITIZE_SET and cert, subject and uri.
func xfcc(id *identity.Identity) string {
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.Chain[0].Raw}))
	escaped := strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D").Replace(text)
	sum := sha256.Sum256(id.Chain[0].Raw)
	return `Hash=` + hex.EncodeToString(sum[:]) + `;Cert="` + escaped + `";Subject="CN=\"x\",O=a;b";URI=` + id.ID.String() + `;DNS=a;DNS=b`
}

func TestForwardedCertificates(t *testing.T) {
	a := newProxied(t)
	proxy, reports, orders := a.byHeader(), a.join("reports"), a.join("orders")
	for name, header := range map[string][]string{
		"RFC 9440":            {headerCert, clientCert(reports)},
		"RFC 9440 with chain": {headerCert, clientCert(reports), headerChain, clientCert(orders) + ", " + clientCert(orders)},
		"Envoy":               {headerXFCC, xfcc(reports)},
		"Envoy, many names":   {headerXFCC, "By=spiffe://a/b;By=spiffe://a/c;URI=;URI=x;" + xfcc(reports)},
		"in lower case":       {"client-cert", clientCert(reports)},
	} {
		got := a.postToken(proxy(header), machineForm(), header...)
		a.checkToken(name, got, 200, "")
		if claims := a.claimsOf(got); claims["client_id"] != reportsID {
			t.Errorf("%s: %v", name, claims)
		}
	}
	for _, r := range a.records("token.issued") {
		if r.By.Method != "certificate" || r.By.ID != reportsID || r.By.Serial != reports.Serial || r.By.Proxy == "" {
			t.Errorf("the record's caller is %+v", r.By)
		}
	}
	if n := a.ignored(); n != 0 {
		t.Errorf("%v headers were ignored", n)
	}
}

// What the proxy forwards is judged as if it had come by itself, on every request.
func TestForwardedCertificateIsJudged(t *testing.T) {
	a := newProxied(t)
	proxy, reports := a.byHeader(), a.join("reports")
	ann := a.operator("ann", countersign.RoleAdmin)
	cert, other := clientCert(reports), a.join("orders")
	pemOf := func(der []byte) string {
		return url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	const forwarded, bad = countersign.CodeForwarded, countersign.CodeBadCertificate
	for name, c := range map[string]struct {
		header []string
		want   countersign.Code
	}{
		"none":                          {nil, countersign.CodeProxyAlone},
		"foreign":                       {[]string{headerCert, clientCert(foreign(t, reports))}, bad},
		"of the daemon":                 {[]string{headerCert, clientCert(a.daemonIdentity())}, bad},
		"of an operator":                {[]string{headerCert, clientCert(ann)}, forwarded},
		"empty":                         {[]string{headerCert, ""}, forwarded},
		"twice":                         {[]string{headerCert, cert, headerCert, cert}, forwarded},
		"two in one":                    {[]string{headerCert, cert + ", " + cert}, forwarded},
		"as plain base64":               {[]string{headerCert, strings.Trim(cert, ":")}, forwarded},
		"with parameters":               {[]string{headerCert, cert + ";a=1"}, forwarded},
		"as PEM":                        {[]string{headerCert, pemOf(reports.Chain[0].Raw)}, forwarded},
		"cut short":                     {[]string{headerCert, ":" + cert[1:41] + ":"}, forwarded},
		"only a chain":                  {[]string{headerChain, cert}, forwarded},
		"a broken chain":                {[]string{headerCert, cert, headerChain, "x"}, forwarded},
		"a long chain":                  {[]string{headerCert, cert, headerChain, strings.Repeat(":AA==:,", 8) + ":AA==:"}, forwarded},
		"XFCC: Hash and URI only":       {[]string{headerXFCC, "Hash=" + strings.Repeat("0", 64) + ";URI=" + reportsID}, forwarded},
		"XFCC: By and URI only":         {[]string{headerXFCC, "By=spiffe://shop.internal/edge;URI=" + reportsID}, forwarded},
		"XFCC: another's Hash":          {[]string{headerXFCC, "Hash=" + strings.Repeat("0", 64) + `;Cert="` + pemOf(reports.Chain[0].Raw) + `"`}, forwarded},
		"XFCC: two elements":            {[]string{headerXFCC, xfcc(reports) + "," + xfcc(reports)}, forwarded},
		"XFCC: twice":                   {[]string{headerXFCC, xfcc(reports), headerXFCC, xfcc(reports)}, forwarded},
		"XFCC: two Certs":               {[]string{headerXFCC, xfcc(reports) + `;cert="x"`}, forwarded},
		"XFCC: two certificates":        {[]string{headerXFCC, `Cert="` + pemOf(other.Chain[0].Raw) + pemOf(reports.Chain[0].Raw) + `"`}, forwarded},
		"XFCC: a key":                   {[]string{headerXFCC, `Cert="` + url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))) + `"`}, forwarded},
		"XFCC: a broken escape":         {[]string{headerXFCC, `Cert="%zz"`}, forwarded},
		"XFCC: an open quote":           {[]string{headerXFCC, `Cert="x`}, forwarded},
		"XFCC: quote in the middle":     {[]string{headerXFCC, `Subject=a"b";` + xfcc(reports)}, forwarded},
		"XFCC: a Cert inside a Subject": {[]string{headerXFCC, `Hash=x;Subject="a;Cert=` + pemOf(reports.Chain[0].Raw) + `"`}, forwarded},
		"XFCC: no pairs":                {[]string{headerXFCC, "x"}, forwarded},
		"XFCC: a semicolon at the end":  {[]string{headerXFCC, xfcc(reports) + ";"}, forwarded},
		"nginx's header":                {[]string{"Ssl-Client-Cert", pemOf(reports.Chain[0].Raw), "X-Client-Cert", cert}, countersign.CodeProxyAlone},
	} {
		got := a.postToken(proxy(c.header), machineForm(), c.header...)
		a.checkToken(name, got, 401, "invalid_client")
		if got.code() != c.want {
			t.Errorf("%s: %s, want %s", name, got.body, c.want)
		}
	}
	a.checkToken("good", a.postToken(proxy([]string{headerCert}), machineForm(), headerCert, cert), 200, "")
	a.must(a.admin().Revoke(t.Context(), reports.Serial, "superseded"))
	if got := a.postToken(proxy([]string{headerCert}), machineForm(), headerCert, cert); got.code() != countersign.CodeRevokedPeer {
		t.Errorf("revoked: %d %s", got.status, got.body)
	}
	renewed := a.join("reports")
	a.checkToken("the next one", a.postToken(proxy([]string{headerXFCC}), machineForm(), headerXFCC, xfcc(renewed)), 200, "")
	a.clock.turn(25 * time.Hour) // the proxy's own and the client's are over
	if got := a.postToken(proxy([]string{headerXFCC}), machineForm(), headerXFCC, xfcc(renewed)); got.code() != countersign.CodeExpiredPeer {
		t.Errorf("expired: %d %s", got.status, got.body)
	}
}

// A proxy speaks one header. What stands in the other one, it passed on as a stranger sent it: that is not read, and counted.
func TestProxiesSpeakOneHeader(t *testing.T) {
	a := newProxied(t)
	edge, front, reports, orders := a.join("edge"), a.join("front"), a.join("reports"), a.join("orders")
	ignored := 0.0
	for name, c := range map[string]struct {
		proxy  *identity.Identity
		header []string
		want   countersign.Code
	}{
		"edge, Envoy's alone":          {edge, []string{headerXFCC, xfcc(reports)}, countersign.CodeProxyAlone},
		"edge, both":                   {edge, []string{headerCert, clientCert(reports), headerXFCC, xfcc(orders)}, ""},
		"edge, the other is broken":    {edge, []string{headerCert, clientCert(reports), headerXFCC, "x", headerXFCC, "y"}, ""},
		"edge, its own in Envoy's":     {edge, []string{headerXFCC, xfcc(edge)}, countersign.CodeProxyAlone},
		"front, RFC 9440's alone":      {front, []string{headerCert, clientCert(reports)}, countersign.CodeProxyAlone},
		"front, RFC 9440's chain":      {front, []string{headerChain, clientCert(reports)}, countersign.CodeProxyAlone},
		"front, both":                  {front, []string{headerXFCC, xfcc(reports), headerCert, clientCert(orders)}, ""},
		"front, the other is broken":   {front, []string{headerXFCC, xfcc(reports), headerCert, "x", headerChain, ""}, ""},
		"front, its own in RFC 9440's": {front, []string{headerCert, clientCert(front)}, countersign.CodeProxyAlone},
		"front, empty":                 {front, []string{headerXFCC, "", headerCert, clientCert(reports)}, countersign.CodeForwarded},
	} {
		got := a.postToken(a.raw(c.proxy), machineForm(), c.header...)
		if got.code() != c.want {
			t.Errorf("%s: %d %s, want %q", name, got.status, got.body, c.want)
		}
		if c.want == "" && a.claimsOf(got)["client_id"] != reportsID {
			t.Errorf("%s: %v", name, a.claimsOf(got))
		}
		if ignored++; a.ignored() != ignored {
			t.Errorf("%s: %v requests were counted, want %v", name, a.ignored(), ignored)
		}
	}
}

// Our own client finds out in which header it has to name itself, when it is a proxy.
func TestProxiesNameThemselves(t *testing.T) {
	a := newProxied(t)
	for _, name := range []string{"edge", "front"} {
		_, csr := newCSR(t)
		got, err := a.over(a.join(name)).Renew(t.Context(), wire.CertificateRequest{CSR: csr})
		if err != nil || got.ID.Name() != name {
			t.Errorf("%s: %v %v", name, got.ID, err)
		}
	}
}

// RFC 9700 4.13: the headers mean nothing from anybody who is not an allow-listed proxy, and that they came is counted.
func TestForwardedByOthersIsIgnored(t *testing.T) {
	a := newProxied(t)
	edge, reports, orders := a.join("edge"), a.join("reports"), a.join("orders")
	header := []string{headerCert, clientCert(reports), headerXFCC, xfcc(reports)}
	for name, c := range map[string]struct {
		http *http.Client
		code countersign.Code
	}{
		"nobody":          {a.raw(nil), countersign.CodeNoCredential},
		"a forged proxy":  {a.raw(foreign(t, edge)), countersign.CodeBadCertificate},
		"an operator":     {a.raw(a.operator("edge", countersign.RoleAdmin)), countersign.CodeWrongCredential},
		"another service": {a.raw(orders), countersign.CodeNoCall}, // it is itself
	} {
		if got := a.postToken(c.http, url.Values{"grant_type": {"client_credentials"}, "audience": {"inventory"}}, header...); got.code() != c.code {
			t.Errorf("%s: %d %s, want %s", name, got.status, got.body, c.code)
		}
	}
	got := a.postToken(a.raw(reports), machineForm(), headerCert, clientCert(orders))
	a.checkToken("itself", got, 200, "")
	if claims := a.claimsOf(got); claims["client_id"] != reportsID {
		t.Errorf("%v", claims)
	}
	if n := a.ignored(); n != 5 {
		t.Errorf("%v requests were counted, want 5", n)
	}
	for _, r := range a.records("token.denied") {
		if r.By.Proxy != "" || r.By.ID == reportsID {
			t.Errorf("%+v", r.By)
		}
	}
}

// An allow-listed proxy is nobody by itself, on every route: a client that it forgot to name must not be lent its identity, and
// what it forwards proves OAuth clients only. Other credentials pass through it.
func TestProxyIsNobodyByItself(t *testing.T) {
	a := newProxied(t)
	edge, reports := a.join("edge"), a.join("reports")
	proxy := a.raw(edge)
	path := strings.NewReplacer(":serial", reports.Serial, ":name", "orders", ":purpose", "token", ":kid", "x")
	for _, r := range routes("") {
		if r.auth.open() {
			continue
		}
		target := a.url + path.Replace(r.path)
		if got := a.send(proxy, r.method, target, body(r), "Content-Type", r.media); got.code() != countersign.CodeProxyAlone || got.status != 401 {
			t.Errorf("%s %s: %d %s", r.method, r.path, got.status, got.body)
		}
		if r.auth.byForm() {
			continue
		}
		if got := a.send(proxy, r.method, target, body(r), "Content-Type", r.media, headerCert, clientCert(reports)); got.code() != countersign.CodeForwarded || got.status != 401 {
			t.Errorf("%s %s for another: %d %s", r.method, r.path, got.status, got.body)
		}
	}
	if got := a.send(proxy, http.MethodGet, a.url+"/.well-known/jwks.json", "", headerCert, "broken"); got.status != 200 {
		t.Errorf("a public document: %d %s", got.status, got.body)
	}
	got := a.postToken(proxy, asserted(a.assertion(nil)))
	a.checkToken("an assertion through the proxy", got, 200, "")
	if issued := a.records("token.issued"); len(issued) != 1 || issued[0].By.Method != "assertion" || issued[0].By.Proxy != "spiffe://shop.internal/edge" {
		t.Errorf("%+v", issued)
	}
	a.checkToken("both", a.postToken(proxy, asserted(a.assertion(nil)), headerCert, clientCert(reports)), 200, "")
	if got := a.postToken(proxy, asserted(a.assertion(nil)), headerCert, clientCert(edge)); got.code() != countersign.CodeClientMismatch {
		t.Errorf("the proxy's own certificate and another's assertion: %d %s", got.status, got.body)
	}

	token, err := a.admin().CreateJoinToken(t.Context(), wire.JoinTokenRequest{Service: "inventory"})
	a.must(err)
	_, csr := newCSR(t)
	joined := a.send(proxy, http.MethodPost, a.url+"/v1/certificates", jsonText(t, wire.CertificateRequest{CSR: csr}), "Content-Type", wire.JSON, "Authorization", "Bearer "+token.Token)
	if joined.status != 201 || !strings.Contains(joined.body, "spiffe://shop.internal/inventory") {
		t.Errorf("a join token through the proxy: %d %s", joined.status, joined.body)
	}
	// It names itself to renew.
	_, csr = newCSR(t)
	renewed := a.send(proxy, http.MethodPost, a.url+"/v1/certificates", jsonText(t, wire.CertificateRequest{CSR: csr}), "Content-Type", wire.JSON, headerCert, clientCert(edge))
	if renewed.status != 201 || !strings.Contains(renewed.body, "spiffe://shop.internal/edge") {
		t.Errorf("its own renewal: %d %s", renewed.status, renewed.body)
	}
}

// A proxy that is disabled vouches for nobody.
func TestDisabledProxy(t *testing.T) {
	a := newProxied(t)
	edge, reports := a.join("edge"), a.join("reports")
	proxy := a.raw(edge)
	a.must(a.admin().DisableService(t.Context(), "edge", "test"))
	if got := a.postToken(proxy, machineForm(), headerCert, clientCert(reports)); got.code() != countersign.CodeForwarded {
		t.Errorf("%d %s", got.status, got.body)
	}
	a.must(a.admin().EnableService(t.Context(), "edge", "test"))
	a.checkToken("enabled", a.postToken(proxy, machineForm(), headerCert, clientCert(reports)), 200, "")
	a.must(a.admin().Revoke(t.Context(), edge.Serial, "keyCompromise"))
	if got := a.postToken(proxy, machineForm(), headerCert, clientCert(reports)); got.code() != countersign.CodeRevokedPeer {
		t.Errorf("revoked: %d %s", got.status, got.body)
	}
}

// A real proxy of other people's making: net/http/httputil ends mTLS and forwards as RFC 9440 says.
func TestThroughARealProxy(t *testing.T) {
	a := newProxied(t)
	edge, reports := a.join("edge"), a.join("reports")
	front := a.reverseProxy(edge)
	through := func(id *identity.Identity, header ...string) reply {
		config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: front.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
		if id != nil {
			config.Certificates = []tls.Certificate{id.TLS()}
		}
		transport := &http.Transport{TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		return a.send(&http.Client{Transport: transport}, http.MethodPost, front.URL+"/oauth2/token", machineForm().Encode(), append(header, "Content-Type", wire.Form)...)
	}
	got := through(reports)
	a.checkToken("through", got, 200, "")
	if claims := a.claimsOf(got); claims["client_id"] != reportsID {
		t.Errorf("%v", claims)
	}
	if got := through(nil, headerCert, clientCert(reports)); got.code() != countersign.CodeProxyAlone {
		t.Errorf("a forged header through the proxy: %d %s", got.status, got.body)
	}
}

func FuzzForwardedCertificate(f *testing.F) {
	f.Add(":AA==:", "", `Hash=00;Cert="-----BEGIN%20CERTIFICATE-----%0A";URI=spiffe://td/a`)
	f.Add("", ":AA==:, :AA==:", `By=a;Subject="a\"b;,=";DNS=a;DNS=b`)
	f.Add("::", ",", ";;=,")
	f.Fuzz(func(t *testing.T, cert, chain, xfcc string) {
		for _, h := range []http.Header{
			{headerCert: {cert}}, {headerXFCC: {xfcc}}, {headerCert: {cert}, headerChain: {chain}, headerXFCC: {xfcc}}, {headerChain: {chain, chain}},
		} {
			kind := ClientCert
			if len(h[headerXFCC]) > 0 {
				kind = XFCC
			}
			leaf, err := forwardedCertificate(h, kind)
			if (leaf == nil) == (err == nil) {
				t.Errorf("%v: %v %v", h, leaf, err)
			}
			if leaf == nil {
				continue
			}
			if _, err := x509.ParseCertificate(leaf.Raw); err != nil || len(leaf.Raw) > maxForwardedCert {
				t.Errorf("%v: %v", h, err)
			}
		}
		if pairs, err := xfccPairs(xfcc); err == nil && len(pairs) == 0 {
			t.Errorf("%q: no pairs and no error", xfcc)
		}
	})
}

// reverseProxy ends mTLS as a service and forwards what it saw, and nothing that its clients say about certificates.
func (a *asserting) reverseProxy(edge *identity.Identity) *httptest.Server {
	target, err := url.Parse(a.url)
	a.must(err)
	transport := a.raw(edge).Transport
	forward := &httputil.ReverseProxy{Transport: transport, Rewrite: func(rq *httputil.ProxyRequest) {
		rq.SetURL(target)
		for _, name := range []string{headerCert, headerChain, headerXFCC} {
			rq.Out.Header.Del(name)
		}
		if peers := rq.In.TLS.PeerCertificates; len(peers) > 0 {
			rq.Out.Header.Set(headerCert, ":"+base64.StdEncoding.EncodeToString(peers[0].Raw)+":")
		}
	}}
	front := httptest.NewUnstartedServer(forward)
	front.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13}
	front.StartTLS()
	a.Cleanup(front.Close)
	return front
}

// ignored is how many requests had headers that were ignored.
func (k *kit) ignored() float64 {
	k.Helper()
	families, err := k.api.Registry.Gather()
	k.must(err)
	for _, family := range families {
		if family.GetName() == "countersign_http_forwarded_certificates_ignored_total" {
			return family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	k.Fatal("the metric is missing")
	return 0
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
