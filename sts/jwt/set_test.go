package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The numbers of an EC, an RSA and an Ed25519 key as members of a JWK.
func ecNumbers() string {
	b := must(p256().PublicKey.Bytes())
	return fmt.Sprintf(`"kty":"EC","crv":"P-256","x":%q,"y":%q`, b64(string(b[1:33])), b64(string(b[33:])))
}

func rsaNumbers(n *big.Int, e string) string {
	return fmt.Sprintf(`"kty":"RSA","n":%q,"e":%q`, b64(string(n.Bytes())), e)
}

func goodRSA() string { return rsaNumbers(r2k().N, "AQAB") }

func edNumbers() string {
	return fmt.Sprintf(`"kty":"OKP","crv":"Ed25519","x":%q`, b64(string(ed().Public().(ed25519.PublicKey))))
}

func set(keys ...string) string { return `{"keys":[{` + strings.Join(keys, `},{`) + `}]}` }

func TestParseSet(t *testing.T) {
	good := `"kid":"good",` + ecNumbers()
	for _, tt := range []struct {
		name string
		set  string
		want []string // kids
	}{
		{"EC, RSA and Ed25519", set(good, `"kid":"r",`+goodRSA(), `"kid":"d","alg":"EdDSA",`+edNumbers()), []string{"good", "r", "d"}},
		{"unknown members", `{"x":1,` + set(`"x5c":["garbage"],"x5t":1,"foo":{},` + good)[1:], []string{"good"}},
		{"empty", `{"keys":[]}`, nil},
		{"skipped: use enc", set(good, `"kid":"x","use":"enc",`+goodRSA()), []string{"good"}},
		{"skipped: use jwt-svid", set(good, `"kid":"x","use":"jwt-svid",`+goodRSA()), []string{"good"}},
		{"skipped: alg RSA-OAEP", set(good, `"kid":"x","alg":"RSA-OAEP",`+goodRSA()), []string{"good"}},
		{"skipped: key_ops without verify", set(good, `"kid":"x","key_ops":["encrypt"],`+goodRSA()), []string{"good"}},
		{"skipped: unknown kty", set(good, `"kid":"x","kty":"AKP","alg":"ML-DSA-44","pub":"AA"`), []string{"good"}},
		{"skipped: X25519", set(good, `"kid":"x","kty":"OKP","crv":"X25519","x":"AA"`), []string{"good"}},
		{"skipped: secp256k1", set(good, `"kid":"x","kty":"EC","crv":"secp256k1","x":"AA","y":"AA"`), []string{"good"}},
		{"skipped though its kid is taken", set(good, `"kid":"good","use":"enc",`+goodRSA()), []string{"good"}},
		{"key_ops with verify", set(`"key_ops":["verify"],` + good), []string{"good"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseSet([]byte(tt.set))
			if err != nil {
				t.Fatal(err)
			}
			var kids []string
			for _, k := range s.keys {
				kids = append(kids, k.KID)
			}
			if diff := cmp.Diff(tt.want, kids); diff != "" || s.Len() != len(tt.want) {
				t.Error(diff)
			}
		})
	}
}

func TestParseSetRefuses(t *testing.T) {
	good := `"kid":"good",` + ecNumbers()
	point := ecNumbers()
	offCurve := strings.Replace(point, `"y":"`+point[strings.Index(point, `"y":"`)+5:], `"y":"`+strings.Repeat("A", 43)+`"`, 1)
	weak := new(big.Int).SetBit(big.NewInt(1), 1023, 1)
	huge := new(big.Int).SetBit(big.NewInt(1), 8192, 1)
	even := new(big.Int).SetBit(new(big.Int), 2047, 1)
	for _, tt := range []struct {
		rule string
		set  string
		want Reason
	}{
		{"at most 256 KiB", `{"keys":[]` + strings.Repeat(" ", MaxSet) + `}`, ReasonSize},
		{"at most 64 keys", set(strings.Split(strings.Repeat(`"kty":"X"|`, 64)+`"kty":"X"`, "|")...), ReasonSize},
		{"object: HTML", `<html>`, ReasonJSON},
		{"object: empty", ``, ReasonJSON},
		{"object: null", `null`, ReasonJSON},
		{"object: array", `[]`, ReasonJSON},
		{"keys: missing", `{}`, ReasonJSON},
		{"keys: exact name", `{"Keys":[]}`, ReasonJSON},
		{"keys: null", `{"keys":null}`, ReasonJSON},
		{"keys: object", `{"keys":{}}`, ReasonJSON},
		{"keys: entry null", `{"keys":[null]}`, ReasonJSON},
		{"keys: twice", `{"keys":[],"keys":[]}`, ReasonDuplicate},
		{"member twice in a key", set(`"kid":"a",` + good), ReasonDuplicate},
		{"kid twice", set(good, `"kid":"good",`+goodRSA()), ReasonDuplicate},
		{"depth", set(good + `,"foo":` + nested(14)), ReasonDepth},
		{"kty missing", set(`"kid":"x"`), ReasonKey},
		{"kty number", set(`"kid":"x","kty":1`), ReasonKey},
		{"kid number", set(`"kid":1,` + ecNumbers()), ReasonKey},
		{"kid empty", set(`"kid":"",` + ecNumbers()), ReasonKey},
		{"kid with NUL", set(`"kid":"a\u0000",` + ecNumbers()), ReasonKey},
		{"kid of 257 bytes", set(`"kid":"` + strings.Repeat("k", 257) + `",` + ecNumbers()), ReasonKey},
		{"no oct", set(good, `"kid":"s","kty":"oct","k":"c2VjcmV0"`), ReasonKey},
		{"no oct, also for enc", set(good, `"kid":"s","kty":"oct","use":"enc"`), ReasonKey},
		{"no private EC key", set(good + `,"d":"AAAA"`), ReasonKey},
		{"no private RSA key", set(`"kid":"r","p":"AAAA",` + goodRSA()), ReasonKey},
		{"no private key of a kind that is skipped", set(good, `"kty":"OKP","crv":"X25519","x":"AA","d":"AA"`), ReasonKey},
		{"RSA of 1024 bits", set(`"kid":"r",` + rsaNumbers(weak, "AQAB")), ReasonKey},
		{"RSA of 8193 bits", set(`"kid":"r",` + rsaNumbers(huge, "AQAB")), ReasonKey},
		{"RSA even modulus", set(`"kid":"r",` + rsaNumbers(even, "AQAB")), ReasonKey},
		{"RSA exponent 1", set(`"kid":"r",` + rsaNumbers(r2k().N, "AQ")), ReasonKey},
		{"RSA exponent even", set(`"kid":"r",` + rsaNumbers(r2k().N, "BA")), ReasonKey},
		{"RSA exponent 0", set(`"kid":"r",` + rsaNumbers(r2k().N, "AA")), ReasonKey},
		{"RSA exponent of 2^64+3", set(`"kid":"r",` + rsaNumbers(r2k().N, "AQAAAAAAAAAD")), ReasonKey},
		{"RSA exponent of 2^33+1", set(`"kid":"r",` + rsaNumbers(r2k().N, "AgAAAAE")), ReasonKey},
		{"RSA exponent missing", set(`"kid":"r","kty":"RSA","n":"` + b64(string(r2k().N.Bytes())) + `"`), ReasonKey},
		{"RSA modulus with padding", set(`"kid":"r",` + rsaNumbers(r2k().N, "AQAB==")), ReasonKey},
		{"RSA modulus number", set(`"kid":"r","kty":"RSA","n":3,"e":"AQAB"`), ReasonKey},
		{"EC not on the curve", set(`"kid":"e",` + offCurve), ReasonKey},
		{"EC point at infinity", set(`"kid":"e","kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `"`), ReasonKey},
		{"EC of the wrong curve", set(`"kid":"e",` + strings.Replace(point, "P-256", "P-384", 1)), ReasonKey},
		{"EC y missing", set(`"kid":"e","kty":"EC","crv":"P-256","x":"AA"`), ReasonKey},
		{"Ed25519 too short", set(`"kid":"d","kty":"OKP","crv":"Ed25519","x":"AAAA"`), ReasonKey},
		{"alg is not the key's", set(`"kid":"r","alg":"ES256",` + goodRSA()), ReasonKey},
		{"alg is not the curve's", set(`"kid":"e","alg":"ES384",` + ecNumbers()), ReasonKey},
		{"alg HS256 with an RSA key", set(`"kid":"r","alg":"HS256",` + goodRSA()), ReasonKey},
		{"alg none", set(`"kid":"r","alg":"none",` + goodRSA()), ReasonKey},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			_, err := ParseSet([]byte(tt.set))
			wantReason(t, err, tt.want)
		})
	}
}

func TestKIDRequiredCountsSkippedKeys(t *testing.T) {
	s := must(ParseSet([]byte(set(ecNumbers(), `"kid":"x","use":"enc",`+goodRSA()))))
	wantReason(t, judge(forge(`{"alg":"ES256"}`, goodPayload), s, "ES256"), ReasonKID)
	s = must(ParseSet([]byte(set(ecNumbers()))))
	if err := judge(forge(`{"alg":"ES256"}`, goodPayload), s, "ES256"); err != nil {
		t.Error(err)
	}
}

func TestNewSet(t *testing.T) {
	ok := PublicKey{KID: "e", Alg: "ES256", Key: p256().Public()}
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	for name, keys := range map[string][]PublicKey{
		"no kid":        {{Key: p256().Public()}},
		"kid twice":     {ok, ok},
		"no key":        {{KID: "x"}},
		"private key":   {{KID: "x", Key: p256()}},
		"secret":        {{KID: "x", Key: []byte("secret")}},
		"weak RSA":      {{KID: "x", Key: weak.Public()}},
		"huge RSA":      {{KID: "x", Key: &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 8192, 1), E: 3}}},
		"even RSA":      {{KID: "x", Key: &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int), 2047, 1), E: 3}}},
		"even exponent": {{KID: "x", Key: &rsa.PublicKey{N: r2k().N, E: 4}}},
		"exponent 1":    {{KID: "x", Key: &rsa.PublicKey{N: r2k().N, E: 1}}},
		"P-224":         {{KID: "x", Key: must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).Public()}},
		"nil RSA":       {{KID: "x", Key: (*rsa.PublicKey)(nil)}},
		"nil EC":        {{KID: "x", Key: (*ecdsa.PublicKey)(nil)}},
		"alg of HMAC":   {{KID: "x", Alg: "HS256", Key: p256().Public()}},
		"alg of RSA":    {{KID: "x", Alg: "RS256", Key: p256().Public()}},
		"short Ed25519": {{KID: "x", Key: ed25519.PublicKey{1}}},
	} {
		if _, err := NewSet(keys...); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestSetJSON holds that what we publish is public, says what it is for, and is what we take.
func TestSetJSON(t *testing.T) {
	s := issuerSet(t)
	var doc struct{ Keys []map[string]any }
	if err := json.Unmarshal(s.JSON(), &doc); err != nil {
		t.Fatal(err)
	}
	for _, k := range doc.Keys {
		allowed := map[string]bool{"kty": true, "kid": true, "use": true, "alg": true, "crv": true, "x": true, "y": true, "n": true, "e": true}
		for name := range k {
			if !allowed[name] {
				t.Errorf("published: %q", name)
			}
		}
		if k["use"] != "sig" || k["kid"] == "" {
			t.Error(k)
		}
	}
	again := must(ParseSet(s.JSON()))
	if again.Len() != 4 || !again.Has("e") || again.Has("x") || again.Has("") {
		t.Error(string(s.JSON()))
	}
	if err := judge(forge(header(``), goodPayload), again, "ES256"); err != nil {
		t.Error(err)
	}
	if got := string(must(NewSet()).JSON()); got != `{"keys":[]}` {
		t.Error(got)
	}
}

func FuzzParseSet(f *testing.F) {
	f.Add([]byte(`{"keys":[]}`))
	f.Add(issuerSet(f).JSON())
	f.Add([]byte(set(`"kid":"good",`+ecNumbers(), `"kid":"x","use":"enc",`+goodRSA(), `"kid":"d",`+edNumbers())))
	f.Add([]byte(set(`"kid":"s","kty":"oct","k":"c2VjcmV0"`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSet(b)
		if err != nil {
			return
		}
		again, err := ParseSet(s.JSON())
		if err != nil || again.Len() != s.Len() {
			t.Fatalf("%s was taken, %s is not: %v", b, s.JSON(), err)
		}
		for i, k := range s.keys {
			if !reflect.DeepEqual(k, again.keys[i]) {
				t.Errorf("%v is written as %v", k, again.keys[i])
			}
		}
	})
}

// TestSign holds that each kind of key signs what Parse takes and a stock verifier would find: alg, kid and typ only.
func TestSign(t *testing.T) {
	for _, tt := range []struct {
		alg string
		key crypto.Signer
	}{
		{"ES256", p256()}, {"ES384", p384()}, {"ES512", p521()}, {"EdDSA", ed()}, {"RS256", r2k()},
		{"ES256", elsewhere{p256()}}, {"EdDSA", elsewhere{ed()}}, {"RS256", elsewhere{r2k()}},
	} {
		t.Run(fmt.Sprintf("%s by %T", tt.alg, tt.key), func(t *testing.T) {
			compact, err := Sign(tt.key, tt.alg, "k1", "at+jwt", map[string]any{"sub": "a<b>&", "exp": 1800000300})
			if err != nil {
				t.Fatal(err)
			}
			keys := must(NewSet(PublicKey{KID: "k1", Alg: tt.alg, Key: tt.key.Public()}))
			if err := judge(compact, keys, tt.alg); err != nil {
				t.Fatal(err)
			}
			head := must(base64.RawURLEncoding.DecodeString(compact[:strings.IndexByte(compact, '.')]))
			want := map[string]string{"alg": tt.alg, "kid": "k1", "typ": "at+jwt"}
			var got map[string]string
			if err := json.Unmarshal(head, &got); err != nil || !cmp.Equal(want, got) {
				t.Errorf("%s: %v", head, err)
			}
			token := must(Parse(compact))
			if s, _, _ := token.Claims.String("sub"); s != "a<b>&" || !strings.Contains(string(token.Payload), "a<b>&") {
				t.Errorf("%s", token.Payload)
			}
		})
	}
}

// elsewhere is a key that is reachable through crypto.Signer only.
type elsewhere struct{ crypto.Signer }

func TestSignRefuses(t *testing.T) {
	good := map[string]any{"sub": "a"}
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	for name, sign := range map[string]func() (string, error){
		"none":             func() (string, error) { return Sign(p256(), "none", "k", "JWT", good) },
		"HS256":            func() (string, error) { return Sign(p256(), "HS256", "k", "JWT", good) },
		"PS256":            func() (string, error) { return Sign(r2k(), "PS256", "k", "JWT", good) },
		"the wrong curve":  func() (string, error) { return Sign(p384(), "ES256", "k", "JWT", good) },
		"the wrong kind":   func() (string, error) { return Sign(p256(), "RS256", "k", "JWT", good) },
		"a weak key":       func() (string, error) { return Sign(weak, "RS256", "k", "JWT", good) },
		"no kid":           func() (string, error) { return Sign(p256(), "ES256", "", "JWT", good) },
		"no typ":           func() (string, error) { return Sign(p256(), "ES256", "k", "", good) },
		"a kid with NUL":   func() (string, error) { return Sign(p256(), "ES256", "k\x00", "JWT", good) },
		"no object":        func() (string, error) { return Sign(p256(), "ES256", "k", "JWT", "x") },
		"what JSON hasn't": func() (string, error) { return Sign(p256(), "ES256", "k", "JWT", func() {}) },
		"a member twice": func() (string, error) {
			return Sign(p256(), "ES256", "k", "JWT", json.RawMessage(`{"a":1,"a":2}`))
		},
		"too much": func() (string, error) {
			return Sign(p256(), "ES256", "k", "JWT", map[string]string{"x": strings.Repeat("x", MaxToken)})
		},
	} {
		if token, err := sign(); err == nil {
			t.Errorf("%s: signed: %s", name, token)
		}
	}
}
