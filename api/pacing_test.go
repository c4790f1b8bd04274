package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/pace"
	"github.com/countersign/countersign/api/wire"
)

// While all places are taken who asks for a certificate is told when to come again, before anything is written; documents,
// exchanges, the operations listener and the admin socket don't notice. When there is a place, he gets it.
func TestOverload(t *testing.T) {
	limits := DefaultLimits()
	limits.Issuing, limits.Waiting = 1, 0
	k := newKit(t, kitOptions{limits: limits})
	orders, admin := k.join("reports"), k.admin()
	leave, err := k.api.pacer.Enter(context.Background(), pace.Request{})
	k.must(err)

	_, csr := newCSR(t)
	c := k.over(orders)
	var paced *client.APIError
	if _, err = c.Renew(t.Context(), wire.CertificateRequest{CSR: csr}); !errors.As(err, &paced) || paced.Code() != countersign.CodePaced ||
		paced.Status != http.StatusServiceUnavailable || paced.RetryAfter < time.Second || paced.RetryAfter > time.Minute {
		t.Fatalf("%v", err)
	}
	made, err := admin.CreateJoinToken(t.Context(), wire.JoinTokenRequest{Service: "orders"})
	k.must(err)
	_, theirs := newCSR(t)
	stranger := k.over(nil)
	if _, err = stranger.Join(t.Context(), made.Token, wire.CertificateRequest{CSR: theirs}); !errors.As(err, &paced) || paced.Code() != countersign.CodePaced {
		t.Fatalf("%v", err)
	}
	_, err = c.JWKS(t.Context())
	k.must(err)
	_, err = admin.Status(t.Context())
	k.must(err)
	if reply := k.send(k.raw(orders), "POST", k.url+"/oauth2/token", "grant_type=client_credentials&audience=orders", "Content-Type", wire.Form); reply.status != http.StatusOK {
		t.Errorf("an exchange: %d", reply.status)
	}

	leave()
	_, err = c.Renew(t.Context(), wire.CertificateRequest{CSR: csr})
	k.must(err)
	_, err = stranger.Join(t.Context(), made.Token, wire.CertificateRequest{CSR: theirs})
	k.must(err)
}

// A full pacer is no reason to end the daemon or to send its callers elsewhere: the probes answer as always, on the operations
// listener, also while somebody waits for a place.
func TestProbesAnswerInAnOverload(t *testing.T) {
	limits := DefaultLimits()
	limits.Issuing, limits.Waiting = 1, 1
	k := newKit(t, kitOptions{limits: limits})
	leave, err := k.api.pacer.Enter(context.Background(), pace.Request{})
	k.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error)
	go func() {
		_, err := k.api.pacer.Enter(ctx, pace.Request{Key: "waits"})
		waits <- err
	}()
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		waiting := "countersign_issuing_waiting{line=\"renewals\"} 1"
		if got := k.local(k.api.Ops(), "127.0.0.1:1", http.MethodGet, "/metrics"); strings.Contains(got.Body.String(), waiting) {
			break
		}
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if got := k.local(k.api.Ops(), "127.0.0.1:1", http.MethodGet, path); got.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
	cancel()
	if err := <-waits; countersign.CodeTimeout != countersign.AsError(err).Code {
		t.Errorf("nothing was full: %v", err)
	}
	leave()
}

// Who asks with a credential that is none takes no place and is told nothing of the queue.
func TestStrangersAreNotPaced(t *testing.T) {
	limits := DefaultLimits()
	limits.Issuing, limits.Waiting = 1, 0
	k := newKit(t, kitOptions{limits: limits})
	leave, err := k.api.pacer.Enter(context.Background(), pace.Request{})
	k.must(err)
	defer leave()
	_, csr := newCSR(t)
	_, err = k.over(nil).Join(t.Context(), "abcdef", wire.CertificateRequest{CSR: csr})
	wantAPIError(t, err, countersign.CodeJoinToken)
}
