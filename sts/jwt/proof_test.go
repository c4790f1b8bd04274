package jwt

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func proofHeader(more string) string {
	jwk := must(json.Marshal(jose.JSONWebKey{Key: p256().Public()}))
	return fmt.Sprintf(`{"typ":"dpop+jwt","alg":"ES256","jwk":%s%s}`, jwk, more)
}

// TestProofThumbprint holds the example of RFC 9449 6.1: the key of its section 4.1 has the jkt of its section 6.1.
func TestProofThumbprint(t *testing.T) {
	const example = `{"kty":"EC","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}`
	jwk := must(parseObject([]byte(example)))
	key, use, err := readKey(jwk)
	if err != nil || !use {
		t.Fatal(use, err)
	}
	if got := must(thumbprintOf(key.Key)); got != "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" {
		t.Error(got)
	}
}

// TestProofExample: the proof of RFC 9449 4.1 is read and its signature is good.
func TestProofExample(t *testing.T) {
	const example = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19." +
		"eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ." +
		"2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
	p, err := ParseProof(example, []string{"ES256"})
	if err != nil {
		t.Fatal(err)
	}
	if jti, _, _ := p.Claims.String("jti"); p.Thumbprint != "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" || jti != "-BwC3ESc6acc2lTc" {
		t.Errorf("%+v", p)
	}
}

func TestParseProof(t *testing.T) {
	for name, tt := range map[string]struct {
		proof string
		want  Reason
	}{
		"good":              {forge(proofHeader(``), `{}`), ""},
		"unknown parameter": {forge(proofHeader(`,"x":1`), `{}`), ""},
		"zip":               {forge(proofHeader(`,"zip":"DEF"`), `{}`), ReasonHeader},
		"b64":               {forge(proofHeader(`,"b64":true`), `{}`), ReasonHeader},
		"x5u":               {forge(proofHeader(`,"x5u":"https://e"`), `{}`), ReasonHeader},
		"payload no object": {forge(proofHeader(``), `[]`), ReasonJSON},
		"payload twice":     {forge(proofHeader(``), `{"a":1,"a":1}`), ReasonDuplicate},
		"header twice":      {forge(proofHeader(`,"alg":"ES256"`), `{}`), ReasonDuplicate},
		"other text":        {forgeWith(proofHeader(``), `{}`, func(in string) []byte { return es256(p256(), in+"x") }), ReasonSignature},
		"short signature":   {forgeWith(proofHeader(``), `{}`, func(in string) []byte { return es256(p256(), in)[:63] }), ReasonSignature},
		"zero signature":    {forgeWith(proofHeader(``), `{}`, func(string) []byte { return make([]byte, 64) }), ReasonSignature},
		"no signature":      {forgeWith(proofHeader(``), `{}`, func(string) []byte { return nil }), ReasonSignature},
		"trailing bits":     {trailingBits(forge(proofHeader(``), `{}`)), ReasonBase64},
		"a token":           {forge(header(``), goodPayload), ReasonHeader},
		"deep":              {forge(proofHeader(``), `{"a":`+nested(17)+`}`), ReasonDepth},
		"9 KiB":             {forge(proofHeader(``), `{"a":"`+strings.Repeat("x", 9<<10)+`"}`), ReasonSize},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseProof(tt.proof, []string{"ES256"})
			if tt.want != "" {
				wantReason(t, err, tt.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// FuzzProof: nothing is taken as a proof but what the key in it signed, and never as a token too.
func FuzzProof(f *testing.F) {
	for _, seed := range []string{
		forge(proofHeader(``), `{"jti":"a","htm":"GET","htu":"https://a/","iat":1}`), forge(header(``), goodPayload), "..", "e30.e30.e30",
		forge(proofHeader(`,"kid":"x"`), `{}`), trailingBits(forge(proofHeader(``), `{}`)),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseProof(s, Algorithms())
		if err != nil {
			return
		}
		if len(p.Thumbprint) != 43 || p.Alg == "" {
			t.Errorf("%+v", p)
		}
		if _, err := Parse(s); err == nil {
			t.Errorf("%q is a proof and a token", s)
		}
		if _, err := ParseProof(s, nil); err == nil {
			t.Error("an algorithm is taken that is not allowed")
		}
	})
}

// TestDocument: what is signed and no token may be longer, and is read as strictly.
func TestDocument(t *testing.T) {
	long := forge(header(``), payload(`,"x":"`+strings.Repeat("x", 500<<10)+`"`))
	wantReason(t, judge(long, issuerSet(t), "ES256"), ReasonSize)
	d, err := ParseDocument(long)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(issuerSet(t), []string{"ES256"}); err != nil {
		t.Error(err)
	}
	_, err = ParseDocument(strings.Repeat(".", 1<<20+1))
	wantReason(t, err, ReasonSize)
	_, err = ParseDocument(forge(header(`,"crit":[]`), goodPayload))
	wantReason(t, err, ReasonHeader)
}

// TestClaimReaders are those that tokens do not need.
func TestClaimReaders(t *testing.T) {
	c := must(parseObject([]byte(`{"n":9007199254740991,"m":9007199254740992,"f":1.0,"e":1e3,"neg":-1,"s":"1","t":true,"o":[{"a":1},{}],"x":[1],"y":[null]}`)))
	for name, want := range map[string]bool{"n": true, "m": false, "f": false, "e": false, "neg": false, "s": false, "t": false, "o": false} {
		if _, ok, err := c.Integer(name); !ok || (err == nil) != want {
			t.Error("integer", name, err)
		}
	}
	for name, want := range map[string]bool{"t": true, "n": false, "s": false} {
		if b, ok, err := c.Bool(name); !ok || (err == nil) != want || b != want {
			t.Error("bool", name, b, err)
		}
	}
	for name, want := range map[string]bool{"o": true, "x": false, "y": false, "n": false} {
		if list, ok, err := c.Objects(name); !ok || (err == nil) != want || want && len(list) != 2 {
			t.Error("objects", name, list, err)
		}
	}
	if _, ok, err := c.Integer("none"); ok || err != nil {
		t.Error(ok, err)
	}
}

// TestManyMembers: an object of thousands of members is read in linear time, and each is found.
func TestManyMembers(t *testing.T) {
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, `,"m%d":%d`, i, i)
	}
	c := must(parseObject([]byte("{" + b.String()[1:] + "}")))
	for i := range 5000 {
		if n, ok, err := c.Integer(fmt.Sprint("m", i)); !ok || err != nil || n != int64(i) {
			t.Fatal(i, n, ok, err)
		}
	}
	for _, twice := range []string{"m0", "m31", "m32", "m4999"} {
		_, err := parseObject([]byte("{" + b.String()[1:] + `,"` + twice + `":0}`))
		wantReason(t, err, ReasonDuplicate)
	}
}
