package ca

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

// profileCross is the role of a root's key in a certificate by an older root. It is made as [ProfileRoot] is.
const profileCross Profile = "cross"

// authorityRecord is a certificate of the authority itself in the table of authorities, under its serial. What it may be
// used for follows from its times and the clock, as with keys (adr/0002).
type authorityRecord struct {
	Role      Profile   `json:"role"` // root, intermediate or cross
	PEM       string    `json:"pem"`
	KeyID     string    `json:"key_id"`
	Made      time.Time `json:"made"`
	SignsFrom time.Time `json:"signs_from,omitzero"` // of intermediates; zero: since they were made
	Withdrawn time.Time `json:"withdrawn,omitzero"`  // of intermediates that were rolled back: they sign nothing since then
	Retired   time.Time `json:"retired,omitzero"`    // neither published nor part of a chain since then; its key is gone
	Own       bool      `json:"own,omitempty"`       // a root that was brought, or what was signed elsewhere
}

func authoritiesTable() storage.Table[authorityRecord] {
	return storage.Table[authorityRecord]{Name: "authorities"}
}

// issuer is a certificate of the authority itself with what is recorded of it.
type issuer struct {
	authorityRecord
	cert   *x509.Certificate
	serial string
	rev    storage.Rev
}

// sameIssuer tells whether two readings found one record unchanged.
func sameIssuer(x, y issuer) bool { return x.serial == y.serial && x.rev == y.rev }

// issuers are all that are recorded, oldest first. They are read only: who changes something makes new ones.
type issuers struct{ all []issuer }

// published are those of a role that are not retired.
func (s *issuers) published(role Profile) []issuer {
	var of []issuer
	for _, i := range s.all {
		if i.Role == role && i.Retired.IsZero() {
			of = append(of, i)
		}
	}
	return of
}

// signing is the intermediate that signs leaves at now: of those that may, the one that began last. It may have expired.
func (s *issuers) signing(now time.Time) (issuer, bool) {
	var found issuer
	for _, i := range s.published(ProfileIntermediate) {
		if !i.Withdrawn.IsZero() || now.Before(i.SignsFrom) {
			continue
		}
		if found.cert == nil || !i.SignsFrom.Before(found.SignsFrom) {
			found = i
		}
	}
	return found, found.cert != nil
}

// pending is the intermediate that is to take over later.
func (s *issuers) pending(now time.Time) (issuer, bool) {
	for _, i := range s.published(ProfileIntermediate) {
		if i.Withdrawn.IsZero() && now.Before(i.SignsFrom) {
			return i, true
		}
	}
	return issuer{}, false
}

// find is the one with the serial.
func (s *issuers) find(serial string) (issuer, bool) {
	for _, i := range s.all {
		if i.serial == serial {
			return i, true
		}
	}
	return issuer{}, false
}

// rootOf is the root whose key signed the certificate.
func (s *issuers) rootOf(cert *x509.Certificate) (issuer, bool) {
	for _, i := range s.all {
		if i.Role == ProfileRoot && bytes.Equal(i.cert.SubjectKeyId, cert.AuthorityKeyId) {
			return i, true
		}
	}
	return issuer{}, false
}

// chain is what comes after a leaf of i: i, and the root's key as older roots certified it, so that who trusts only those
// can verify the leaf too.
func (s *issuers) chain(i issuer) []*x509.Certificate {
	chain := []*x509.Certificate{i.cert}
	for _, cross := range s.published(profileCross) {
		if bytes.Equal(cross.cert.SubjectKeyId, i.cert.AuthorityKeyId) {
			chain = append(chain, cross.cert)
		}
	}
	return chain
}

func certificates(of []issuer) []*x509.Certificate {
	certs := make([]*x509.Certificate, 0, len(of))
	for _, i := range of {
		certs = append(certs, i.cert)
	}
	return certs
}

// loadIssuers reads the authority, which is whole: something signs.
func loadIssuers(ctx context.Context, cfg Config) (*issuers, error) {
	s, err := listIssuers(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if _, ok := s.signing(cfg.Now()); !ok || len(s.published(ProfileRoot)) == 0 {
		return nil, errors.New("the store holds no certificate authority: run `countersign init` first")
	}
	return s, nil
}

// listIssuers reads the table of authorities.
func listIssuers(ctx context.Context, cfg Config) (*issuers, error) {
	s := &issuers{}
	for entry, err := range authoritiesTable().All(ctx, cfg.Store, "") {
		if err != nil {
			return nil, fmt.Errorf("read the authorities: %w", err)
		}
		cert, err := parseCertificate(entry.Value.PEM)
		if err != nil {
			return nil, fmt.Errorf("read the authority %s: %w", entry.Key, err)
		}
		if !slices.Contains([]Profile{ProfileRoot, ProfileIntermediate, profileCross}, entry.Value.Role) {
			return nil, fmt.Errorf("the authority %s has the unknown role %q", entry.Key, entry.Value.Role)
		}
		if !entry.Value.Own && (len(cert.URIs) != 1 || cert.URIs[0].Host != cfg.TrustDomain) {
			return nil, fmt.Errorf("the store's certificate authority is not one of %s", cfg.TrustDomain)
		}
		s.all = append(s.all, issuer{authorityRecord: entry.Value, cert: cert, serial: entry.Key, rev: entry.Rev})
	}
	slices.SortStableFunc(s.all, func(a, b issuer) int {
		return cmp.Or(a.Made.Compare(b.Made), cmp.Compare(a.serial, b.serial))
	})
	return s, nil
}

// forInit is the configuration with which a store gets its authority; one that has one is refused.
func (c Config) forInit(ctx context.Context) (Config, error) {
	c, err := c.withDefaults()
	if err != nil {
		return c, err
	}
	page, err := c.Store.List(ctx, authoritiesTable().Name, storage.ListOptions{Limit: 1})
	if err != nil {
		return c, fmt.Errorf("read the authorities: %w", err)
	}
	if len(page.Items) > 0 {
		return c, errors.New("the store holds a certificate authority already; nothing was changed")
	}
	return c, nil
}

// Init makes the keys and certificates of root and intermediate. A store that has an authority is refused.
func Init(ctx context.Context, cfg Config, by countersign.Caller) error {
	cfg, err := cfg.forInit(ctx)
	if err != nil {
		return err
	}
	key := keyring.NewKey{Purpose: keyring.CA, Alg: "ES256", SignsFrom: cfg.Now()}
	rootKey := key
	rootKey.Root = true
	keys, err := cfg.Keys.Create(ctx, by, rootKey, key)
	if err != nil {
		return fmt.Errorf("make the authority's keys: %w", err)
	}
	if len(keys) != 2 {
		return fmt.Errorf("the keyring made %d keys and not 2", len(keys))
	}
	m := maker{cfg: cfg, by: by, how: howInit}
	root, err := m.make(ctx, ProfileRoot, keys[0], cfg.RootTTL, nil)
	if err != nil {
		return err
	}
	if _, err = m.make(ctx, ProfileIntermediate, keys[1], cfg.IntermediateTTL, &root); err != nil {
		return err
	}
	// Crash point: both certificates become real in one step. Before it there are keys that signed nothing of use.
	if _, err := cfg.Store.Apply(ctx, m.ops...); err != nil {
		return fmt.Errorf("record the authority: %w", err)
	}
	return cfg.Audit.AppendAll(ctx, m.events()...)
}

// maker makes certificates of the authority itself, each after a durable intent. They become real when its operations
// are applied; then its events are due.
type maker struct {
	cfg       Config
	by        countersign.Caller
	how       string
	signsFrom time.Time // of intermediates
	flights   *flights  // nil: nobody settles anything yet
	ops       []storage.Op
	made      []issuer
	begun     []string // the serials with an intent
}

// make makes one: of key, signed by the key of parent; nil: by itself.
func (m *maker) make(ctx context.Context, role Profile, key keyring.Key, ttl time.Duration, parent *issuer) (issuer, error) {
	signerID, public, parentCert := key.ID, key.Public, (*x509.Certificate)(nil)
	if parent != nil {
		signerID, public, parentCert = parent.KeyID, parent.cert.PublicKey, parent.cert
	}
	notBefore, notAfter, err := validity(m.cfg.Now(), ttl, parentCert)
	if err != nil {
		return issuer{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return issuer{}, err
	}
	profile := role
	if role == profileCross {
		profile = ProfileRoot
	}
	tbs, err := prepare(profile, Subject{
		TrustDomain: m.cfg.TrustDomain, Key: key.Public, Serial: serial,
		NotBefore: notBefore, NotAfter: notAfter, Issuer: parentCert, Permit: m.cfg.Permit,
	}, public)
	if err != nil {
		return issuer{}, fmt.Errorf("prepare the %s: %w", role, err)
	}
	signer, err := m.cfg.Keys.SignerByID(signerID)
	if err != nil {
		return issuer{}, err
	}
	if m.flights != nil {
		m.flights.begin(tbs.serial, countersign.ID{}, m.cfg.Audit.Head().Seq)
	}
	m.begun = append(m.begun, tbs.serial)
	if _, err := m.cfg.Audit.Append(ctx, authorityIntent(m.by, role, m.how, tbs, notAfter)); err != nil {
		return issuer{}, err
	}
	cert, err := sign(tbs, signer)
	if err != nil {
		return issuer{}, fmt.Errorf("make the %s: %w", role, err)
	}
	record := authorityRecord{Role: role, PEM: certPEM(cert), KeyID: key.ID, Made: m.cfg.Now().UTC()}
	if role == ProfileIntermediate {
		record.SignsFrom = m.signsFrom
	}
	op, err := authoritiesTable().Put(tbs.serial, record, time.Time{}, storage.Cond{Absent: true})
	if err != nil {
		return issuer{}, err
	}
	i := issuer{authorityRecord: record, cert: cert, serial: tbs.serial}
	m.ops, m.made = append(m.ops, op), append(m.made, i)
	return i, nil
}

// events tell of all that was made and is recorded.
func (m *maker) events() []audit.Event {
	events := make([]audit.Event, 0, len(m.made))
	for _, i := range m.made {
		events = append(events, issuedEvent(m.by, m.how, i))
	}
	return events
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
