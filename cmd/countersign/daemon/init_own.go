package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca"
)

// initOffline begins the authority of a root that stays offline: the directory waits for what that makes of the request.
func (p *parts) initOffline(ctx context.Context, o InitOptions, cfg Config, by countersign.Caller) (Initialised, error) {
	request, err := ca.InitOffline(ctx, p.caConfig(), by, o.Root)
	if err != nil {
		return Initialised{}, err
	}
	if err := writeRoot(o.Dir, o.Root); err != nil {
		return Initialised{}, err
	}
	if err := writeNew(o.Dir.Request(), []byte(request), 0o644); err != nil {
		return Initialised{}, err
	}
	done := initialised(o.Dir, cfg, o.Root)
	done.Operator, done.Request = "", o.Dir.Request()
	return done, p.close()
}

func initialised(dir Dir, cfg Config, root *x509.Certificate) Initialised {
	sum := sha256.Sum256(root.Raw)
	return Initialised{
		Dir: string(dir), TrustDomain: cfg.Domain, Issuer: cfg.Issuer,
		Fingerprint: hex.EncodeToString(sum[:]), Root: dir.Root(), Operator: dir.Operator(),
	}
}

func writeRoot(dir Dir, root *x509.Certificate) error {
	return writeNew(dir.Root(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o644)
}

// Finish ends an Init that waits for its intermediate, of which certificate is the PEM. It needs no daemon; the store's lock keeps
// a second one away.
//
// Crash points: the request's file goes last, so that the same call mends what was left; what was done is not done again.
func Finish(ctx context.Context, dir Dir, cfg Config, version string, certificate []byte) (Initialised, error) {
	p, err := open(ctx, Options{Dir: dir, Config: cfg, Version: version})
	if err != nil {
		return Initialised{}, err
	}
	var done Initialised
	err = p.unlessFatal(func() (err error) {
		done, err = p.finish(ctx, certificate)
		return err
	})
	if err != nil {
		return Initialised{}, p.giveUp(err)
	}
	return done, nil
}

func (p *parts) finish(ctx context.Context, certificate []byte) (Initialised, error) {
	by := countersign.Daemon("init")
	if err := ca.FinishInit(ctx, p.caConfig(), by, certificate); err != nil {
		return Initialised{}, err
	}
	if err := p.openAuthority(ctx); err != nil {
		return Initialised{}, err
	}
	if err := p.ensureServer(ctx); err != nil {
		return Initialised{}, fmt.Errorf("issue the daemon's own certificate: %w", err)
	}
	if _, err := os.Lstat(p.dir.Operator()); err != nil {
		if err := p.addFirstOperator(ctx, by); err != nil {
			return Initialised{}, fmt.Errorf("add the first operator: %w", err)
		}
	}
	if err := os.Remove(p.dir.Request()); err != nil {
		return Initialised{}, err
	}
	return initialised(p.dir, p.cfg, p.ca.Roots()[0]), p.close()
}
