package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/ca/identity"
)

// SpringFile lies in the identity directory itself, beside the links: it names the links, so a renewal changes nothing in it.
const SpringFile = "application-countersign.yaml"

// springText is the configuration of Spring Boot 3.2 or newer for a service with this identity directory. Paths are those of
// the links, which stay. It is pure, and the same input gives the same bytes: the file is written only when they change.
func springText(dir, issuer string, s Spring) []byte {
	algorithms := s.Algorithms
	if len(algorithms) == 0 {
		algorithms = []string{"ES256", "RS256"}
	}
	file := func(name string) string { return strconv.Quote("file:" + filepath.Join(dir, name)) }
	var b strings.Builder
	fmt.Fprintf(&b, `# Written by the countersign agent, and again when it differs: change the agent's configuration instead.
# Use it with SPRING_CONFIG_ADDITIONAL_LOCATION=%s
# Two things stand elsewhere. In the policy: "token: {typ: JWT}" for this service, because Spring refuses the type at+jwt of
# RFC 9068. At the JVM: -Djavax.net.ssl.trustStore=%s -Djavax.net.ssl.trustStorePassword=..., unless
# the daemon's tls.cert is one that the JVM trusts, because Spring fetches jwk-set-uri with the JVM's own roots.
spring:
  ssl:
    bundle:
      pem:
        countersign:
          reload-on-update: true # Tomcat and Netty servers take a renewed certificate; clients keep the old context
          keystore:
            certificate: %s
            private-key: %s
          truststore:
            certificate: %s
          options:
            enabled-protocols: [TLSv1.3]
  security:
    oauth2:
      resourceserver:
        jwt:
          issuer-uri: %s
          jwk-set-uri: %s # named, so that the application starts also while the authority is away
          audiences: [%s] # Spring checks none unless it is named
          jws-algorithms: [%s] # with jwk-set-uri alone Spring takes RS256 and nothing else
server:
  ssl:
    bundle: countersign
    client-auth: need # every caller shows a certificate of this authority
`,
		"file:"+filepath.Join(dir, SpringFile), filepath.Join(dir, identity.TrustStoreFile),
		file(identity.CertFile), file(identity.KeyFile), file(identity.RootsFile),
		strconv.Quote(issuer), strconv.Quote(issuer+"/.well-known/jwks.json"), strconv.Quote(s.Audience), strings.Join(algorithms, ", "))
	return []byte(b.String())
}

// writeSpring makes the file be text: whole or as it was, also after a crash. The directory must hold an identity already: one
// that holds anything else would be refused as an identity directory.
func writeSpring(dir string, text []byte) (changed bool, err error) {
	path := filepath.Join(dir, SpringFile)
	old, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(old, text):
		return false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	return true, replaceFile(path, text, 0o644)
}

// replaceFile writes a file beside path, makes it durable and renames it: readers see the old or the new one. What a crash left
// beside it before goes first.
func replaceFile(path string, body []byte, mode fs.FileMode) error {
	dir, pattern := filepath.Dir(path), "."+filepath.Base(path)+".*"
	left, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return err
	}
	for _, name := range left {
		if info, err := os.Lstat(name); err == nil && time.Since(info.ModTime()) > time.Minute {
			_ = os.Remove(name) // another process may be writing the young ones
		}
	}
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // an error after the rename: it is gone already
	defer f.Close()
	if _, err := f.Write(body); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
