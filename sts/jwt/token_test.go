package jwt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"runtime"
	"strings"
	"testing"
)

func header(more string) string { return `{"alg":"ES256","kid":"e"` + more + `}` }

func payload(more string) string { return goodPayload[:len(goodPayload)-1] + more + "}" }

func TestGoodTokens(t *testing.T) {
	keys := issuerSet(t)
	for name, token := range map[string]string{
		"ES256":                               forge(header(``), goodPayload),
		"RS256":                               forgeWith(`{"alg":"RS256","kid":"r"}`, goodPayload, rs256),
		"PS256 by a key without alg":          forgeWith(`{"alg":"PS256","kid":"r-any"}`, goodPayload, ps256),
		"unknown header parameters":           forge(header(`,"x5t":"abc","foo":{"bar":[1]}`), goodPayload),
		"spaces in the JSON":                  forge(" {\n\"alg\" :\t\"ES256\", \"kid\":\"e\"}\r\n", " "+goodPayload+" "),
		"escapes and pairs of surrogates":     forge(header(``), payload(`,"n\u0061me":"\ud83d\ude00 \" \\ \/"`)),
		"depth 16":                            forge(header(``), payload(`,"x":`+nested(15))),
		"empty containers, literals, numbers": forge(header(``), payload(`,"a":{},"b":[],"c":[true,false,null,-1.5e-3,0]`)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := judge(token, keys, "ES256", "RS256", "PS256"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// nested is an object with depth levels.
func nested(depth int) string {
	return strings.Repeat(`{"act":`, depth-1) + `{}` + strings.Repeat(`}`, depth-1)
}

// TestShape quotes the rule of standards.md, "JWT handling, everywhere", that each token breaks. All are signed as they
// stand.
func TestShape(t *testing.T) {
	keys := issuerSet(t)
	good := forge(header(``), goodPayload)
	parts := strings.Split(good, ".")
	long := strings.Repeat("x", MaxToken)
	for _, tt := range []struct {
		rule  string
		token string
		want  Reason
	}{
		{"at most 16 KiB: one byte more", good + strings.Repeat("A", MaxToken+1-len(good)), ReasonSize},
		{"at most 16 KiB: payload", forge(header(``), payload(`,"x":"`+long+`"`)), ReasonSize},
		{"exactly three parts: empty", "", ReasonParts},
		{"exactly three parts: opaque", "nT8vRk2", ReasonParts},
		{"exactly three parts: 2", parts[0] + "." + parts[1], ReasonParts},
		{"exactly three parts: 4", good + ".AAAA", ReasonParts},
		{"exactly three parts: JWE has 5", "e30.e30.e30.e30.e30", ReasonParts},
		{"exactly three parts: dots", strings.Repeat(".", MaxToken), ReasonParts},
		{"compact serialization only: flattened JSON", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, ReasonParts},
		{"compact serialization only: JSON with two dots", `{"payload":"a.b.c"}`, ReasonBase64},
		{"canonical base64url: padding", parts[0] + "." + b64(goodPayload) + "=." + parts[2], ReasonBase64},
		{"canonical base64url: newline at the end", good + "\n", ReasonBase64},
		{"canonical base64url: CR inside", good[:len(good)-4] + "\r" + good[len(good)-4:], ReasonBase64},
		{"canonical base64url: space", " " + good, ReasonBase64},
		{"canonical base64url: one character more", good + "B", ReasonBase64},
		{"signatures 64 bytes: one zero character more", good + "A", ReasonSignature},
		{"canonical base64url: standard alphabet", parts[0] + "." + parts[1] + "." + "+/" + parts[2][2:], ReasonBase64},
		{"canonical base64url: trailing bits", trailingBits(good), ReasonBase64},
		{"header object: array", forge(`["ES256"]`, goodPayload), ReasonJSON},
		{"header object: empty", "." + parts[1] + "." + parts[2], ReasonJSON},
		{"header object: two", forge(header(``)+"{}", goodPayload), ReasonJSON},
		{"header object: not UTF-8", forge(header(",\"x\":\"\xff\""), goodPayload), ReasonJSON},
		{"payload object: string", forge(header(``), `"alice"`), ReasonJSON},
		{"payload object: null", forge(header(``), `null`), ReasonJSON},
		{"payload object: empty", forge(header(``), ``), ReasonJSON},
		{"payload object: nested token", forge(header(`,"cty":"JWT"`), good), ReasonJSON},
		{"payload object: trailing data", forge(header(``), goodPayload+`{}`), ReasonJSON},
		{"payload object: trailing comma", forge(header(``), payload(`,`)), ReasonJSON},
		{"payload object: byte order mark", forge(header(``), "\xef\xbb\xbf"+goodPayload), ReasonJSON},
		{"payload object: invalid UTF-8", forge(header(``), payload(",\"x\":\"\xc3\x28\"")), ReasonJSON},
		{"payload object: half a surrogate pair", forge(header(``), payload(`,"x":"a\ud800"`)), ReasonJSON},
		{"payload object: pair in the wrong order", forge(header(``), payload(`,"x":"\udc00\ud800"`)), ReasonJSON},
		{"payload object: half a pair as name", forge(header(``), payload(`,"\udfff":1`)), ReasonJSON},
		{"payload object: NaN", forge(header(``), payload(`,"x":NaN`)), ReasonJSON},
		{"without duplicate members: sub", forge(header(``), payload(`,"sub":"admin"`)), ReasonDuplicate},
		{"without duplicate members: escaped name", forge(header(``), payload(`,"s\u0075b":"admin"`)), ReasonDuplicate},
		{"without duplicate members: nested", forge(header(``), payload(`,"act":{"sub":"a","sub":"b"}`)), ReasonDuplicate},
		{"without duplicate members: nested in an array", forge(header(``), payload(`,"x":[[{"a":1,"a":1}]]`)), ReasonDuplicate},
		{"without duplicate members: header", forge(header(`,"kid":"r"`), goodPayload), ReasonDuplicate},
		{"depth at most 16: objects", forge(header(``), payload(`,"act":`+nested(16))), ReasonDepth},
		{"depth at most 16: arrays", forge(header(``), payload(`,"x":`+strings.Repeat("[", 16)+strings.Repeat("]", 16))), ReasonDepth},
		{"depth at most 16: header", forge(header(`,"x":`+nested(16)), goodPayload), ReasonDepth},
		{"depth at most 16: 1,000 acts", forge(header(``), payload(`,"act":`+nested(1000))), ReasonDepth},
		{"finite: 1e400", forge(header(``), payload(`,"x":1e400`)), ReasonJSON},
		{"finite: -1e400 in an array", forge(header(``), payload(`,"x":[-1e400]`)), ReasonJSON},
	} {
		t.Run(tt.rule, func(t *testing.T) { wantReason(t, judge(tt.token, keys, "ES256"), tt.want) })
	}
}

// trailingBits sets a bit of the last character that stands for nothing: 64 bytes leave four such bits.
func trailingBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}

func TestHeader(t *testing.T) {
	keys := issuerSet(t)
	for _, tt := range []struct {
		rule   string
		header string
		want   Reason
	}{
		{"jku refused", header(`,"jku":"https://evil.example/jwks"`), ReasonHeader},
		{"x5u refused", header(`,"x5u":"https://evil.example/c.pem"`), ReasonHeader},
		{"x5c refused", header(`,"x5c":["MIIB"]`), ReasonHeader},
		{"jwk refused: even the issuer's own", header(`,"jwk":{` + ecNumbers() + `}`), ReasonHeader},
		{"crit refused: unknown", header(`,"crit":["x"],"x":1`), ReasonHeader},
		{"crit refused: empty", header(`,"crit":[]`), ReasonHeader},
		{"crit refused: null", header(`,"crit":null`), ReasonHeader},
		{"b64 refused: false", header(`,"crit":["b64"],"b64":false`), ReasonHeader},
		{"b64 refused: true", header(`,"b64":true`), ReasonHeader},
		{"zip refused", header(`,"zip":"DEF"`), ReasonHeader},
		{"enc refused", header(`,"enc":"A256GCM"`), ReasonHeader},
		{"kid: path", header(``)[:14] + `,"kid":"../../dev/null"}`, ReasonKID},
		{"kid: SQL", `{"alg":"ES256","kid":"' OR 1=1 --"}`, ReasonKID},
		{"kid: 4 KiB", `{"alg":"ES256","kid":"` + strings.Repeat("e", 4096) + `"}`, ReasonHeader},
		{"kid: NUL", `{"alg":"ES256","kid":"e\u0000"}`, ReasonHeader},
		{"kid: not ASCII", `{"alg":"ES256","kid":"é"}`, ReasonHeader},
		{"kid: empty", `{"alg":"ES256","kid":""}`, ReasonHeader},
		{"kid: number", `{"alg":"ES256","kid":1}`, ReasonHeader},
		{"kid: null", `{"alg":"ES256","kid":null}`, ReasonHeader},
		{"kid: another key of the issuer", `{"alg":"ES256","kid":"r"}`, ReasonAlg},
		{"kid required where there is more than one key", `{"alg":"ES256"}`, ReasonKID},
		{"exact member names: KID", `{"alg":"ES256","KID":"e"}`, ReasonKID},
		{"exact member names: Alg", `{"Alg":"ES256","kid":"e"}`, ReasonAlg},
		{"typ: array", header(`,"typ":["JWT"]`), ReasonHeader},
		{"typ: empty", header(`,"typ":""`), ReasonHeader},
		{"typ: line break", header(`,"typ":"JWT\n"`), ReasonHeader},
		{"alg: missing", `{"kid":"e"}`, ReasonAlg},
		{"alg: array", `{"alg":["ES256"],"kid":"e"}`, ReasonHeader},
		{"alg: lower case", `{"alg":"es256","kid":"e"}`, ReasonAlg},
		{"alg: ES384 by a P-256 key", `{"alg":"ES384","kid":"e"}`, ReasonAlg},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			wantReason(t, judge(forge(tt.header, goodPayload), keys, "ES256", "ES384"), tt.want)
		})
	}
}

// TestAlgorithm holds "algorithm from the configured list and from the key, never from the header alone".
func TestAlgorithm(t *testing.T) {
	keys := issuerSet(t)
	all := append(Algorithms(), "none", "HS256") // a careless list allows none of the two
	der := must(x509.MarshalPKIXPublicKey(p256().Public()))
	secrets := map[string][]byte{
		"PEM":     pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
		"DER":     der,
		"JWKS":    keys.JSON(),
		"nothing": nil,
	}
	for name, secret := range secrets {
		t.Run("HS256 with the public key as secret: "+name, func(t *testing.T) {
			wantReason(t, judge(forgeWith(`{"alg":"HS256","kid":"e"}`, goodPayload, hs256(secret)), keys, all...), ReasonAlg)
		})
	}
	unsigned := func(string) []byte { return nil }
	for _, tt := range []struct {
		name   string
		header string
		sign   func(string) []byte
		algs   []string
		want   Reason
	}{
		{"none", `{"alg":"none"}`, unsigned, all, ReasonAlg},
		{"None", `{"alg":"None","kid":"e"}`, unsigned, all, ReasonAlg},
		{"NonE with a signature", `{"alg":"NonE","kid":"e"}`, rs256, all, ReasonAlg},
		{"empty alg", `{"alg":"","kid":"e"}`, unsigned, all, ReasonHeader},
		{"ES256 without a signature", header(``), unsigned, all, ReasonSignature},
		{"ES256 by an RSA key", `{"alg":"ES256","kid":"r"}`, rs256, all, ReasonAlg},
		{"ES256 by an RSA key without alg", `{"alg":"ES256","kid":"r-any"}`, rs256, all, ReasonAlg},
		{"RS256 by an EC key", `{"alg":"RS256","kid":"e"}`, rs256, all, ReasonAlg},
		{"EdDSA by an EC key", `{"alg":"EdDSA","kid":"e"}`, rs256, all, ReasonAlg},
		{"PS256 by a key whose alg is RS256", `{"alg":"PS256","kid":"r"}`, ps256, all, ReasonAlg},
		{"RS512 by a key whose alg is RS256", `{"alg":"RS512","kid":"r"}`, rs256, all, ReasonAlg},
		{"PS256 signature said to be RS256", `{"alg":"RS256","kid":"r-any"}`, ps256, all, ReasonSignature},
		{"RS256 signature said to be PS256", `{"alg":"PS256","kid":"r-any"}`, rs256, all, ReasonSignature},
		{"RS256 not in the list", `{"alg":"RS256","kid":"r"}`, rs256, []string{"ES256"}, ReasonAlg},
		{"no list at all", `{"alg":"RS256","kid":"r"}`, rs256, nil, ReasonAlg},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantReason(t, judge(forgeWith(tt.header, goodPayload, tt.sign), keys, tt.algs...), tt.want)
		})
	}
}

// TestSignature holds "ES256 signatures 64 bytes, r and s in range".
func TestSignature(t *testing.T) {
	keys := issuerSet(t)
	n := p256().Params().N
	sig := func(r, s *big.Int) func(string) []byte {
		return func(string) []byte { return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...) }
	}
	zero, one := new(big.Int), big.NewInt(1)
	most := new(big.Int).Sub(new(big.Int).Lsh(one, 256), one)
	for name, sign := range map[string]func(string) []byte{
		"0/0":     sig(zero, zero),
		"0/1":     sig(zero, one),
		"1/0":     sig(one, zero),
		"n/1":     sig(n, one),
		"1/n":     sig(one, n),
		"2^256-1": sig(most, most),
		"1/1":     sig(one, one),
		"DER": func(in string) []byte {
			h := sha256.Sum256([]byte(in))
			return must(ecdsa.SignASN1(rand.Reader, p256(), h[:]))
		},
		"63 bytes":   func(in string) []byte { return es256(p256(), in)[:63] },
		"65 bytes":   func(in string) []byte { return append(es256(p256(), in), 0) },
		"128 bytes":  func(in string) []byte { return append(es256(p256(), in), es256(p256(), in)...) },
		"8 KiB":      func(string) []byte { return bytes.Repeat([]byte{1}, 8<<10) },
		"other text": func(in string) []byte { return es256(p256(), in+"x") },
		"other key":  func(in string) []byte { return es256(must(ecdsa.GenerateKey(p256().Curve, rand.Reader)), in) },
	} {
		t.Run(name, func(t *testing.T) {
			wantReason(t, judge(forgeWith(header(``), goodPayload, sign), keys, "ES256"), ReasonSignature)
		})
	}
	t.Run("RS256 one byte more", func(t *testing.T) {
		sign := func(in string) []byte { return append([]byte{0}, rs256(in)...) }
		wantReason(t, judge(forgeWith(`{"alg":"RS256","kid":"r"}`, goodPayload, sign), keys, "RS256"), ReasonSignature)
	})
	t.Run("payload of another token", func(t *testing.T) {
		a, b := strings.Split(forge(header(``), goodPayload), "."), b64(payload(`,"x":1`))
		wantReason(t, judge(a[0]+"."+b+"."+a[2], keys, "ES256"), ReasonSignature)
	})
	t.Run("an expired token with a bad signature is a bad one", func(t *testing.T) {
		token := forgeWith(header(``), `{"exp":1}`, sig(one, one))
		wantReason(t, judge(token, keys, "ES256"), ReasonSignature)
	})
}

// TestCheckSignature: the sizes and ranges are judged before go-jose and crypto/ecdsa are asked, which judge them too.
func TestCheckSignature(t *testing.T) {
	n := p384().Params().N
	one := big.NewInt(1)
	sig := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
	}
	last := new(big.Int).Sub(n, one)
	for _, good := range [][]byte{sig(one, one), sig(last, last)} {
		if err := checkSignature(p384().Public(), good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range [][]byte{sig(new(big.Int), one), sig(one, new(big.Int)), sig(n, one), sig(one, n), nil, make([]byte, 64), make([]byte, 97)} {
		wantReason(t, checkSignature(p384().Public(), bad), ReasonSignature)
	}
	wantReason(t, checkSignature(p521().Public(), make([]byte, 131)), ReasonSignature)
	wantReason(t, checkSignature(ed().Public(), make([]byte, 63)), ReasonSignature)
	wantReason(t, checkSignature(r2k().Public(), make([]byte, 255)), ReasonSignature)
}

// TestEveryBit changes each character of a token once: nothing that differs from what was signed is taken.
func TestEveryBit(t *testing.T) {
	keys := issuerSet(t)
	good := forge(header(``), goodPayload)
	for i := range good {
		for _, c := range "AB_." {
			token := good[:i] + string(c) + good[i+1:]
			if token != good && judge(token, keys, "ES256") == nil {
				t.Errorf("taken with %q at %d", c, i)
			}
		}
	}
}

// TestHugeTokenCostsNothing holds that the size is judged before anything is split, copied or decoded.
func TestHugeTokenCostsNothing(t *testing.T) {
	dots := strings.Repeat(".", 100<<20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := Parse(dots)
	runtime.ReadMemStats(&after)
	wantReason(t, err, ReasonSize)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("100 MiB of dots cost %d bytes of memory", grown)
	}
}

func TestHasType(t *testing.T) {
	for typ, want := range map[string]bool{
		"at+jwt": true, "AT+JWT": true, "application/at+jwt": true, "Application/At+Jwt": true,
		"JWT": false, "": false, "text/at+jwt": false, "at+jwt ": false, "application/": false, "application/application/at+jwt": false,
	} {
		if got := (&Token{Typ: typ}).HasType("at+jwt"); got != want {
			t.Errorf("typ %q: %t, want %t", typ, got, want)
		}
	}
	if (&Token{}).HasType("") {
		t.Error("a token without typ has the empty type")
	}
}

func TestSingleKeyNeedsNoKID(t *testing.T) {
	one := must(NewSet(PublicKey{KID: "e", Key: p256().Public()}))
	if err := judge(forge(`{"alg":"ES256"}`, goodPayload), one, "ES256"); err != nil {
		t.Error(err)
	}
	wantReason(t, judge(forge(`{"alg":"ES256","kid":"x"}`, goodPayload), one, "ES256"), ReasonKID)
	wantReason(t, judge(forge(`{"alg":"ES256"}`, goodPayload), must(NewSet()), "ES256"), ReasonKID)
	wantReason(t, judge(forge(`{"alg":"ES256"}`, goodPayload), nil, "ES256"), ReasonKID)
}

func FuzzParse(f *testing.F) {
	good := forge(header(``), goodPayload)
	for _, seed := range []string{
		good, "", "..", "e30.e30.e30", trailingBits(good), good + "\n",
		forge(header(`,"crit":[]`), goodPayload), forge(header(``), payload(`,"x":"\ud83d\ude00\ud800"`)),
		forge(header(``), payload(`,"act":`+nested(17))), forge(header(``), payload(`,"a":[1e999,{"b":{},"b":[]}]`)),
		forge(header(`,"typ":"at+jwt"`), "\t{ \"a\" : [ ] , \"b\" : { } }\r\n"),
	} {
		f.Add(seed)
	}
	keys := issuerSet(f)
	f.Fuzz(func(t *testing.T, s string) {
		token, err := Parse(s)
		if err != nil {
			return
		}
		encode := base64.RawURLEncoding.EncodeToString
		head, _, _ := strings.Cut(s, ".")
		if again := head + "." + encode(token.Payload) + "." + encode(token.signature); again != s {
			t.Errorf("%q was taken and is written %q", s, again)
		}
		for _, name := range token.Claims.Names() {
			_, _, err1 := token.Claims.String(name)
			_, _, err2 := token.Claims.Strings(name)
			_, _, err3 := token.Claims.Object(name)
			_, _, err4 := token.Claims.Time(name)
			_, _ = token.Claims.Audience()
			if raw, ok := token.Claims.Raw(name); !ok || len(raw) == 0 {
				t.Errorf("the claim %q has no value", name)
			}
			right := 0
			for _, err := range []error{err1, err2, err3, err4} {
				if err == nil {
					right++
				}
			}
			if right > 1 {
				t.Errorf("the claim %q is of two types", name)
			}
		}
		_ = token.Claims.CheckTimes(now(), 0)
		_ = token.Verify(keys, Algorithms())
	})
}
