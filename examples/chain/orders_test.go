package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/local"
)

// issuing is an authority that says and signs whatever a test wants: the real one would never make these tokens.
type issuing struct {
	*httptest.Server
	t    *testing.T
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey // of ca
	rsa  *rsa.PrivateKey   // kid "r": of tokens
	feed *ecdsa.PrivateKey // kid "e": of the list of revocations

	mu      sync.Mutex
	callers []string
	serials []string // that are revoked
	revoked []map[string]any
	changed chan struct{}
}

func newIssuing(t *testing.T) *issuing {
	t.Helper()
	i := &issuing{t: t, callers: []string{id(gateway)}, revoked: []map[string]any{}, changed: make(chan struct{})}
	var err error
	for _, key := range []**ecdsa.PrivateKey{&i.key, &i.feed} {
		if *key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	if i.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, i.key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	if i.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/callers", i.serveCallers)
	mux.HandleFunc("GET /.well-known/jwks.json", i.serveKeys)
	mux.HandleFunc("GET /oauth2/revocations", i.serveRevocations)
	mux.HandleFunc("POST /oauth2/token", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest) // whoever comes here was verified by orders
		_, _ = w.Write([]byte(`{"error":"invalid_target"}`))
	})
	i.Server = httptest.NewUnstartedServer(mux)
	own := i.certify("countersign", time.Now(), "localhost")
	i.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert}
	i.StartTLS()
	t.Cleanup(i.Close)
	i.URL = strings.Replace(i.URL, "127.0.0.1", "localhost", 1)
	return i
}

// certify makes a certificate as the authority does: notBefore is a minute before the issue.
func (i *issuing) certify(service string, issued time.Time, dns ...string) tls.Certificate {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	uri, err := url.Parse(id(service))
	if err != nil {
		i.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		i.t.Fatal(err)
	}
	from := issued.Add(-time.Minute).Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: service}, NotBefore: from, NotAfter: from.Add(time.Hour - time.Second),
		DNSNames: dns, URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.ca, key.Public(), i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (i *issuing) serveCallers(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	tag := fmt.Sprintf("%q", fmt.Sprint(i.callers, i.serials))
	if changed := i.changed; r.Header.Get("If-None-Match") == tag {
		i.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		i.mu.Lock()
		tag = fmt.Sprintf("%q", fmt.Sprint(i.callers, i.serials))
	}
	list := []map[string]string{}
	for _, id := range i.callers {
		list = append(list, map[string]string{"id": id})
	}
	w.Header().Set("ETag", tag)
	_ = json.NewEncoder(w).Encode(map[string]any{"callers": list, "revoked": map[string]any{"serials": i.serials, "keys": []string{}}})
}

// change sets who may call and which of their serials are revoked.
func (i *issuing) change(callers, serials []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.callers, i.serials = callers, serials
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *issuing) serveKeys(w http.ResponseWriter, _ *http.Request) {
	point, err := i.feed.PublicKey.ECDH()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	raw := point.Bytes()
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{
		{"kty": "RSA", "kid": "r", "alg": "RS256", "use": "sig", "n": b64(i.rsa.N.Bytes()), "e": "AQAB"},
		{"kty": "EC", "kid": "e", "alg": "ES256", "use": "sig", "crv": "P-256", "x": b64(raw[1:33]), "y": b64(raw[33:])},
	}})
}

func (i *issuing) serveRevocations(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now().Unix()
	body, err := json.Marshal(map[string]any{
		"iss": i.URL, "iat": now, "exp": now + 60, "since": json.Number(r.FormValue("since")), "cursor": 1, "more": false, "revocations": i.revoked,
	})
	if err != nil {
		i.t.Error(err)
	}
	_, _ = w.Write([]byte(i.es256(`{"alg":"ES256","kid":"e","typ":"revocations+jwt"}`, string(body))))
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (i *issuing) rs256(header, payload string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.rsa, crypto.SHA256, sum[:])
	if err != nil {
		i.t.Error(err)
	}
	return signed + "." + b64(signature)
}

func (i *issuing) es256(header, payload string) string {
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.feed, sum[:])
	if err != nil {
		i.t.Error(err)
	}
	return signed + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

const goodHeader = `{"alg":"RS256","kid":"r","typ":"JWT"}`

// claims are those of a good token, with changes; nil removes a claim.
func (i *issuing) claims(changes map[string]any) string {
	now := time.Now().Unix()
	all := map[string]any{
		"iss": i.URL, "sub": "ana", "sub_iss": "https://idp.shop.example", "aud": "orders", "iat": now, "nbf": now, "exp": now + 600, "jti": "a.b",
		"client_id": id(gateway), "scope": "orders:read", "txn": "t1", "sid": "s1", "act": map[string]any{"sub": id(gateway)},
	}
	for name, value := range changes {
		all[name] = value
		if value == nil {
			delete(all, name)
		}
	}
	body, err := json.Marshal(all)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(body)
}

func (i *issuing) token(changes map[string]any) string { return i.rs256(goodHeader, i.claims(changes)) }

// startOrders starts the service in Java as the chain does.
func (i *issuing) startOrders() (port string) {
	t := i.t
	t.Helper()
	dir := t.TempDir()
	directory := filepath.Join(dir, orders)
	own := i.certify(orders, time.Now(), "orders.shop.internal")
	err := identity.Write(directory, identity.Bundle{Key: own.PrivateKey.(crypto.Signer), Chain: []*x509.Certificate{own.Leaf}, Roots: []*x509.Certificate{i.ca}})
	if err != nil {
		t.Fatal(err)
	}
	free, err := local.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	port = free[strings.LastIndexByte(free, ':')+1:]
	c := &chain{Options: Options{Source: source(t)}, dir: dir}
	config, err := c.fill("orders/application.yaml", map[string]string{"PORT": port, "IDENTITY": directory})
	if err != nil {
		t.Fatal(err)
	}
	generated, err := os.ReadFile("../spring/application-countersign.yaml")
	if err != nil {
		t.Fatal(err)
	}
	written := filepath.Join(dir, "application-countersign.yaml")
	text := strings.ReplaceAll(string(generated), "https://countersign.shop.internal:8443", i.URL)
	if err := os.WriteFile(written, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("orders/*.java")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("javac", append([]string{"-Xlint:all", "-Werror", "-d", dir}, sources...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	host := local.Host{Dir: dir}
	t.Cleanup(host.StopAll)
	_, _, err = host.StartServer(t.Context(), orders, "java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", dir,
		"Orders", "https://inventory.shop.internal:1/stock", config, written)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// ask sends a request to orders; the answer's status, or 0 if there was no connection.
func (i *issuing) ask(port string, as tls.Certificate, authorization ...string) int {
	i.t.Helper()
	client := i.client(as)
	defer client.CloseIdleConnections()
	return ask(i.t, client, port, authorization...)
}

func (i *issuing) client(as tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(i.ca)
	return local.Client(&tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &as, nil },
	})
}

func ask(t *testing.T, client *http.Client, port string, authorization ...string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://orders.shop.internal:"+port+"/orders/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header["Authorization"] = authorization
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil { // what was not read to its end is no connection to keep
		return 0
	}
	return response.StatusCode
}

const taken = http.StatusBadGateway // the token was verified, and the authority of this test exchanges none

// TestOrdersJudges: the service in plain Java takes the tokens that it should, and none that it should not.
func TestOrdersJudges(t *testing.T) {
	i := newIssuing(t)
	port := i.startOrders()
	now := time.Now()
	caller, before := i.certify(gateway, now), i.certify(gateway, now.Add(-10*time.Minute))
	bound := func(c tls.Certificate) map[string]any {
		sum := sha256.Sum256(c.Certificate[0])
		return map[string]any{"x5t#S256": b64(sum[:])}
	}
	good := i.token(nil)
	public := x509.MarshalPKCS1PublicKey(&i.rsa.PublicKey)
	for name, test := range map[string]struct {
		token string
		want  int
	}{
		"good":                          {good, taken},
		"bound to this certificate":     {i.token(map[string]any{"cnf": bound(caller)}), taken},
		"bound to its predecessor":      {i.token(map[string]any{"cnf": bound(before), "iat": now.Unix() - 120}), taken},
		"bound to another":              {i.token(map[string]any{"cnf": bound(before), "iat": now.Unix() + 20, "nbf": nil}), 401},
		"bound to a DPoP key":           {i.token(map[string]any{"cnf": map[string]any{"jkt": "x"}}), 401},
		"for another service":           {i.token(map[string]any{"aud": "inventory"}), 401},
		"for two services":              {i.token(map[string]any{"aud": []string{"orders", "inventory"}}), 401},
		"for none":                      {i.token(map[string]any{"aud": nil}), 401},
		"of another issuer":             {i.token(map[string]any{"iss": "https://localhost"}), 401},
		"over":                          {i.token(map[string]any{"exp": now.Unix() - 60}), 401},
		"without end":                   {i.token(map[string]any{"exp": nil}), 401},
		"with an end that is text":      {i.token(map[string]any{"exp": "9999999999"}), 401},
		"of the future":                 {i.token(map[string]any{"iat": now.Unix() + 90}), 401},
		"not good yet":                  {i.token(map[string]any{"nbf": now.Unix() + 90}), 401},
		"made for another caller":       {i.token(map[string]any{"client_id": id(inventory)}), 401},
		"without scope":                 {i.token(map[string]any{"scope": nil}), 403},
		"with another scope":            {i.token(map[string]any{"scope": "orders:readonly orders"}), 403},
		"with many scopes":              {i.token(map[string]any{"scope": "a orders:read b"}), taken},
		"signed with ES256":             {i.es256(`{"alg":"ES256","kid":"e","typ":"JWT"}`, i.claims(nil)), 401},
		"of typ at+jwt":                 {i.rs256(`{"alg":"RS256","kid":"r","typ":"at+jwt"}`, i.claims(nil)), 401},
		"without typ":                   {i.rs256(`{"alg":"RS256","kid":"r"}`, i.claims(nil)), 401},
		"without kid":                   {i.rs256(`{"alg":"RS256","typ":"JWT"}`, i.claims(nil)), 401},
		"by a key of another algorithm": {i.rs256(`{"alg":"RS256","kid":"e","typ":"JWT"}`, i.claims(nil)), 401},
		"alg none":                      {b64([]byte(`{"alg":"none","kid":"r","typ":"JWT"}`)) + "." + b64([]byte(i.claims(nil))) + ".", 401},
		"HMAC with the public key":      {hmac256(`{"alg":"HS256","kid":"r","typ":"JWT"}`, i.claims(nil), public), 401},
		"with jku":                      {i.rs256(`{"alg":"RS256","kid":"r","typ":"JWT","jku":"https://localhost"}`, i.claims(nil)), 401},
		"with crit":                     {i.rs256(`{"alg":"RS256","kid":"r","typ":"JWT","crit":["x"],"x":1}`, i.claims(nil)), 401},
		"a claim twice":                 {i.rs256(goodHeader, `{"aud":"inventory",`+i.claims(nil)[1:]), 401},
		"something behind the claims":   {i.rs256(goodHeader, i.claims(nil)+"{}"), 401},
		"changed claims":                {strings.Replace(good, ".", ".e", 1), 401},
		"another signature":             {good[:len(good)-8] + "AAAAAAAA", 401},
		"no signature":                  {good[:strings.LastIndexByte(good, '.')+1], 401},
		"base64 with padding":           {good + "==", 401},
		"base64 that is not canonical":  {notCanonical(good), 401},
		"four parts":                    {good + ".x", 401},
		"longer than any token is":      {i.token(map[string]any{"x": strings.Repeat("x", 20<<10)}), 401},
		"no token":                      {"", 401},
	} {
		if got := i.ask(port, caller, "Bearer "+test.token); got != test.want {
			t.Errorf("a token %s: %d, want %d", name, got, test.want)
		}
	}
	for name, headers := range map[string][]string{"none": nil, "two": {"Bearer " + good, "Bearer " + good}, "Basic": {"Basic " + good}} {
		if got := i.ask(port, caller, headers...); got != 401 {
			t.Errorf("Authorization: %s: %d", name, got)
		}
	}
	if got := i.ask(port, caller, "bearer "+good); got != taken { // RFC 9110 11.1: no case
		t.Errorf("the scheme in small letters: %d", got)
	}
	t.Run("revoked", func(t *testing.T) { revokedTokens(t, i, port, caller) })
	t.Run("callers", func(t *testing.T) { otherCallers(t, i, port, caller, good) })
}

// revokedTokens revokes many things at once; each is of a token of its own.
func revokedTokens(t *testing.T, i *issuing, port string, caller tls.Certificate) {
	now, until := time.Now().Unix(), time.Now().Add(time.Hour).Unix()
	hash := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	actor := map[string]any{"sub": id(gateway), "act": map[string]any{"sub": id(warehouse)}}
	i.revoke(
		map[string]any{"kind": "jti", "value": "a1", "until": until},
		map[string]any{"kind": "jti", "value": "a2.b", "until": until},
		map[string]any{"kind": "txn", "value": "t2", "until": until},
		map[string]any{"kind": "sid", "value": hash("https://idp.shop.example\x00s2"), "until": until},
		map[string]any{"kind": "sub", "value": hash("eve"), "before": now - 10, "until": until},
		map[string]any{"kind": "service", "value": id(warehouse), "before": now - 10, "until": until},
	)
	i.eventually(port, caller, i.token(map[string]any{"txn": "t2"}), 401, "a transaction") // the list has come
	for name, test := range map[string]struct {
		changes map[string]any
		want    int
	}{
		"the parent's jti":             {map[string]any{"jti": "a1.x"}, 401},
		"the jti":                      {map[string]any{"jti": "a2.b"}, 401},
		"a jti that begins alike":      {map[string]any{"jti": "a2.bc"}, taken},
		"the parent of a revoked one":  {map[string]any{"jti": "a2"}, taken},
		"the session":                  {map[string]any{"sid": "s2"}, 401},
		"the session's name elsewhere": {map[string]any{"sid": "s2", "sub_iss": "https://other.example"}, taken},
		"the subject":                  {map[string]any{"sub": "eve", "iat": now - 20}, 401},
		"the subject, later":           {map[string]any{"sub": "eve"}, taken},
		"a service of the chain":       {map[string]any{"act": actor, "iat": now - 20}, 401},
		"a service, later":             {map[string]any{"act": actor}, taken},
		"nothing":                      {nil, taken},
	} {
		if got := i.ask(port, caller, "Bearer "+i.token(test.changes)); got != test.want {
			t.Errorf("revoked: %s: %d, want %d", name, got, test.want)
		}
	}
	i.revoke(map[string]any{"kind": "unheard of", "value": "x", "until": until})
	i.eventually(port, caller, i.token(nil), 401, "something of a kind that is not known")
	i.revoke()
	i.eventually(port, caller, i.token(nil), taken, "nothing any more")
}

// revoke sets the list of revocations.
func (i *issuing) revoke(list ...map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.revoked = append([]map[string]any{}, list...)
}

// eventually waits until orders answers a token so: it reads the list every 2 s.
func (i *issuing) eventually(port string, caller tls.Certificate, token string, want int, what string) {
	i.t.Helper()
	got := 0
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if got = i.ask(port, caller, "Bearer "+token); got == want {
			return
		}
	}
	i.t.Errorf("revoked: %s: %d, want %d", what, got, want)
}

func otherCallers(t *testing.T, i *issuing, port string, caller tls.Certificate, token string) {
	if got := i.ask(port, i.certify(inventory, time.Now()), "Bearer "+token); got != 0 {
		t.Errorf("a service without an edge: %d", got)
	}
	kept := i.client(caller)
	defer kept.CloseIdleConnections()
	if got := ask(t, kept, port, "Bearer "+token); got != taken {
		t.Fatalf("the caller: %d", got)
	}
	for name, change := range map[string]func(){
		"no edge":          func() { i.change(nil, nil) },
		"a revoked serial": func() { i.change([]string{id(gateway)}, []string{fmt.Sprintf("%032x", caller.Leaf.SerialNumber)}) },
	} {
		change()
		for until := time.Now().Add(10 * time.Second); ask(t, kept, port, "Bearer "+token) != 403; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(until) {
				t.Errorf("%s: a kept connection is still served", name)
				break
			}
		}
		if got := i.ask(port, caller, "Bearer "+token); got != 0 {
			t.Errorf("%s: a new connection: %d", name, got)
		}
		i.change([]string{id(gateway)}, nil)
		for until := time.Now().Add(10 * time.Second); ask(t, kept, port, "Bearer "+token) != taken; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("after %s: the caller is refused", name)
			}
		}
	}
}

func hmac256(header, payload string, key []byte) string {
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	return signed + "." + b64(mac.Sum(nil))
}

// notCanonical sets a bit of the last character that stands for no bit of the signature: lenient decoders see the same bytes.
func notCanonical(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}
