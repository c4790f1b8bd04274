package mtls

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
)

// Config says where the identity of a [Source] comes from and where it is kept. Needed is one of Dir, Join, JoinFile and
// Attest.
type Config struct {
	// Dir is the identity directory: read at Open and watched, written at each renewal. "": the identity is in memory only.
	Dir string
	// ReadOnly: somebody else, as the agent, keeps Dir fresh. It is looked at once a second and never written; nothing is
	// renewed.
	ReadOnly bool

	Join     string // join string: for the first certificate, and when nothing else is left
	JoinFile string // the file with it, read anew each time
	// Attest gives a JWT by which an issuer of the policy's `workloads` says who this is (the service's `enrol`). It is
	// asked anew each time. It needs Server, ID and, before there is an identity, Roots.
	Attest func(context.Context) (string, error)

	Server string              // https://host:port of the authority; "": that of the join string or of the identity
	Roots  []*x509.Certificate // of the authority, for the first start with Attest; trusted besides those of the identity
	ID     countersign.ID      // of the service to be. With Attest needed; else zero, or what the identity must be

	KeyType  string        // of each new key: P-256, P-384, Ed25519, RSA-2048, RSA-3072, RSA-4096; "": P-256, or what the policy allows first
	TTL      time.Duration // to ask for; 0: what the policy gives
	Password string        // of the PKCS#12 files; "": changeit

	Now    func() time.Time // the wall clock; nil: time.Now
	Logger *slog.Logger     // nil: nothing is logged
	// OnEvent is told what happens, for metrics. It is called without locks held, one event after the other, and must not
	// block.
	OnEvent func(Event)
}

// settle judges what can be judged without the authority and fills in the defaults.
func (c *Config) settle() error {
	if c.Dir == "" && !c.enrols() {
		return errors.New("mtls: one of Dir, Join, JoinFile and Attest is needed: nothing says who this is")
	}
	if c.Join != "" && c.JoinFile != "" {
		return errors.New("mtls: set Join or JoinFile, not both")
	}
	if c.Join != "" {
		if _, err := client.ParseJoin(c.Join); err != nil {
			return fmt.Errorf("mtls: Join: %w", err)
		}
	}
	if c.ReadOnly && (c.Dir == "" || c.enrols()) {
		return errors.New("mtls: a ReadOnly source has Dir and neither Join, JoinFile nor Attest: somebody else enrols")
	}
	if c.Attest != nil && (c.Server == "" || c.ID.Kind() != countersign.ServiceID) {
		return errors.New("mtls: Attest needs Server and the ID of a service")
	}
	if c.TTL < 0 {
		return errors.New("mtls: TTL is negative")
	}
	if err := checkKeyType(c.KeyType); err != nil {
		return err
	}
	if c.Server != "" {
		if err := client.CheckURL(c.Server); err != nil {
			return fmt.Errorf("mtls: Server: %w", err)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func checkKeyType(alg string) error {
	switch alg {
	case "", "P-256", "P-384", "Ed25519", "RSA-2048", "RSA-3072", "RSA-4096":
		return nil
	}
	_, err := identity.NewKey(alg) // which says what there is
	return fmt.Errorf("mtls: KeyType: %w", err)
}

// enrols tells whether there is a way to a certificate without one.
func (c *Config) enrols() bool { return c.Join != "" || c.JoinFile != "" || c.Attest != nil }

// joinString reads the join string anew: an operator may have put a fresh one into the file. false: none is configured.
func (c *Config) joinString() (client.JoinString, bool, error) {
	text := c.Join
	if c.JoinFile != "" {
		body, err := readAtMost(c.JoinFile, client.MaxJoinString+1)
		if err != nil {
			return client.JoinString{}, true, fmt.Errorf("read the join string: %w", err)
		}
		text = strings.TrimSpace(string(body))
	}
	if text == "" {
		if c.JoinFile != "" {
			return client.JoinString{}, true, fmt.Errorf("%s is empty; an operator makes a join string with `countersign join-token create SERVICE`", c.JoinFile)
		}
		return client.JoinString{}, false, nil
	}
	j, err := client.ParseJoin(text)
	return j, true, err
}

func readAtMost(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, most)
}
