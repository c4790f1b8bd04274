package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

// withDaemon runs fn with a connected client.
func (a *app) withDaemon(fn func(*client.Client) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c)
}

func (a *app) serviceCommand() *cobra.Command {
	return group("service", "the services of the policy: list, disable, enable",
		a.serviceList(), a.serviceState("disable"), a.serviceState("enable"))
}

func (a *app) serviceList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list the services of the policy with their states", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				services, err := c.Services(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(services, func(w *tabwriter.Writer) {
					row(w, "NAME", "STATE", "ENTRY FOR", "CALLS", "DNS")
					for _, s := range services.Services {
						state := "enabled"
						if s.Disabled != nil {
							state = "disabled: " + s.Disabled.Reason
						}
						row(w, s.Name, state, dash(strings.Join(s.Accepts, " ")), dash(strings.Join(s.Calls, " ")), dash(strings.Join(s.DNS, " ")))
					}
				})
			})
		},
	}
}

func (a *app) serviceState(verb string) *cobra.Command {
	var reason string
	c := &cobra.Command{Use: verb + " NAME --reason R", Args: exactArgs("NAME")}
	c.Short = "take a service into use again"
	if verb == "disable" {
		c.Short = "take a service out of use at once: no certificates, no tokens, its join tokens are void"
	}
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the audit log")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if reason == "" {
			return &failure{Exit: exitLocal, What: "why?", Why: "--reason is needed: it stands in the audit log",
				Next: "countersign service " + verb + " " + args[0] + " --reason \"...\""}
		}
		return a.withDaemon(func(c *client.Client) error {
			set := c.EnableService
			if verb == "disable" {
				set = c.DisableService
			}
			if err := set(cmd.Context(), args[0], reason); err != nil {
				return err
			}
			return a.show(map[string]string{"service": args[0], "state": verb + "d", "reason": reason}, func(w *tabwriter.Writer) {
				fmt.Fprintf(w, "%s is %sd\n", args[0], verb)
			})
		})
	}
	return c
}

func (a *app) joinTokenCommand() *cobra.Command {
	var ttl string
	create := &cobra.Command{
		Use: "create SERVICE", Short: "make a one-use secret with which a service enrols for the first time",
		Long: `Makes a join token: a secret with which SERVICE gets its first certificate, once, from a key that is made on the
service's machine. It is printed once, with the daemon's address and the root's fingerprint, as one string:

  https://HOST:PORT#<token>.<root fingerprint>`,
		Example: "  countersign join-token create orders --ttl 10m",
		Args:    exactArgs("SERVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			lifetime, err := optionalDuration("--ttl", ttl)
			if err != nil {
				return err
			}
			return a.withDaemon(func(c *client.Client) error {
				token, err := c.CreateJoinToken(cmd.Context(), wire.JoinTokenRequest{Service: args[0], TTL: countersign.Duration(lifetime)})
				if err != nil {
					return err
				}
				a.say("for %s, once, until %s; it will not be shown again", token.Service, a.moment(token.ExpiresAt))
				return a.show(token, func(w *tabwriter.Writer) { fmt.Fprintln(w, token.Join) })
			})
		},
	}
	create.Flags().StringVar(&ttl, "ttl", "", "how long it is good for: 1m to 24h (default 10m)")
	return group("join-token", "one-time secrets for first enrolment", create)
}

func optionalDuration(flag, value string) (time.Duration, error) {
	if value == "" {
		return 0, nil
	}
	d, err := daemon.ParseDuration(value)
	if err != nil {
		return 0, &failure{Exit: exitLocal, What: flag + ": " + quoted(value) + " can't be used", Why: err.Error(),
			Next: flag + " with a number and its unit, as 90s, 15m, 24h or 30d"}
	}
	return d, nil
}

func (a *app) keyCommand() *cobra.Command {
	return group("key", "signing keys of tokens and JWT-SVIDs, and their rotation", a.keyList(), a.keyRotate(), a.keyRetire())
}

func (a *app) keyList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "list all keys with their states and times", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				keys, err := c.Keys(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(keys, func(w *tabwriter.Writer) { a.keyTable(w, keys.Keys) })
			})
		},
	}
}

func (a *app) keyTable(w *tabwriter.Writer, keys []wire.Key) {
	row(w, "KID", "PURPOSE", "ALG", "STATE", "PUBLISHED", "SIGNS FROM", "SIGNS UNTIL", "VERIFIES UNTIL")
	for _, k := range keys {
		state := k.State
		if k.New {
			state += " (new)"
		}
		row(w, k.ID, k.Purpose, k.Alg, state, a.moment(k.Published), a.moment(k.SignsFrom), a.moment(k.SignsUntil), a.moment(k.VerifiesUntil))
	}
}

func (a *app) keyRotate() *cobra.Command {
	var rq wire.RotateRequest
	c := &cobra.Command{
		Use: "rotate PURPOSE", Short: "publish new keys now, sign with them after the lead, then let the old ones go",
		Long: `Makes new keys of PURPOSE and publishes them at once: those of "token", for relay tokens, in the JWKS; those of "svid",
for SPIFFE JWT-SVIDs, in the trust bundle. They sign after the lead (token.lead, 1 h unless configured), when every verifier has
fetched them; the old ones verify until the last token that they signed has expired.

--now signs with the new keys at once. Verifiers with an older copy of the JWKS or the bundle may refuse tokens until they
fetch it again: no continuity is promised. It needs the role admin.`,
		Example: "  countersign key rotate token --dry-run\n  countersign key rotate svid",
		Args:    exactArgs("PURPOSE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(func(c *client.Client) error {
				plan, err := c.Rotate(cmd.Context(), args[0], rq)
				if err != nil {
					return err
				}
				if plan.DryRun {
					a.say("nothing was changed (--dry-run); at %s a rotation would give:", plan.At.UTC().Format(time.RFC3339))
				}
				return a.show(plan, func(w *tabwriter.Writer) { a.keyTable(w, plan.Keys) })
			})
		},
	}
	c.Flags().BoolVar(&rq.Now, "now", false, "sign with the new keys at once; verifiers with old caches may refuse tokens")
	c.Flags().BoolVar(&rq.DryRun, "dry-run", false, "only print the timeline")
	return c
}

func (a *app) keyRetire() *cobra.Command {
	var rq wire.RetireRequest
	c := &cobra.Command{
		Use: "retire KID", Short: "take a token or svid key out of the published ones now",
		Long: `Takes a key of purpose token out of the JWKS, or one of purpose svid out of the trust bundle, now. Keys leave by
themselves when their last token has expired: this is for a key that must go before that. It needs the role admin.

--compromised is needed while tokens may still depend on the key. They die: the daemon refuses them at once, others as
soon as they fetch the JWKS again. If the key signs, the one that waits signs at once in its place; if none waits, a new
one is made in the same step.`,
		Example: "  countersign key retire KID --compromised --dry-run",
		Args:    exactArgs("KID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(func(c *client.Client) error {
				plan, err := c.Retire(cmd.Context(), args[0], rq)
				if err != nil {
					return err
				}
				if plan.DryRun {
					a.say("nothing was changed (--dry-run); at %s it would give:", plan.At.UTC().Format(time.RFC3339))
				}
				a.say("%s", plan.Note)
				return a.show(plan, func(w *tabwriter.Writer) { a.keyTable(w, plan.Keys) })
			})
		},
	}
	c.Flags().BoolVar(&rq.Compromised, "compromised", false, "its private half has leaked: retire it before its time; its tokens die")
	c.Flags().BoolVar(&rq.DryRun, "dry-run", false, "only print the timeline")
	return c
}

func (a *app) operatorCommand() *cobra.Command {
	var role, out string
	add := &cobra.Command{
		Use: "add NAME --role viewer|operator|admin", Short: "certify an operator for the admin API",
		Long: `Makes a key here, has it certified for an operator of the given role, and writes an identity directory (--out,
default ./operator-NAME). With it the admin API is used from anywhere:

  countersign --server https://HOST:8443 --identity ./operator-NAME status`,
		Example: "  countersign operator add ana --role operator --out ./ana",
		Args:    exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := countersign.ParseRole(role); err != nil {
				return &failure{Exit: exitLocal, What: "which role?", Why: err.Error(), Next: "--role viewer, --role operator or --role admin"}
			}
			if out == "" {
				out = "operator-" + args[0]
			}
			return a.withDaemon(func(c *client.Client) error { return a.addOperator(cmd.Context(), c, args[0], role, out) })
		},
	}
	add.Flags().StringVar(&role, "role", "", "viewer (reads), operator (day to day) or admin (policy, operators)")
	add.Flags().StringVar(&out, "out", "", "identity directory to write")
	return group("operator", "people and pipelines that may use the admin API", add)
}

func (a *app) addOperator(ctx context.Context, c *client.Client, name, role, out string) error {
	if err := checkOut(out); err != nil {
		return err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return err
	}
	key, cert, err := a.certify(ctx, "", func(csr []byte) (wire.Certificate, error) {
		return c.AddOperator(ctx, wire.OperatorRequest{Name: name, Role: role, CSR: string(csr)})
	})
	if err != nil {
		return err
	}
	server := a.server
	if server == "" {
		server = status.URL
	}
	if err := a.writeIdentity(out, key, cert, server, ""); err != nil {
		return err
	}
	return a.showIdentity(out, cert)
}

// checkOut refuses, before anything is asked of the daemon, a directory that could not be written afterwards.
func checkOut(dir string) error {
	entries, err := os.ReadDir(dir)
	absent := errors.Is(err, fs.ErrNotExist)
	if err == nil || absent {
		err = tryWrite(dir)
	}
	if err != nil {
		return &failure{Exit: exitLocal, What: "can't write to " + dir, Why: cause(err), err: err,
			Next: "make it writable for this user, or name another directory with --out"}
	}
	if absent || len(entries) == 0 {
		return nil
	}
	if _, err := os.Lstat(dir + "/identity.json"); err != nil {
		return &failure{Exit: exitLocal, What: dir + " is not empty", Why: "it holds other things than an identity",
			Next: "name an empty or a new directory with --out"}
	}
	return nil
}

// tryWrite makes and removes a directory in dir, or in the nearest one above that exists.
func tryWrite(dir string) error {
	for {
		_, err := os.Stat(dir)
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			break
		}
		dir = parent
	}
	probe, err := os.MkdirTemp(dir, ".countersign-")
	if err != nil {
		return err
	}
	return os.Remove(probe)
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "the daemon's state on one screen", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				status, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				err = a.show(status, func(w *tabwriter.Writer) { statusTable(w, status) })
				if err == nil && !status.Ready {
					err = &failure{Exit: exitCondition, What: "the daemon is not ready", Why: cmp.Or(strings.Join(status.Reasons, "; "), "it does not say why"),
						Next: "mend the reason (docs/operations.md); the daemon's log tells more, and it goes on by itself"}
				}
				return err
			})
		},
	}
}

func statusTable(w *tabwriter.Writer, s wire.Status) {
	row(w, "version", s.Version)
	row(w, "issuer", s.Issuer)
	row(w, "trust domain", s.TrustDomain)
	row(w, "time", s.Time.UTC().Format(time.RFC3339))
	row(w, "ready", strconv.FormatBool(s.Ready))
	row(w, "sealed", strconv.FormatBool(s.Sealed))
	frozenRow(w, "tokens", s.Frozen.Tokens)
	frozenRow(w, "certificates", s.Frozen.Certificates)
	row(w, "policy", fmt.Sprintf("version %d, %d services", s.PolicyVersion, s.Services))
	row(w, "certificates", fmt.Sprintf("%d issued, %d refused since the start", s.Issued, s.Denied))
	row(w, "audit records", strconv.FormatUint(s.AuditSeq, 10))
}

// writeIdentity puts an issued certificate and its key into an identity directory.
func (a *app) writeIdentity(dir string, key crypto.Signer, cert wire.Certificate, server, password string) error {
	chain, err := parseCertificates([]byte(cert.Certificate))
	if err != nil {
		return badAnswer(fmt.Errorf("its certificate chain: %w", err))
	}
	roots, err := parseCertificates([]byte(cert.Roots))
	if err != nil {
		return badAnswer(fmt.Errorf("its roots: %w", err))
	}
	err = identity.Write(dir, identity.Bundle{
		Key: key, Chain: chain, Roots: roots, Server: server, Password: password,
		RenewAfter: cert.RenewAfter, RenewBefore: cert.RenewBefore,
	})
	if err != nil {
		return &failure{Exit: exitLocal, What: "the certificate was issued but can't be written to " + dir, Why: err.Error(), err: err,
			Next: "mend that, then ask again: with the same join token only the same key gets the certificate, so make a new token"}
	}
	return nil
}

// certify makes a key and asks for its certificate. Who did not choose the kind of the key (alg is "") gets one of the kind
// that the daemon allows first if it does not allow P-256; a refusal for that uses no join token up. Who is put off waits.
func (a *app) certify(ctx context.Context, alg string, ask func(csr []byte) (wire.Certificate, error)) (crypto.Signer, wire.Certificate, error) {
	key, csr, err := newRequest(alg)
	if err != nil {
		return nil, wire.Certificate{}, err
	}
	placed := func() (wire.Certificate, error) {
		return a.atItsPlace(ctx, func() (wire.Certificate, error) { return ask(csr) })
	}
	cert, err := placed()
	if other, ok := client.OtherKey(err); ok && alg == "" {
		if key, csr, err = newRequest(other); err != nil {
			return nil, cert, err
		}
		cert, err = placed()
	}
	return key, cert, err
}

func newRequest(alg string) (crypto.Signer, []byte, error) {
	key, err := identity.NewKey(alg)
	if err != nil {
		return nil, nil, &failure{Exit: exitLocal, What: "no key can be made", Why: err.Error(), Next: "--key P-256 (default), P-384, Ed25519, RSA-2048, RSA-3072 or RSA-4096"}
	}
	csr, err := identity.CSR(key)
	return key, csr, err
}

// shownIdentity is what the command line says of an identity that it wrote.
type shownIdentity struct {
	ID          string    `json:"id"`
	Serial      string    `json:"serial"`
	NotAfter    time.Time `json:"not_after"`
	RenewAfter  time.Time `json:"renew_after"`
	RenewBefore time.Time `json:"renew_before"`
	Directory   string    `json:"directory"`
}

func (a *app) showIdentity(dir string, cert wire.Certificate) error {
	shown := shownIdentity{cert.ID.String(), cert.Serial, cert.NotAfter, cert.RenewAfter, cert.RenewBefore, dir}
	return a.show(shown, func(w *tabwriter.Writer) {
		row(w, "id", shown.ID)
		row(w, "serial", shown.Serial)
		row(w, "expires", a.moment(shown.NotAfter))
		row(w, "renew from", a.moment(shown.RenewAfter))
		row(w, "directory", shown.Directory)
		row(w, "files", "tls.crt tls.key ca.crt combined.pem keystore.p12 truststore.p12 identity.json")
	})
}

func pemOf(certs ...*x509.Certificate) string {
	var b strings.Builder
	for _, cert := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	return b.String()
}
