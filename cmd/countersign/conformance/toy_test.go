package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
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

func (y *toy) exchange(w http.ResponseWriter, r *http.Request) (map[string]any, error) {
	form, err := y.form(w, r)
	if err != nil {
		return nil, err
	}
	r.PostForm = form
	client, err := y.client(w, r, form)
	if err != nil {
		return nil, err
	}
	if y.is("refuses everything") {
		return nil, bad("invalid_request")
	}
	if err := y.checkGrant(form.Get("grant_type")); err != nil {
		return nil, err
	}
	claims, err := y.checkTokens(form, client)
	if err != nil {
		return nil, err
	}
	audience, err := y.target(form, client)
	if err != nil {
		return nil, err
	}
	scope, err := y.scope(form, client)
	if err != nil {
		return nil, err
	}
	return y.mint(r, claims, client, audience, scope), nil
}

func (y *toy) checkGrant(grant string) error {
	switch {
	case grant == "" && y.is("takes no grant_type for an unknown one"):
		return bad("unsupported_grant_type")
	case grant == "":
		return bad("invalid_request")
	case grant == grantExchange, strings.EqualFold(grant, grantExchange) && y.is("folds the case of values"):
		return nil
	case y.is("has one error for all grants"):
		return bad("invalid_request")
	}
	return bad("unsupported_grant_type")
}

func (y *toy) checkTokens(form url.Values, client string) (map[string]any, error) {
	subject, typ := form.Get("subject_token"), form.Get("subject_token_type")
	switch {
	case subject == "" && y.is("takes no subject_token for an invalid one"):
		return nil, bad("invalid_grant")
	case subject == "":
		return nil, bad("invalid_request")
	case typ == "" && !y.is("needs no subject_token_type"):
		return nil, bad("invalid_request")
	case len(subject) > 100_000 && y.is("fails at long tokens"), strings.Count(subject, ".") > 1000 && y.is("fails at dots"):
		return nil, &refusal{500, "invalid_request"}
	case typ != "" && typ != typeAccessToken && typ != typeJWT && !y.is("takes any subject_token_type"):
		return nil, bad("invalid_request")
	}
	claims, ok := y.subject(subject, client)
	if !ok && y.is("says invalid_grant of an invalid token") {
		return nil, bad("invalid_grant")
	}
	if !ok {
		return nil, bad("invalid_request")
	}
	actor, actorType := form.Get("actor_token"), form.Get("actor_token_type")
	switch {
	case y.is("ignores the actor"):
	case form.Has("actor_token_type") && actor == "", actor != "" && actorType == "", actor != "" && actorType != typeAccessToken:
		return nil, bad("invalid_request")
	case actor != "":
		if _, ok := y.subject(actor, client); !ok {
			return nil, bad("invalid_request")
		}
	}
	switch requested := form.Get("requested_token_type"); {
	case requested == "", y.is("ignores requested_token_type"):
	case requested != typeAccessToken, y.is("issues nothing that is requested"):
		return nil, bad("invalid_request")
	}
	return claims, nil
}

// subject verifies a token of the user's, or one of ours.
func (y *toy) subject(compact, client string) (map[string]any, bool) {
	payload, ok := y.verified(compact)
	if !ok {
		return nil, false
	}
	var claims map[string]any
	if json.Unmarshal(payload, &claims) != nil {
		return nil, false
	}
	exp, _ := claims["exp"].(float64)
	if time.Unix(int64(exp), 0).Before(time.Now()) && !y.is("takes expired tokens") {
		return nil, false
	}
	mine := claims["aud"] == "shop-web" && client == "gateway" || claims["iss"] == y.issuer && claims["aud"] == client
	return claims, (mine || y.is("takes everybody's tokens")) && !(y.is("refuses its own tokens") && claims["iss"] == y.issuer)
}

func (y *toy) verified(compact string) ([]byte, bool) {
	if y.is("takes padding and newlines") {
		compact = strings.TrimRight(compact, "=\n")
	}
	if y.is("takes JWS in JSON") && strings.HasPrefix(compact, "{") {
		jws, err := jose.ParseSignedJSON(compact, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			return nil, false
		}
		payload, err := jws.Verify(y.world.users.Public())
		return payload, err == nil
	}
	parts := strings.Split(compact, ".")
	if len(parts) == 2 && y.is("takes two parts") {
		payload, err := base64.RawURLEncoding.DecodeString(parts[1])
		return payload, err == nil
	}
	if !regexp.MustCompile(`^[\w-]+\.[\w-]+\.[\w-]*$`).MatchString(compact) {
		return nil, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	header, _ := base64.RawURLEncoding.DecodeString(parts[0])
	var h struct {
		Alg string           `json:"alg"`
		JWK *jose.JSONWebKey `json:"jwk"`
	}
	_ = json.Unmarshal(header, &h)
	switch {
	case err != nil:
		return nil, false
	case y.is("does not verify"), h.Alg == "none" && y.is("takes none"), h.Alg == "NonE" && y.is("takes NonE"), parts[2] == "" && y.is("takes no signature"):
		return payload, true
	}
	jws, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, false
	}
	keys := []any{y.world.users.Public(), y.world.own.Public(), y.world.other.Public()}
	if h.JWK != nil && y.is("trusts jwk") {
		keys = append(keys, h.JWK)
	}
	for _, key := range keys {
		if _, err := jws.Verify(key); err == nil {
			return payload, true
		}
	}
	return nil, false
}

// target finds the one audience (RFC 8693 2.1, RFC 8707 2).
func (y *toy) target(form url.Values, client string) (string, error) {
	calls := map[string]string{"gateway": "orders", "orders": "inventory"}
	var all []string
	if !y.is("ignores audience") {
		all = append(all, form["audience"]...)
	}
	for _, resource := range form["resource"] {
		if y.is("ignores resource") {
			break
		}
		if y.is("ignores fragments") {
			resource, _, _ = strings.Cut(resource, "#")
		}
		if y.is("takes relative resources") && strings.HasPrefix(resource, "/") {
			resource = "https://orders.example/"
		}
		if y.is("calls a bad resource invalid_request") && resource != "https://orders.example/" {
			return "", bad("invalid_request")
		}
		name := map[string]string{"https://orders.example/": "orders"}[resource]
		if name == "" || y.is("takes no resource") {
			name = "?"
		}
		all = append(all, name)
	}
	if y.is("looks at the first target") && len(all) > 1 {
		all = all[:1]
	}
	for _, target := range all {
		if target != calls[client] && !(target == "inventory" && y.is("lets everybody call everybody")) {
			if y.is("calls a bad target invalid_request") {
				return "", bad("invalid_request")
			}
			return "", bad("invalid_target")
		}
	}
	if len(all) == 0 {
		return calls[client], nil
	}
	return all[0], nil
}

func (y *toy) scope(form url.Values, client string) (string, error) {
	has := map[string]string{"gateway": "orders:read", "orders": "stock:read"}[client]
	asked := form.Get("scope")
	switch {
	case asked == "":
		return has, nil
	case asked == has, y.is("grants any scope"):
		return asked, nil
	}
	return "", bad("invalid_scope")
}

// mint makes the answer.
func (y *toy) mint(r *http.Request, subject map[string]any, client, audience, scope string) map[string]any {
	y.mu.Lock()
	y.n++
	id := fmt.Sprint(y.n)
	y.mu.Unlock()
	now := time.Now()
	exp := now.Add(5 * time.Minute).Unix()
	if limit, ok := subject["exp"].(float64); ok && int64(limit) < exp {
		exp = int64(limit)
	}
	act := map[string]any{"sub": client}
	if subject["iss"] == y.issuer {
		act["act"] = subject["act"]
	}
	claims := map[string]any{"iss": y.issuer, "sub": subject["sub"], "aud": audience, "iat": now.Unix(), "exp": exp, "jti": id, "client_id": client,
		"scope": scope, "act": act}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		sum := sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
		claims["cnf"] = map[string]string{"x5t#S256": encode(sum[:])}
	}
	key, kid, typ := y.world.own, "own", "at+jwt"
	switch y.defect {
	case "types tokens JWT":
		typ = "JWT"
	case "leaves jti out of at+jwt":
		delete(claims, "jti")
	case "writes scope as an array":
		claims["scope"] = []string{scope}
	case "adds a scope":
		claims["scope"] = scope + " admin"
	case "has its own audience":
		claims["aud"] = y.issuer
	case "adds an audience":
		claims["aud"] = []string{audience, "inventory"}
	case "outlives the subject token":
		claims["exp"] = now.Add(24 * time.Hour).Unix()
	case "backdates":
		claims["iat"] = now.Add(-time.Hour).Unix()
	case "changes the subject":
		claims["sub"] = "somebody " + id
	case "names no actor":
		delete(claims, "act")
		delete(claims, "client_id")
	case "puts exp into act":
		act["exp"] = exp
	case "names another client":
		claims["client_id"] = "another"
	case "repeats jti":
		claims["jti"] = "1"
	case "binds to another certificate":
		claims["cnf"] = map[string]string{"x5t#S256": encode(make([]byte, 32))}
	case "forgets the actors before":
		claims["act"] = map[string]any{"sub": client}
	case "lets the second token outlive":
		claims["exp"] = now.Add(5*time.Minute).Unix() + int64(y.n)
	case "has another issuer":
		claims["iss"] = "https://other.example"
	case "signs with an unpublished key":
		key = y.world.other
	case "leaves kid out":
		kid = ""
	}
	compact := sign(key, kid, typ, claims)
	if y.is("signs with a secret") {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: make([]byte, 32)}, nil)
		if err != nil {
			panic(err)
		}
		payload, _ := json.Marshal(claims)
		jws, _ := signer.Sign(payload)
		compact, _ = jws.CompactSerialize()
	}
	return map[string]any{"access_token": compact, "issued_token_type": typeAccessToken, "token_type": "Bearer", "expires_in": exp - now.Unix(), "scope": scope}
}

func (y *toy) metadata(w http.ResponseWriter, _ *http.Request) {
	document := map[string]any{
		"issuer": y.issuer, "token_endpoint": y.issuer + "/token", "jwks_uri": y.issuer + "/keys", "response_types_supported": []string{},
		"grant_types_supported": []string{grantExchange}, "token_endpoint_auth_methods_supported": []string{"tls_client_auth", "private_key_jwt"},
		"token_endpoint_auth_signing_alg_values_supported": []string{"ES256"}, "tls_client_certificate_bound_access_tokens": true,
	}
	switch y.defect {
	case "describes another issuer":
		document["issuer"] = y.issuer + "/"
	case "describes another endpoint":
		document["token_endpoint"] = y.issuer + "/oauth"
	case "describes no jwks_uri":
		delete(document, "jwks_uri")
	case "describes no response types":
		delete(document, "response_types_supported")
	case "describes no grant types":
		delete(document, "grant_types_supported")
	case "describes no mutual TLS":
		document["token_endpoint_auth_methods_supported"] = []string{"private_key_jwt"}
	case "describes the algorithm none":
		document["token_endpoint_auth_signing_alg_values_supported"] = []string{"ES256", "none"}
	case "describes no binding":
		delete(document, "tls_client_certificate_bound_access_tokens")
	case "describes nothing":
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(document)
}

func (y *toy) keys(w http.ResponseWriter, _ *http.Request) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: y.world.own.Public(), KeyID: "own", Algorithm: "ES256", Use: "sig"}, {Key: y.world.users.Public(), KeyID: "old", Algorithm: "ES256", Use: "sig"},
	}}
	switch y.defect {
	case "publishes no keys":
		http.Error(w, "no", http.StatusNotFound)
		return
	case "publishes a private key":
		set.Keys[0].Key = y.world.own
	case "publishes keys without kid":
		set.Keys[0].KeyID, set.Keys[1].KeyID = "", ""
	}
	_ = json.NewEncoder(w).Encode(set)
}
