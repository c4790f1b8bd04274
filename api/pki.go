package api

import (
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// PKI is the handler of the plain HTTP listener for what certificates point to (RFC 5280 4.2.2.1): the authority's own
// certificates as DER, by subject key identifier. It is plain because who follows such a pointer has no trust yet, and
// https would send it in circles (RFC 5280 8). Nothing else is served there.
func (s *Server) PKI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ca/{file}", func(w http.ResponseWriter, r *http.Request) {
		issuer, ok := strings.CutSuffix(r.PathValue("file"), ".cer")
		if !ok {
			http.NotFound(w, r)
			return
		}
		for _, cert := range slices.Concat(s.CA.Intermediates(), s.CA.Roots()) {
			if hex.EncodeToString(cert.SubjectKeyId) != issuer {
				continue
			}
			w.Header().Set("Content-Type", "application/pkix-cert")
			w.Header().Set("Cache-Control", "public, max-age=3600")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = w.Write(cert.Raw) // the peer is gone; nothing to tell it
			return
		}
		http.NotFound(w, r)
	})
	return mux
}
