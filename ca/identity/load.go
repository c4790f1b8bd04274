package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	maxFile  = 1 << 20 // bytes; a chain of ours has under 4 KiB
	maxCerts = 64
)

// Load reads the identity in dir: all files of one version, also while another process renews it. Key and certificate
// must fit, the chain must lead to the roots, and identity.json must tell of this certificate. Whether the certificate
// is in time is the caller's to judge: an expired one still says who asks for the next.
func Load(dir string) (*Identity, error) {
	// A version is removed two renewals after it was current, so a reader as slow as that just looks again.
	for range 5 {
		i, err := load(dir)
		if err == nil {
			return i, nil
		}
		if !errors.Is(err, errGone) {
			return nil, fmt.Errorf("load the identity directory %s: %w", dir, err)
		}
	}
	return nil, fmt.Errorf("load the identity directory %s: it changes faster than it can be read", dir)
}

var errGone = errors.New("the version was removed")

func load(dir string) (*Identity, error) {
	version, err := current(dir)
	if err != nil {
		return nil, err
	}
	var s sources
	for _, f := range []struct {
		name string
		into *[]byte
	}{{CertFile, &s.cert}, {KeyFile, &s.key}, {RootsFile, &s.roots}, {InfoFile, &s.info}} {
		*f.into, err = readFile(filepath.Join(dir, version, f.name))
		if errors.Is(err, fs.ErrNotExist) {
			if now, nowErr := current(dir); nowErr == nil && now != version {
				return nil, errGone
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return parse(s)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", filepath.Base(path), maxFile)
	}
	return b, nil
}

// sources are the contents of the files that Load reads.
type sources struct{ cert, key, roots, info []byte }

// parse is the pure part of Load.
func parse(s sources) (*Identity, error) {
	chain, err := parseCerts(s.cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", CertFile, err)
	}
	roots, err := parseCerts(s.roots)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", RootsFile, err)
	}
	key, err := parseKey(s.key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", KeyFile, err)
	}
	var about info
	if err := json.Unmarshal(s.info, &about); err != nil {
		return nil, fmt.Errorf("%s: %w", InfoFile, err)
	}
	id, err := check(key, chain, roots)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	if about.ID != id || about.Serial != serialText(leaf) {
		return nil, fmt.Errorf("%s tells of another certificate than %s holds", InfoFile, CertFile)
	}
	return &Identity{
		ID: id, Serial: about.Serial, Server: about.Server,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		RenewAfter: about.RenewAfter, RenewBefore: about.RenewBefore,
		Key: key, Chain: chain, Roots: roots,
	}, nil
}

// ParseCertificates reads PEM certificates, and nothing else.
func ParseCertificates(b []byte) ([]*x509.Certificate, error) { return parseCerts(b) }

// parseCerts reads certificates; a PEM block of another type is an error.
func parseCerts(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(b)) > 0 {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("it holds something else than PEM certificates")
		}
		if len(certs) == maxCerts {
			return nil, fmt.Errorf("it holds more than %d certificates", maxCerts)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs, b = append(certs, cert), rest
	}
	return certs, nil
}

// parseKey reads one PKCS#8 key. Its errors never quote the file.
func parseKey(b []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is not one PEM block PRIVATE KEY (PKCS#8)")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the key can't be read")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key can't sign")
	}
	return signer, nil
}
