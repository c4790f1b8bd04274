package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"time"
)

func clientChecks() []Check {
	credential, certificate := []string{"grant", "credential"}, []string{"grant", "certificate"}
	client := code("invalid_client")
	basic := http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(nobody+":"+nobody))}}
	asNobody := func(p *probe, header http.Header) *reply {
		return p.send(message{as: "nobody", body: p.form().Encode(), header: header})
	}
	return []Check{
		{"client.none", "RFC 6749 3.2.1", Must, "a client with a credential gets no token without it", credential,
			func(p *probe) verdict { return asNobody(p, nil).shut(client...) }},
		{"client.none-status", "RFC 6749 5.2", Should, "invalid_client has the status 401", credential, func(p *probe) verdict {
			r := asNobody(p, nil)
			switch {
			case r.err != nil:
				return notApplicable("it is refused in the handshake")
			case r.status != http.StatusUnauthorized:
				return fail(r, "the status is %d", r.status)
			}
			return pass()
		}},
		{"client.basic", "RFC 6749 5.2", Must, "a wrong password in the Authorization header is invalid_client with 401", credential, func(p *probe) verdict {
			r := asNobody(p, basic)
			if v := r.shut(client...); v.outcome != Pass || r.err != nil {
				return v
			}
			if r.status != http.StatusUnauthorized {
				return fail(r, "the status is %d", r.status)
			}
			return pass()
		}},
		{"client.challenge", "RFC 6749 5.2", Must, "that 401 has a WWW-Authenticate of the scheme that was used", credential, func(p *probe) verdict {
			r := asNobody(p, basic)
			switch {
			case r.err != nil:
				return notApplicable("it is refused in the handshake")
			case !strings.HasPrefix(strings.ToLower(r.header.Get("WWW-Authenticate")), "basic"):
				return fail(r, "WWW-Authenticate is %q", r.header.Get("WWW-Authenticate"))
			}
			return pass()
		}},
		{"client.mismatch", "RFC 8705 2", Must, "another client's client_id beside the credential gets no token", credential,
			refuses(code("invalid_client", "invalid_request"), "client_id="+nobody)},
		{"client.two-basic", "RFC 6749 2.3", Must, "a second authentication, in the Authorization header, is refused", credential, func(p *probe) verdict {
			return p.send(message{body: p.prove(p.form()).Encode(), header: basic}).refused("invalid_request", "invalid_client")
		}},
		{"client.two-secret", "RFC 6749 2.3", Must, "a second authentication, by client_secret, is refused", credential,
			refuses(code("invalid_request", "invalid_client"), "client_secret="+nobody)},
		{"client.two-assertion", "RFC 6749 2.3", Must, "a second authentication, by an assertion that is none, is refused", certificate, func(p *probe) verdict {
			form := p.form("client_assertion=nothing", "client_assertion_type="+assertionType)
			return p.send(message{body: form.Encode()}).refused("invalid_request", "invalid_client")
		}},
		{"client.self-signed", "RFC 8705 2.1", Must, "a self-signed certificate with the client's names gets no token", certificate, func(p *probe) verdict {
			twin, err := twinOf(p.cfg.Certificate)
			if err != nil {
				return notApplicable("the client's certificate can't be imitated: %v", err)
			}
			p.clients["an impostor"] = newClient(p.cfg, twin)
			return p.send(message{as: "an impostor", body: p.form().Encode()}).shut(client...)
		}},
		{"client.header", "RFC 9440 4", Must, "a certificate in a header, from a client that has none, gets no token", certificate, func(p *probe) verdict {
			return asNobody(p, certificateHeaders(p.cfg.Certificate)).shut(client...)
		}},
		{"client.assertion-twice", "RFC 7523 3", Should, "a client assertion is taken once", []string{"grant", "assertion"}, func(p *probe) verdict {
			form := p.prove(p.form())
			if v := p.send(message{body: form.Encode()}).granted(); v.outcome != Pass {
				return v
			}
			return p.send(message{body: form.Encode()}).refused(client...)
		}},
		{"client.assertion-tampered", "RFC 7521 4.2", Must, "a client assertion with a wrong signature is invalid_client", []string{"grant", "assertion"},
			func(p *probe) verdict {
				form := p.prove(p.form())
				form.Set("client_assertion", tamperedSignature(form.Get("client_assertion")))
				return p.send(message{body: form.Encode()}).refused(client...)
			}},
	}
}

// twinOf makes a certificate with the same names and another key, signed by itself.
func twinOf(original *tls.Certificate) (*tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(original.Certificate[0])
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetInt64(time.Now().UnixNano()), RawSubject: leaf.RawSubject, URIs: leaf.URIs, DNSNames: leaf.DNSNames,
		IPAddresses: leaf.IPAddresses, EmailAddresses: leaf.EmailAddresses, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// certificateHeaders are the ways in which proxies tell of a client certificate: RFC 9440, Envoy, nginx, others.
func certificateHeaders(certificate *tls.Certificate) http.Header {
	der := certificate.Certificate[0]
	escaped := url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	headers := http.Header{
		"Client-Cert":             {":" + base64.StdEncoding.EncodeToString(der) + ":"},
		"X-Forwarded-Client-Cert": {`Cert="` + escaped + `"`},
		"Ssl-Client-Cert":         {escaped},
		"X-Ssl-Client-Cert":       {escaped},
		"X-Ssl-Client-Verify":     {"SUCCESS"},
	}
	if leaf, err := x509.ParseCertificate(der); err == nil && len(leaf.URIs) > 0 {
		headers.Set("X-Forwarded-Client-Cert", headers.Get("X-Forwarded-Client-Cert")+";URI="+leaf.URIs[0].String())
	}
	return headers
}
