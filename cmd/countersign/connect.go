package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"syscall"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

// connect gives the client of operator commands: over TLS with --server or --identity, else over the admin socket of
// --dir.
func (a *app) connect() (*client.Client, error) {
	if a.server != "" || a.identity != "" {
		if a.identity == "" {
			return nil, &failure{Exit: exitLocal, What: "--server needs --identity", Why: "the admin API knows an operator by a certificate",
				Next: "on the daemon's machine: countersign operator add NAME --role viewer --out DIR"}
		}
		c, _, err := a.connectAs(a.identity)
		return c, err
	}
	socket, err := daemon.Dir(a.dir).Socket()
	if err != nil {
		return nil, err
	}
	if err := checkSocket(a.dir, socket); err != nil {
		return nil, err
	}
	return client.New(client.Config{Socket: socket})
}

// checkSocket finds out beforehand why the socket can't be used: a dial error would not say what to do.
func checkSocket(dir, socket string) error {
	conn, err := net.Dial("unix", socket)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return &failure{Exit: exitRemote, What: "no daemon runs on " + dir, Why: socket + " does not answer", err: err,
			Next: "start it with `countersign serve --dir " + shellWord(dir) + "`, name its directory with --dir or COUNTERSIGN_DIR,\nor a remote daemon with --server URL --identity DIR"}
	case errors.Is(err, fs.ErrPermission):
		return &failure{Exit: exitDenied, What: "the admin socket is closed to this user", Why: err.Error(), err: err,
			Next: "it serves root and the daemon's own user; others use --server URL --identity DIR"}
	}
	return &failure{Exit: exitRemote, What: "the admin socket can't be used", Why: err.Error(), err: err,
		Next: "look at " + socket + ", or use --server URL --identity DIR"}
}

// connectAs gives a client that authenticates with an identity directory. The server is --server, else the one that the
// identity was issued by.
func (a *app) connectAs(dir string) (*client.Client, *identity.Identity, error) {
	id, err := loadIdentity(dir)
	if err != nil {
		return nil, nil, err
	}
	cfg := client.Config{URL: a.server, Identity: id}
	if cfg.URL == "" {
		cfg.URL = id.Server
	}
	if a.rootFile != "" {
		if cfg.Roots, err = readRoots(a.rootFile); err != nil {
			return nil, nil, err
		}
	}
	c, err := client.New(cfg)
	if err != nil {
		return nil, nil, &failure{Exit: exitLocal, What: "the daemon's address can't be used", Why: err.Error(), err: err,
			Next: "--server https://HOST:PORT, the daemon's public address"}
	}
	return c, id, nil
}

func loadIdentity(dir string) (*identity.Identity, error) {
	if dir == "" {
		return nil, &failure{Exit: exitLocal, What: "which identity?", Why: "--identity names none",
			Next: "--identity DIR, the directory that `countersign join` made"}
	}
	id, err := identity.Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &failure{Exit: exitLocal, What: dir + " is no identity directory", Why: err.Error(), err: err,
			Next: "make one with `countersign join STRING --out " + shellWord(dir) + "`"}
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, &failure{Exit: exitLocal, What: "the identity in " + dir + " can't be read", Why: err.Error(), err: err,
			Next: "run this as its owner"}
	}
	if err != nil {
		return nil, &failure{Exit: exitLocal, What: "the identity in " + dir + " can't be used", Why: err.Error(), err: err,
			Next: "join again with a new join token: countersign join STRING --out " + shellWord(dir)}
	}
	return id, nil
}

// readRoots reads PEM certificates, and refuses a file with anything else in it.
func readRoots(path string) (*x509.CertPool, error) {
	certs, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool, nil
}

const maxPEM = 1 << 20

func readCertificates(path string) ([]*x509.Certificate, error) {
	body, err := readFile(path, maxPEM)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(body)
	if err != nil {
		return nil, &failure{Exit: exitLocal, What: "no certificates can be read from " + path, Why: err.Error(),
			Next: "the file must hold PEM blocks of type CERTIFICATE"}
	}
	return certs, nil
}

func parseCertificates(body []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := body; ; {
		block, next := pem.Decode(rest)
		if block == nil {
			break
		}
		rest = next
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return certs, nil
}
