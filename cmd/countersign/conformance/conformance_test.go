package conformance

import (
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// defects says which checks catch which defect. Every check stands here: one that can't fail proves nothing.
func defects() map[string]string {
	return map[string]string{
		"refuses everything": "transport.good", "speaks plain HTTP": "transport.tls metadata.issuer-url", "speaks TLS 1.0": "transport.tls-version",
		"takes GET": "transport.get", "takes PUT": "transport.put", "has no Allow header": "transport.allow", "takes JSON": "transport.json",
		"takes multipart": "transport.multipart", "takes text/plain": "transport.text", "compares the media type as text": "transport.charset",
		"reads the query": "transport.query transport.query-one", "takes malformed forms": "transport.malformed",
		"takes grant_type twice": "parameter.twice-grant-type", "takes subject_token twice": "parameter.twice-subject-token",
		"takes scope twice": "parameter.twice-scope", "refuses unknown parameters": "parameter.unknown",
		"takes empty values for values": "parameter.empty", "folds the case of names": "parameter.case",
		"takes no grant_type for an unknown one": "grant.missing grant.empty", "has one error for all grants": "grant.unknown grant.case",
		"folds the case of values": "grant.case", "takes everybody for a client": "client.none client.none-status",
		"answers nobody with 400": "client.none-status", "answers a wrong password with 400": "client.basic", "challenges nobody": "client.challenge",
		"ignores client_id": "client.mismatch", "ignores the Authorization header": "client.two-basic", "ignores client_secret": "client.two-secret",
		"ignores client_assertion": "client.two-assertion", "trusts any certificate": "client.self-signed",
		"trusts a certificate in a header": "client.header", "takes an assertion twice": "client.assertion-twice",
		"does not verify assertions":                "client.assertion-tampered",
		"takes no subject_token for an invalid one": "subject.missing subject.empty", "needs no subject_token_type": "subject.no-type",
		"takes any subject_token_type":           "subject.unknown-type subject.wrong-type subject.id-token",
		"says invalid_grant of an invalid token": "subject.garbage subject.foreign subject.expired forged.payload forged.none",
		"takes everybody's tokens":               "subject.foreign subject.not-mine", "takes expired tokens": "subject.expired",
		"fails at long tokens": "subject.oversized", "fails at dots": "subject.dots", "does not verify": "forged.payload forged.signature forged.key",
		"takes no signature": "forged.stripped", "takes two parts": "forged.two-parts", "takes none": "forged.none", "takes NonE": "forged.none-case",
		"trusts jwk": "forged.jwk", "takes JWS in JSON": "forged.json", "takes padding and newlines": "forged.padding forged.newline",
		"ignores the actor":            "actor.no-type actor.type-alone actor.garbage actor.unknown-type",
		"ignores requested_token_type": "requested.unknown", "issues nothing that is requested": "requested.named",
		"ignores audience": "audience.unknown audience.error audience.forbidden audience.several", "calls a bad target invalid_request": "audience.error",
		"lets everybody call everybody": "audience.forbidden", "looks at the first target": "audience.several resource.several resource.unknown",
		"ignores resource":  "resource.unknown resource.alone resource.fragment resource.relative resource.several",
		"ignores fragments": "resource.fragment", "takes relative resources": "resource.relative",
		"calls a bad resource invalid_request": "resource.unknown resource.alone", "takes no resource": "resource.taken",
		"grants any scope": "scope.unknown scope.wider scope.syntax", "leaves scope out": "scope.default",
		"answers 201": "response.status", "answers as text": "response.media-type", "lets tokens be cached": "response.no-store",
		"sends no Pragma": "response.pragma", "leaves issued_token_type out": "response.issued-token-type", "leaves token_type out": "response.token-type",
		"leaves expires_in out": "response.expires-in", "sends expires_in as a string": "response.expires-in-number",
		"sends scope as an array": "response.scope", "sends a refresh token": "response.no-refresh-token",
		"signs with a secret": "token.alg keys.signature", "types tokens JWT": "token.typ", "leaves jti out of at+jwt": "token.claims",
		"writes scope as an array": "token.scope-string", "adds a scope": "token.scope-narrow", "has its own audience": "token.aud",
		"adds an audience": "token.aud-one", "outlives the subject token": "token.exp", "sends expires_in of another time": "token.expires-in",
		"backdates": "token.iat", "changes the subject": "token.sub next.sub", "names no actor": "token.actor", "puts exp into act": "token.act",
		"names another client": "token.client-id", "repeats jti": "token.jti", "binds to another certificate": "token.cnf",
		"refuses its own tokens": "next.granted", "forgets the actors before": "next.act",
		"lets the second token outlive": "next.exp", "describes nothing": "metadata.served", "describes another issuer": "metadata.issuer",
		"describes another endpoint": "metadata.token-endpoint", "describes no jwks_uri": "metadata.jwks-uri",
		"describes no response types": "metadata.response-types", "describes no grant types": "metadata.grant-types",
		"describes no mutual TLS": "metadata.auth-methods", "describes the algorithm none": "metadata.no-none", "describes no binding": "metadata.bound",
		"has another issuer": "token.iss", "publishes no keys": "keys.served", "publishes a private key": "keys.public",
		"publishes keys without kid": "keys.kid keys.token-kid", "signs with an unpublished key": "keys.signature", "leaves kid out": "keys.token-kid",
		"refuses as text": "refusal.json refusal.media-type", "refuses with 403": "refusal.status", "has errors of its own": "refusal.registered",
		"describes with quotes": "refusal.charset", "lets refusals be cached": "refusal.no-store", "repeats the subject token": "refusal.no-token",
		"redirects": "refusal.no-redirect", "fails": "refusal.no-failure",
	}
}

// refusing is what must run before the checks that judge all answers.
const refusing = "subject.garbage"

func runToy(t *testing.T, w *world, defect string, checks ...string) Report {
	t.Helper()
	y := newToy(t, w, defect)
	cfg := y.config(t)
	if slices.ContainsFunc(checks, func(s string) bool { return strings.HasPrefix(s, "client.assertion") }) {
		cfg.Certificate = nil
		cfg.Assertion = func() (string, error) {
			return sign(w.assertion, "a", "client-authentication+jwt", map[string]any{"jti": rand.Text(), "exp": time.Now().Unix() + 60}), nil
		}
	}
	report, err := Run(t.Context(), cfg, checks...)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{cfg.SubjectToken, cfg.ForeignSubjectToken, cfg.ExpiredSubjectToken, "eyJ"} {
		if strings.Contains(string(body), token) {
			t.Errorf("%s: the report holds a token: %s", defect, body)
		}
	}
	return report
}

// A server that does all right passes every check, and none is left out; also one that is asked again when it is busy.
func TestGoodToy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, report := range map[string]Report{
		"mTLS": runToy(t, w, ""), "assertions": runToy(t, w, "", "client.assertion"), "busy": runToy(t, w, "is busy"),
	} {
		for _, r := range report.Results {
			if r.Outcome != Pass && !(name != "assertions" && strings.HasPrefix(r.Name, "client.assertion-")) {
				t.Errorf("%s: %+v", name, r)
			}
		}
	}
}

// Each defect is caught by the checks that are for it.
func TestDefects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	caught := map[string]bool{}
	for defect, list := range defects() {
		names := strings.Fields(list)
		for _, name := range names {
			caught[name] = true
		}
		t.Run(defect, func(t *testing.T) {
			t.Parallel()
			run := names
			if strings.HasPrefix(names[0], "refusal.") {
				run = append([]string{refusing, "grant.missing"}, names...)
			}
			for _, r := range runToy(t, w, defect, run...).Results {
				if slices.Contains(names, r.Name) && r.Outcome != Fail {
					t.Errorf("%s does not catch it: %s %s", r.Name, r.Outcome, r.Why)
				}
			}
		})
	}
	for _, c := range Checks() {
		if !caught[c.Name] {
			t.Errorf("no defect shows that %s can fail", c.Name)
		}
	}
}

func TestChecksAreWhole(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range Checks() {
		if seen[c.Name] || c.Name == "" || c.Section == "" || c.Title == "" || c.Level != Must && c.Level != Should {
			t.Errorf("not whole, or there twice: %+v", c)
		}
		seen[c.Name] = true
		for _, need := range c.needs {
			if needs()[need] == nil {
				t.Errorf("%s needs %q, which nothing tells", c.Name, need)
			}
		}
	}
	t.Logf("%d checks", len(seen))
}

// Nothing is judged when nothing answers, and no failure to configure passes for a result.
func TestNothingToTest(t *testing.T) {
	t.Parallel()
	good := Config{Endpoint: "https://127.0.0.1:1/token", SubjectToken: "x", Audience: "a", Timeout: time.Second}
	for name, change := range map[string]func(*Config){
		"nobody answers": func(*Config) {}, "no URL": func(c *Config) { c.Endpoint = "token" }, "no token": func(c *Config) { c.SubjectToken = "" },
		"no audience": func(c *Config) { c.Audience = "" }, "issuer no URL": func(c *Config) { c.Issuer = "x" },
	} {
		cfg := good
		change(&cfg)
		if report, err := Run(t.Context(), cfg); err == nil {
			t.Errorf("%s: %+v", name, report.Summary)
		}
	}
	if _, err := Run(t.Context(), good, "no-such-check"); err == nil {
		t.Error("no check has that name")
	}
}

// Whatever a server sends for a token, and whatever subject token there is: it is read or not, and can be made into forgeries.
func FuzzToken(f *testing.F) {
	for _, seed := range []string{"", ".", "..", "e30.e30.", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.AA", "bnVsbA.bnVsbA.", "e30.W10.AA"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, compact string) {
		_ = tamperedSignature(compact)
		read, ok := parseToken(compact)
		if !ok {
			return
		}
		for _, embed := range []bool{false, true} {
			if forged, err := read.forged(embed); err == nil && strings.Count(forged, ".") != 2 {
				t.Errorf("forged is %q", forged)
			}
		}
		for _, forged := range []string{read.unsigned("none"), read.tamperedPayload()} {
			if _, ok := parseToken(forged); !ok {
				t.Errorf("%q can't be read", forged)
			}
		}
		_ = read.flattened()
		_, _ = read.time("exp")
	})
}
