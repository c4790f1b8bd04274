package sts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

// forgetful is the same token service without any memory of tokens and rulings.
func (h *house) forgetful() *Service {
	return &Service{
		cfg: h.cfg, log: h.Service.log, metrics: h.metrics, clientKeys: h.clientKeys, keys: h.keys, issuers: h.issuers, revocations: h.revocations,
	}
}

// recalls tells whether a ruling answers the request now.
func (h *house) recalls(by countersign.Caller, r Request) bool {
	return h.recall(&exchange{by: by, request: r, policy: h.policy.Load(), now: h.now()})
}

// warm sends a request until a ruling answers it.
func (h *house) warm(by countersign.Caller, r Request) {
	h.t.Helper()
	for range 2 {
		if h.recalls(by, r) {
			h.t.Fatal("a ruling before the token came again")
		}
		if _, err := h.Token(h.t.Context(), by, r); err != nil {
			h.t.Fatal(err)
		}
	}
	if !h.recalls(by, r) {
		h.t.Fatal("no ruling was kept")
	}
}

// outcome is an answer with its record, without what is random or the time of one of them.
type outcome struct {
	Code     countersign.Code
	Msg      string
	Response Response
	Claims   map[string]json.RawMessage
	Record   map[string]json.RawMessage
}

func (h *house) outcomeOf(t *rapid.T, s *Service, by countersign.Caller, r Request) outcome {
	response, err := s.Token(context.Background(), by, r)
	o := outcome{Code: codeOf(err), Response: response}
	if err != nil {
		o.Msg = err.Error()
	} else {
		token, err := jwt.Parse(response.AccessToken)
		if err != nil || json.Unmarshal(token.Payload, &o.Claims) != nil {
			t.Fatal(err)
		}
		o.Claims["alg, typ"] = json.RawMessage(token.Alg + token.Typ)
	}
	record, err := h.log.Search(context.Background(), audit.Query{Limit: 1, Newest: true})
	if err != nil || json.Unmarshal(record[0].Detail, &o.Record) != nil {
		t.Fatal(err)
	}
	o.Record["by"] = json.RawMessage(fmt.Sprint(record[0].Type, record[0].By, record[0].Subject, record[0].Outcome))
	o.Response.AccessToken = ""
	for _, random := range []string{"jti", "kid"} {
		delete(o.Claims, random)
		delete(o.Record, random)
	}
	if r.SubjectToken == "" || o.Record["parent"] == nil { // the transaction begins here
		delete(o.Claims, "txn")
		delete(o.Record, "txn")
	}
	return o
}

// Whatever happened before, a service that remembers answers and records what one without a memory would.
func TestRulingsAreWhatAFreshJudgementIs(t *testing.T) {
	h := openHouse(t)
	recalled, denied := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		h.pass(2 * time.Second) // no revocation of the round before reaches into this one by its second
		g := h.graph()
		g.service("inventory").Bind = rapid.SampledFrom([]string{"", countersign.BindMTLS}).Draw(t, "bind")
		h.policy.Store(g.policy())
		sub := fmt.Sprint("user-", h.clock.Load())
		users := []string{
			h.user(map[string]any{"sub": sub, "email": "<a@b>", "act": map[string]any{"sub": "x"}}),
			h.user(map[string]any{"sub": sub, "sid": "s", "scope": "shop.read", "exp": h.now().Unix() + 12, "tenant": []string{"a", "b"}}),
			h.user(map[string]any{"sub": sub + "-2", "may_act": map[string]any{"sub": idOf("gateway").String()}}),
		}
		relays := []string{
			h.must("gateway", exchangeOf(users[0], "orders")).AccessToken, h.must("gateway", exchangeOf(users[2], "orders", "orders:write")).AccessToken,
		}
		again := func(*rapid.T) {} // the exchange before: only the third of equal ones is answered by memory
		t.Repeat(map[string]func(*rapid.T){
			"again": func(t *rapid.T) { again(t) },
			"exchange": func(t *rapid.T) {
				by, tokens, to := as("gateway"), users, []string{"orders", "billing", idOf("orders").String()}
				if rapid.Bool().Draw(t, "second hop") {
					by, tokens, to = as("orders"), relays, []string{"inventory"}
				}
				by.Thumbprint = certificateOf(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "certificate"))
				r := exchangeOf(rapid.SampledFrom(tokens).Draw(t, "token"), rapid.SampledFrom(to).Draw(t, "to"))
				r.Scopes = rapid.SampledFrom([][]string{nil, nil, nil, {"orders:read"}, {"stock:read"}, {"stock:write"}}).Draw(t, "scopes")
				r.SubjectTokenType = rapid.SampledFrom([]string{TypeAccessToken, TypeAccessToken, TypeJWT, TypeIDToken}).Draw(t, "type")
				again = func(t *rapid.T) {
					if h.recalls(by, r) {
						recalled++
					}
					got := h.outcomeOf(t, h.Service, by, r)
					if want := h.outcomeOf(t, h.forgetful(), by, r); !cmp.Equal(got, want) {
						t.Fatalf("by memory and fresh:\n%s", cmp.Diff(got, want))
					}
					if got.Code != "" {
						denied++
					}
				}
				again(t)
			},
			"time": func(t *rapid.T) { h.pass(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond) },
			"revoke": func(t *rapid.T) {
				if rapid.IntRange(0, 5).Draw(t, "really") == 0 {
					h.revoke(RevokeRequest{Subject: rapid.SampledFrom([]string{sub, sub + "-2"}).Draw(t, "sub")})
				}
			},
			"policy": func(t *rapid.T) {
				if rapid.IntRange(0, 5).Draw(t, "really") > 0 {
					return
				}
				g := h.graph()
				if rapid.Bool().Draw(t, "narrower") {
					g.call("gateway", "orders").Scopes = g.call("gateway", "orders").Scopes[:1]
				} else {
					g.service("orders").Disabled = &countersign.Disabled{}
				}
				h.policy.Store(g.policy())
			},
		})
	})
	t.Logf("%d were answered by memory, %d denied", recalled, denied)
	if recalled == 0 || denied == 0 {
		t.Errorf("%d were answered by memory, %d denied: the test shows nothing", recalled, denied)
	}
}

// What ends a ruling: everything that a fresh judgement would mind.
func TestRulingsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(h *house, by *countersign.Caller, r *Request)
		code   countersign.Code
	}{
		"the token is revoked": {func(h *house, _ *countersign.Caller, _ *Request) {
			h.pass(time.Second)
			h.revoke(RevokeRequest{Subject: "alice"})
		}, countersign.CodeRevoked},
		"the token expires":              {func(h *house, _ *countersign.Caller, _ *Request) { h.pass(time.Hour) }, countersign.CodeSubjectExpired},
		"too little is left":             {func(h *house, _ *countersign.Caller, _ *Request) { h.pass(time.Hour - 4*time.Second) }, countersign.CodeLifetime},
		"the clock goes back":            {func(h *house, _ *countersign.Caller, _ *Request) { h.pass(-time.Hour) }, countersign.CodeSubjectExpired},
		"the client is disabled":         {disabling("gateway"), countersign.CodeServiceDisabled},
		"the audience is disabled":       {disabling("orders"), countersign.CodeNoCall},
		"another client":                 {func(_ *house, by *countersign.Caller, _ *Request) { *by = as("orders") }, countersign.CodeSubjectIssuer},
		"another audience":               {func(_ *house, _ *countersign.Caller, r *Request) { r.Audiences = []string{"inventory"} }, countersign.CodeNoCall},
		"another resource":               {func(_ *house, _ *countersign.Caller, r *Request) { r.Resources = []string{"x"} }, countersign.CodeTarget},
		"a scope more":                   {func(_ *house, _ *countersign.Caller, r *Request) { r.Scopes = append(r.Scopes, "bill") }, countersign.CodeScope},
		"the client_id of another":       {func(_ *house, _ *countersign.Caller, r *Request) { r.ClientID = idOf("orders").String() }, countersign.CodeClientMismatch},
		"another subject_token_type":     {func(_ *house, _ *countersign.Caller, r *Request) { r.SubjectTokenType = TypeIDToken }, countersign.CodeSubjectKind},
		"another requested_token_type":   {func(_ *house, _ *countersign.Caller, r *Request) { r.RequestedTokenType = "x" }, countersign.CodeTokenType},
		"an actor token":                 {func(_ *house, _ *countersign.Caller, r *Request) { r.ActorToken, r.ActorTokenType = "x", TypeJWT }, countersign.CodeActor},
		"a type of no actor token":       {func(_ *house, _ *countersign.Caller, r *Request) { r.ActorTokenType = TypeJWT }, countersign.CodeTokenRequest},
		"the signature is another":       {func(_ *house, _ *countersign.Caller, r *Request) { r.SubjectToken = otherSignature(r.SubjectToken) }, countersign.CodeSubjectToken},
		"the issuer takes its key back":  {withdrawn("idp-2"), countersign.CodeSubjectKey},
		"its kid names another key":      {withdrawn("idp-1"), countersign.CodeSubjectToken},
		"the revocations can't be read":  {func(h *house, _ *countersign.Caller, _ *Request) { h.revocations.stale.Store(true) }, countersign.CodeRevocations},
		"no certificate, an assertion":   {func(_ *house, by *countersign.Caller, _ *Request) { by.Method = countersign.ByAssertion }, ""},
		"the certificate's successor":    {func(_ *house, by *countersign.Caller, _ *Request) { by.Thumbprint = certificateOf("b") }, ""},
		"the same policy, applied again": {func(h *house, _ *countersign.Caller, _ *Request) { h.policy.Store(h.graph().policy()) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := openHouse(t)
			by, r := as("gateway"), exchangeOf(h.user(nil), "orders", "orders:read")
			h.warm(by, r)
			tt.change(h, &by, &r)
			if h.recalls(by, r) {
				t.Error("a ruling answers")
			}
			if tt.code == "" {
				h.must("gateway", r)
			} else {
				h.refuses(name, by, r, tt.code)
			}
		})
	}
}

func disabling(service string) func(*house, *countersign.Caller, *Request) {
	return func(h *house, _ *countersign.Caller, _ *Request) {
		g := h.graph()
		g.service(service).Disabled = &countersign.Disabled{}
		h.policy.Store(g.policy())
	}
}

// otherSignature is the token with a signature of r and s that are 1.
func otherSignature(token string) string {
	one := append(make([]byte, 31), 1)
	return token[:strings.LastIndexByte(token, '.')+1] + base64.RawURLEncoding.EncodeToString(append(one, one...))
}

// withdrawn has the issuer publish one other key, under kid.
func withdrawn(kid string) func(*house, *countersign.Caller, *Request) {
	return func(h *house, _ *countersign.Caller, _ *Request) {
		set, err := jwt.NewSet(jwt.PublicKey{KID: kid, Alg: "ES256", Key: testKey.Public()})
		if err != nil {
			h.t.Fatal(err)
		}
		remote, err := jwt.NewRemote(jwt.RemoteConfig{Issuer: h.idp.URL, JWKSURI: h.idp.URL, Now: h.now, Client: &http.Client{Transport: answering(set.JSON())}})
		if err != nil {
			h.t.Fatal(err)
		}
		if _, err := remote.Set(h.t.Context(), ""); err != nil {
			h.t.Fatal(err)
		}
		h.issuers.mu.Lock()
		defer h.issuers.mu.Unlock()
		for from := range h.issuers.remotes {
			h.issuers.remotes[from] = remote
		}
	}
}

type answering []byte

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(a))),
	}, nil
}

// A key of ours that is retired as compromised takes the rulings of its tokens with it.
func TestRulingsEndWithOurKey(t *testing.T) {
	h := openHouse(t)
	first := h.must("gateway", exchangeOf(h.user(nil), "orders")).AccessToken
	r := exchangeOf(first, "inventory")
	h.warm(as("orders"), r)
	token, err := jwt.Parse(first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ring.Retire(t.Context(), countersign.Daemon("test"), token.KID, keyring.RetireOptions{Compromised: true}); err != nil {
		t.Fatal(err)
	}
	if h.recalls(as("orders"), r) {
		t.Error("a ruling answers")
	}
	h.refuses("of a retired key", as("orders"), r, countersign.CodeSubjectKey)
}

// A condition may ask for the time: nothing of its calls is kept.
func TestRulingsAreNotOfConditions(t *testing.T) {
	h := openHouse(t)
	g := h.graph()
	asked := 0
	g.call("gateway", "orders").When = "counted"
	g.call("gateway", "orders").Condition = conditionFunc(func() bool { asked++; return asked <= 3 })
	h.policy.Store(g.policy())
	r := exchangeOf(h.user(nil), "orders")
	for range 3 {
		h.must("gateway", r)
	}
	h.refuses("by the condition", as("gateway"), r, countersign.CodeCondition)
}

type conditionFunc func() bool

func (f conditionFunc) Holds(countersign.ConditionInput) (bool, error) { return f(), nil }

func TestRulingsAreBounded(t *testing.T) {
	var s rulings
	p := shop().policy()
	put := func(n, size int) {
		for i := range n {
			s.put(rulingKey{byte(i), byte(i >> 8), byte(size >> 8)}, &ruling{
				policy: p, subject: &Subject{}, claims: &draft{head: make([]byte, size)}, record: &recordDraft{},
			})
		}
	}
	put(maxRulings+100, 10)
	if len(s.at) != maxRulings || s.order.Len() != maxRulings || s.get(p, rulingKey{}) != nil {
		t.Errorf("%d entries", len(s.at))
	}
	put(maxRulings, maxRulingsBytes/100)
	if s.bytes > maxRulingsBytes || len(s.at) == 0 || len(s.at) > 100 {
		t.Errorf("%d entries of %d bytes", len(s.at), s.bytes)
	}
	other := shop().policy()
	if s.get(other, slices.Collect(maps.Keys(s.at))[0]) != nil {
		t.Error("a ruling of another policy answers")
	}
	p = other
	put(1, 1)
	if len(s.at) != 1 {
		t.Errorf("%d entries, of an old policy too", len(s.at))
	}
}

// Drafts are filled to what encoding/json makes of the same values.
func TestRecordsAreWrittenAsEncodingJSONWouldWriteThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.SampledFrom([]string{"a", "<&>", "\u2028", `"\`}))
		words := rapid.OneOf(rapid.Just([]string(nil)), rapid.SliceOfN(text, 1, 3))
		at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "at"), rapid.Int64Range(0, 999).Draw(t, "ns")).UTC()
		d := issuedDetail{
			Grant: text.Draw(t, "grant"), Client: text.Draw(t, "client"), Audience: text.Draw(t, "audience"), Scope: text.Draw(t, "scope"),
			Rule: text.Draw(t, "rule"), Policy: rapid.Int().Draw(t, "policy"), Txn: text.Draw(t, "txn"), JTI: text.Draw(t, "jti"),
			Expires: at, KID: text.Draw(t, "kid"), Chain: words.Draw(t, "chain"), Bound: rapid.Bool().Draw(t, "bound"),
			Asked: asked{words.Draw(t, "to"), words.Draw(t, "resource"), text.Draw(t, "asked scope"), text.Draw(t, "client_id")},
			Sub:   text.Draw(t, "sub"), SubIssuer: text.Draw(t, "sub_iss"),
			subjectDetail: subjectDetail{
				SHA256: text.Draw(t, "sha"), Parent: text.Draw(t, "parent"), Session: text.Draw(t, "sid"),
				Dropped: rapid.SampledFrom([]map[string]json.RawMessage{nil, {}, {"jti": []byte(`"<x>"`), "act": []byte(`{"sub": "y"}`)},
					{"jti": []byte(`"<x>-1_"`)}, {"jti": []byte(`"\u0041\\"`)}, {"jti": []byte(`"é"`)}, {"jti": []byte(`[ "a" ]`)}, {"cnf": []byte(`"a"`)}}).Draw(t, "dropped"),
				Held: words.Draw(t, "held"), Cut: words.Draw(t, "cut"), Kind: tokenKind(text.Draw(t, "kind")), Aud: words.Draw(t, "aud"),
				Passed: words.Draw(t, "passed"), MayAct: text.Draw(t, "may_act"), ActedBy: text.Draw(t, "actor"),
				Ends: rapid.SampledFrom([]time.Time{{}, at}).Draw(t, "ends"),
			},
		}
		record, err := d.draft()
		if err != nil {
			t.Fatal(err)
		}
		got, err := issuedRecord{record, d.Txn, d.JTI, d.KID, d.Expires}.AppendJSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := marshal(d); err != nil || string(got) != string(want) {
			t.Fatalf("written:\n%s\nencoding/json:\n%s %v", got, want, err)
		}
	})
}

// What is taken for a plain string is one JSON string, which encoding/json would write likewise.
func TestPlainStringsAreStrings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := []byte(rapid.OneOf(rapid.StringMatching(`"?[ -~]{0,8}"?`), rapid.String(), rapid.SampledFrom([]string{`"`, `""`, `"a"b"`, `"\"`, "\"\n\"", "\"\x7f\""})).Draw(t, "raw"))
		if !plainString(raw) {
			return
		}
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		if again, err := marshal(s); err != nil || string(again) != string(raw) {
			t.Fatalf("%q is written as %q %v", raw, again, err)
		}
	})
}
