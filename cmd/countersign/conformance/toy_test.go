package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/big"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// toy is a token endpoint that does all right but for one defect. It is as small as that allows, and no example.
type toy struct {
	defect string
	issuer string
	world  *world
	server *httptest.Server

	mu   sync.Mutex
	seen map[string]bool // jti of assertions
	n    int             // tokens

	requests int
}

// world is what all toys share: keys and certificates.
type world struct {
	own, other, users, assertion *ecdsa.PrivateKey
	pool                         *x509.CertPool
	gateway, orders              *tls.Certificate
}

func newWorld(t *testing.T) *world {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	w := &world{own: key(), other: key(), users: key(), assertion: key(), pool: x509.NewCertPool()}
	caKey := key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "toy CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	issue := func(template *x509.Certificate, k *ecdsa.PrivateKey) *tls.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, ca, k.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
	}
	root, err := x509.ParseCertificate(issue(ca, caKey).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	w.pool.AddCert(root)
	leaf := func(name string) *tls.Certificate {
		return issue(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key())
	}
	w.gateway, w.orders = leaf("gateway"), leaf("orders")
	return w
}

func newToy(t *testing.T, w *world, defect string) *toy {
	t.Helper()
	y := &toy{defect: defect, world: w, seen: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/token", y.token)
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", y.metadata)
	mux.HandleFunc("GET /keys", y.keys)
	y.server = httptest.NewUnstartedServer(mux)
	y.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if y.is("speaks plain HTTP") {
		y.server.Start()
	} else {
		y.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
		if y.is("speaks TLS 1.0") {
			y.server.TLS.MinVersion = tls.VersionTLS10
		}
		y.server.StartTLS()
	}
	y.issuer = y.server.URL
	t.Cleanup(y.server.Close)
	return y
}

func (y *toy) is(defect string) bool { return y.defect == defect }

// config is that of a run with everything that can be given.
func (y *toy) config(t *testing.T) Config {
	t.Helper()
	now := time.Now()
	user := func(change func(map[string]any)) string {
		claims := map[string]any{"iss": "https://idp.example", "sub": "ana", "aud": "shop-web", "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix()}
		change(claims)
		return sign(y.world.users, "user", "at+jwt", claims)
	}
	roots := x509.NewCertPool()
	if certificate := y.server.Certificate(); certificate != nil {
		roots.AddCert(certificate)
	}
	return Config{
		Endpoint: y.server.URL + "/token", Issuer: y.issuer, Roots: roots, Certificate: y.world.gateway, ClientID: "gateway",
		SubjectToken:        user(func(map[string]any) {}),
		ForeignSubjectToken: user(func(c map[string]any) { c["aud"] = "another" }),
		ExpiredSubjectToken: user(func(c map[string]any) { c["exp"] = now.Add(-time.Hour).Unix() }),
		Audience:            "orders", BadAudience: "inventory", Resource: "https://orders.example/", Scope: "orders:read", WiderScope: "orders:write",
		Next: y.world.orders, NextClientID: "orders", NextAudience: "inventory",
	}
}

func sign(key *ecdsa.PrivateKey, kid, typ string, claims any) string {
	options := (&jose.SignerOptions{}).WithType(jose.ContentType(typ))
	if kid != "" {
		options.WithHeader("kid", kid)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options)
	if err != nil {
		panic(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		panic(err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return compact
}

// refusal is an error of RFC 6749 5.2.
type refusal struct {
	status int
	code   string
}

func (r *refusal) Error() string { return r.code }

func bad(code string) *refusal { return &refusal{400, code} }

func (y *toy) token(w http.ResponseWriter, r *http.Request) {
	y.mu.Lock()
	y.requests++
	busy := y.is("is busy") && y.requests%2 == 1
	y.mu.Unlock()
	if busy {
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	answer, err := y.exchange(w, r)
	var no *refusal
	switch {
	case err == nil:
		y.grant(w, answer)
	case errors.As(err, &no):
		y.refuse(w, r, no)
	}
}

func (y *toy) refuse(w http.ResponseWriter, r *http.Request, no *refusal) {
	h, body := w.Header(), map[string]any{"error": no.code, "error_description": "no"}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	switch y.defect {
	case "refuses as text":
		h.Set("Content-Type", "text/plain")
		w.WriteHeader(no.status)
		_, _ = io.WriteString(w, "no")
		return
	case "refuses with 403":
		no.status = 403
	case "has errors of its own":
		body["error"] = "request_not_supported"
	case "describes with quotes":
		body["error_description"] = `"no"`
	case "lets refusals be cached":
		h.Del("Cache-Control")
	case "repeats the subject token":
		body["error_description"] = r.PostForm.Get("subject_token")
	case "redirects":
		h.Set("Location", "/login")
		no.status = 302
	case "fails":
		no.status = 500
	}
	w.WriteHeader(no.status)
	_ = json.NewEncoder(w).Encode(body)
}

func (y *toy) grant(w http.ResponseWriter, answer map[string]any) {
	h, status := w.Header(), 200
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	switch y.defect {
	case "answers 201":
		status = 201
	case "answers as text":
		h.Set("Content-Type", "text/plain")
	case "lets tokens be cached":
		h.Set("Cache-Control", "private")
	case "sends no Pragma":
		h.Del("Pragma")
	case "leaves issued_token_type out":
		delete(answer, "issued_token_type")
	case "leaves token_type out":
		delete(answer, "token_type")
	case "leaves expires_in out":
		delete(answer, "expires_in")
	case "sends expires_in as a string":
		answer["expires_in"] = "300"
	case "sends expires_in of another time":
		answer["expires_in"] = 3000
	case "sends scope as an array":
		answer["scope"] = []string{"orders:read"}
	case "leaves scope out":
		delete(answer, "scope")
	case "sends a refresh token":
		answer["refresh_token"] = "refresh"
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}

// form reads the request (RFC 6749 3.2).
func (y *toy) form(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, bad("invalid_request")
	}
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet:
		if y.is("takes GET") {
			return r.URL.Query(), nil
		}
		fallthrough
	default:
		if r.Method == http.MethodPut && y.is("takes PUT") {
			break
		}
		if !y.is("has no Allow header") {
			w.Header().Set("Allow", "POST")
		}
		return nil, &refusal{405, "invalid_request"}
	}
	if r.URL.RawQuery != "" && !y.is("reads the query") {
		return nil, bad("invalid_request")
	}
	form, err := y.decode(r.Header.Get("Content-Type"), body)
	if err != nil {
		return nil, err
	}
	for name, values := range r.URL.Query() {
		form[name] = append(form[name], values...)
	}
	return y.clean(form)
}

func (y *toy) decode(typ string, body []byte) (url.Values, error) {
	media, parameters, err := mime.ParseMediaType(typ)
	form := url.Values{}
	switch {
	case err != nil:
	case media == typeForm && (typ == typeForm || !y.is("compares the media type as text")), media == "text/plain" && y.is("takes text/plain"):
		form, err = url.ParseQuery(string(body))
		if err != nil && !y.is("takes malformed forms") {
			return nil, bad("invalid_request")
		}
		return form, nil
	case media == "application/json" && y.is("takes JSON"):
		var flat map[string]string
		if json.Unmarshal(body, &flat) != nil {
			return nil, bad("invalid_request")
		}
		for name, value := range flat {
			form.Set(name, value)
		}
		return form, nil
	case media == "multipart/form-data" && y.is("takes multipart"):
		r := &http.Request{Method: http.MethodPost, Header: http.Header{"Content-Type": {typ}}, Body: io.NopCloser(strings.NewReader(string(body)))}
		if r.ParseMultipartForm(1<<20) != nil || parameters["boundary"] == "" {
			return nil, bad("invalid_request")
		}
		return r.PostForm, nil
	}
	return nil, bad("invalid_request")
}

func (y *toy) clean(form url.Values) (url.Values, error) {
	known := []string{"grant_type", "client_id", "subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type",
		"audience", "resource", "scope", "client_secret", "client_assertion", "client_assertion_type"}
	clean := url.Values{}
	for name, values := range form {
		if y.is("folds the case of names") {
			name = strings.ToLower(name)
		}
		if y.is("refuses unknown parameters") && !slices.Contains(known, name) {
			return nil, bad("invalid_request")
		}
		if len(values) > 1 && name != "audience" && name != "resource" && !y.is("takes "+name+" twice") {
			return nil, bad("invalid_request")
		}
		for _, value := range values {
			if value != "" || y.is("takes empty values for values") {
				clean.Add(name, value)
			}
		}
	}
	return clean, nil
}

// client authenticates (RFC 6749 2.3, RFC 8705 2, RFC 7523 3).
func (y *toy) client(w http.ResponseWriter, r *http.Request, form url.Values) (string, error) {
	var certificate *x509.Certificate
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		certificate = r.TLS.PeerCertificates[0]
	}
	if raw, err := base64.StdEncoding.DecodeString(strings.Trim(r.Header.Get("Client-Cert"), ":")); err == nil && len(raw) > 0 && y.is("trusts a certificate in a header") {
		certificate, _ = x509.ParseCertificate(raw)
	}
	if certificate != nil {
		_, err := certificate.Verify(x509.VerifyOptions{Roots: y.world.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil && !y.is("trusts any certificate") {
			certificate = nil
		}
	}
	header, secret, assertion := r.Header.Get("Authorization") != "", form.Has("client_secret"), form.Has("client_assertion")
	name := ""
	switch {
	case certificate != nil && (header && !y.is("ignores the Authorization header") || secret && !y.is("ignores client_secret") ||
		assertion && !y.is("ignores client_assertion")):
		return "", bad("invalid_request")
	case certificate != nil:
		name = certificate.Subject.CommonName
	case header:
		no := &refusal{401, "invalid_client"}
		if !y.is("challenges nobody") {
			w.Header().Set("WWW-Authenticate", `Basic realm="toy"`)
		}
		if y.is("answers a wrong password with 400") {
			no.status = 400
		}
		return "", no
	case assertion && y.proves(form.Get("client_assertion")):
		name = "gateway"
	case y.is("takes everybody for a client"):
		return "gateway", nil
	case y.is("answers nobody with 400"):
		return "", bad("invalid_client")
	default:
		return "", &refusal{401, "invalid_client"}
	}
	if id := form.Get("client_id"); id != "" && id != name && !y.is("ignores client_id") {
		return "", &refusal{401, "invalid_client"}
	}
	return name, nil
}

func (y *toy) proves(assertion string) bool {
	jws, err := jose.ParseSignedCompact(assertion, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return false
	}
	if _, err := jws.Verify(y.world.assertion.Public()); err != nil && !y.is("does not verify assertions") {
		return false
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	id := string(jws.UnsafePayloadWithoutVerification())
	if y.seen[id] && !y.is("takes an assertion twice") {
		return false
	}
	y.seen[id] = true
	return true
}
