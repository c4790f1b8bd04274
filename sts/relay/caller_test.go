package relay_test

import (
	"context"
	"testing"
	"time"
)

// TestCallerRevoked: a caller whose certificate is revoked loses the connection that it keeps, and gets no other.
func TestCallerRevoked(t *testing.T) {
	w := newWorld(t)
	app := w.app("orders", nil)
	w.identity("orders")
	r := w.relay(ordersRelay)
	reports := w.as("reports", "orders", r.at("internal"))
	get(t, reports, ordersURL+"/bare").want(t, 200, "")
	id, err := w.source("reports").Identity()
	w.must(err)
	w.must(w.admin.Revoke(context.Background(), id.Serial, "keyCompromise"))
	begun := time.Now()
	for time.Since(begun) < 20*time.Second {
		resp, err := reports.Get(ordersURL + "/bare")
		if err != nil {
			t.Logf("refused after %s: %v", time.Since(begun), err)
			n := len(app.requests())
			if resp, err := reports.Get(ordersURL + "/bare"); err == nil {
				resp.Body.Close()
				t.Error("another connection was admitted")
			}
			if len(app.requests()) != n {
				t.Error("the application was reached")
			}
			return
		}
		resp.Body.Close()
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("20 s after the revocation the caller is still admitted")
}
