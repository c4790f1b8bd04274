package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

func testRoot(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "idp"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestInline(t *testing.T) {
	root := testRoot(t)
	block, _ := pem.Decode(root)
	sum := sha256.Sum256(block.Bytes)
	for _, spelling := range []string{"idp-ca.pem", "'idp-ca.pem'", `"idp-ca.pem"`, "idp-ca.pem # ours", `"idp\x2dca.pem"   # ours`} {
		doc := edit(t, "    tokens: [access]\n", "    tokens: [access]\n    ca_file: "+spelling+"\n")
		out, files, err := Inline([]byte(doc), func(name string) ([]byte, error) {
			if name != "idp-ca.pem" {
				t.Errorf("read %q", name)
			}
			return append([]byte("a comment\n"), root...), nil
		})
		if err != nil || len(files) != 1 {
			t.Fatalf("%s: %v %v", spelling, files, err)
		}
		if want := (Inlined{Key: "issuers[0].ca_file", Path: "idp-ca.pem", SHA256: hex.EncodeToString(sum[:])}); files[0] != want {
			t.Errorf("%s: %+v", spelling, files[0])
		}
		p, faults := Parse(out, testEnv())
		if p == nil || p.Issuers[0].CAPEM != string(root) {
			t.Errorf("%s: %s", spelling, report(faults))
		}
		if strings.Contains(spelling, "#") != strings.Contains(string(out), "# ours") || strings.Count(string(out), "\n") != strings.Count(doc, "\n") {
			t.Errorf("%s: other text was lost:\n%s", spelling, out)
		}
	}
}

func TestInlineRefuses(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for name, content := range map[string][]byte{
		"a key":           secret,
		"a key as well":   append(testRoot(t), secret...),
		"no PEM":          []byte("hello"),
		"half":            testRoot(t)[:100],
		"half at the end": append(testRoot(t), testRoot(t)[:100]...),
		"no certificate":  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
	} {
		doc := edit(t, "    tokens: [access]\n", "    tokens: [access]\n    ca_file: a.pem\n")
		if _, _, err := Inline([]byte(doc), func(string) ([]byte, error) { return content, nil }); err == nil {
			t.Errorf("%s was inlined", name)
		} else if !strings.Contains(err.Error(), "line 10: issuers[0].ca_file") {
			t.Errorf("%s: %v", name, err)
		}
		quoted := strings.ReplaceAll(string(content), "\n", `\n`)
		if _, faults := Parse([]byte(strings.Replace(doc, "a.pem", `"`+quoted+`"`, 1)), testEnv()); len(faults) != 1 || faults[0].Path != "issuers[0].ca_file" {
			t.Errorf("%s in the document: %s", name, report(faults))
		} else if strings.Contains(faults[0].String(), strings.Split(string(secret), "\n")[1]) {
			t.Error("a fault shows a private key")
		}
	}
	gone := errors.New("no such file")
	for _, spelling := range []string{"a.pem", "|\n      a.pem", ">-\n      a.pem", "a\n      b.pem"} {
		doc := edit(t, "    tokens: [access]\n", "    tokens: [access]\n    ca_file: "+spelling+"\n")
		if _, _, err := Inline([]byte(doc), func(string) ([]byte, error) { return nil, gone }); err == nil || spelling == "a.pem" && !errors.Is(err, gone) {
			t.Errorf("%q: %v", spelling, err)
		}
	}
}

// All files that can't be used are told, with their places and what to do; the others stand in the document.
func TestInlineTellsAll(t *testing.T) {
	doc := `trust_domain: shop.internal
issuers:
  - {name: a, use: users, issuer: "https://a.example", ca_file: gone.pem, subject: prefix}
  - {name: b, use: users, issuer: "https://b.example", ca_file: root.pem, subject: prefix}
  - name: c
    use: workloads
    issuer: https://c.example
    jwks_file: |
      k.json
  - {name: d, use: workloads, issuer: "https://d.example", jwks_file: private.json}
services:
  - {name: s, client_keys: {jwks_file: none.json}}
`
	root, gone := testRoot(t), errors.New("no such file")
	out, files, err := Inline([]byte(doc), func(name string) ([]byte, error) {
		switch name {
		case "root.pem":
			return root, nil
		case "private.json":
			return []byte(keySet(`{"kty":"oct","kid":"s","k":"c2VjcmV0"}`)), nil
		}
		return nil, gone
	})
	var broken *FilesError
	if !errors.As(err, &broken) || !errors.Is(err, gone) || len(files) != 1 || files[0].Key != "issuers[1].ca_file" {
		t.Fatalf("%v %v", files, err)
	}
	want := []string{
		"3:65 issuers[0].ca_file no such file", "8:16 issuers[2].jwks_file the path must stand on one line",
		"10:71 issuers[3].jwks_file \"private.json\": `jwks_file` can't be taken", "12:40 services[0].client_keys.jwks_file no such file",
	}
	for i, f := range broken.Faults {
		if got := fmt.Sprintf("%d:%d %s %s", f.Line, f.Column, f.Path, f.Msg); i >= len(want) || !strings.HasPrefix(got, want[i]) || f.Hint == "" {
			t.Errorf("%s (%s)", got, f.Hint)
		}
	}
	if len(broken.Faults) != len(want) || strings.Contains(err.Error(), "c2VjcmV0") {
		t.Errorf("%v", err)
	}
	// Parse has a fault at each of these places, and at no other.
	_, faults := Parse(out, testEnv())
	for i, f := range faults {
		if i >= len(want) || f.Path != broken.Faults[i].Path || f.Line != broken.Faults[i].Line {
			t.Errorf("%s", f)
		}
	}
	if len(faults) != len(want) || strings.Count(string(out), "\n") != strings.Count(doc, "\n") {
		t.Errorf("%s", report(faults))
	}
}
