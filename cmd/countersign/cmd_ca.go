package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

func (a *app) caCommand() *cobra.Command {
	return group("ca", "the authority's own certificates", a.caRoot(), a.caBundle(), a.caStatus(),
		a.caRotate(), a.caRollback(), a.caRetire(), a.caCSR(), a.caImport())
}

func (a *app) caRoot() *cobra.Command {
	var fingerprint bool
	c := &cobra.Command{
		Use: "root", Short: "print the root certificates as PEM", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				body, err := c.RootsPEM(cmd.Context())
				if err != nil {
					return err
				}
				certs, err := parseCertificates(body)
				if err != nil {
					return badAnswer(err)
				}
				shown := rootsShown{PEM: pemOf(certs...)}
				for _, cert := range certs {
					shown.Fingerprints = append(shown.Fingerprints, inspect(cert).Fingerprint)
				}
				return a.show(shown, func(w *tabwriter.Writer) {
					if fingerprint {
						fmt.Fprintln(w, strings.Join(shown.Fingerprints, "\n"))
						return
					}
					fmt.Fprint(w, shown.PEM)
				})
			})
		},
	}
	c.Flags().BoolVar(&fingerprint, "fingerprint", false, "print only the SHA-256 of each")
	return c
}

type rootsShown struct {
	PEM          string   `json:"pem"`
	Fingerprints []string `json:"fingerprints"`
}

func (a *app) caBundle() *cobra.Command {
	return &cobra.Command{
		Use: "bundle", Short: "print the trust anchors as a SPIFFE bundle (JWKS)", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				bundle, err := c.Bundle(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(bundle, func(w *tabwriter.Writer) {
					encoder := json.NewEncoder(w)
					encoder.SetIndent("", "  ")
					_ = encoder.Encode(bundle)
				})
			})
		},
	}
}

func (a *app) caStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "the roots and intermediates: states, times, and who holds certificates of them", Args: noArgs,
		Long: `Shows the authority's own certificates. An intermediate is "signing", "pending" (it takes over later), "verifying" (it
signs no more) or "withdrawn" (rolled back); it can be retired when nobody holds a live certificate of it any more.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				authority, err := c.Authority(cmd.Context(), true)
				if err != nil {
					return err
				}
				return a.show(authority, func(w *tabwriter.Writer) {
					row(w, "ROLE", "SERIAL", "STATE", "SIGNS FROM", "EXPIRES", "HELD BY", "SHA-256")
					for _, c := range authority.Roots {
						key := "-"
						if c.Offline {
							key = "(offline)"
						}
						row(w, "root", c.Serial, c.State, key, a.moment(c.NotAfter), "-", c.Fingerprint)
					}
					for _, c := range authority.Intermediates {
						row(w, "intermediate", c.Serial, c.State, a.moment(signsFrom(c)), a.moment(c.NotAfter), heldBy(c.Holders), c.Fingerprint)
					}
				})
			})
		},
	}
}

// signsFrom is when an intermediate begins or began to sign.
func signsFrom(c wire.AuthorityCertificate) time.Time {
	if c.SignsFrom.IsZero() {
		return c.NotBefore
	}
	return c.SignsFrom
}

// heldBy names a few holders, and how many there are.
func heldBy(holders []wire.Holder) string {
	const most = 3
	var names []string
	for i, h := range holders {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(holders)-most))
			break
		}
		names = append(names, h.ID.Name())
	}
	return dash(strings.Join(names, ", "))
}

func (a *app) caRotate() *cobra.Command {
	var rq wire.AuthorityRotation
	var at string
	c := &cobra.Command{
		Use: "rotate intermediate|root", Short: "make the successor of the intermediate, or of the root",
		Long: `Makes a new intermediate that signs from now on, or a new root with an intermediate of its own.

Nothing changes for who holds a certificate: what the old ones signed is good until it ends. A new root is published at
once, certified by the old one, and signs after the lead: the longest life of a certificate, the grace for late renewals
and an hour, so that everybody has it by then. Whoever has the old root only can verify its certificates all the same,
because the chain holds the certificate of the new root by the old one.

"countersign ca rollback" takes it back; "countersign ca retire" ends the old one, which else goes by itself when nobody
holds a certificate of it any more. Without a command, an intermediate is rotated when a third of its life is left.`,
		Example: "  countersign ca rotate intermediate\n  countersign ca rotate root --dry-run",
		Args:    exactArgs("intermediate|root"),
		RunE: func(cmd *cobra.Command, args []string) error {
			rq.Role = args[0]
			if at != "" {
				moment, err := time.Parse(time.RFC3339, at)
				if err != nil {
					return &failure{Exit: exitLocal, What: "when?", Why: fmt.Sprintf("--at %q is no time", at), Next: "--at 2026-12-01T03:00:00Z"}
				}
				rq.At = moment
			}
			return a.withDaemon(func(c *client.Client) error {
				plan, err := c.RotateAuthority(cmd.Context(), rq)
				if err != nil {
					return err
				}
				if plan.DryRun {
					a.say("nothing was changed (--dry-run)")
				}
				return a.show(plan, func(w *tabwriter.Writer) {
					row(w, "role", plan.Role)
					row(w, "signs from", a.moment(plan.SignsFrom))
					for _, c := range plan.New {
						row(w, "new", c.Serial+" "+c.Subject)
					}
				})
			})
		},
	}
	c.Flags().StringVar(&at, "at", "", "when it begins to sign (RFC 3339); default: as soon as it may")
	c.Flags().BoolVar(&rq.Now, "now", false, "a new root signs at once, before everybody has it; needs the role admin")
	c.Flags().BoolVar(&rq.DryRun, "dry-run", false, "only tell when it would sign")
	return c
}

func (a *app) caRollback() *cobra.Command {
	return &cobra.Command{
		Use: "rollback", Short: "take the last rotation back: the intermediate before signs again", Args: noArgs,
		Long: `Takes the last rotation back, while the intermediate before it is not retired. A successor that waits is removed, with
its root. One that signs already signs no more; certificates that it signed stay good until they end.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				gone, err := c.RollbackAuthority(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(gone, func(w *tabwriter.Writer) { row(w, "taken back", gone.Serial+" "+gone.Subject) })
			})
		},
	}
}

func (a *app) caRetire() *cobra.Command {
	return &cobra.Command{
		Use: "retire SERIAL", Short: "end a root or intermediate that nobody holds certificates of, and destroy its key",
		Long: `Takes a root or intermediate out of the bundle and of chains and destroys its key, for good. It is refused while it signs
or waits to sign, and while a certificate of it lives: "countersign ca status" shows who holds one.`,
		Args: exactArgs("SERIAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(func(c *client.Client) error {
				if err := c.RetireAuthority(cmd.Context(), args[0]); err != nil {
					return err
				}
				a.say("%s is retired; its key is destroyed", args[0])
				return a.show(map[string]string{"retired": args[0]}, func(*tabwriter.Writer) {})
			})
		},
	}
}
