package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"runtime"
	"syscall"
	"time"
)

// CertificateRaw is what the bare cryptography of one certificate costs, by crypto/x509 and crypto/tls: milliseconds of CPU time.
type CertificateRaw struct {
	Request     float64 `json:"request_cpu_ms"`     // a request is parsed and its signature verified
	Certificate float64 `json:"certificate_cpu_ms"` // a certificate is made, signed, and its signature verified
	Handshake   float64 `json:"handshake_cpu_ms"`   // of the server: TLS 1.3 with a client certificate that leads to a root by an intermediate
}

func measureCertificateRaw() (CertificateRaw, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return CertificateRaw{}, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return CertificateRaw{}, err
	}
	var raw CertificateRaw
	raw.Request, err = cpuOf(2000, func() error {
		parsed, err := x509.ParseCertificateRequest(request)
		if err != nil {
			return err
		}
		return parsed.CheckSignature()
	})
	if err != nil {
		return CertificateRaw{}, err
	}
	leaf := leafTemplate()
	raw.Certificate, err = cpuOf(2000, func() error {
		_, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
		return err
	})
	if err != nil {
		return CertificateRaw{}, err
	}
	raw.Handshake, err = handshakeCPU(500)
	return raw, err
}

func leafTemplate() *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: new(big.Int).Lsh(big.NewInt(now.UnixNano()), 60), Subject: pkix.Name{CommonName: service}, DNSNames: []string{"localhost"},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func issuerTemplate(name string) *x509.Certificate {
	t := leafTemplate()
	t.Subject.CommonName, t.IsCA, t.KeyUsage, t.ExtKeyUsage = name, true, x509.KeyUsageCertSign, nil
	return t
}

// handshakeCPU is what a server spends on one of n handshakes with a client certificate. The server has a thread of its own, whose
// time is read.
func handshakeCPU(n int) (float64, error) {
	certificate, pool, err := chainForHandshakes()
	if err != nil {
		return 0, err
	}
	server := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true,
	}
	client := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, RootCAs: pool, ServerName: "localhost"}
	pipes := make(chan net.Conn, 1)
	defer close(pipes)
	go func() {
		for conn := range pipes {
			_ = tls.Client(conn, client).Handshake() // the server sees that it failed
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := threadCPU()
	if err != nil {
		return 0, err
	}
	for range n {
		near, far := net.Pipe()
		pipes <- far
		if err := tls.Server(near, server).Handshake(); err != nil {
			return 0, err
		}
		near.Close()
		far.Close()
	}
	after, err := threadCPU()
	return ms(after-before) / float64(n), err
}

// threadCPU is the time that the calling thread has used.
func threadCPU() (time.Duration, error) {
	const thread = 1 // RUSAGE_THREAD, getrusage(2)
	var r syscall.Rusage
	err := syscall.Getrusage(thread, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), err
}

// chainForHandshakes is a certificate for both ends, by an intermediate of a root.
func chainForHandshakes() (tls.Certificate, *x509.CertPool, error) {
	var keys [3]*ecdsa.PrivateKey
	var certs [3]*x509.Certificate
	for i, template := range []*x509.Certificate{issuerTemplate("root"), issuerTemplate("intermediate"), leafTemplate()} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return tls.Certificate{}, nil, err
		}
		keys[i] = key
		parent, signer := template, key
		if i > 0 {
			parent, signer = certs[i-1], keys[i-1]
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			return tls.Certificate{}, nil, err
		}
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return tls.Certificate{}, nil, err
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(certs[0])
	return tls.Certificate{Certificate: [][]byte{certs[2].Raw, certs[1].Raw}, PrivateKey: keys[2]}, pool, nil
}
