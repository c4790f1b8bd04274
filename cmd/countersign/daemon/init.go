package daemon

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/storage/keyring"
)

// InitOptions are what `init` may be told; empty fields take the defaults.
type InitOptions struct {
	Dir       Dir
	Domain    string
	Listen    string
	OpsListen string
	DNS       []string
	PermitDNS []string // name constraints of the root; see [CAConfig]
	Issuer    string
	KMS       string        // URI of the token in which root, intermediate and token keys are made; "": sealed in the store
	Config    func(*Config) // last changes, for `dev` and the demo
	Version   string

	Root    *x509.Certificate // somebody's own; nil: one is made
	RootKey crypto.Signer     // its key, which is sealed into the keyring; nil: the root stays offline, and a request is made
}

// Initialised is what a newcomer needs to know after init.
type Initialised struct {
	Dir         string `json:"dir"`
	TrustDomain string `json:"trust_domain"`
	Issuer      string `json:"issuer"`
	Fingerprint string `json:"fingerprint"`       // lower-case hex SHA-256 of the root certificate
	Root        string `json:"root"`              // file
	Operator    string `json:"operator"`          // identity directory; "": the directory waits for its intermediate
	Request     string `json:"request,omitempty"` // file, if it waits: what the root is to sign
}

// UsedError says that the directory can't be initialised because something of ours is in it.
type UsedError struct {
	Found string
	Whole bool // an earlier init went to its end
}

// Error says what was found.
func (e *UsedError) Error() string { return e.Found + " exists" }

// Init makes a new authority in a directory that holds nothing of ours: configuration, KEK, store, audit log, root,
// intermediate, audit, token and svid keys, the daemon's own certificate and the first operator.
//
// Crash points: the configuration file is written last, so a directory without it is known to be unfinished; nothing in
// it was ever in use, and it may be removed.
func Init(ctx context.Context, o InitOptions) (Initialised, error) {
	cfg := initialConfig(o)
	if problems := cfg.Validate(); len(problems) > 0 {
		return Initialised{}, &ConfigError{problems}
	}
	found, err := o.Dir.taken()
	if err != nil {
		return Initialised{}, err
	}
	if found != "" {
		_, err := os.Lstat(o.Dir.config())
		return Initialised{}, &UsedError{Found: found, Whole: err == nil}
	}
	if o.Root != nil { // before anything is written
		if err := ca.CheckRoot(ca.Config{TrustDomain: cfg.Domain, DNS: cfg.DNS}, o.Root, o.RootKey, time.Now()); err != nil {
			return Initialised{}, err
		}
	}
	if err := os.MkdirAll(string(o.Dir), 0o700); err != nil {
		return Initialised{}, err
	}
	if err := checkOurs(string(o.Dir), os.Stat); err != nil {
		return Initialised{}, err
	}
	if err := keyring.WriteKEK(string(o.Dir), keyring.NewKEK()); err != nil {
		return Initialised{}, fmt.Errorf("write the key-encryption key: %w", err)
	}
	done, err := initAuthority(ctx, o, cfg)
	if err != nil {
		return Initialised{}, err
	}
	if err := writeConfig(o.Dir, cfg); err != nil {
		return Initialised{}, err
	}
	return done, nil
}

func initialConfig(o InitOptions) Config {
	cfg := Defaults()
	cfg.Domain = o.Domain
	if o.Listen != "" {
		cfg.Listen = o.Listen
	}
	if o.OpsListen != "" {
		cfg.Ops.Listen = o.OpsListen
	}
	if len(o.DNS) > 0 {
		cfg.DNS = o.DNS
	}
	cfg.CA.Permit = o.PermitDNS
	cfg.Issuer = o.Issuer
	if cfg.Issuer == "" {
		_, port, err := net.SplitHostPort(cfg.Listen)
		if err != nil || port == "" {
			port = "8443"
		}
		cfg.Issuer = "https://" + net.JoinHostPort(cfg.DNS[0], port)
	}
	if o.KMS != "" {
		cfg.Keys.Root, cfg.Keys.Intermediate, cfg.Keys.Token = o.KMS, o.KMS, o.KMS
	}
	if o.Config != nil {
		o.Config(&cfg)
	}
	return cfg
}

// initAuthority makes everything that needs the parts to be open.
func initAuthority(ctx context.Context, o InitOptions, cfg Config) (Initialised, error) {
	parts, err := open(ctx, Options{Dir: o.Dir, Config: cfg, Version: o.Version})
	if err != nil {
		return Initialised{}, err
	}
	var done Initialised
	err = parts.unlessFatal(func() (err error) {
		done, err = parts.initialise(ctx, o, cfg)
		return err
	})
	if err != nil {
		return Initialised{}, parts.giveUp(err)
	}
	return done, nil
}

func (p *parts) initialise(ctx context.Context, o InitOptions, cfg Config) (Initialised, error) {
	by := countersign.Daemon("init")
	if err := p.createKeys(ctx, by); err != nil {
		return Initialised{}, err
	}
	switch {
	case o.Root == nil:
		if err := ca.Init(ctx, p.caConfig(), by); err != nil {
			return Initialised{}, fmt.Errorf("make the root and the intermediate: %w", err)
		}
	case o.RootKey != nil:
		if err := ca.InitOwn(ctx, p.caConfig(), by, o.Root, o.RootKey); err != nil {
			return Initialised{}, err
		}
	default:
		return p.initOffline(ctx, o, cfg, by)
	}
	if err := p.openAuthority(ctx); err != nil {
		return Initialised{}, err
	}
	root := p.ca.Roots()[0]
	if err := writeRoot(o.Dir, root); err != nil {
		return Initialised{}, err
	}
	if err := p.renewServer(ctx, nil); err != nil {
		return Initialised{}, fmt.Errorf("issue the daemon's own certificate: %w", err)
	}
	if err := p.addFirstOperator(ctx, by); err != nil {
		return Initialised{}, fmt.Errorf("add the first operator: %w", err)
	}
	return initialised(o.Dir, cfg, root), p.close()
}

// createKeys makes the keys that are not certificates': one that signs audit checkpoints, one token key for each
// algorithm that a service may ask for, and one that signs JWT-SVIDs.
func (p *parts) createKeys(ctx context.Context, by countersign.Caller) error {
	now := p.now()
	_, err := p.keys.Create(ctx, by,
		keyring.NewKey{Purpose: keyring.Audit, Alg: "ES256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.Token, Alg: "ES256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.Token, Alg: "RS256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.SVID, Alg: "ES256", SignsFrom: now},
	)
	if err != nil {
		return fmt.Errorf("make the audit, token and svid keys: %w", err)
	}
	return nil
}

func (p *parts) addFirstOperator(ctx context.Context, by countersign.Caller) error {
	key, err := identity.NewKey(p.cfg.KeyTypes.Operator[0])
	if err != nil {
		return err
	}
	csr, err := identity.CSR(key)
	if err != nil {
		return err
	}
	cert, err := p.ca.AddOperator(ctx, by, FirstOperator, countersign.RoleAdmin, csr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.dir.Operator()), 0o700); err != nil {
		return err
	}
	return identity.Write(p.dir.Operator(), identity.Bundle{
		Key: key, Chain: cert.Chain, Roots: p.ca.Roots(), Server: p.serverURL(),
	})
}

// writeConfig writes what init was told; defaults stay out of the file, so that better ones reach old installations.
func writeConfig(dir Dir, cfg Config) error {
	defaults := Defaults()
	doc := map[string]any{"domain": cfg.Domain, "issuer": cfg.Issuer, "listen": cfg.Listen, "dns": cfg.DNS}
	if cfg.Ops.Listen != defaults.Ops.Listen {
		doc["ops"] = map[string]any{"listen": cfg.Ops.Listen}
	}
	if len(cfg.CA.Permit) > 0 {
		doc["ca"] = map[string]any{"permit": cfg.CA.Permit}
	}
	if keys := cfg.Keys; keys.Root+keys.Intermediate+keys.Token != "" {
		doc["keys"] = map[string]any{"root": keys.Root, "intermediate": keys.Intermediate, "token": keys.Token}
	}
	if cfg.Token != defaults.Token {
		doc["token"] = map[string]any{"lead": cfg.Token.Lead.String(), "rotate": cfg.Token.Rotate.String()}
	}
	body, err := yaml.Marshal(doc)
	if err != nil {
		return err
	}
	header := "# Countersign. `countersign config show --origin` lists every key with its value and where it comes from.\n" +
		"# domain and issuer stand in certificates and tokens: they never change after init.\n"
	// Under another name first: a crash must not leave a part of it, which would pass for a whole directory.
	unfinished := dir.config() + ".new"
	if err := writeNew(unfinished, append([]byte(header), body...), 0o600); err != nil {
		return err
	}
	if err := os.Rename(unfinished, dir.config()); err != nil {
		return err
	}
	return syncDir(string(dir))
}

// writeNew writes a file that must not exist yet, durably.
func writeNew(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
