package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// hostile is a subject token that must be refused, and why it stands here: a row of research/sts.md section 4 or a
// sentence of standards.md, "JWT handling, everywhere".
type hostile struct {
	name, token string
	code        countersign.Code
}

const header = `{"alg":"ES256","kid":"ec","typ":"at+jwt"}`

// hostiles are all of them; trap is a server that some name.
func (i *hostileIssuer) hostiles(trap string) map[string][]hostile {
	return map[string][]hostile{
		"shapes": i.shapes(), "headers": i.headers(trap), "algorithms": i.algorithms(), "key confusion": i.keyConfusion(),
		"signatures": i.signatures(), "duplicates": i.duplicates(), "times": i.times(), "missing": i.missing(), "kinds": i.kinds(),
		"names": i.names(trap), "may_act": i.mayAct(),
	}
}

// TestHostileTokens sends every one of them to the token endpoint of a daemon that trusts their issuer's keys.
func TestHostileTokens(t *testing.T) {
	d := openDoor(t, nil, "gateway")
	trap := newTrap(t)
	gateway := d.as("gateway")
	if got := d.exchange(gateway, d.idp.good(), "orders"); got.status != http.StatusOK {
		t.Fatalf("the good token: %d %s", got.status, got.body)
	}
	before := d.state()
	var all []hostile
	for _, some := range d.idp.hostiles(trap.URL) {
		all = append(all, some...)
	}
	denied := 0
	for _, h := range all {
		want := badRequest(h.code)
		if err := want.check(d.exchange(gateway, h.token, "orders")); err != nil {
			t.Errorf("%s: %v", h.name, err)
		}
		if h.code != countersign.CodeTokenRequest { // the form is judged before there is a decision to record
			denied++
		}
	}
	if hits := trap.strangeHits(); len(hits) > 0 {
		t.Errorf("the daemon fetched what tokens named: %v", hits)
	}
	if hits := d.idp.strangeHits(); len(hits) > 0 {
		t.Errorf("the daemon asked the issuer for %v", hits)
	}
	d.unchanged(before, map[string]int{"token.denied": denied})
	d.stillGood()
	t.Logf("%d hostile tokens", len(all))
}

// newTrap is a server that nobody has a reason to call.
func newTrap(t *testing.T) *hostileIssuer {
	trap := newHostileIssuer(t)
	inner := trap.Config.Handler
	trap.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, rq *http.Request) {
		rq.URL.Path = "/trap" + rq.URL.Path // so that the well-known ones count as strange
		inner.ServeHTTP(w, rq)
	})
	return trap
}

// shapes: "Compact serialization only, strict canonical base64url, at most 16 KiB, exactly three parts".
func (i *hostileIssuer) shapes() []hostile {
	good := i.good()
	parts := strings.Split(good, ".")
	flattened := `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`
	jwe := i.base64(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2000000000,"p2s":"c2FsdA","zip":"DEF"}`)
	const token, form = countersign.CodeSubjectToken, countersign.CodeTokenRequest
	return []hostile{
		{"flattened JSON serialization", flattened, token},
		{"general JSON serialization", `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`, token},
		{"opaque token (zitadel/oidc#704)", "0123456789abcdef", token},
		{"a dot", ".", token},
		{"two dots", "..", token},
		{"two parts", parts[0] + "." + parts[1], token},
		{"four parts", good + "." + parts[2], token},
		{"five parts", good + ".a.b", token},
		{"JWE by PBES2 with p2c of 2e9 and zip (CVE-2026-34986)", jwe + ".a.b.c.d", token},
		{"JWE's header in three parts", jwe + "." + parts[1] + "." + parts[2], token},
		{"dots (CVE-2025-27144)", strings.Repeat(".", 16<<10), token},
		{"longer than 16 KiB", i.token("pad", strings.Repeat("a", 13<<10)), form},
		{"truncated by one character (CVE-2026-27840)", good[:len(good)-1], token},
		{"extended by one character", good + "A", token},
		{"extended by four characters", good + "AAAA", token},
		{"padded base64", parts[0] + "." + parts[1] + "." + parts[2] + "==", token},
		{"trailing bits that are not zero", good[:len(good)-1] + otherBits(good[len(good)-1]), token},
		{"standard alphabet of base64", parts[0] + "." + parts[1] + "." + strings.Repeat("+/", 43), token},
		{"line break inside", parts[0] + ".\n" + parts[1] + "." + parts[2], form},
		{"blank before", " " + good, token},
		{"NUL behind", good + "\x00", form},
		{"header is no JSON", i.es256("{", i.json(i.claims())), token},
		{"header is an array", i.es256(`["ES256"]`, i.json(i.claims())), token},
		{"payload is a string", i.es256(header, `"ana"`), token},
		{"payload is empty", i.es256(header, ""), token},
		{"payload is no UTF-8", i.es256(header, "{\"sub\":\"\xff\"}"), token},
		{"something after the payload", i.es256(header, i.json(i.claims())+"{}"), token},
		{"a half surrogate", i.es256(header, `{"sub":"\ud800"}`), token},
	}
}

// otherBits is a base64 character that differs from c in the bits that count for nothing at the end of 64 bytes.
func otherBits(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)^1])
}

// headers: "`jku x5u x5c` refused, `jwk` too ...; `crit`, `b64` refused", CVE-2018-0114, CVE-2026-32597, CVE-2025-59420.
func (i *hostileIssuer) headers(trap string) []hostile {
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	jwk := i.jwk(own)
	attacker := &hostileIssuer{t: i.t, ec: own}
	claims := i.json(i.claims())
	with := func(member string) string { return `{"alg":"ES256","kid":"ec","typ":"at+jwt",` + member + `}` }
	const token, key = countersign.CodeSubjectToken, countersign.CodeSubjectKey
	return []hostile{
		{"embedded jwk, signed with it (CVE-2018-0114)", attacker.es256(with(`"jwk":`+jwk), claims), token},
		{"embedded jwk, signed with the right key", i.es256(with(`"jwk":`+jwk), claims), token},
		{"jku", attacker.es256(with(`"jku":"`+trap+`/jku"`), claims), token},
		{"jku of the issuer itself", i.es256(with(`"jku":"`+i.URL+`/other"`), claims), token},
		{"x5u", attacker.es256(with(`"x5u":"`+trap+`/x5u"`), claims), token},
		{"x5c", attacker.es256(with(`"x5c":["AAAA"]`), claims), token},
		{"crit unknown", i.es256(with(`"crit":["exp"],"exp":1`), claims), token},
		{"crit empty", i.es256(with(`"crit":[]`), claims), token},
		{"crit b64 and b64 false", i.es256(with(`"crit":["b64"],"b64":false`), claims), token},
		{"b64 true", i.es256(with(`"b64":true`), claims), token},
		{"crit twice", i.es256(with(`"crit":["a"],"crit":["a"]`), claims), token},
		{"zip", i.es256(with(`"zip":"DEF"`), claims), token},
		{"kid is a path", i.es256(`{"alg":"ES256","kid":"../../../../dev/null","typ":"at+jwt"}`, claims), key},
		{"kid is SQL", i.es256(`{"alg":"ES256","kid":"x' UNION SELECT 'a","typ":"at+jwt"}`, claims), key},
		{"kid is a URL", i.es256(`{"alg":"ES256","kid":"`+trap+`/kid","typ":"at+jwt"}`, claims), key},
		{"kid of 4 KiB", i.es256(`{"alg":"ES256","kid":"`+strings.Repeat("k", 4<<10)+`","typ":"at+jwt"}`, claims), token},
		{"kid with NUL", i.es256(`{"alg":"ES256","kid":"ec\u0000","typ":"at+jwt"}`, claims), token},
		{"kid is a number", i.es256(`{"alg":"ES256","kid":1,"typ":"at+jwt"}`, claims), token},
		{"kid is empty", i.es256(`{"alg":"ES256","kid":"","typ":"at+jwt"}`, claims), token},
		{"no kid, of an issuer with two keys", i.es256(`{"alg":"ES256","typ":"at+jwt"}`, claims), key},
		{"kid in the payload only (CVE-2025-65945)", i.es256(`{"alg":"ES256","typ":"at+jwt"}`, i.json(i.claims("kid", "ec"))), key},
		{"another's key under our kid", attacker.es256(header, claims), token},
	}
}

func (i *hostileIssuer) jwk(key *ecdsa.PrivateKey) string {
	set, err := jwt.NewSet(jwt.PublicKey{KID: "own", Alg: "ES256", Key: key.Public()})
	if err != nil {
		i.t.Fatal(err)
	}
	var keys struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(set.JSON(), &keys); err != nil {
		i.t.Fatal(err)
	}
	return string(keys.Keys[0])
}

// algorithms: "Algorithm from the configured list and from the key, never from the header alone".
func (i *hostileIssuer) algorithms() []hostile {
	claims := i.json(i.claims())
	none := func(alg string) string {
		return i.base64(`{"alg":"`+alg+`","kid":"ec","typ":"at+jwt"}`) + "." + i.base64(claims) + "."
	}
	by := func(alg, kid string, sign func(string) []byte) string {
		return i.signed(`{"alg":"`+alg+`","kid":"`+kid+`","typ":"at+jwt"}`, claims, sign)
	}
	const token = countersign.CodeSubjectToken
	return []hostile{
		{"none", none("none"), token},
		{"None", none("None"), token},
		{"NonE", none("NonE"), token},
		{"none with a signature", by("none", "ec", i.signES256), token},
		{"empty alg", by("", "ec", i.signES256), token},
		{"es256 in lower case", by("es256", "ec", i.signES256), token},
		{"no alg", i.signed(`{"kid":"ec","typ":"at+jwt"}`, claims, i.signES256), token},
		{"alg is a list", i.signed(`{"alg":["ES256"],"kid":"ec"}`, claims, i.signES256), token},
		{"ES256 with the RSA key's kid", by("ES256", "rsa", i.signES256), token},
		{"RS256 with the EC key's kid", by("RS256", "ec", i.signRSA(false)), token},
		{"PS256 with a key for RS256", by("PS256", "rsa", i.signRSA(true)), token},
		{"PSS named RS256", by("RS256", "rsa", i.signRSA(true)), token},
		{"ES384 with a P-256 key", by("ES384", "ec", i.signES256), token},
		{"RS512, which the issuer does not have", by("RS512", "rsa", i.signRSA(false)), token},
		{"EdDSA with an EC key", by("EdDSA", "ec", i.signES256), token},
		{"ES256K", by("ES256K", "ec", i.signES256), token},
	}
}

// keyConfusion: HMAC with the public key as everybody can get it, in each of its spellings (CVE-2015-9235).
func (i *hostileIssuer) keyConfusion() []hostile {
	claims := i.json(i.claims())
	var all []hostile
	for name, key := range map[string]any{"ec": &i.ec.PublicKey, "rsa": &i.rsa.PublicKey} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			i.t.Fatal(err)
		}
		for spelling, secret := range map[string][]byte{
			"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "nothing": nil,
			"base64": []byte(base64.StdEncoding.EncodeToString(der)), "JWK": []byte(i.jwk(i.ec)),
		} {
			for _, alg := range []string{"HS256", "hs256", "HS512"} {
				token := i.signed(`{"alg":"`+alg+`","kid":"`+name+`","typ":"at+jwt"}`, claims, signHMAC(secret))
				all = append(all, hostile{alg + " with the public " + name + " key as " + spelling, token, countersign.CodeSubjectToken})
			}
		}
	}
	return all
}

// signatures: "ES256 signatures 64 bytes, r and s in range" (CVE-2022-21449, HAProxy's overflow).
func (i *hostileIssuer) signatures() []hostile {
	claims := i.json(i.claims())
	with := func(sig []byte) string { return i.signed(header, claims, func(string) []byte { return sig }) }
	n := elliptic.P256().Params().N.FillBytes(make([]byte, 32))
	one := append(make([]byte, 31), 1)
	const token = countersign.CodeSubjectToken
	sum := sha256.Sum256([]byte("x"))
	return []hostile{
		{"r = s = 0", with(make([]byte, 64)), token},
		{"r = 0", with(append(make([]byte, 32), one...)), token},
		{"r = n", with(append(append([]byte{}, n...), one...)), token},
		{"s = n", with(append(append([]byte{}, one...), n...)), token},
		{"r = s = 1", with(append(append([]byte{}, one...), one...)), token},
		{"DER", i.signed(header, claims, i.signDER), token},
		{"one byte more", i.signed(header, claims, func(in string) []byte { return append(i.signES256(in), 0) }), token},
		{"one byte less", i.signed(header, claims, func(in string) []byte { return i.signES256(in)[:63] }), token},
		{"twice as long", i.signed(header, claims, func(in string) []byte { return append(i.signES256(in), i.signES256(in)...) }), token},
		{"10,000 characters", i.signed(header, claims, func(string) []byte { return make([]byte, 7500) }), token},
		{"none", with(nil), token},
		{"of something else", with(append(sum[:], sum[:]...)), token},
		{"expired and wrongly signed (CVE-2024-51744)", i.signed(header, i.json(i.claims("exp", 1)), func(string) []byte { return append(sum[:], sum[:]...) }), token},
		{"of another payload", swapPayload(i.good(), i.base64(i.json(i.claims("sub", "root")))), token},
		{"of another header", swapHeader(i.good(), i.base64(`{"alg":"ES256","kid":"ec","typ":"JWT"}`)), token},
	}
}

func swapPayload(token, payload string) string {
	parts := strings.Split(token, ".")
	return parts[0] + "." + payload + "." + parts[2]
}

func swapHeader(token, header string) string {
	_, rest, _ := strings.Cut(token, ".")
	return header + "." + rest
}

// soon is a time n seconds from now, as claims have it.
func soon(n int64) int64 { return time.Now().Unix() + n }
