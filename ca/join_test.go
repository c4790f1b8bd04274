package ca

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign"
)

func TestJoinToken(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	token, err := h.CreateJoinToken(ctx, admin(), "orders", 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(token.Secret) != 26 || token.Secret != strings.ToLower(token.Secret) || !token.Expires.Equal(h.clock.now().Add(5*time.Minute)) {
		t.Errorf("token %+v", token)
	}
	by, err := h.JoinCaller(ctx, token.Secret, countersign.Caller{RequestID: "r1"})
	if err != nil || by.Method != countersign.ByJoinToken || by.ID.Name() != "orders" || by.JoinToken != token.ID || by.RequestID != "r1" {
		t.Fatalf("caller %+v, %v", by, err)
	}
	key := newKey(t, "")
	first, err := h.Issue(ctx, by, IssueRequest{CSR: request(t, key)})
	if err != nil {
		t.Fatal(err)
	}
	h.clock.add(time.Hour) // used and expired: the same request still gets its answer
	if by, err = h.JoinCaller(ctx, token.Secret, countersign.Caller{}); err != nil {
		t.Fatal(err)
	}
	again, err := h.Issue(ctx, by, IssueRequest{CSR: request(t, key)})
	if err != nil || again.Serial != first.Serial {
		t.Fatalf("repeat: %v, %v", again, err)
	}
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeJoinTokenUsed)
	_, err = h.Issue(ctx, by, IssueRequest{CSR: []byte("junk")})
	wantCode(t, err, countersign.CodeJoinTokenUsed)
	if got := len(h.events(eventDenied)); got != 0 {
		t.Errorf("the holder of a used token wrote %d denials", got)
	}
	if err := h.Revoke(ctx, admin(), first.Serial, ""); err != nil {
		t.Fatal(err)
	}
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, key)})
	wantCode(t, err, countersign.CodeKeyRevoked)
}

func TestJoinTokenRefused(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	for _, secret := range []string{"", "short", strings.Repeat("a", 26), strings.Repeat("A", 26), strings.Repeat("a", 1<<20)} {
		_, err := h.JoinCaller(ctx, secret, countersign.Caller{})
		wantCode(t, err, countersign.CodeJoinToken)
	}
	token, err := h.CreateJoinToken(ctx, admin(), "orders", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	by, err := h.JoinCaller(ctx, token.Secret, countersign.Caller{})
	if err != nil {
		t.Fatal(err)
	}
	h.clock.add(time.Minute)
	_, err = h.JoinCaller(ctx, token.Secret, countersign.Caller{})
	wantCode(t, err, countersign.CodeJoinTokenExpired)
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeJoinTokenExpired)
	h.clock.add(keepJoin)
	_, err = h.JoinCaller(ctx, token.Secret, countersign.Caller{})
	wantCode(t, err, countersign.CodeJoinToken)

	// Disabling voids what was made before, also once the service is enabled again.
	by = h.joiner("orders")
	orders := service("orders")
	orders.VoidBefore = h.clock.now()
	h.apply(2, orders)
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeJoinToken)
	h.clock.add(time.Millisecond)
	h.join("orders", newKey(t, ""))

	viewer := countersign.Caller{Method: countersign.ByCertificate, Role: countersign.RoleViewer, Name: "v"}
	for _, tt := range []struct {
		by      countersign.Caller
		service string
		ttl     time.Duration
		code    countersign.Code
	}{
		{viewer, "orders", 0, countersign.CodeRole},
		{admin(), "nobody", 0, countersign.CodeNotInPolicy},
		{admin(), "operator", 0, countersign.CodeParameter},
		{admin(), "a/b", 0, countersign.CodeParameter},
		{admin(), "orders", time.Second, countersign.CodeTTL},
		{admin(), "orders", 25 * time.Hour, countersign.CodeTTL},
	} {
		_, err := h.CreateJoinToken(ctx, tt.by, tt.service, tt.ttl)
		wantCode(t, err, tt.code)
	}
}

// TestJoinTokenRace: with one token and one key all get the same certificate; with two keys only one key gets any.
func TestJoinTokenRace(t *testing.T) {
	h := newHouse(t, nil)
	by, keys := h.joiner("orders"), [][]byte{request(t, newKey(t, "")), request(t, newKey(t, ""))}
	var wg sync.WaitGroup
	certs, errs := make([]*Certificate, 12), make([]error, 12)
	for i := range certs {
		wg.Go(func() { certs[i], errs[i] = h.Issue(t.Context(), by, IssueRequest{CSR: keys[i%2]}) })
	}
	wg.Wait()
	serials, good := map[string]bool{}, map[int]int{}
	for i, err := range errs {
		if err != nil {
			wantCode(t, err, countersign.CodeJoinTokenUsed)
			continue
		}
		serials[certs[i].Serial] = true
		good[i%2]++
	}
	if len(serials) != 1 || len(good) != 1 || good[0]+good[1] != 6 {
		t.Fatalf("serials %v, answers by key %v", serials, good)
	}
	records, _, err := h.Certificates(t.Context(), Query{Service: "orders"})
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	if open, done := len(h.events(eventIntent)), len(h.events(eventAbandoned)); open != done+3 { // root, intermediate, this one
		t.Errorf("%d intents, %d abandoned", open, done)
	}
}
