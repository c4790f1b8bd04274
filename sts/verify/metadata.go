package verify

import (
	"encoding/json"
	"net/http"
	"strings"
)

const wellKnown = "/.well-known/oauth-protected-resource"

// MetadataPath is where [Verifier.Metadata] has to be registered: /.well-known/oauth-protected-resource, followed by the path of
// Config.URL (RFC 9728 3.1).
func (v *Verifier) MetadataPath() string {
	if v.base == nil {
		return wellKnown
	}
	return wellKnown + strings.TrimSuffix(v.base.EscapedPath(), "/")
}

func (v *Verifier) metadataURL() string {
	return v.base.Scheme + "://" + v.base.Host + v.MetadataPath()
}

// resource is the metadata of a protected resource (RFC 9728 2).
type resource struct {
	Resource   string   `json:"resource"`
	Servers    []string `json:"authorization_servers"`
	Scopes     []string `json:"scopes_supported,omitempty"`
	Methods    []string `json:"bearer_methods_supported"`
	BoundCerts bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
	ProofAlgs  []string `json:"dpop_signing_alg_values_supported,omitempty"`
}

// Metadata serves the metadata by which clients find out where to get tokens for this service (RFC 9728). It is public; register
// it outside of the middleware. Without Config.URL there is none, and it answers 404.
func (v *Verifier) Metadata() http.Handler {
	if v.base == nil {
		return http.NotFoundHandler()
	}
	doc := resource{
		Resource: v.cfg.URL, Servers: []string{v.cfg.Issuer}, Scopes: v.cfg.Scopes,
		Methods: []string{"header"}, BoundCerts: true,
	}
	if v.proofs != nil {
		doc.ProofAlgs = proofAlgorithms()
	}
	body, err := json.Marshal(doc)
	if err != nil {
		panic("verify: metadata of strings can't be written: " + err.Error())
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(body) // the client is gone; nothing to tell it
	})
}
