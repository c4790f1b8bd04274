package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

const (
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccess    = "urn:ietf:params:oauth:token-type:access_token"
)

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "tokens: exchange, request, inspect, verify, introspect, revoke",
		a.tokenExchange(), a.tokenRequest(), a.tokenInspect(), a.tokenVerify(), a.tokenIntrospect(), a.tokenRevoke(), a.tokenRevocations(), a.tokenClientKey())
}

type tokenFlags struct {
	subjectFile, subjectType, audience, scope string

	client clientFlags
}

func (a *app) tokenExchange() *cobra.Command {
	var f tokenFlags
	c := &cobra.Command{
		Use:   "exchange --identity DIR --subject-token FILE --audience SERVICE [--scope \"S S\"]",
		Short: "exchange a token for one that is good for one downstream service (RFC 8693)",
		Long: `Exchanges the subject token, as the service of --identity, for a relay token that is good for --audience alone.
Prints the token; -o json prints the whole response. Without --scope all that the call graph allows is granted, without
--audience the one call that allows the scopes is found.`,
		Example: "  countersign token exchange --identity ./gateway --subject-token user.jwt --audience orders --scope orders:read",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.subjectFile == "" {
				return &failure{Exit: exitLocal, What: "which token?", Why: "--subject-token names none", Next: "--subject-token FILE, or - for standard input"}
			}
			token, err := a.readToken(f.subjectFile)
			if err != nil {
				return err
			}
			form := url.Values{"grant_type": {grantExchange}, "subject_token": {token}, "subject_token_type": {tokenTypeName(f.subjectType)}}
			return a.askToken(cmd.Context(), form, f)
		},
	}
	c.Flags().StringVar(&f.subjectFile, "subject-token", "", "file with the token to exchange, - for standard input")
	c.Flags().StringVar(&f.subjectType, "subject-token-type", "access_token", "access_token, jwt or id_token, or a whole URN")
	audienceFlags(c, &f)
	return c
}

func (a *app) tokenRequest() *cobra.Command {
	var f tokenFlags
	c := &cobra.Command{
		Use:     "request --identity DIR --audience SERVICE [--scope \"S S\"]",
		Short:   "get a token without a user, on a call that the policy marks `machine` (client_credentials)",
		Example: "  countersign token request --identity ./reports --audience orders --scope orders:read",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.askToken(cmd.Context(), url.Values{"grant_type": {"client_credentials"}}, f)
		},
	}
	audienceFlags(c, &f)
	return c
}

func audienceFlags(c *cobra.Command, f *tokenFlags) {
	c.Flags().StringVar(&f.audience, "audience", "", "the service that the token is for: its name or ID")
	c.Flags().StringVar(&f.scope, "scope", "", "scopes to ask for, separated by spaces")
	f.client.add(c)
}

// tokenTypeName lets the command line say "jwt" for the URN (RFC 8693 3).
func tokenTypeName(s string) string {
	if strings.Contains(s, ":") {
		return s
	}
	return "urn:ietf:params:oauth:token-type:" + s
}

func (a *app) askToken(ctx context.Context, form url.Values, f tokenFlags) error {
	c, err := a.tokenClient(ctx, f.client, form)
	if err != nil {
		return err
	}
	defer c.Close()
	if f.audience != "" {
		form.Set("audience", f.audience)
	}
	if f.scope != "" {
		form.Set("scope", f.scope)
	}
	token, err := c.Token(ctx, form)
	if err != nil {
		return err
	}
	a.say("scope %q, good for %ds", token.Scope, token.ExpiresIn)
	return a.show(token, func(w *tabwriter.Writer) { fmt.Fprintln(w, token.AccessToken) })
}

// inspectedToken is a token's content. Nothing of it is verified.
type inspectedToken struct {
	Verified bool            `json:"verified"` // always false
	Header   json.RawMessage `json:"header"`
	Claims   json.RawMessage `json:"claims"`
}

func (a *app) tokenInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "print what stands in a token; trusts nothing of it", Args: exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.readToken(args[0])
			if err != nil {
				return err
			}
			token, err := jwt.Parse(text)
			if err != nil {
				return &failure{Exit: exitLocal, What: "this is no token that Countersign would read", Why: err.Error(),
					Next: "give it a compact JWS alone: three parts with dots between, as it was issued"}
			}
			header, err := json.Marshal(map[string]string{"alg": token.Alg, "kid": token.KID, "typ": token.Typ})
			if err != nil {
				return err
			}
			a.say("NOT VERIFIED: this is what the token says, not what is true; see `countersign token verify`")
			return a.show(inspectedToken{Header: header, Claims: token.Payload}, func(w *tabwriter.Writer) {
				var out bytes.Buffer
				_ = json.Indent(&out, header, "", "  ")
				out.WriteByte('\n')
				_ = json.Indent(&out, token.Payload, "", "  ")
				fmt.Fprintln(w, out.String())
				for _, name := range []string{"iat", "exp"} {
					if at, ok, err := token.Claims.Time(name); ok && err == nil {
						fmt.Fprintf(w, "%s\t%s\n", name, a.moment(at))
					}
				}
			})
		},
	}
}

// verifiedToken is what a resource server would know after verifying.
type verifiedToken struct {
	User     string    `json:"user,omitempty"` // none in a machine token
	Issuer   string    `json:"subject_issuer"`
	Client   string    `json:"client_id"`
	Audience string    `json:"audience"`
	Scopes   []string  `json:"scopes"`
	Actor    string    `json:"actor,omitempty"`
	Chain    []string  `json:"chain,omitempty"`
	Txn      string    `json:"txn"`
	ID       string    `json:"jti"`
	Expires  time.Time `json:"expires"`
}

func (a *app) tokenVerify() *cobra.Command {
	var audience, issuer, peer string
	c := &cobra.Command{
		Use: "verify FILE --audience SERVICE", Short: "verify a relay token as the service SERVICE would",
		Long: `Verifies a relay token as the service --audience would: signature by the keys that the issuer publishes now, issuer,
audience, times, revocation. The issuer is the daemon of --identity (or of --issuer and --root). A token that is bound to a
certificate (cnf) is good only over a connection with it: --peer supposes one with the certificate of the file.`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := a.readToken(args[0])
			if err != nil {
				return err
			}
			if audience == "" {
				return &failure{Exit: exitLocal, What: "for whom?", Why: "--audience names no service", Next: "--audience SERVICE"}
			}
			cfg, err := a.verifierConfig(cmd.Context(), issuer)
			if err != nil {
				return err
			}
			cfg.Audience = audience
			certificate, err := readPeer(peer)
			if err != nil {
				return err
			}
			return a.verifyToken(cmd.Context(), cfg, text, certificate)
		},
	}
	c.Flags().StringVar(&audience, "audience", "", "the service's name")
	c.Flags().StringVar(&issuer, "issuer", "", "the issuer identifier (default: the daemon's)")
	c.Flags().StringVar(&peer, "peer", "", "tls.crt of the client that presents the token, for bound tokens")
	return c
}

// readPeer reads the first certificate of a PEM file; nil: no file is named.
func readPeer(path string) (*x509.Certificate, error) {
	if path == "" {
		return nil, nil
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, &failure{Exit: exitLocal, What: "can't read the client's certificate", Why: err.Error(), err: err,
			Next: "--peer with the tls.crt of the client's identity directory"}
	}
	block, _ := pem.Decode(body)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, &failure{Exit: exitLocal, What: "this is no certificate: " + path, Why: "it does not begin with a PEM block CERTIFICATE",
			Next: "name the tls.crt of the client's identity directory"}
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, &failure{Exit: exitLocal, What: "this is no certificate: " + path, Why: err.Error(), err: err,
			Next: "--peer with the tls.crt of the client's identity directory"}
	}
	return certificate, nil
}

// verifierConfig finds issuer and roots: from --issuer and --root, from an identity, or from the daemon of --dir.
func (a *app) verifierConfig(ctx context.Context, issuer string) (verify.Config, error) {
	cfg := verify.Config{Issuer: issuer}
	var err error
	switch {
	case a.rootFile != "":
		cfg.Roots, err = readRoots(a.rootFile)
	case a.identity != "":
		id, loadErr := loadIdentity(a.identity)
		if loadErr != nil {
			return cfg, loadErr
		}
		cfg.Roots = id.Pool()
		if cfg.Issuer == "" {
			cfg.Issuer = id.Server
		}
	default:
		cfg.Roots, cfg.Issuer, err = a.daemonTrust(ctx, issuer)
	}
	if err == nil && cfg.Issuer == "" {
		err = &failure{Exit: exitLocal, What: "whose token?", Why: "--root is given, but no --issuer", Next: "--issuer https://HOST:8443"}
	}
	return cfg, err
}

func (a *app) daemonTrust(ctx context.Context, issuer string) (*x509.CertPool, string, error) {
	c, err := a.connect()
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	body, err := c.RootsPEM(ctx)
	if err != nil {
		return nil, "", err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(body)
	if issuer == "" {
		status, err := c.Status(ctx)
		if err != nil {
			return nil, "", err
		}
		issuer = status.Issuer
	}
	return pool, issuer, nil
}

func unverified(err error, cfg verify.Config, peer bool) error {
	f := &failure{Exit: exitDenied, What: "the token is not good for " + cfg.Audience, Why: err.Error(), err: err,
		Next: "`countersign token inspect` shows what it says: compare audience, issuer and times; or get a new one"}
	var refused *verify.Error
	switch {
	case !errors.As(err, &refused):
	case refused.Temporary():
		f.Exit, f.What = exitRemote, "the issuer's keys or revocations can't be had"
		f.Next = "does the daemon run, and is " + cfg.Issuer + " its address from here?"
	case refused.Reason == verify.ReasonBinding && !peer:
		f.Next = "suppose a connection with the certificate that it is bound to: --peer CLIENT/tls.crt"
	}
	return f
}

func (a *app) verifyToken(ctx context.Context, cfg verify.Config, text string, peer *x509.Certificate) error {
	verifier, err := verify.New(cfg)
	if err != nil {
		return &failure{Exit: exitLocal, What: "can't verify", Why: err.Error(), err: err,
			Next: "--issuer https://HOST:PORT, as `iss` of the token has it; --audience with the service's name"}
	}
	claims, err := verifier.VerifyPeer(ctx, text, peer)
	if err != nil {
		return unverified(err, cfg, peer != nil)
	}
	shown := verifiedToken{
		User: claims.User(), Issuer: claims.SubjectIssuer, Client: claims.ClientID, Audience: claims.Audience, Scopes: claims.Scopes,
		Actor: claims.Actor(), Chain: claims.Chain(), Txn: claims.Transaction, ID: claims.ID, Expires: claims.Expires,
	}
	return a.show(shown, func(w *tabwriter.Writer) {
		if shown.User == "" {
			row(w, "user", "none: a machine token")
		} else {
			row(w, "user", shown.User+" of "+shown.Issuer)
		}
		row(w, "client", shown.Client)
		row(w, "audience", shown.Audience)
		row(w, "scopes", strings.Join(shown.Scopes, " "))
		row(w, "actor", dash(shown.Actor))
		row(w, "chain", dash(strings.Join(shown.Chain, " <- ")))
		row(w, "txn", shown.Txn)
		row(w, "jti", shown.ID)
		row(w, "expires", a.moment(shown.Expires))
	})
}
