package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

func (a *app) joinCommand() *cobra.Command {
	var f identityFlags
	var attest string
	c := &cobra.Command{
		Use:   "join STRING|- --out DIR | --attest FILE --server URL --root FILE --out DIR",
		Short: "enrol this service: make a key, prove who it is once, get the first certificate",
		Long: `Enrols a service. The key is made here and never leaves; the daemon is known by the fingerprint in the join string, and
nothing is sent before that is verified. --out becomes an identity directory: PEM, PKCS#12 and JSON files.

STRING is what "countersign join-token create" printed, in quotes; - reads it from standard input, and
COUNTERSIGN_JOIN_FILE names a file with it (better than an argument: other users of a machine can read arguments).

--attest proves the service by a token of its workload instead, as Kubernetes projects it into a pod and as the policy
names it under "enrol". The token is good for one key. It names no daemon and no root, so --server and --root do.`,
		Example: `  countersign join 'https://ca.internal:8443#...' --out /etc/orders/identity
  countersign join --attest /var/run/secrets/countersign/token --server https://ca.internal:8443 --root root.pem --out /identity`,
		Args: upTo("STRING"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.renewal()
			if err != nil {
				return err
			}
			if attest != "" && len(args) > 0 {
				return &failure{Exit: exitLocal, What: "one proof is enough", Why: "there is a join string, and --attest too", Next: "leave one of them out"}
			}
			if attest != "" {
				return a.joinAttested(cmd.Context(), attest, f, r)
			}
			text, err := a.joinText(args)
			if err != nil {
				return err
			}
			j, err := client.ParseJoin(text)
			if err != nil {
				return &failure{Exit: exitLocal, What: "this is no join string", Why: err.Error(),
					Next: "an operator makes one with `countersign join-token create SERVICE`"}
			}
			if f.out == "" {
				return &failure{Exit: exitLocal, What: "where to?", Why: "--out names no directory", Next: "--out DIR"}
			}
			return a.join(cmd.Context(), j, f.out, r)
		},
	}
	f.add(c)
	c.Flags().StringVar(&attest, "attest", "", "file with a token of this workload, whose issuer the policy enrols; - reads standard input")
	return c
}

func (a *app) joinText(args []string) (string, error) {
	file := os.Getenv("COUNTERSIGN_JOIN_FILE")
	switch {
	case len(args) == 1 && args[0] == "-":
		body, err := a.readInput("-", client.MaxJoinString+1)
		return strings.TrimSpace(string(body)), err
	case len(args) == 1:
		return args[0], nil
	case file != "":
		body, err := readFile(file, client.MaxJoinString+1)
		return strings.TrimSpace(string(body)), err
	}
	return "", &failure{Exit: exitLocal, What: "which join string?", Why: "neither an argument nor COUNTERSIGN_JOIN_FILE names one",
		Next: "countersign join 'STRING' --out DIR, or - for standard input, or COUNTERSIGN_JOIN_FILE"}
}

func (a *app) join(ctx context.Context, j client.JoinString, out string, r renewal) error {
	if err := checkOut(out); err != nil {
		return err
	}
	c, err := client.New(client.Config{URL: j.URL, TLS: client.PinnedTLS(j)})
	if err != nil {
		return err
	}
	defer c.Close()
	key, cert, err := a.certify(ctx, r.alg, func(csr []byte) (wire.Certificate, error) {
		return c.Join(ctx, j.Token, wire.CertificateRequest{CSR: string(csr), TTL: countersign.Duration(r.ttl)})
	})
	if errors.Is(err, client.ErrNotAuthority) {
		return &failure{Exit: exitDenied, What: client.ErrNotAuthority.Error(), Why: err.Error() + "; nothing was sent", err: err,
			Next: "check the address; if it is right, somebody may be in between: ask for a new token over another way"}
	}
	if err != nil {
		return err
	}
	if err := pinnedRoots(cert, j); err != nil {
		return err
	}
	if err := a.writeIdentity(out, key, cert, j.URL, r.password); err != nil {
		return err
	}
	return a.showIdentity(out, cert)
}

// pinnedRoots demands that the roots of the answer hold the pinned one: the connection was verified by it, so anything
// else would be a fault of the daemon's, and would lock the service out at its next call.
func pinnedRoots(cert wire.Certificate, j client.JoinString) error {
	roots, err := parseCertificates([]byte(cert.Roots))
	if err != nil {
		return badAnswer(fmt.Errorf("its roots: %w", err))
	}
	for _, root := range roots {
		if sha256.Sum256(root.Raw) == j.Fingerprint {
			return nil
		}
	}
	return badAnswer(errors.New("it does not hold the root that made this token"))
}
