package sts

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	"github.com/countersign/countersign/sts/jwt"
)

// serverMetadata is the authorization server's metadata (RFC 8414 2), with the members that OpenID Connect Discovery
// demands of a provider as far as they are true: its readers stop at a missing one. There is no authorization endpoint
// and there are no ID tokens yet; the algorithms are those of our tokens.
type serverMetadata struct {
	Issuer        string   `json:"issuer"`
	TokenEndpoint string   `json:"token_endpoint"`
	JWKSURI       string   `json:"jwks_uri"`
	GrantTypes    []string `json:"grant_types_supported"`
	AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
	AuthAlgs      []string `json:"token_endpoint_auth_signing_alg_values_supported"` // required with private_key_jwt
	ResponseTypes []string `json:"response_types_supported"`                         // required, and empty: no authorization endpoint
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Bound         bool     `json:"tls_client_certificate_bound_access_tokens"`

	Revocation           string   `json:"revocation_endpoint"`
	RevocationMethods    []string `json:"revocation_endpoint_auth_methods_supported"`
	Introspection        string   `json:"introspection_endpoint"`
	IntrospectionMethods []string `json:"introspection_endpoint_auth_methods_supported"`
	RevocationAlgs       []string `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	IntrospectionAlgs    []string `json:"introspection_endpoint_auth_signing_alg_values_supported"`

	// Not registered for servers: the feed of revocations, and where a users issuer sends its logout tokens, by the name that
	// a client has for it there. backchannel_logout_supported is for those who send such tokens, which is not done here.
	Revocations string `json:"revocations_uri"`
	Logout      string `json:"backchannel_logout_uri"`
}

// metadata writes the document for an issuer identifier. The endpoints are on its host: the daemon's paths are fixed, and a
// path of the issuer is no prefix of them (RFC 8414 3.1 puts the well-known path before it).
func metadata(issuer string) ([]byte, error) {
	u, err := url.Parse(issuer)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("sts: the issuer %q is no URL with a host", issuer)
	}
	origin := u.Scheme + "://" + u.Host
	methods, algs := []string{"tls_client_auth", "private_key_jwt"}, jwt.Algorithms()
	return json.Marshal(serverMetadata{
		Issuer: issuer, TokenEndpoint: origin + "/oauth2/token", JWKSURI: origin + "/.well-known/jwks.json",
		GrantTypes: []string{GrantExchange, GrantClientCredentials}, AuthMethods: methods, AuthAlgs: algs, Bound: true,
		ResponseTypes: []string{}, SubjectTypes: []string{"public"}, Algorithms: []string{"ES256", "RS256"},
		Revocation: origin + "/oauth2/revoke", RevocationMethods: methods, RevocationAlgs: algs,
		Introspection: origin + "/oauth2/introspect", IntrospectionMethods: methods, IntrospectionAlgs: algs,
		Revocations: origin + "/oauth2/revocations", Logout: origin + "/oauth2/backchannel-logout",
	})
}

// Metadata is the document of both well-known paths, of RFC 8414 and OpenID Connect Discovery. It never changes.
func (s *Service) Metadata() []byte { return slices.Clone(s.metadata) }
