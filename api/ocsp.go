package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/ca"
)

const (
	ocspPath = "/ocsp"
	ocspType = "application/ocsp-response"
	ocspAge  = time.Minute // for which a cache may give an answer to others: as much later they hear of a revocation
)

// isOCSP tells whether a path is the responder's. http.ServeMux would send who asks for one with // somewhere else, and
// base64 has such.
func isOCSP(path string) bool { return path == ocspPath || strings.HasPrefix(path, ocspPath+"/") }

// ocspHandler answers OCSP over HTTP (RFC 6960 appendix A). What can't be answered is answered with a status of OCSP, by 200 as
// A.2 has it: clients read nothing else. addr is the address that asks.
func (s *Server) ocspHandler(addr func(*http.Request) string) http.HandlerFunc {
	addresses := newBuckets(s.Limits.Address) // apart from those of the public listener: neither uses up the other's
	return func(w http.ResponseWriter, r *http.Request) {
		var answer *ca.OCSPResponse
		client, _ := netip.ParseAddr(addr(r))
		key := addressKey(client)
		switch {
		case r.Method != http.MethodPost && r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD, POST")
			http.Error(w, "an OCSP request comes by GET or POST", http.StatusMethodNotAllowed)
			return
		case r.Method == http.MethodPost && r.URL.Path != ocspPath:
			http.NotFound(w, r)
			return
		case key != "" && !addresses.allow(key, s.Now()):
			answer = s.CA.OCSPRefusal(ca.OCSPTryLater)
		default:
			if request, err := ocspRequest(w, r); err != nil {
				answer = s.CA.OCSPRefusal(ca.OCSPMalformed)
			} else {
				answer = s.CA.OCSP(r.Context(), request)
			}
		}
		s.writeOCSP(w, r, answer)
	}
}

// ocspRequest is the DER of a request: the body, or base64 in the path, whose slashes clients may or may not escape (RFC 6960 A.1).
func ocspRequest(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Method == http.MethodPost {
		return io.ReadAll(http.MaxBytesReader(w, r.Body, ca.MaxOCSP))
	}
	text := strings.TrimPrefix(r.URL.Path, ocspPath+"/")
	if len(text) > base64.StdEncoding.EncodedLen(ca.MaxOCSP) {
		return nil, errors.New("it is too long")
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}

// writeOCSP writes an answer. One by GET that is for everybody may be kept, as RFC 5019 section 6.2 has it; no other.
func (s *Server) writeOCSP(w http.ResponseWriter, r *http.Request, answer *ca.OCSPResponse) {
	h := w.Header()
	h.Set("Content-Type", ocspType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if answer.Status == ca.OCSPTryLater {
		h.Set("Retry-After", "5")
	}
	if r.Method != http.MethodPost && answer.Status == ca.OCSPSuccessful && answer.Shared {
		sum := sha256.Sum256(answer.DER)
		tag := `"` + hex.EncodeToString(sum[:16]) + `"`
		age := max(0, min(ocspAge, answer.NextUpdate.Sub(s.Now())))
		h.Set("Cache-Control", "max-age="+strconv.Itoa(int(age.Seconds()))+", public, no-transform, must-revalidate")
		h.Set("ETag", tag)
		h.Set("Last-Modified", answer.ProducedAt.UTC().Format(http.TimeFormat))
		h.Set("Expires", answer.NextUpdate.UTC().Format(http.TimeFormat))
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(answer.DER)))
	_, _ = w.Write(answer.DER) // the peer is gone; nothing to tell it
}
