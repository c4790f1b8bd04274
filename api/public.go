package api

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/api/wire"
)

// rootsMaxAge is how long trust anchors may be cached, and the refresh hint of the bundle. A new root is published
// much longer than this before it signs.
const rootsMaxAge = 5 * time.Minute

// metadataMaxAge is how long the metadata may be cached. It changes with the configuration only.
const metadataMaxAge = time.Hour

// metadata is RFC 8414 3.2.
func (s *Server) metadata(rq *request) error {
	return rq.document(wire.JSON, s.STS.Metadata(), "", metadataMaxAge)
}

// jwks is RFC 7517 5: the public token keys.
func (s *Server) jwks(rq *request) error {
	body, etag, maxAge := s.STS.JWKS()
	return rq.document(wire.JSON, body, etag, maxAge)
}

// roots gives the trust anchors as PEM.
func (s *Server) roots(rq *request) error {
	return rq.document(wire.PEM, []byte(pemOf(s.CA.Roots())), "", rootsMaxAge)
}

// bundle gives the trust anchors and the public keys of JWT-SVIDs in the SPIFFE bundle format. Token keys are never in it.
// The times of the last changes of both only grow, so that their sum grows with each of them.
func (s *Server) bundle(rq *request) error {
	keys, changed, maxAge := s.STS.SVIDKeys()
	maxAge = max(min(rootsMaxAge, maxAge), time.Second)
	out := wire.Bundle{Keys: []wire.JWK{}, Sequence: s.CA.RootsChanged() + changed, RefreshHint: int(maxAge / time.Second)}
	for _, root := range s.CA.Roots() {
		jwk, err := bundleKey(root.PublicKey)
		if err != nil {
			return fmt.Errorf("the root %s: %w", root.SerialNumber.Text(16), err)
		}
		jwk.Use, jwk.X5C = "x509-svid", []string{base64.StdEncoding.EncodeToString(root.Raw)}
		out.Keys = append(out.Keys, jwk)
	}
	for _, key := range keys {
		jwk, err := bundleKey(key.Public)
		if err != nil {
			return fmt.Errorf("the key %s: %w", key.ID, err)
		}
		jwk.Use, jwk.KID = "jwt-svid", key.ID
		out.Keys = append(out.Keys, jwk)
	}
	encoded, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode the bundle: %w", err)
	}
	return rq.document(wire.JSON, encoded, "", maxAge)
}

// bundleKey is the key of one authority of a SPIFFE bundle (SPIFFE Trust Domain and Bundle 4.2; RFC 7518 6).
func bundleKey(public crypto.PublicKey) (wire.JWK, error) {
	var jwk wire.JWK
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4, X, Y
		if err != nil || (key.Curve != elliptic.P256() && key.Curve != elliptic.P384()) {
			return wire.JWK{}, errBundleKey
		}
		half := (len(point) - 1) / 2
		jwk.Kty, jwk.Crv = "EC", key.Curve.Params().Name
		jwk.X, jwk.Y = base64URL(point[1:1+half]), base64URL(point[1+half:])
	case *rsa.PublicKey:
		jwk.Kty, jwk.N, jwk.E = "RSA", base64URL(key.N.Bytes()), base64URL(big.NewInt(int64(key.E)).Bytes())
	default:
		return wire.JWK{}, errBundleKey
	}
	return jwk, nil
}

var errBundleKey = errors.New("the bundle can't hold keys of this kind")

func base64URL(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// document answers with a public document that may be cached, or with 304 if the caller has it (RFC 9110 13.1.2). An
// empty etag is made of the body.
func (rq *request) document(mediaType string, body []byte, etag string, maxAge time.Duration) error {
	if etag == "" {
		sum := sha256.Sum256(body)
		etag = `"` + hex.EncodeToString(sum[:16]) + `"`
	}
	h := rq.Response().Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "public, max-age="+strconv.Itoa(int(maxAge/time.Second)))
	if matches(rq.Request().Header.Values("If-None-Match"), etag) {
		return rq.NoContent(http.StatusNotModified)
	}
	return rq.Blob(http.StatusOK, mediaType, body)
}

// matches is the weak comparison of RFC 9110 8.8.3.2. Our tags hold no comma.
func matches(headers []string, etag string) bool {
	for _, header := range headers {
		for tag := range strings.SplitSeq(header, ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag == "*" || tag == strings.TrimPrefix(etag, "W/") {
				return true
			}
		}
	}
	return false
}

func pemOf(certs []*x509.Certificate) string {
	var b bytes.Buffer
	for _, cert := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	return b.String()
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}
