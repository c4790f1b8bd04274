package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
)

// authorityClient fetches keys and revocations of the authority: of it alone, by its ID and the roots of the moment.
func (r *Relay) authorityClient() *http.Client {
	roots := func() (*x509.CertPool, error) {
		id, err := r.src.Identity()
		if id == nil { // an expired one still knows the roots
			return nil, err
		}
		return id.Pool(), nil
	}
	config := client.RootsTLS(roots, nil, func(state tls.ConnectionState) error {
		id, err := r.src.Identity()
		if id == nil {
			return err
		}
		authority, err := countersign.NewAuthorityID(id.ID.TrustDomain())
		if err != nil {
			return err
		}
		return client.VerifyAuthority(state, authority)
	})
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: true, MaxConnsPerHost: 2, IdleConnTimeout: 15 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}}
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(body); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New(path + " holds no certificate in PEM")
	}
	return certs, nil
}

// debugged is a logger whose lines are of the level debug: the access log has the reason of every refusal already.
func debugged(log *slog.Logger) *slog.Logger { return slog.New(quiet{log.Handler()}) }

type quiet struct{ slog.Handler }

// Enabled implements slog.Handler.
func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && q.Handler.Enabled(ctx, level) || q.Handler.Enabled(ctx, slog.LevelDebug)
}
