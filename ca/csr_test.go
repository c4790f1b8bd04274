package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/countersign/countersign"
)

func ordersNames() names {
	return names{id: service("orders").ID, dns: []string{"orders.shop.internal", "o.shop.internal"}}
}

func extension(t *testing.T, id asn1.ObjectIdentifier, v any) []pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return []pkix.Extension{{Id: id, Value: der}}
}

func TestBadCSR(t *testing.T) {
	h := newHouse(t, nil)
	key := newKey(t, "")
	good := request(t, key)
	ask := func(r x509.CertificateRequest) []byte { return asking(t, key, &r) }
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	var many []string
	for i := range 2000 {
		many = append(many, fmt.Sprintf("n%d.example", i))
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherName := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{0x2a, 0x03}} // registeredID
	for _, tt := range []struct {
		name string
		body []byte
		code countersign.Code
	}{
		{"empty", nil, countersign.CodeCSR},
		{"no PEM", []byte("hello"), countersign.CodeCSR},
		{"a key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), countersign.CodeCSR},
		{"no DER", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")}), countersign.CodeCSR},
		{"two", slices.Concat(good, good), countersign.CodeCSR},
		{"text before", slices.Concat([]byte("hello\n"), good), countersign.CodeCSR},
		{"trailing text", slices.Concat(good, []byte("hello")), countersign.CodeCSR},
		{"too large", bytes.Repeat([]byte("A"), maxCSR+1), countersign.CodeTooLarge},
		{"bad signature", tampered(t, good), countersign.CodeCSRSignature},
		{"P-224", request(t, p224), countersign.CodeCSRKey},
		{"P-521", request(t, p521), countersign.CodeCSRKey},
		{"RSA-1024 would not be made by Go: RSA-2049", rsaRequest(t, 2049), countersign.CodeCSRKey},
		{"DNS name of another", ask(x509.CertificateRequest{DNSNames: []string{"orders.shop.internal", "gateway.shop.internal"}}), countersign.CodeCSR},
		{"wildcard", ask(x509.CertificateRequest{DNSNames: []string{"*.shop.internal"}}), countersign.CodeCSR},
		{"IP address", ask(x509.CertificateRequest{IPAddresses: []net.IP{{127, 0, 0, 1}}}), countersign.CodeCSR},
		{"ID of another", ask(x509.CertificateRequest{URIs: uri("spiffe://shop.internal/gateway")}), countersign.CodeCSR},
		{"e-mail", ask(x509.CertificateRequest{EmailAddresses: []string{"a@b"}}), countersign.CodeCSR},
		{"other kind of name", ask(x509.CertificateRequest{ExtraExtensions: extension(t, oidSubjectAltName, []asn1.RawValue{otherName})}), countersign.CodeCSR},
		{"common name", ask(x509.CertificateRequest{Subject: pkix.Name{CommonName: "gateway"}}), countersign.CodeCSR},
		{"CA", ask(x509.CertificateRequest{ExtraExtensions: extension(t, oidBasicConstraints, struct{ CA bool }{true})}), countersign.CodeCSR},
		{"constraints that are none", ask(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Value: []byte{1}}}}), countersign.CodeCSR},
		{"2,000 names", ask(x509.CertificateRequest{DNSNames: many}), countersign.CodeCSR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: tt.body})
			wantCode(t, err, tt.code)
		})
	}
	if page, _, err := h.Certificates(t.Context(), Query{}); err != nil || len(page) != 0 || len(h.events(eventIntent)) != 2 {
		t.Errorf("bad requests left %d certificates and %d intents (%v)", len(page), len(h.events(eventIntent)), err)
	}
	for name, body := range map[string][]byte{
		"keytool's label":     bytes.ReplaceAll(good, []byte("CERTIFICATE REQUEST"), []byte("NEW CERTIFICATE REQUEST")),
		"its own names":       ask(x509.CertificateRequest{DNSNames: []string{"orders.shop.internal"}, URIs: uri("spiffe://shop.internal/orders")}),
		"its own common name": ask(x509.CertificateRequest{Subject: pkix.Name{CommonName: "orders", Organization: []string{"Shop"}}}),
	} {
		if _, err := h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: body}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func tampered(t *testing.T, csr []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(csr)
	block.Bytes[len(block.Bytes)-1] ^= 1
	return pem.EncodeToMemory(block)
}

func rsaRequest(t *testing.T, bits int) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return request(t, key)
}

// What a request holds is counted before crypto/x509 makes objects of it, wherever it stands.
func TestElements(t *testing.T) {
	key := newKey(t, "")
	left := func(r x509.CertificateRequest) int {
		block, _ := pem.Decode(asking(t, key, &r))
		return elements(block.Bytes, maxElements+1)
	}
	names := make([]string, maxNames)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.%s", i, strings.Repeat("a.", 50))
	}
	if got := left(x509.CertificateRequest{DNSNames: names}); got < maxElements/2 {
		t.Errorf("as many names as are read leave room for %d elements", got)
	}
	many := slices.Repeat([]string{"a"}, maxElements)
	hidden := extension(t, asn1.ObjectIdentifier{2, 5, 29, 14}, asn1.RawValue{Tag: asn1.TagOctetString, Bytes: []byte{4, 0x82, 0xff, 0xff}})
	hidden[0].Value = hidden[0].Value[2:] // an octet string that says to be longer than what is around it
	deep := []byte{}
	for range maxElements {
		deep, _ = asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: deep})
	}
	for name, r := range map[string]x509.CertificateRequest{
		"names":              {DNSNames: many},
		"names behind a lie": {DNSNames: many, ExtraExtensions: hidden},
		"parts of a subject": {Subject: pkix.Name{OrganizationalUnit: many}},
		"depth":              {ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: deep}}},
	} {
		if got := left(r); got != 0 {
			t.Errorf("%d %s leave room for %d elements", maxElements, name, got)
		}
		if _, err := decodeCSR(asking(t, key, &r)); countersign.AsError(err).Code != countersign.CodeCSR {
			t.Errorf("%d %s: %v", maxElements, name, err)
		}
	}
}

func TestWeakRSA(t *testing.T) {
	prime := func(bits int) *big.Int {
		p, err := rand.Prime(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := prime(1024)
	next := new(big.Int).Add(p, big.NewInt(2))
	for !next.ProbablyPrime(20) {
		next.Add(next, big.NewInt(2))
	}
	// A number of the Infineon library's form: k*M + 65537^a mod M, with M a product of small primes.
	m := big.NewInt(1)
	for _, q := range smallPrimes()[:126] {
		m.Mul(m, big.NewInt(q))
	}
	infineon := func(a int64) *big.Int {
		start := new(big.Int).Exp(big.NewInt(65537), big.NewInt(a), m)
		for {
			n := new(big.Int).Mul(m, prime(54))
			if n.Add(n, start).ProbablyPrime(10) { // else it may have a small factor, which is found first
				return n
			}
		}
	}
	product := func(a, b *big.Int) *big.Int { return new(big.Int).Mul(a, b) }
	good := product(prime(1024), prime(1024))
	for _, tt := range []struct {
		name string
		key  rsa.PublicKey
		weak string
	}{
		{"good", rsa.PublicKey{N: good, E: 65537}, ""},
		{"exponent 3", rsa.PublicKey{N: good, E: 3}, "exponent"},
		{"even exponent", rsa.PublicKey{N: good, E: 65538}, "exponent"},
		{"small factor", rsa.PublicKey{N: product(good, big.NewInt(751)), E: 65537}, "small factor"},
		{"even modulus", rsa.PublicKey{N: product(good, big.NewInt(2)), E: 65537}, "small factor"},
		{"close factors", rsa.PublicKey{N: product(p, next), E: 65537}, "close"},
		{"square", rsa.PublicKey{N: product(p, p), E: 65537}, "close"},
		{"ROCA", rsa.PublicKey{N: product(infineon(1234567), infineon(7654321)), E: 65537}, "ROCA"},
	} {
		if got := weakRSA(&tt.key); (got == "") != (tt.weak == "") || !strings.Contains(got, tt.weak) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.weak)
		}
	}
}

// TestOnlyPolicyNames draws requests: whatever they ask for, what is issued has the names and extensions of policy.
func TestOnlyPolicyNames(t *testing.T) {
	h := newHouse(t, nil)
	key, policyDNS := newKey(t, ""), []string{"orders.shop.internal"}
	by := h.peer(h.join("orders", key))
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.SampledFrom([]string{"orders.shop.internal", "ORDERS.shop.internal", "gateway.shop.internal", "*.internal", "orders.shop.internal.", "xn--a"})
		template := &x509.CertificateRequest{
			Subject: pkix.Name{
				CommonName:   rapid.SampledFrom([]string{"", "orders", "gateway", "orders.shop.internal"}).Draw(rt, "cn"),
				Organization: rapid.SliceOfN(rapid.StringN(1, 8, 20), 0, 2).Draw(rt, "o"),
			},
			DNSNames: rapid.SliceOfN(name, 0, 3).Draw(rt, "dns"),
		}
		if rapid.Bool().Draw(rt, "ip") {
			template.IPAddresses = []net.IP{{10, 0, 0, 1}}
		}
		for range rapid.IntRange(0, 2).Draw(rt, "extensions") {
			oid := rapid.SampledFrom([]asn1.ObjectIdentifier{oidKeyUsage, oidExtKeyUsage, oidBasicConstraints, {2, 5, 29, 30}, {1, 2, 3}}).Draw(rt, "oid")
			if slices.ContainsFunc(template.ExtraExtensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) }) {
				continue
			}
			template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{
				Id: oid, Critical: rapid.Bool().Draw(rt, "critical"), Value: rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(rt, "value"),
			})
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			return
		}
		cert, err := h.Issue(t.Context(), by, IssueRequest{CSR: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})})
		if err != nil {
			if got := countersign.AsError(err).Code; got != countersign.CodeCSR {
				rt.Fatalf("refused with %s: %v", got, err)
			}
			return
		}
		leaf := cert.Chain[0]
		var ids []string
		for _, e := range leaf.Extensions {
			ids = append(ids, e.Id.String())
		}
		slices.Sort(ids)
		if !slices.Equal(leaf.DNSNames, policyDNS) || len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || len(leaf.URIs) != 1 ||
			leaf.Subject.String() != "CN=orders" || leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature ||
			!slices.Equal(ids, []string{"2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"}) {
			rt.Fatalf("issued %s, %v, %v", leaf.Subject, leaf.DNSNames, ids)
		}
	})
}

func FuzzCSR(f *testing.F) {
	seed := func(key crypto.Signer, r *x509.CertificateRequest) {
		der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	seed(key, &x509.CertificateRequest{})
	seed(key, &x509.CertificateRequest{DNSNames: []string{"orders.shop.internal", "a.b"}, Subject: pkix.Name{CommonName: "orders"}})
	seed(key, &x509.CertificateRequest{IPAddresses: []net.IP{{1, 2, 3, 4}}, ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Value: []byte{0x30, 3, 1, 1, 0xff}}}})
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseCSR(body, allKeyTypes(), ordersNames())
		if err != nil {
			if code := countersign.AsError(err).Code; code == countersign.CodeInternal {
				t.Errorf("an error without a code: %v", err)
			}
			return
		}
		if got.key == nil || len(got.spki) != 64 || !slices.Contains(allKeyTypes(), got.alg) {
			t.Errorf("accepted %+v", got)
		}
	})
}
