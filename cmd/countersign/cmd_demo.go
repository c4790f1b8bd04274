package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/cmd/countersign/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use: "demo", Short: "a whole chain on loopback with real processes and real TLS, in under 30 s",
		Long: `Runs the main job on this machine: an authority, an OIDC issuer, and the services gateway, orders and inventory as
separate processes. Bootstraps them, sends a user's request through them with an exchange at each hop, rotates the key
while requests flow, has a hop denied and explained, and verifies the audit log. Exits non-zero if anything differs from
what is expected. Uses free ports, contacts loopback only, leaves nothing behind.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			executable, err := os.Executable()
			if err != nil {
				return err
			}
			if err := demo.Run(cmd.Context(), demo.Options{Executable: executable, Out: a.out, Keep: keep}); err != nil {
				return &failure{Exit: exitCondition, What: "the demo did not go as it should", Why: err.Error(), err: err,
					Next: "run it again with --keep, and look at the logs in the directory that it names"}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave its directory behind")
	c.AddCommand(a.demoIssuer(), a.demoService())
	return c
}

func (a *app) demoIssuer() *cobra.Command {
	return &cobra.Command{
		Use: "issuer CA-FILE", Short: "the demo's identity provider", Hidden: true, Args: exactArgs("CA-FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return demo.Issuer(cmd.Context(), a.out, args[0]) },
	}
}

func (a *app) demoService() *cobra.Command {
	var o demo.ServiceOptions
	c := &cobra.Command{
		Use: "service", Short: "one of the demo's services", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return demo.Service(cmd.Context(), a.out, o) },
	}
	f := c.Flags()
	f.StringVar(&o.Name, "name", "", "its name")
	f.StringVar(&o.Identity, "as", "", "its identity directory")
	f.StringVar(&o.Issuer, "issuer", "", "issuer of the tokens that it takes; none at the gateway")
	f.StringVar(&o.Needs, "needs", "", "scope that a request needs")
	f.StringVar(&o.Next, "next", "", "URL of the next service")
	f.StringVar(&o.NextName, "next-name", "", "its name")
	f.StringVar(&o.Scope, "scope", "", "scope to ask for there")
	return c
}
