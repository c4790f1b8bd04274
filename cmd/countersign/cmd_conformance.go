package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/cmd/countersign/conformance"
	"github.com/countersign/countersign/sts/jwt"
)

type conformanceFlags struct {
	cfg                                             conformance.Config
	subject, foreign, expired                       string // files
	certificate, key                                string // files
	clientKey, clientKeyID, assertionAudience       string
	nextIdentity, nextCertificate, nextKey, subType string
	only                                            []string
	list                                            bool
}

func (a *app) conformanceCommand() *cobra.Command {
	var f conformanceFlags
	c := &cobra.Command{
		Use:   "conformance --token-endpoint URL --subject-token FILE --audience A",
		Short: "test any token endpoint from outside (RFC 8693, 6749, 8707, 8705)",
		Long: `Tests a token endpoint, of Countersign or of anybody else, from outside, and prints what each check came to, with the
section that it is from. What a check needs and is not given makes it not applicable. Exit code 4 if a MUST failed.

The client proves itself with --identity, with --cert and --cert-key, or with --client-key (private_key_jwt).
The subject token is sent in wrong ways too, also in a URL: take one that was made for tests. No token is ever printed.`,
		Example: "  countersign conformance --identity ./gateway --token-endpoint https://localhost:8443/oauth2/token \\\n" +
			"    --issuer https://localhost:8443 --subject-token user.jwt --audience orders --scope orders:read",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.list {
				return a.listChecks()
			}
			return a.testConformance(cmd.Context(), f)
		},
	}
	conformanceFlagsOf(c, &f)
	return c
}

func conformanceFlagsOf(c *cobra.Command, f *conformanceFlags) {
	s := c.Flags()
	s.StringVar(&f.cfg.Endpoint, "token-endpoint", "", "URL of the token endpoint")
	s.StringVar(&f.cfg.Issuer, "issuer", "", "issuer identifier, to test its metadata (RFC 8414) and keys too")
	s.StringVar(&f.subject, "subject-token", "", "file with a good subject token, - for standard input")
	s.StringVar(&f.subType, "subject-token-type", "access_token", "access_token, jwt, id_token, or a whole URN")
	s.StringVar(&f.foreign, "foreign-subject-token", "", "file with a good token that is addressed to somebody else")
	s.StringVar(&f.expired, "expired-subject-token", "", "file with a token that was good")
	s.StringVar(&f.cfg.Audience, "audience", "", "an audience that this client may call")
	s.StringVar(&f.cfg.BadAudience, "bad-audience", "", "an audience that exists and that it may not call")
	s.StringVar(&f.cfg.Resource, "resource", "", "the good audience as a URL (RFC 8707)")
	s.StringVar(&f.cfg.Scope, "scope", "", "scopes that are granted, separated by spaces")
	s.StringVar(&f.cfg.WiderScope, "wider-scope", "", "a scope that exists and is not granted")
	s.StringVar(&f.cfg.ClientID, "client-id", "", "client_id to send (default: the ID of --identity)")
	s.StringVar(&f.certificate, "cert", "", "PEM file with the client's certificate chain, instead of --identity")
	s.StringVar(&f.key, "cert-key", "", "PEM file with its key")
	s.StringVar(&f.clientKey, "client-key", "", "PEM file with a private key (PKCS#8), for client assertions (RFC 7523)")
	s.StringVar(&f.clientKeyID, "client-key-id", "", "its kid; default: its RFC 7638 thumbprint")
	s.StringVar(&f.assertionAudience, "assertion-audience", "", "aud of the assertions (default: --issuer, else the endpoint)")
	s.StringVar(&f.nextIdentity, "next-identity", "", "identity directory of the audience, to test a second exchange")
	s.StringVar(&f.nextCertificate, "next-cert", "", "or the audience's certificate chain")
	s.StringVar(&f.nextKey, "next-cert-key", "", "and key")
	s.StringVar(&f.cfg.NextClientID, "next-client-id", "", "its client_id (default: the ID of --next-identity)")
	s.StringVar(&f.cfg.NextAudience, "next-audience", "", "whom the audience may call")
	s.StringSliceVar(&f.only, "only", nil, "only the checks whose names begin so")
	s.BoolVar(&f.list, "list", false, "print the checks, and test nothing")
}

func (a *app) listChecks() error {
	type listed struct {
		Name    string            `json:"name"`
		Section string            `json:"section"`
		Level   conformance.Level `json:"level"`
		Title   string            `json:"title"`
	}
	var all []listed
	for _, c := range conformance.Checks() {
		all = append(all, listed{c.Name, c.Section, c.Level, c.Title})
	}
	return a.show(all, func(w *tabwriter.Writer) {
		for _, c := range all {
			row(w, string(c.Level), c.Section, c.Name, c.Title)
		}
	})
}

func (a *app) testConformance(ctx context.Context, f conformanceFlags) error {
	cfg, err := a.conformanceConfig(f)
	if err != nil {
		return err
	}
	report, err := conformance.Run(ctx, cfg, f.only...)
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		return &failure{Exit: exitRemote, What: "nothing could be tested", Why: err.Error(), err: err,
			Next: "is --token-endpoint the right URL, --root its authority, and does --only name checks (see --list)?"}
	}
	if err := a.show(report, func(w *tabwriter.Writer) { showReport(w, report) }); err != nil {
		return err
	}
	if n := report.Summary.FailedMust; n > 0 {
		return &failure{Exit: exitCondition, What: "the token endpoint does not conform", Why: fmt.Sprintf("checks of a MUST that failed: %d", n),
			Next: "each stands in the report, with its section and what was sent and seen"}
	}
	return nil
}

func showReport(w *tabwriter.Writer, report conformance.Report) {
	var name, section int
	for _, r := range report.Results {
		name, section = max(name, len(r.Name)), max(section, len(r.Section))
	}
	for _, r := range report.Results { // no cells: the lines under a failure would end the columns
		outcome := string(r.Outcome)
		if r.Outcome == conformance.Fail {
			outcome = "FAIL"
		}
		fmt.Fprintf(w, "%-4s  %-6s  %-*s  %-*s  %s\n", outcome, r.Level, section, r.Section, name, r.Name, r.Title)
		for _, line := range []struct{ label, text string }{{"why", r.Why}, {"sent", r.Sent}, {"seen", r.Seen}} {
			if line.text != "" {
				fmt.Fprintf(w, "      %s: %s\n", line.label, printable(line.text))
			}
		}
	}
	s := report.Summary
	fmt.Fprintf(w, "%d passed, %d of a MUST failed, %d of a SHOULD failed, %d not applicable\n", s.Passed, s.FailedMust, s.FailedShould, s.NotApplicable)
}

func (a *app) conformanceConfig(f conformanceFlags) (conformance.Config, error) {
	cfg := f.cfg
	for _, needed := range []struct{ flag, value, hint string }{
		{"--token-endpoint", cfg.Endpoint, "--token-endpoint URL"},
		{"--subject-token", f.subject, "--subject-token FILE, a good one that was made for tests"},
		{"--audience", cfg.Audience, "--audience A, one that the client may call"},
	} {
		if needed.value == "" {
			return cfg, &failure{Exit: exitLocal, What: needed.flag + " is missing", Why: "there is no test without it", Next: needed.hint}
		}
	}
	cfg.SubjectTokenType = tokenTypeName(f.subType)
	for _, token := range []struct {
		to   *string
		path string
	}{{&cfg.SubjectToken, f.subject}, {&cfg.ForeignSubjectToken, f.foreign}, {&cfg.ExpiredSubjectToken, f.expired}} {
		if token.path == "" {
			continue
		}
		var err error
		if *token.to, err = a.readToken(token.path); err != nil {
			return cfg, err
		}
	}
	return cfg, a.conformanceClients(&cfg, f)
}

// conformanceClients reads the credentials: of the client, of the service after it, and whom to trust.
func (a *app) conformanceClients(cfg *conformance.Config, f conformanceFlags) error {
	var err error
	identityDir := a.identity
	if f.certificate != "" || f.clientKey != "" {
		identityDir = ""
	}
	var roots *x509.CertPool
	if cfg.Certificate, roots, err = clientCertificate(identityDir, f.certificate, f.key, &cfg.ClientID); err != nil {
		return err
	}
	if cfg.Next, _, err = clientCertificate(f.nextIdentity, f.nextCertificate, f.nextKey, &cfg.NextClientID); err != nil {
		return err
	}
	if cfg.Roots = roots; a.rootFile != "" {
		if cfg.Roots, err = readRoots(a.rootFile); err != nil {
			return err
		}
	}
	if f.clientKey == "" {
		return nil
	}
	if cfg.ClientID == "" {
		return &failure{Exit: exitLocal, What: "--client-id is missing", Why: "it is iss and sub of a client assertion (RFC 7523 3)", Next: "--client-id ID"}
	}
	key, err := readKey(f.clientKey)
	if err != nil {
		return err
	}
	audience := f.assertionAudience
	for _, other := range []string{cfg.Issuer, cfg.Endpoint} {
		if audience == "" {
			audience = other
		}
	}
	cfg.Assertion, err = assertions(key, f.clientKeyID, cfg.ClientID, audience)
	return err
}

// clientCertificate reads an identity directory, or a certificate and its key; nil if there is neither.
func clientCertificate(dir, certificate, key string, clientID *string) (*tls.Certificate, *x509.CertPool, error) {
	switch {
	case certificate != "":
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, nil, &failure{Exit: exitLocal, What: "the certificate in " + certificate + " can't be used", Why: err.Error(), err: err,
				Next: "a PEM file with the chain, leaf first, and one with the key of the leaf"}
		}
		return &pair, nil, nil
	case dir != "":
		id, err := loadIdentity(dir)
		if err != nil {
			return nil, nil, err
		}
		if *clientID == "" {
			*clientID = id.ID.String()
		}
		pair := id.TLS()
		return &pair, id.Pool(), nil
	}
	return nil, nil, nil
}

// assertions makes client assertions as RFC 7523 3 has them, each with a jti of its own.
func assertions(key crypto.Signer, kid, client, audience string) (func() (string, error), error) {
	public, err := publicKey(key)
	if err != nil {
		return nil, &failure{Exit: exitLocal, What: "--client-key holds no key for assertions", Why: err.Error(), Next: "use P-256, P-384, Ed25519 or RSA"}
	}
	if kid == "" {
		kid = public.KID
	}
	return func() (string, error) {
		now := time.Now()
		return jwt.Sign(key, public.Alg, kid, "client-authentication+jwt", map[string]any{
			"iss": client, "sub": client, "aud": audience, "iat": now.Unix(), "exp": now.Add(assertionTTL).Unix(), "jti": rand.Text(),
		})
	}, nil
}
