package conformance

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

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
