package api

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/ca"
)

// PKI is the handler of the plain HTTP listener for what certificates point to (RFC 5280 4.2.1.13 and 4.2.2.1): revocation
// lists, OCSP, and the authority's own certificates as DER, by subject key identifier. It is plain because who follows such a
// pointer has no trust yet, and https would send it in circles (RFC 5280 8). Nothing else is served there.
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
	mux.HandleFunc("GET /crl/{issuer}/{file}", func(w http.ResponseWriter, r *http.Request) {
		shard, ok := strings.CutSuffix(r.PathValue("file"), ".crl")
		s.serveCRL(w, r, r.PathValue("issuer"), shard, ok && shard != "")
	})
	mux.HandleFunc("GET /crl/{file}", func(w http.ResponseWriter, r *http.Request) {
		issuer, ok := strings.CutSuffix(r.PathValue("file"), ".crl")
		s.serveCRL(w, r, issuer, "", ok)
	})
	ocsp := s.ocspHandler(s.ipExtractor())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isOCSP(r.URL.Path) {
			ocsp(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// serveCRL serves a list from memory (RFC 2585 section 3). A copy may be kept, and is asked about each time: what was revoked
// a moment ago is in the next answer.
func (s *Server) serveCRL(w http.ResponseWriter, r *http.Request, issuer, shard string, ok bool) {
	var list *ca.CRL
	if ok {
		list, ok = s.CA.CRL(issuer, shard)
	}
	switch {
	case !ok:
		http.NotFound(w, r)
		return
	case list == nil: // the daemon has just started, or is sealed: no list is not an empty list
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the list is not made yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	w.Header().Set("Cache-Control", "public, no-cache")
	w.Header().Set("ETag", `"`+strconv.FormatInt(list.Number, 10)+`"`)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(list.DER))
}
