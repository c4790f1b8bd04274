package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

func (a *app) certRevoke() *cobra.Command {
	var rq wire.Revocations
	c := &cobra.Command{
		Use:   "revoke SERIAL | --lineage SERIAL | --service NAME | --key SHA256, with --reason R",
		Short: "revoke at once a certificate, a lineage, all that a service has, or a key",
		Long: `Revokes at once: what is revoked is no client any more and can't renew.

  SERIAL            one certificate, its key, and its lineage: what it was renewed to. With the reason superseded
                    the lineage goes on
  --lineage SERIAL  an enrolment, by its serial, and all that it was renewed to
  --service NAME    all live lineages of a service. It may enrol anew: to keep it out, disable it first
  --key SHA256      a key, by the SHA-256 of its public half in hex: never certified again, though it never was, and
                    the lineages of all certificates with it

Reasons (RFC 5280 5.3.1): unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation,
privilegeWithdrawn. It needs the role operator.`,
		Example: "  countersign cert revoke 5f1c... --reason keyCompromise\n  countersign cert revoke --service orders --reason keyCompromise",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkTarget(args, rq); err != nil {
				return err
			}
			if rq.Reason == "" {
				return &failure{Exit: exitLocal, What: "why?", Why: "--reason is needed",
					Next: "--reason keyCompromise, superseded, cessationOfOperation, privilegeWithdrawn, affiliationChanged or unspecified"}
			}
			return a.withDaemon(func(c *client.Client) error {
				if len(args) == 0 {
					return a.revokeMany(cmd, c, rq)
				}
				if err := c.Revoke(cmd.Context(), args[0], rq.Reason); err != nil {
					return err
				}
				return a.show(map[string]string{"serial": args[0], "state": "revoked", "reason": rq.Reason}, func(w *tabwriter.Writer) {
					fmt.Fprintf(w, "%s is revoked\n", args[0])
				})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&rq.Lineage, "lineage", "", "the serial of an enrolment")
	f.StringVar(&rq.Service, "service", "", "the name of a service")
	f.StringVar(&rq.Key, "key", "", "hex SHA-256 of a public key (SubjectPublicKeyInfo), as `cert show` prints it")
	f.StringVar(&rq.Reason, "reason", "", "why (RFC 5280 5.3.1)")
	return c
}

// checkTarget says what is missing, or too much, in the words of the command line.
func checkTarget(args []string, rq wire.Revocations) error {
	named := len(args)
	for _, value := range []string{rq.Lineage, rq.Service, rq.Key} {
		if value != "" {
			named++
		}
	}
	const next = "one of SERIAL, --lineage SERIAL, --service NAME and --key SHA256"
	switch {
	case named == 0:
		return &failure{Exit: exitLocal, What: "revoke what?", Why: "neither a serial nor a flag names it", Next: next}
	case named > 1:
		return &failure{Exit: exitLocal, What: "revoke which of these?", Why: fmt.Sprintf("%d things are named; each is a revocation of its own", named), Next: next}
	}
	return nil
}

// revokedMany is what the command line says of a revocation of more than one certificate.
type revokedMany struct {
	wire.Revocations
	wire.RevokedLineages
}

func (a *app) revokeMany(cmd *cobra.Command, c *client.Client, rq wire.Revocations) error {
	made, err := c.RevokeMany(cmd.Context(), rq)
	if err != nil {
		return err
	}
	return a.show(revokedMany{rq, made}, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "revoked; lineages blocked: %d\n", made.Lineages)
	})
}
