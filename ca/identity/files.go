package identity

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/countersign/countersign"
)

const (
	publicMode  os.FileMode = 0o644 // below a directory of 0700; so that a group may be let in by the directory's mode alone
	privateMode os.FileMode = 0o600
)

// file is one file of a version.
type file struct {
	name string
	mode os.FileMode
	data []byte
}

// info is identity.json.
type info struct {
	ID          countersign.ID `json:"id"`
	Serial      string         `json:"serial"`
	NotBefore   time.Time      `json:"not_before"`
	NotAfter    time.Time      `json:"not_after"`
	Server      string         `json:"server,omitempty"`
	RenewAfter  time.Time      `json:"renew_after,omitzero"`
	RenewBefore time.Time      `json:"renew_before,omitzero"`
}

// render makes all files of a version; the bundle has passed [check]. Roots are sorted, so that the same roots give the
// same ca.crt.
func render(b Bundle, id countersign.ID) ([]file, error) {
	leaf := b.Chain[0]
	roots := sortRoots(b.Roots)

	key, err := x509.MarshalPKCS8PrivateKey(b.Key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	chainPEM := certsPEM(b.Chain)

	keyStore, trustStore, err := stores(b, roots)
	if err != nil {
		return nil, err
	}
	about, err := json.MarshalIndent(info{
		ID: id, Serial: serialText(leaf), NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(),
		Server: b.Server, RenewAfter: b.RenewAfter, RenewBefore: b.RenewBefore,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", InfoFile, err)
	}
	return []file{
		{CertFile, publicMode, chainPEM},
		{KeyFile, privateMode, keyPEM},
		{RootsFile, publicMode, certsPEM(roots)},
		{CombinedFile, privateMode, slices.Concat(keyPEM, chainPEM)},
		{KeyStoreFile, privateMode, keyStore},
		{TrustStoreFile, publicMode, trustStore},
		{InfoFile, publicMode, append(about, '\n')},
	}, nil
}

func sortRoots(roots []*x509.Certificate) []*x509.Certificate {
	sorted := slices.Clone(roots)
	slices.SortFunc(sorted, func(x, y *x509.Certificate) int { return cmp.Compare(alias(x), alias(y)) })
	return slices.CompactFunc(sorted, (*x509.Certificate).Equal)
}

// stores makes the PKCS#12 files in the one form that Java 17 loads whole (seen: an empty password or two roots under
// one alias load fewer entries than the file has, and no error; newer MACs do not load at all).
func stores(b Bundle, roots []*x509.Certificate) (keyStore, trustStore []byte, err error) {
	password := cmp.Or(b.Password, pkcs12.DefaultPassword)
	keyStore, err = pkcs12.Modern2023.Encode(b.Key, b.Chain[0], b.Chain[1:], password)
	if err != nil {
		return nil, nil, fmt.Errorf("encode %s: %w", KeyStoreFile, err)
	}
	entries := make([]pkcs12.TrustStoreEntry, 0, len(roots))
	for _, root := range roots {
		entries = append(entries, pkcs12.TrustStoreEntry{Cert: root, FriendlyName: alias(root)})
	}
	trustStore, err = pkcs12.Modern2023.EncodeTrustStoreEntries(entries, password)
	if err != nil {
		return nil, nil, fmt.Errorf("encode %s: %w", TrustStoreFile, err)
	}
	return keyStore, trustStore, nil
}

// alias names a root in the trust store by its fingerprint: two roots may have the same subject.
func alias(root *x509.Certificate) string {
	sum := sha256.Sum256(root.Raw)
	return "cs-" + hex.EncodeToString(sum[:8])
}

func certsPEM(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}
