package main

import (
	"context"
	"crypto/x509"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/sts/jwt"
)

// joinAttested enrols with a token of the workload. Unlike a join string it names no daemon and no root.
func (a *app) joinAttested(ctx context.Context, file string, f identityFlags, r renewal) error {
	if a.server == "" || a.rootFile == "" || f.out == "" {
		return &failure{Exit: exitLocal, What: "which daemon, and where to?", Why: "a token of the workload names neither the daemon nor its root",
			Next: "countersign join --attest FILE --server https://HOST:PORT --root FILE --out DIR"}
	}
	if err := checkOut(f.out); err != nil {
		return err
	}
	token, err := a.readToken(file)
	if err != nil {
		return err
	}
	if _, err := jwt.Parse(token); err != nil {
		return &failure{Exit: exitLocal, What: "there is no token of a workload in " + file, Why: err.Error(), err: err,
			Next: "in Kubernetes: the file of a projected serviceAccountToken volume whose audience is the issuer identifier"}
	}
	certs, err := readCertificates(a.rootFile)
	if err != nil {
		return err
	}
	domain, why := trustDomainOf(certs)
	if why != "" {
		return &failure{Exit: exitLocal, What: a.rootFile + " is not the root of an authority", Why: why,
			Next: "ask its operator for the file that `countersign ca root` prints"}
	}
	roots := x509.NewCertPool()
	for _, cert := range certs {
		roots.AddCert(cert)
	}
	c, err := client.New(client.Config{URL: a.server, Roots: roots, TrustDomain: domain})
	if err != nil {
		return &failure{Exit: exitLocal, What: "the daemon's address can't be used", Why: err.Error(), err: err,
			Next: "--server https://HOST:PORT, the daemon's public address"}
	}
	defer c.Close()
	key, cert, err := a.certify(ctx, r.alg, func(csr []byte) (wire.Certificate, error) {
		return c.Attest(ctx, token, wire.CertificateRequest{CSR: string(csr), TTL: countersign.Duration(r.ttl)})
	})
	if err != nil {
		return err
	}
	if err := a.writeIdentity(f.out, key, cert, a.server, r.password); err != nil {
		return err
	}
	return a.showIdentity(f.out, cert)
}

// trustDomainOf is the one that all the certificates of an authority name (X509-SVID 3.2), or why there is none.
func trustDomainOf(certs []*x509.Certificate) (domain, why string) {
	for _, cert := range certs {
		if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || strings.Trim(cert.URIs[0].Path, "/") != "" {
			return "", "a certificate in it names no trust domain"
		}
		named := cert.URIs[0].Host
		if err := countersign.CheckTrustDomain(named); err != nil {
			return "", err.Error()
		}
		if domain != "" && named != domain {
			return "", "its certificates name more than one trust domain"
		}
		domain = named
	}
	return domain, ""
}
