package local

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"strconv"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/identity"
)

// someIdentity is one whose certificate nobody looks at.
func someIdentity(t testing.TB, serial string) *identity.Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := countersign.ParseID(reportsID)
	if err != nil {
		t.Fatal(err)
	}
	return &identity.Identity{ID: id, Key: key, Chain: []*x509.Certificate{{Raw: []byte("leaf " + serial)}}, Roots: []*x509.Certificate{{Raw: []byte("root")}}}
}

// FuzzSubscription plays requests of a client and renewals against both protocols. Whatever it sends: only the caller's own names
// are answered, and those that are subscribed to; numbers of responses grow; the same state is not sent twice unasked.
func FuzzSubscription(f *testing.F) {
	f.Add([]byte{0x01, 0x81, 0x40, 0x81, 0x23})
	f.Add([]byte{0x0f, 0x30, 0x20, 0xc0, 0x04, 0x80})
	f.Add([]byte{0x00, 0x00, 0x40, 0x40})
	states := []*identity.Identity{someIdentity(f, "1"), someIdentity(f, "2")}
	menu := []string{nameOwn, nameRoots, nameAll, ordersID, reportsID, "spiffe://shop.internal", "", "*"}
	own := []string{nameOwn, nameRoots, nameAll, reportsID, "spiffe://shop.internal"}
	f.Fuzz(func(t *testing.T, steps []byte) {
		s, d, now := sotw{}, delta{}, 0
		last, sentDelta := nonce(0), nonce(0)
		for _, step := range steps {
			var names []string
			for i, name := range menu[:4] {
				if step>>i&1 != 0 {
					names = append(names, name)
				}
			}
			names = append(names, menu[4+step>>4&3])
			rq := &discovery.DiscoveryRequest{ResourceNames: names, ResponseNonce: strconv.Itoa(int(step >> 6))}
			change := &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names, InitialResourceVersions: map[string]string{nameOwn: "x"}}
			if step&0x20 != 0 {
				rq.ErrorDetail = &rpc.Status{Code: 13}
				change = &discovery.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: names}
			}
			if step&0x40 != 0 {
				now = 1 - now
			}
			s.take(rq)
			if err := d.take(change); err != nil {
				t.Fatalf("refused %v: %v", names, err)
			}
			got, err := s.next(states[now])
			if err != nil {
				t.Fatal(err)
			}
			if got != nil {
				if s.nonce != last+1 || got.GetVersionInfo() == "" || len(got.GetResources()) == 0 {
					t.Errorf("response %s after %d: %v", got.GetNonce(), last, got.GetVersionInfo())
				}
				last = s.nonce
			}
			if again, err := s.next(states[now]); again != nil || err != nil {
				t.Errorf("sent again unasked: %v, %v", again.GetVersionInfo(), err)
			}
			fresh, err := d.next(states[now])
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range fresh.GetResources() {
				if _, subscribed := d.sent[r.GetName()]; !slices.Contains(own, r.GetName()) || !subscribed {
					t.Errorf("answered: %s", r.GetName())
				}
			}
			if fresh != nil && d.nonce != sentDelta+1 {
				t.Errorf("delta response %d after %d", d.nonce, sentDelta)
			}
			sentDelta = d.nonce
			if again, err := d.next(states[now]); again != nil || err != nil {
				t.Errorf("sent again unasked: %v, %v", again.GetSystemVersionInfo(), err)
			}
		}
	})
}
