package api

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// The headers by which a proxy that ends TLS connections hands on the client certificate: RFC 9440, and Envoy's. No other
// header is ever read for it.
const (
	headerCert  = "Client-Cert"
	headerChain = "Client-Cert-Chain"
	headerXFCC  = "X-Forwarded-Client-Cert"
)

const (
	maxForwarded     = 16 << 10 // bytes of one header
	maxForwardedCert = 8 << 10  // bytes of DER
	maxForwardedMore = 8        // certificates of a Client-Cert-Chain
)

// CertHeader says in which header a proxy forwards the client certificate. The zero value is none.
type CertHeader uint8

// The headers that a proxy may speak.
const (
	ClientCert CertHeader = iota + 1 // Client-Cert, with or without Client-Cert-Chain (RFC 9440)
	XFCC                             // Envoy's x-forwarded-client-cert
)

// other is the header that a proxy of h does not speak.
func (h CertHeader) other() CertHeader {
	if h == XFCC {
		return ClientCert
	}
	return XFCC
}

// forwards tells whether a request has a header of one kind, whatever is in it.
func forwards(h http.Header, kind CertHeader) bool {
	if kind == XFCC {
		return len(h[headerXFCC]) > 0
	}
	return len(h[headerCert])+len(h[headerChain]) > 0
}

// forwardedCertificate reads the one client certificate that the headers of one kind hand on; nil: they name none. It proves
// nothing: who sent the headers, and whether this is a certificate of a client, is not judged here. Each header at most once.
// A hash, a subject or a URI alone is no certificate.
func forwardedCertificate(h http.Header, kind CertHeader) (*x509.Certificate, error) {
	read, name := clientCertDER, headerCert
	if kind == XFCC {
		read, name = xfccDER, headerXFCC
	}
	if len(h[name]) > 1 {
		return nil, errors.New(name + " stands more than once")
	}
	der, err := read(h)
	if der == nil || err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("what was forwarded is no certificate")
	}
	return cert, nil
}

func clientCertDER(h http.Header) (der []byte, err error) {
	if len(h[headerCert]) == 1 {
		if der, err = byteSequence(h.Get(headerCert)); err != nil {
			return nil, errors.New(headerCert + ": " + err.Error())
		}
	}
	if len(h[headerChain]) > 0 {
		if der == nil { // RFC 9440 2.3
			return nil, errors.New(headerChain + " stands without " + headerCert)
		}
		if err := checkForwardedChain(h[headerChain]); err != nil {
			return nil, errors.New(headerChain + ": " + err.Error())
		}
	}
	return der, nil
}

func xfccDER(h http.Header) ([]byte, error) {
	if len(h[headerXFCC]) == 0 {
		return nil, nil
	}
	der, err := xfccCertificate(h.Get(headerXFCC))
	if err != nil {
		return nil, errors.New(headerXFCC + ": " + err.Error())
	}
	return der, nil
}

// byteSequence reads an RFC 8941 3.3.5 item without parameters, in its one spelling.
func byteSequence(s string) ([]byte, error) {
	s = strings.Trim(s, " ")
	inner, ok := strings.CutPrefix(s, ":")
	inner, closed := strings.CutSuffix(inner, ":")
	if len(s) > maxForwarded || !ok || !closed || inner == "" {
		return nil, errors.New("not one byte sequence between colons")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(inner)
	if err != nil || base64.StdEncoding.EncodeToString(der) != inner {
		return nil, errors.New("not canonical base64")
	}
	if len(der) > maxForwardedCert {
		return nil, errors.New("the certificate is too large")
	}
	return der, nil
}

// checkForwardedChain judges the form only: our own issuers are known, and what a proxy says about them has no weight.
func checkForwardedChain(lines []string) error {
	all := strings.Split(strings.Join(lines, ","), ",")
	if len(all) > maxForwardedMore {
		return errors.New("too many certificates")
	}
	for _, one := range all {
		if _, err := byteSequence(one); err != nil {
			return err
		}
	}
	return nil
}

// xfccCertificate reads the Cert of an x-forwarded-client-cert of exactly one element. More elements are more proxies, of
// which only the last one proved itself; it must be configured to replace the header and not to add to it.
func xfccCertificate(s string) ([]byte, error) {
	if len(s) > maxForwarded {
		return nil, errors.New("too long")
	}
	pairs, err := xfccPairs(s)
	if err != nil {
		return nil, err
	}
	text, ok := pairs["cert"]
	if !ok {
		return nil, errors.New("there is no Cert: a hash or a name proves nothing")
	}
	plain, err := url.PathUnescape(text)
	if err != nil {
		return nil, errors.New("the Cert is not URL-encoded")
	}
	block, rest := pem.Decode([]byte(plain))
	if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 ||
		!strings.HasPrefix(strings.TrimSpace(plain), "-----BEGIN CERTIFICATE-----") {
		return nil, errors.New("the Cert is not one certificate in PEM")
	}
	if len(block.Bytes) > maxForwardedCert {
		return nil, errors.New("the certificate is too large")
	}
	if hash, ok := pairs["hash"]; ok {
		sum := sha256.Sum256(block.Bytes)
		if !strings.EqualFold(hash, hex.EncodeToString(sum[:])) {
			return nil, errors.New("the Hash is not the one of the Cert")
		}
	}
	return block.Bytes, nil
}

// xfccPairs reads one element: key=value pairs between semicolons, values quoted where they hold a separator. Keys are in
// lower case; none stands twice but those of names, of which a certificate may have several and which have no weight here.
func xfccPairs(s string) (map[string]string, error) {
	pairs := map[string]string{}
	for s = strings.Trim(s, " "); ; {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errors.New("not key=value pairs between semicolons")
		}
		value, rest, err := xfccValue(rest)
		if err != nil {
			return nil, err
		}
		key = strings.ToLower(key)
		switch _, twice := pairs[key]; {
		case key == "" || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
			return nil, errors.New("a key has other characters than letters and digits")
		case twice && key != "by" && key != "uri" && key != "dns":
			return nil, errors.New("a key stands twice")
		}
		pairs[key] = value
		if rest == "" {
			return pairs, nil
		}
		if rest[0] == ',' {
			return nil, errors.New("it has more than one element")
		}
		s = rest[1:]
	}
}

// xfccValue cuts a value off; rest is empty or begins with its separator.
func xfccValue(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, `;,`)
		if end < 0 {
			end = len(s)
		}
		if strings.ContainsAny(s[:end], `"=\`) {
			return "", "", errors.New("a value that needs quotes has none")
		}
		return s[:end], s[end:], nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			rest := s[i+1:]
			if rest != "" && rest[0] != ';' && rest[0] != ',' {
				return "", "", errors.New("something follows a quoted value")
			}
			return b.String(), rest, nil
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", errors.New("a quoted value does not end")
}
