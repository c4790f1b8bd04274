package main

import (
	"errors"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/storage/policy/export"
)

func (a *app) policyExport() *cobra.Command {
	var format, file string
	var o export.Options
	c := &cobra.Command{
		Use: "export --format " + strings.Join(export.Formats(), "|"), Short: "the call graph in the words of others",
		Long: `Writes the call graph for others to enforce, or to look at:

  kubernetes  NetworkPolicies: default deny, and who may talk to whom
  istio       AuthorizationPolicies and RequestAuthentications: who, with which token
  envoy       the HTTP filters jwt_authn and rbac for the proxy before each service
  nginx       maps by the client certificate's subject
  mermaid     a picture

Each denies by default. What a format can't say stands in its comments. Works on the policy in force, or with --policy on
a file, without a daemon; istio and envoy then need --issuer.`,
		Example: "  countersign policy export --format istio --namespace shop > istio.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.loadPolicy(cmd, file)
			if err != nil {
				return err
			}
			if o.Issuer == "" && file == "" {
				if o.Issuer, err = a.ourIssuer(cmd); err != nil {
					return err
				}
			}
			text, err := export.Export(p, format, o)
			switch {
			case errors.Is(err, export.ErrIssuer):
				return &failure{Exit: exitLocal, What: "who issues the tokens?", Why: format + " checks tokens, and a file does not say whose",
					Next: "--issuer URL, the issuer identifier of the daemon: it is `issuer` in its countersign.yaml"}
			case errors.Is(err, export.ErrPrincipal):
				return &failure{Exit: exitLocal, What: "--principal does not name one caller",
					Why:  "without {name}, or with a * (of --namespace, too), a rule for one caller would let others in",
					Next: "--principal with {name} and no *, as cluster.local/ns/{namespace}/sa/{name}"}
			case err != nil:
				return &failure{Exit: exitLocal, What: err.Error(), Why: "--format chooses one", Next: "countersign policy export --help"}
			}
			return a.show(map[string]string{"format": format, "text": string(text)}, func(w *tabwriter.Writer) { _, _ = a.out.Write(text) })
		},
	}
	flags := c.Flags()
	flags.StringVar(&format, "format", "", strings.Join(export.Formats(), ", "))
	flags.StringVar(&file, "policy", "", "a policy file instead of the policy in force, - for standard input")
	flags.StringVar(&o.Issuer, "issuer", "", "istio, envoy: the issuer of our tokens (default: the daemon's)")
	flags.StringVar(&o.JWKSURI, "jwks-uri", "", "istio, envoy: where its keys are (default: <issuer>/.well-known/jwks.json)")
	flags.StringVar(&o.JWKSCluster, "jwks-cluster", "countersign", "envoy: the cluster that reaches --jwks-uri")
	flags.StringVar(&o.Namespace, "namespace", "default", "kubernetes, istio")
	flags.StringVar(&o.AppLabel, "app-label", "app", "kubernetes, istio: the label of pods that holds the service's name")
	flags.IntVar(&o.Port, "port", 0, "kubernetes: the port of services (default: every port)")
	flags.StringVar(&o.Principal, "principal", "{trust_domain}/{name}", "istio: how a caller is named, as cluster.local/ns/{namespace}/sa/{name}")
	return c
}

// ourIssuer asks the daemon for its issuer identifier.
func (a *app) ourIssuer(cmd *cobra.Command) (string, error) {
	daemon, err := a.connect()
	if err != nil {
		return "", err
	}
	defer daemon.Close()
	status, err := daemon.Status(cmd.Context())
	return status.Issuer, err
}
