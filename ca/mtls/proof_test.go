package mtls

import (
	"net/http"
	"testing"
)

// Where a proxy before the daemon ends the TLS connection, so that the daemon sees no client certificate, the identity is renewed
// all the same, by a proof that its key signs.
func TestRenewsWhereTLSEndsBefore(t *testing.T) {
	k := newKit(t, nil)
	s, err := Open(t.Context(), Config{Dir: k.dir("orders", 0), Now: k.now})
	k.must(err)
	defer s.Close()
	k.must(s.Wait(t.Context()))
	before := s.Status().Serial
	front := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, rq *http.Request) {
			without := *rq.TLS
			without.PeerCertificates = nil
			rq.TLS = &without
			next.ServeHTTP(w, rq)
		})
	}
	k.front.Store(&front)
	k.must(s.Renew(t.Context()))
	if after := s.Status().Serial; after == before {
		t.Error("it is not renewed")
	}
}
