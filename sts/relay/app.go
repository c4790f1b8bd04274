package relay

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/countersign/countersign/sts/relay/observe"
)

// application is the process behind the relay.
type application struct {
	host      string // of its URL; its Host header is that of the request
	token     bool   // it gets the token itself too
	secret    string // proves us; "": at a socket
	transport *http.Transport
	buffers   httputil.BufferPool
}

func newApplication(cfg *App, secret string, buffers httputil.BufferPool) *application {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	a := &application{host: "application", token: cfg.Token == TokenAuthorization, secret: secret, buffers: buffers}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", cfg.Socket)
	}
	if cfg.URL != "" {
		a.host = strings.TrimSuffix(strings.TrimPrefix(cfg.URL, "http://"), "/")
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", a.host)
		}
	}
	a.transport = &http.Transport{
		DialContext:  dial,
		MaxIdleConns: 256, MaxIdleConnsPerHost: 256, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 256 << 10,
		ExpectContinueTimeout: time.Second, DisableCompression: true,
	}
	if cfg.HTTP2 {
		a.transport.Protocols = &http.Protocols{}
		a.transport.Protocols.SetUnencryptedHTTP2(true)
	}
	return a
}

// rewrite makes the request that the application gets. Hop-by-hop headers, and those that the caller named as such, are gone
// already: what is set here he can't have removed.
func (a *application) rewrite(p *httputil.ProxyRequest, is identity, who *caller, strip string) {
	h := p.Out.Header
	h.Del("Authorization")
	h.Del("Dpop")
	p.Out.URL.Scheme, p.Out.URL.Host = "http", a.host
	stripPath(p.Out.URL, strip)
	is.write(h)
	forwardedFor(p.In, h)
	observed(p)
	h.Set(IDHeader, observe.From(p.In.Context()).ID)
	if a.secret != "" {
		h.Set(SecretHeader, a.secret)
	}
	if a.token && who.admitted != nil {
		h.Set("Authorization", "Bearer "+who.admitted.token)
	}
}

// newSecret makes the secret of one start, and puts it where the application reads it. The file is whole or as before: who reads
// it while it is written sees the old one, which is refused, and reads again.
func newSecret(file string) (string, error) {
	random := make([]byte, 32)
	rand.Read(random) // never fails
	secret := base64.RawURLEncoding.EncodeToString(random)
	body := "COUNTERSIGN_RELAY_SECRET_HEADER=" + SecretHeader + "\nCOUNTERSIGN_RELAY_SECRET=" + secret + "\n"
	if !strings.HasSuffix(file, ".env") {
		body = "countersign:\n  relay:\n    secret-header: " + SecretHeader + "\n    secret: " + secret + "\n"
	}
	if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file: it is not replaced", file)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	temporary, err := os.CreateTemp(filepath.Dir(file), ".relay-secret-*") // 0600
	if err != nil {
		return "", err
	}
	defer os.Remove(temporary.Name()) // gone already if all went well
	_, err = temporary.WriteString(body)
	if err = errors.Join(err, temporary.Close()); err != nil {
		return "", err
	}
	return secret, os.Rename(temporary.Name(), file)
}
