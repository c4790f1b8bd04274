package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/keyring"
)

// authorityRecord is a root or intermediate in the table of authorities, under its serial.
type authorityRecord struct {
	Role  Profile `json:"role"`
	PEM   string  `json:"pem"`
	KeyID string  `json:"key_id"`
}

func authoritiesTable() storage.Table[authorityRecord] {
	return storage.Table[authorityRecord]{Name: "authorities"}
}

// issuer is a signing certificate and the id of its key.
type issuer struct {
	role  Profile
	cert  *x509.Certificate
	keyID string
}

func (i issuer) describe() Issuer {
	return Issuer{
		Subject: i.cert.Subject.String(), Fingerprint: fingerprint(i.cert),
		NotBefore: i.cert.NotBefore, NotAfter: i.cert.NotAfter, KeyID: i.keyID,
	}
}

// issuers are all signing certificates, and the one that signs leaves now.
type issuers struct {
	roots, intermediates []issuer
	signing              issuer
}

func certificates(of []issuer) []*x509.Certificate {
	certs := make([]*x509.Certificate, 0, len(of))
	for _, i := range of {
		certs = append(certs, i.cert)
	}
	return certs
}

// loadIssuers reads the table of authorities. The intermediate that ends last signs.
func loadIssuers(ctx context.Context, cfg Config) (issuers, error) {
	var all issuers
	for entry, err := range authoritiesTable().All(ctx, cfg.Store, "") {
		if err != nil {
			return issuers{}, fmt.Errorf("read the authorities: %w", err)
		}
		cert, err := parseCertificate(entry.Value.PEM)
		if err != nil {
			return issuers{}, fmt.Errorf("read the authority %s: %w", entry.Key, err)
		}
		i := issuer{role: entry.Value.Role, cert: cert, keyID: entry.Value.KeyID}
		switch i.role {
		case ProfileRoot:
			all.roots = append(all.roots, i)
		case ProfileIntermediate:
			all.intermediates = append(all.intermediates, i)
			if all.signing.cert == nil || cert.NotAfter.After(all.signing.cert.NotAfter) {
				all.signing = i
			}
		default:
			return issuers{}, fmt.Errorf("the authority %s has the unknown role %q", entry.Key, i.role)
		}
	}
	if len(all.roots) == 0 || all.signing.cert == nil {
		return issuers{}, errors.New("the store holds no certificate authority: run `countersign init` first")
	}
	if got := all.signing.cert.URIs; len(got) != 1 || got[0].Host != cfg.TrustDomain {
		return issuers{}, fmt.Errorf("the store's certificate authority is not one of %s", cfg.TrustDomain)
	}
	return all, nil
}

// Init makes the keys and certificates of root and intermediate. A store that has an authority is refused.
func Init(ctx context.Context, cfg Config, by countersign.Caller) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	page, err := cfg.Store.List(ctx, authoritiesTable().Name, storage.ListOptions{Limit: 1})
	if err != nil {
		return fmt.Errorf("read the authorities: %w", err)
	}
	if len(page.Items) > 0 {
		return errors.New("the store holds a certificate authority already; nothing was changed")
	}
	key := keyring.NewKey{Purpose: keyring.CA, Alg: "ES256", SignsFrom: cfg.Now()}
	keys, err := cfg.Keys.Create(ctx, by, key, key)
	if err != nil {
		return fmt.Errorf("make the authority's keys: %w", err)
	}
	if len(keys) != 2 {
		return fmt.Errorf("the keyring made %d keys and not 2", len(keys))
	}
	root, rootOps, err := initAuthority(ctx, cfg, by, ProfileRoot, keys[0], cfg.RootTTL, issuer{keyID: keys[0].ID})
	if err != nil {
		return err
	}
	inter, interOps, err := initAuthority(ctx, cfg, by, ProfileIntermediate, keys[1], cfg.IntermediateTTL, root)
	if err != nil {
		return err
	}
	// Crash point: both certificates become real in one step. Before it there are keys that signed nothing of use.
	if _, err := cfg.Store.Apply(ctx, append(rootOps, interOps...)...); err != nil {
		return fmt.Errorf("record the authority: %w", err)
	}
	return cfg.Audit.AppendAll(ctx, issuedEvent(by, root), issuedEvent(by, inter))
}

// initAuthority makes one signing certificate, after a durable intent, and the operation that records it.
func initAuthority(ctx context.Context, cfg Config, by countersign.Caller, p Profile, key keyring.Key, ttl time.Duration, parent issuer) (issuer, []storage.Op, error) {
	public := key.Public
	if parent.cert != nil {
		public = parent.cert.PublicKey
	}
	notBefore, notAfter, err := validity(cfg.Now(), ttl, parent.cert)
	if err != nil {
		return issuer{}, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return issuer{}, nil, err
	}
	tbs, err := prepare(p, Subject{
		TrustDomain: cfg.TrustDomain, Key: key.Public, Serial: serial,
		NotBefore: notBefore, NotAfter: notAfter, Issuer: parent.cert,
	}, public)
	if err != nil {
		return issuer{}, nil, fmt.Errorf("prepare the %s: %w", p, err)
	}
	signer, err := cfg.Keys.SignerByID(parent.keyID)
	if err != nil {
		return issuer{}, nil, err
	}
	if _, err := cfg.Audit.Append(ctx, authorityIntent(by, p, tbs, notAfter)); err != nil {
		return issuer{}, nil, err
	}
	cert, err := sign(tbs, signer)
	if err != nil {
		return issuer{}, nil, fmt.Errorf("make the %s: %w", p, err)
	}
	op, err := authoritiesTable().Put(tbs.serial, authorityRecord{Role: p, PEM: certPEM(cert), KeyID: key.ID},
		time.Time{}, storage.Cond{Absent: true})
	return issuer{role: p, cert: cert, keyID: key.ID}, []storage.Op{op}, err
}

// fingerprint is the lower-case hex SHA-256 of the certificate.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

func certPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func parseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("it is no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}
