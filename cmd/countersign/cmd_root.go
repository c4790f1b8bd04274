package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.step.sm/crypto/pemutil"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

const maxPEMFile = 64 << 10

// ownRoot are the files of a root that somebody brings.
type ownRoot struct{ cert, key, passphrase string }

// read reads them; no certificate: there is none. kms is where keys are to be made.
func (o ownRoot) read(kms string) (*x509.Certificate, crypto.Signer, error) {
	if o.cert == "" {
		if o.key != "" {
			return nil, nil, &failure{Exit: exitLocal, What: "--root-key without --root", Why: "a key alone is no root: its certificate says who trusts it",
				Next: "--root FILE with the root's certificate"}
		}
		return nil, nil, nil
	}
	if o.key != "" && kms != "" {
		return nil, nil, &failure{Exit: exitLocal, What: "--root-key together with --kms", Why: "--kms says that keys are made in a token and never leave it, and a key from a file was never there",
			Next: "leave --root-key out: the root stays offline, and the token makes the intermediate's key; or leave --kms out"}
	}
	text, err := readSmall(o.cert, maxPEMFile)
	if err != nil {
		return nil, nil, unreadable(o.cert, err)
	}
	cert, err := ca.ParseCertificatePEM(text)
	if err != nil {
		return nil, nil, unreadable(o.cert, err)
	}
	if o.key == "" {
		return cert, nil, nil
	}
	key, err := readRootKey(o.key, o.passphrase)
	return cert, key, err
}

func unreadable(path string, err error) error {
	return &failure{Exit: exitLocal, What: "can't use " + path, Why: cause(err), err: err, Next: "name a PEM file with one certificate"}
}

// readRootKey reads a private key: PKCS#8, SEC 1 or PKCS#1, the first also encrypted. The legacy encryption of PEM (RFC 1423: MD5, no
// salt to speak of) is refused, encrypted or not is never guessed, and no message holds a byte of the file.
func readRootKey(path, passphraseFile string) (crypto.Signer, error) {
	refuse := func(why, next string, err error) error {
		return &failure{Exit: exitLocal, What: "can't use the key in " + path, Why: why, Next: next, err: err}
	}
	if strings.HasPrefix(path, "pkcs11:") {
		return nil, &failure{Exit: exitLocal, What: "can't use the key that --root-key names", Why: "it is in a token (PKCS#11), and --root-key takes a file: a root's key in a token of yours stays there",
			Next: "leave --root-key out: the root stays offline, and whoever has the token signs the request that init writes (docs/authority.md)"}
	}
	text, err := readSmall(path, maxPEMFile)
	if err != nil {
		return nil, refuse(cause(err), "name a PEM file with one private key, which this user may read", err)
	}
	defer clear(text)
	block, rest := pem.Decode(text)
	if block == nil || bytes.Contains(rest, []byte("PRIVATE KEY")) {
		return nil, refuse("it holds not exactly one PEM block", "openssl pkey -in FILE writes PKCS#8", nil)
	}
	if block.Headers["DEK-Info"] != "" {
		return nil, refuse("it is encrypted in the legacy way of PEM, which is weak", "openssl pkcs8 -topk8 -v2 aes-256-cbc -in "+shellWord(path)+" -out NEW encrypts it as PKCS#8", nil)
	}
	options := []pemutil.Options{pemutil.WithFilename(path)}
	switch block.Type {
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY":
	case "ENCRYPTED PRIVATE KEY":
		if passphraseFile == "" {
			return nil, refuse("it is encrypted, and no passphrase was given", "COUNTERSIGN_PASSPHRASE_FILE or --passphrase-file names a file with it", nil)
		}
		passphrase, err := readPassphrase(passphraseFile)
		if err != nil {
			return nil, err
		}
		defer clear(passphrase)
		options = append(options, pemutil.WithPassword(passphrase))
	default:
		return nil, refuse(fmt.Sprintf("it is a PEM block %.40q", block.Type), "openssl pkey -in FILE writes PKCS#8", nil)
	}
	found, err := pemutil.ParseKey(pem.EncodeToMemory(block), options...)
	key, ok := found.(crypto.Signer)
	if err != nil || !ok {
		return nil, refuse("it is no private key, or the passphrase is another", "openssl pkey -in FILE -noout says whether it is one", nil)
	}
	return key, nil
}

// readPassphrase reads the first line of a file that only its owner reads.
func readPassphrase(path string) ([]byte, error) {
	refuse := func(why, next string, err error) error {
		return &failure{Exit: exitLocal, What: "can't use the passphrase in " + path, Why: why, Next: next, err: err}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, refuse(cause(err), "name a file of mode 0600 with the passphrase as its only line", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return nil, refuse(fmt.Sprintf("others may read it: mode %04o", info.Mode().Perm()), "chmod go-rwx "+shellWord(path), nil)
	}
	text, err := readSmall(path, maxPEMFile)
	if err != nil {
		return nil, refuse(cause(err), "name a file of mode 0600 with the passphrase as its only line", err)
	}
	line := bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if len(line) == 0 || bytes.ContainsAny(line, "\r\n\x00") {
		return nil, refuse("it has not exactly one line", "write the passphrase into it, and nothing else", nil)
	}
	return line, nil
}

// showWaiting is what init says of a directory that waits.
func (a *app) showWaiting(done daemon.Initialised) error {
	err := a.show(done, func(w *tabwriter.Writer) {
		row(w, "directory", done.Dir)
		row(w, "trust domain", done.TrustDomain)
		row(w, "issuer", done.Issuer)
		row(w, "root", done.Root)
		row(w, "root SHA-256", done.Fingerprint)
		row(w, "request", done.Request)
	})
	a.say("\nnext: have the root sign %s (CA:TRUE, pathlen:0; docs/authority.md), then countersign ca import FILE --dir %s", done.Request, shellWord(done.Dir))
	return err
}

func (a *app) caCSR() *cobra.Command {
	return &cobra.Command{
		Use: "csr", Short: "print the request of an intermediate, for a root that is offline", Args: noArgs,
		Long: `Prints a certificate request (PKCS#10) with a key that the daemon made and keeps. A root elsewhere signs it, and
"countersign ca import FILE" takes the certificate. While a request is open the same one is printed. It needs the role operator, and works
while nothing can be issued.`,
		Example: "  countersign ca csr > intermediate.csr",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.atHome() && daemon.Dir(a.dir).Waits() {
				text, err := readSmall(daemon.Dir(a.dir).Request(), maxPEMFile)
				if err != nil {
					return unreadable(daemon.Dir(a.dir).Request(), err)
				}
				return a.show(map[string]string{"csr": string(text)}, func(w *tabwriter.Writer) { fmt.Fprint(w, string(text)) })
			}
			return a.withDaemon(func(c *client.Client) error {
				made, err := c.RequestIntermediate(cmd.Context())
				if err != nil {
					return err
				}
				return a.show(made, func(w *tabwriter.Writer) { fmt.Fprint(w, made.CSR) })
			})
		},
	}
}

// atHome tells whether commands are about the daemon of --dir.
func (a *app) atHome() bool { return a.server == "" && a.identity == "" }

func (a *app) caImport() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE", Short: "take the certificate that an offline root made for the request of an intermediate",
		Long: `Takes the certificate (PEM) that a root made for what "countersign ca csr" printed. It must be for that key, by a root of this
authority, CA:TRUE with pathlen:0, keyCertSign and cRLSign, and live as long as what is issued under it. Then it signs at
once. It ends an init that waits, without a daemon. It needs the role admin.`,
		Example: "  countersign ca import intermediate.crt",
		Args:    exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readSmall(args[0], maxPEMFile)
			if err != nil {
				return unreadable(args[0], err)
			}
			if a.atHome() && daemon.Dir(a.dir).Waits() {
				return a.finishInit(cmd, text)
			}
			return a.withDaemon(func(c *client.Client) error {
				taken, err := c.ImportIntermediate(cmd.Context(), string(text))
				if err != nil {
					return err
				}
				return a.show(taken, func(w *tabwriter.Writer) {
					row(w, "intermediate", taken.Serial+" "+taken.Subject)
					row(w, "state", taken.State)
					row(w, "signs from", a.moment(signsFrom(taken)))
				})
			})
		},
	}
}

// finishInit ends an init that waits.
func (a *app) finishInit(cmd *cobra.Command, certificate []byte) error {
	loaded, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	done, err := daemon.Finish(cmd.Context(), daemon.Dir(a.dir), loaded.Config, versionText(), certificate)
	if err != nil {
		return err
	}
	err = a.show(done, func(w *tabwriter.Writer) {
		row(w, "directory", done.Dir)
		row(w, "root SHA-256", done.Fingerprint)
		row(w, "first operator", done.Operator)
	})
	a.say("\nnext: countersign serve --dir %s", shellWord(done.Dir))
	return err
}
