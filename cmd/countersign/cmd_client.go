package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	assertionTTL  = time.Minute
	maxKeyFile    = 64 << 10
)

// clientFlags are the ways to be an OAuth client besides --identity.
type clientFlags struct {
	id, keyFile, keyID, assertionFile, issuer string
}

func (f *clientFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.id, "client-id", "", "the client's ID, spiffe://<trust domain>/<name>; default: the one of --identity")
	c.Flags().StringVar(&f.keyFile, "client-key", "", "PEM file with a private key of the policy's client_keys: authenticate by a signed assertion (RFC 7523)")
	c.Flags().StringVar(&f.keyID, "client-key-id", "", "its kid in the policy; default: its RFC 7638 thumbprint, as `token client-key` prints it")
	c.Flags().StringVar(&f.assertionFile, "client-assertion", "", "file with a token of the workload, whose issuer the policy enrols, as the assertion")
	c.Flags().StringVar(&f.issuer, "issuer", "", "the issuer identifier that the assertion is for; default: what the daemon's metadata says")
}

// asserts tells whether the client comes with an assertion.
func (f clientFlags) asserts() bool { return f.keyFile != "" || f.assertionFile != "" }

// tokenClient connects as the client and puts what proves it into the form.
func (a *app) tokenClient(ctx context.Context, f clientFlags, form url.Values) (*client.Client, error) {
	if !f.asserts() {
		if f.id != "" || f.keyID != "" || f.issuer != "" {
			return nil, &failure{Exit: exitLocal, What: "what proves the client?", Why: "--client-id, --client-key-id and --issuer go with an assertion",
				Next: "--client-key FILE or --client-assertion FILE, or --identity DIR alone"}
		}
		c, id, err := a.connectAs(a.identity)
		if err == nil {
			form.Set("client_id", id.ID.String()) // RFC 8705 2
		}
		return c, err
	}
	if f.keyFile != "" && f.assertionFile != "" {
		return nil, &failure{Exit: exitLocal, What: "one assertion is enough", Why: "--client-key makes one and --client-assertion is one", Next: "leave one of them out"}
	}
	c, id, err := a.connectAsserting(f)
	if err != nil {
		return nil, err
	}
	assertion, err := a.assertion(ctx, c, f, id)
	if err != nil {
		c.Close()
		return nil, err
	}
	form.Set("client_id", id.String())
	form.Set("client_assertion", assertion)
	form.Set("client_assertion_type", assertionType)
	return c, nil
}

// connectAsserting connects with the certificate of --identity, or with none.
func (a *app) connectAsserting(f clientFlags) (*client.Client, countersign.ID, error) {
	var id countersign.ID
	if f.id != "" {
		var err error
		if id, err = countersign.ParseID(f.id); err != nil {
			return nil, id, &failure{Exit: exitLocal, What: "--client-id is no ID", Why: err.Error(), Next: "--client-id spiffe://<trust domain>/<service>"}
		}
	}
	if a.identity != "" {
		c, own, err := a.connectAs(a.identity)
		if err == nil && id.IsZero() {
			id = own.ID
		}
		return c, id, err
	}
	if id.IsZero() || a.server == "" || a.rootFile == "" {
		return nil, id, &failure{Exit: exitLocal, What: "which client, and which daemon?", Why: "without --identity the assertion's client and the daemon must be named",
			Next: "--client-id spiffe://<trust domain>/<service> --server URL --root FILE"}
	}
	roots, err := readRoots(a.rootFile)
	if err != nil {
		return nil, id, err
	}
	c, err := client.New(client.Config{URL: a.server, Roots: roots, TrustDomain: id.TrustDomain()})
	return c, id, err
}

// assertion is the one of the file, or a new one that is signed for the issuer alone (rfc7523bis 4). The issuer is named by the
// daemon itself, which proved by its certificate that it is the authority.
func (a *app) assertion(ctx context.Context, c *client.Client, f clientFlags, id countersign.ID) (string, error) {
	if f.assertionFile != "" {
		return a.readToken(f.assertionFile)
	}
	key, err := readKey(f.keyFile)
	if err != nil {
		return "", err
	}
	public, err := publicKey(key)
	if err != nil {
		return "", &failure{Exit: exitLocal, What: f.keyFile + " holds no key for assertions", Why: err.Error(), Next: "use P-256, P-384, Ed25519 or RSA"}
	}
	if f.keyID != "" {
		public.KID = f.keyID
	}
	issuer := f.issuer
	if issuer == "" {
		document, err := c.Metadata(ctx)
		if err != nil {
			return "", err
		}
		issuer = document.Issuer
	}
	now := time.Now()
	compact, err := jwt.Sign(key, public.Alg, public.KID, "client-authentication+jwt", map[string]any{
		"iss": id.String(), "sub": id.String(), "aud": issuer, "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(assertionTTL).Unix(),
	})
	if err != nil {
		return "", &failure{Exit: exitLocal, What: "can't sign an assertion", Why: err.Error(),
			Next: "check the ID and the key; `countersign token client-key FILE` shows what the policy needs of it"}
	}
	return compact, nil
}

// publicKey is the entry of a JWK set: its kid is the RFC 7638 thumbprint.
func publicKey(key crypto.Signer) (jwt.PublicKey, error) {
	public := jwt.PublicKey{Key: key.Public()}
	switch k := key.Public().(type) {
	case *ecdsa.PublicKey:
		public.Alg = map[string]string{"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}[k.Curve.Params().Name]
	case ed25519.PublicKey:
		public.Alg = "EdDSA"
	case *rsa.PublicKey:
		public.Alg = "RS256"
	}
	public.KID = public.Thumbprint()
	if _, err := jwt.NewSet(public); err != nil || public.Alg == "" {
		return jwt.PublicKey{}, &failure{Exit: exitLocal, What: "the key can't sign client assertions", Why: "it is of a kind or size that is not taken",
			Next: "make one that can: `countersign token client-key NEW`", err: err}
	}
	return public, nil
}

func readKey(path string) (crypto.Signer, error) {
	body, err := readFile(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	refuse := func(why string) error {
		return &failure{Exit: exitLocal, What: "no private key can be read from " + path, Why: why, Next: "make one: countersign token client-key " + shellWord(path+".new")}
	}
	block, rest := pem.Decode(body)
	if block == nil || block.Type != "PRIVATE KEY" || strings.TrimSpace(string(rest)) != "" {
		return nil, refuse("it must hold one PEM block PRIVATE KEY (PKCS#8) and nothing else")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, refuse(err.Error())
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, refuse("the key can't sign")
	}
	return key, nil
}

func (a *app) tokenClientKey() *cobra.Command {
	kind := ""
	c := &cobra.Command{
		Use:   "client-key FILE",
		Short: "print the JWK set of a client's key, which is made if there is none (private_key_jwt)",
		Long: `Prints the JWK set with the public half of the private key in FILE, for client_keys in the policy. If there is no FILE, a
key is made and written there, readable by its owner only. A file that is there is never changed.`,
		Example: "  countersign token client-key reports.pem > reports.jwks",
		Args:    exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := os.Lstat(args[0]); errors.Is(err, fs.ErrNotExist) {
				if err := makeKey(args[0], kind); err != nil {
					return err
				}
				a.say("made %s; keep it secret, and put the set into the policy: client_keys: {jwks_file: FILE}", args[0])
			}
			key, err := readKey(args[0])
			if err != nil {
				return err
			}
			public, err := publicKey(key)
			if err != nil {
				return &failure{Exit: exitLocal, What: args[0] + " holds no key for assertions", Why: err.Error(), Next: "use P-256, P-384, Ed25519 or RSA"}
			}
			set, err := jwt.NewSet(public)
			if err != nil {
				return err
			}
			return a.show(json.RawMessage(set.JSON()), func(w *tabwriter.Writer) { fmt.Fprintln(w, string(set.JSON())) })
		},
	}
	c.Flags().StringVar(&kind, "key", "P-256", "kind of a new key: P-256, P-384, Ed25519, RSA-2048, RSA-3072, RSA-4096")
	return c
}

// makeKey writes a new key to a file that does not exist.
func makeKey(path, kind string) error {
	key, err := identity.NewKey(kind)
	if err != nil {
		return &failure{Exit: exitLocal, What: "no key was made", Why: err.Error(), Next: "choose a kind that `--help` lists"}
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = pem.Encode(file, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err == nil {
			err = file.Sync()
		}
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return &failure{Exit: exitLocal, What: "can't write " + path, Why: cause(err),
			Next: "name a file that does not exist yet, in a directory that you may write to", err: err}
	}
	return nil
}
