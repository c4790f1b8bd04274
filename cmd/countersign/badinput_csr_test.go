package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

func (d *door) key(curve elliptic.Curve) *ecdsa.PrivateKey {
	d.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	d.must(err)
	return key
}

func (d *door) csr(key crypto.Signer, template *x509.CertificateRequest) string {
	d.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	d.must(err)
	return csrPEM(der)
}

func csrPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// rawCSR is a request that crypto/x509 would not make, because its signature does not fit.
func (d *door) rawCSR(public crypto.PublicKey, algorithm asn1.ObjectIdentifier, signature []byte) string {
	d.Helper()
	spki, err := x509.MarshalPKIXPublicKey(public)
	d.must(err)
	subject, err := asn1.Marshal(pkix.RDNSequence{})
	d.must(err)
	type info struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	der, err := asn1.Marshal(struct {
		Info      info
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		info{0, asn1.RawValue{FullBytes: subject}, asn1.RawValue{FullBytes: spki}, []asn1.RawValue{}},
		pkix.AlgorithmIdentifier{Algorithm: algorithm}, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
	d.must(err)
	return csrPEM(der)
}

// modulus is a number of so many bits with the top and bottom one set: what a public key looks like to who can't factor.
func (d *door) modulus(bits int) *big.Int {
	d.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
	d.must(err)
	return n.SetBit(n.SetBit(n, bits-1, 1), 0, 1)
}

type badCSR struct {
	name, csr string
	code      countersign.Code
}

func (d *door) badCSRs() []badCSR {
	key := d.key(elliptic.P256())
	good := d.csr(key, &x509.CertificateRequest{})
	block, _ := pem.Decode([]byte(good))
	turned := bytes.Clone(block.Bytes)
	turned[len(turned)-1] ^= 1
	names := make([]string, 10_000)
	for n := range names {
		names[n] = fmt.Sprintf("%03s.b", strconv.FormatInt(int64(n), 36)) // short ones: all of them fit into 128 KiB
	}
	id, err := url.Parse("spiffe://shop.internal/orders")
	d.must(err)
	yes, err := asn1.Marshal(struct{ CA bool }{true})
	d.must(err)
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0}}})
	d.must(err)
	extension := func(value []byte, id ...int) *x509.CertificateRequest {
		return &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: id, Value: value}}}
	}
	sha256RSA, sha1ECDSA := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
	sum := sha256.Sum256(nil)
	const csr, weak, signature = countersign.CodeCSR, countersign.CodeCSRKey, countersign.CodeCSRSignature
	small := &rsa.PublicKey{N: new(big.Int).Mul(big.NewInt(3), d.modulus(2047)), E: 65537}
	return []badCSR{
		{"none", "", csr},
		{"not one", "hello", csr},
		{"a certificate", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})), csr},
		{"no DER", csrPEM([]byte("x")), csr},
		{"DER with something behind", csrPEM(append(bytes.Clone(block.Bytes), 0)), csr},
		{"two in one body", good + good, csr},
		{"text before", "x\n" + good, csr},
		{"bad signature", csrPEM(turned), signature},
		{"signed with another key", d.swapKey(good, d.key(elliptic.P256())), signature},
		{"signed with SHA-1", d.rawCSR(&key.PublicKey, sha1ECDSA, sum[:]), signature},
		{"P-521", d.csr(d.key(elliptic.P521()), &x509.CertificateRequest{}), weak},
		{"P-224", d.csr(d.key(elliptic.P224()), &x509.CertificateRequest{}), weak},
		{"RSA-1024", d.rawCSR(&rsa.PublicKey{N: d.modulus(1024), E: 65537}, sha256RSA, make([]byte, 128)), weak},
		{"RSA-16384", d.rawCSR(&rsa.PublicKey{N: d.modulus(16384), E: 65537}, sha256RSA, make([]byte, 2048)), weak},
		{"RSA with the exponent 3", d.rawCSR(&rsa.PublicKey{N: d.modulus(2048), E: 3}, sha256RSA, make([]byte, 256)), weak},
		{"RSA with a small factor", d.rawCSR(small, sha256RSA, make([]byte, 256)), weak},
		{"CA:true", d.csr(key, extension(yes, 2, 5, 29, 19)), csr},
		{"10,000 names", d.csr(key, &x509.CertificateRequest{DNSNames: names}), csr},
		{"another service's ID", d.csr(key, &x509.CertificateRequest{URIs: []*url.URL{id}}), csr},
		{"another service's DNS name", d.csr(key, &x509.CertificateRequest{DNSNames: []string{"orders.shop.internal"}}), csr},
		{"localhost", d.csr(key, &x509.CertificateRequest{DNSNames: []string{"localhost"}}), csr},
		{"a wildcard", d.csr(key, &x509.CertificateRequest{DNSNames: []string{"*.shop.internal"}}), csr},
		{"an IP address", d.csr(key, &x509.CertificateRequest{IPAddresses: []net.IP{{127, 0, 0, 1}}}), csr},
		{"an e-mail address", d.csr(key, &x509.CertificateRequest{EmailAddresses: []string{"ana@shop.example"}}), csr},
		{"another common name", d.csr(key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "orders"}}), csr},
		{"a directory name", d.csr(key, extension(san, 2, 5, 29, 17)), csr},
	}
}

// badBodies hold a good request (which is given as JSON), but not as the endpoint takes it.
func badBodies(good string) []badCSR {
	return []badCSR{
		{"no JSON", "csr=" + good, countersign.CodeBody},
		{"a list", "[" + good + "]", countersign.CodeBody},
		{"csr twice", `{"csr":` + good + `,"csr":` + good + `}`, countersign.CodeBody},
		{"CSR", `{"CSR":` + good + `}`, countersign.CodeBody},
		{"an unknown member", `{"csr":` + good + `,"id":"spiffe://shop.internal/orders"}`, countersign.CodeBody},
		{"csr is a number", `{"csr":1}`, countersign.CodeBody},
		{"something behind", `{"csr":` + good + `}{}`, countersign.CodeBody},
		{"10,000 deep", `{"csr":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`, countersign.CodeBody},
		{"a lifetime without unit", `{"csr":` + good + `,"ttl":"5"}`, countersign.CodeBody},
		{"a lifetime too long", `{"csr":` + good + `,"ttl":"10000h"}`, countersign.CodeTTL},
		{"a lifetime that is minus", `{"csr":` + good + `,"ttl":"-1h"}`, countersign.CodeTTL},
	}
}

// swapKey puts another public key of the same size into a request.
func (d *door) swapKey(request string, other *ecdsa.PrivateKey) string {
	d.Helper()
	block, _ := pem.Decode([]byte(request))
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	d.must(err)
	spki, err := x509.MarshalPKIXPublicKey(other.Public())
	d.must(err)
	return csrPEM(bytes.Replace(block.Bytes, parsed.RawSubjectPublicKeyInfo, spki, 1))
}

// TestBadCSRs sends each to the certificate endpoint, with a join token, which they must not use up, and by a certificate.
func TestBadCSRs(t *testing.T) {
	d := openDoor(t, nil, "gateway")
	made, err := d.admin.CreateJoinToken(t.Context(), wire.JoinTokenRequest{Service: "spare"})
	d.must(err)
	before := d.state()
	joiner, gateway := d.as(""), d.as("gateway")
	denied := 0
	for _, bad := range d.badCSRs() {
		body := `{"csr":` + d.idp.json(bad.csr) + `}`
		want := refusal{400, "", bad.code}
		if err := want.check(d.certificate(joiner, body, "Authorization", "Bearer "+made.Token)); err != nil {
			t.Errorf("%s with a join token: %v", bad.name, err)
		}
		if err := want.check(d.certificate(gateway, body)); err != nil {
			t.Errorf("%s by a certificate: %v", bad.name, err)
		}
		denied += 2
	}
	good := d.idp.json(d.csr(d.key(elliptic.P256()), &x509.CertificateRequest{}))
	for _, bad := range badBodies(good) {
		if err := (refusal{400, "", bad.code}).check(d.certificate(joiner, bad.csr, "Authorization", "Bearer "+made.Token)); err != nil {
			t.Errorf("%s: %v", bad.name, err)
		}
	}
	d.unchanged(before, map[string]int{"certificate.denied": -1})
	if n := d.state().events["certificate.denied"] - before.events["certificate.denied"]; n < denied {
		t.Errorf("%d denials were recorded of %d", n, denied)
	}
	// The same join token is good for the right request.
	if got := d.certificate(joiner, `{"csr":`+good+`}`, "Authorization", "Bearer "+made.Token); got.status != http.StatusCreated {
		t.Errorf("a good request afterwards: %d %s", got.status, got.body)
	}
	d.stillGood()
}

func (d *door) certificate(c *http.Client, body string, header ...string) reply {
	d.Helper()
	return d.send(c, http.MethodPost, "/v1/certificates", body, append(header, "Content-Type", wire.JSON)...)
}
