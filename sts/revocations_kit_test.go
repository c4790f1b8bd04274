package sts

import (
	"context"
	"encoding/json"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/sts/jwt"
)

// operator is one with the role operator.
func operator() countersign.Caller {
	id, err := countersign.NewOperatorID(domain, "otto")
	if err != nil {
		panic(err)
	}
	return countersign.Caller{Method: countersign.ByCertificate, ID: id, Role: countersign.RoleOperator, Name: id.String(), RequestID: "r1"}
}

func (h *house) revoke(r RevokeRequest) Revocation {
	h.t.Helper()
	made, err := h.Revoke(h.t.Context(), operator(), r)
	if err != nil {
		h.t.Fatal(err)
	}
	return made
}

// pass lets time pass.
func (h *house) pass(d time.Duration) { h.clock.Add(int64(d)) }

// chain is a user's token, and what two hops made of it.
func (h *house) chain(changes map[string]any) (user, first, second string) {
	h.t.Helper()
	user = h.user(changes)
	first = h.must("gateway", exchangeOf(user, "orders")).AccessToken
	return user, first, h.must("orders", exchangeOf(first, "inventory")).AccessToken
}

func (h *house) introspect(by countersign.Caller, token string) map[string]any {
	h.t.Helper()
	body, err := h.Introspect(by, TokenForm{Token: token})
	if err != nil {
		h.t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		h.t.Fatalf("%s: %v", body, err)
	}
	return answer
}

// page is the feed's page, verified as a client of it does.
func (h *house) page(since int64) feedClaims {
	h.t.Helper()
	page, err := h.Feed(since)
	if err != nil {
		h.t.Fatal(err)
	}
	token, err := jwt.Parse(string(page.Body))
	if err != nil {
		h.t.Fatal(err)
	}
	body, _, _ := h.JWKS()
	set, err := jwt.ParseSet(body)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := token.Verify(set, []string{"ES256"}); err != nil || token.Typ != "revocations+jwt" || token.KID == "" {
		h.t.Fatalf("the page %s of the type %s: %v", page.Body, token.Typ, err)
	}
	var claims feedClaims
	if err := json.Unmarshal(token.Payload, &claims); err != nil {
		h.t.Fatal(err)
	}
	return claims
}

// inFeed tells whether the feed shows a revocation.
func (h *house) inFeed(r Revocation) bool {
	h.t.Helper()
	for _, raw := range h.page(0).Revocations {
		var e feedEntry
		if err := json.Unmarshal(raw, &e); err != nil {
			h.t.Fatal(err)
		}
		if e.Kind == r.Kind && e.Value == r.Value {
			return true
		}
	}
	return false
}

func claimOf(t *testing.T, token, name string) string {
	t.Helper()
	parsed, err := jwt.Parse(token)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := parsed.Claims.String(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// again opens the service anew on the same store and log, as a restart does.
func (h *house) again(store storage.Store) {
	h.t.Helper()
	cfg := h.cfg
	cfg.Store, cfg.Registerer = store, nil
	next, err := New(h.t.Context(), cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Service = next
}

// hookedStore does something before or instead of an Apply to the revocations.
type hookedStore struct {
	storage.Store
	before func() error // an error stands for the Apply
	after  func() error // hides that it was done
	broken atomic.Bool  // lists can't be read
}

func (s *hookedStore) List(ctx context.Context, table string, o storage.ListOptions) (storage.Page, error) {
	if s.broken.Load() && table == revocationsTable().Name {
		return storage.Page{}, storage.ErrBusy
	}
	return s.Store.List(ctx, table, o)
}

func (s *hookedStore) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	if ops[0].Table != revocationsTable().Name {
		return s.Store.Apply(ctx, ops...)
	}
	if s.before != nil {
		if err := s.before(); err != nil {
			return 0, err
		}
	}
	rev, err := s.Store.Apply(ctx, ops...)
	if err == nil && s.after != nil {
		err = s.after()
	}
	return rev, err
}

func (h *house) hook(before, after func() error) {
	h.cfg.Store = &hookedStore{Store: h.store, before: before, after: after}
}

// outcomes are those of the revocations in the audit log.
func (h *house) outcomes() []audit.Outcome {
	h.t.Helper()
	var all []audit.Outcome
	for _, r := range h.records(eventRevoked) {
		all = append(all, r.Outcome)
	}
	return all
}

func formOf(pairs ...string) url.Values {
	form := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		form.Add(pairs[i], pairs[i+1])
	}
	return form
}
