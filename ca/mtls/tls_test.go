package mtls

import (
	"io"
	"log"
	"net/http"
	"strings"
	"testing"
	"time"
)

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

// get asks once and gives the body or the error.
func get(c *http.Client, url string) (string, error) {
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		return "", io.ErrUnexpectedEOF
	}
	return string(body), err
}

func TestRenewsItsDirectory(t *testing.T) {
	k := newKit(t, nil)
	s := k.ready("orders")
	before, err := s.Identity()
	k.must(err)
	changed := s.Changed()
	k.must(s.Renew(t.Context()))
	<-changed
	after, err := s.Identity()
	k.must(err)
	if before.Serial == after.Serial || string(before.Chain[0].RawSubjectPublicKeyInfo) == string(after.Chain[0].RawSubjectPublicKeyInfo) {
		t.Error("the certificate or the key is the same after a renewal")
	}
	if st := s.Status(); st.Serial != after.Serial || st.LastError != nil || st.Budget < 23*time.Hour || st.Server != k.url {
		t.Errorf("%+v", st)
	}
}

func TestPeers(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway, reports := k.ready("orders"), k.ready("gateway"), k.ready("reports")
	e := k.serveAs(orders, Only(k.id("gateway")), "orders.shop.internal", nil)
	if got, err := get(k.client(e, Client(gateway, Only(k.id("orders")))), e.url()); err != nil || got != "spiffe://shop.internal/gateway" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := get(k.client(e, Client(reports, InDomain())), e.url()); err == nil {
		t.Error("a service that may not call was served")
	}
	if _, err := get(k.client(e, Client(gateway, Only(k.id("inventory")))), e.url()); err == nil || !strings.Contains(err.Error(), "not admitted") {
		t.Errorf("another service than the one meant was called: %v", err)
	}
}
