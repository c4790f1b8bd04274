package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

func (a *app) certCommand() *cobra.Command {
	return group("cert", "certificates: renew, list, show, inspect, revoke",
		a.certRenew(), a.certList(), a.certShow(), a.certInspect(), a.certRevoke())
}

func (a *app) certRenew() *cobra.Command {
	var f identityFlags
	c := &cobra.Command{
		Use: "renew --out DIR", Short: "renew the identity in a directory, with a new key",
		Long: `Renews the identity in --out: makes a new key, proves the present identity by mTLS, and puts key and certificate in
place at once, so that readers see the old pair or the new one.`,
		Example: "  countersign cert renew --out /etc/orders/identity",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := f.renewal()
			if err != nil {
				return err
			}
			return a.renew(cmd.Context(), f.out, r)
		},
	}
	f.add(c)
	return c
}

// identityFlags are those of the commands that fill an identity directory for a service.
type identityFlags struct{ out, alg, ttl, passwordFile string }

func (f *identityFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.out, "out", "", "the identity directory")
	c.Flags().StringVar(&f.alg, "key", "", "kind of the new key: P-256, P-384, Ed25519, RSA-2048, RSA-3072, RSA-4096 (default: P-256, or the first that the policy allows)")
	c.Flags().StringVar(&f.ttl, "ttl", "", "lifetime to ask for (default: what the policy gives)")
	c.Flags().StringVar(&f.passwordFile, "p12-password-file", "", "file with the password of the PKCS#12 files (default: it is changeit)")
}

// renewal is what they say. A password comes from a file: other users of a machine can read arguments.
func (f *identityFlags) renewal() (renewal, error) {
	r := renewal{alg: f.alg}
	var err error
	if r.ttl, err = optionalDuration("--ttl", f.ttl); err != nil || f.passwordFile == "" {
		return r, err
	}
	body, err := readFile(f.passwordFile, maxPassword)
	if err != nil {
		return r, err
	}
	r.password = strings.TrimRight(string(body), "\r\n")
	if r.password == "" {
		return r, &failure{Exit: exitLocal, What: "there is no password in " + f.passwordFile, Why: "Java loads nothing from a store with an empty one",
			Next: "write one into it, or leave --p12-password-file out"}
	}
	return r, nil
}

const maxPassword = 1 << 10

// renewal is a certificate that a service asks for.
type renewal struct {
	alg      string
	ttl      time.Duration
	password string // of the PKCS#12 files; "": changeit
}

func (a *app) renew(ctx context.Context, out string, r renewal) error {
	if out == "" {
		return &failure{Exit: exitLocal, What: "which identity?", Why: "--out names no directory", Next: "countersign cert renew --out DIR"}
	}
	c, old, err := a.connectAs(out)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := checkOut(out); err != nil {
		return err
	}
	key, cert, err := a.certify(ctx, r.alg, func(csr []byte) (wire.Certificate, error) {
		return c.Renew(ctx, wire.CertificateRequest{CSR: string(csr), TTL: countersign.Duration(r.ttl)})
	})
	if err != nil {
		return err
	}
	if err := a.writeIdentity(out, key, cert, old.Server, r.password); err != nil {
		return err
	}
	return a.showIdentity(out, cert)
}

func (a *app) certList() *cobra.Command {
	var query client.CertificateQuery
	c := &cobra.Command{
		Use: "list", Short: "list the certificates that this authority issued", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkCount("--limit", query.Limit); err != nil {
				return err
			}
			return a.withDaemon(func(c *client.Client) error {
				page, err := c.Certificates(cmd.Context(), query)
				if err != nil {
					return err
				}
				if page.Next != "" {
					a.say("there are more: --after %s", page.Next)
				}
				return a.show(page, func(w *tabwriter.Writer) {
					row(w, "SERIAL", "ID", "STATE", "ISSUED", "EXPIRES", "KEY")
					for _, r := range page.Certificates {
						row(w, r.Serial, r.ID.String(), r.State, r.IssuedAt.UTC().Format(time.RFC3339), a.moment(r.NotAfter), r.KeyAlg)
					}
				})
			})
		},
	}
	c.Flags().StringVar(&query.Service, "service", "", "only of this service")
	c.Flags().StringVar(&query.State, "state", "", "only valid, revoked or expired ones")
	c.Flags().StringVar(&query.After, "after", "", "the next page")
	c.Flags().IntVar(&query.Limit, "limit", 100, "how many: 1 to 1000")
	return c
}

func (a *app) certShow() *cobra.Command {
	return &cobra.Command{
		Use: "show SERIAL", Short: "print the record of one certificate", Args: exactArgs("SERIAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(func(c *client.Client) error {
				record, err := c.Certificate(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.show(record, func(w *tabwriter.Writer) { a.recordTable(w, record) })
			})
		},
	}
}

func (a *app) recordTable(w *tabwriter.Writer, r wire.CertificateRecord) {
	row(w, "serial", r.Serial)
	row(w, "id", r.ID.String())
	row(w, "state", r.State)
	if r.State == "revoked" {
		row(w, "revoked", a.moment(r.RevokedAt)+", "+r.Reason)
	}
	row(w, "issued", a.moment(r.IssuedAt)+" to "+r.IssuedTo)
	row(w, "valid", r.NotBefore.UTC().Format(time.RFC3339)+" to "+a.moment(r.NotAfter))
	row(w, "key", r.KeyAlg)
	row(w, "key SHA-256", r.SPKI)
	row(w, "SHA-256", r.Fingerprint)
	row(w, "issuer", r.Issuer)
	row(w, "lineage", dash(r.Lineage))
	row(w, "renewed to", dash(r.Successor))
	if r.SupersededBy != "" {
		row(w, "replaced by", r.SupersededBy)
	}
	fmt.Fprint(w, r.PEM)
}

// inspected is a certificate as `cert inspect` shows it. Nothing of it is verified.
type inspected struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	URIs        []string  `json:"uris,omitempty"`
	DNS         []string  `json:"dns,omitempty"`
	IPs         []string  `json:"ips,omitempty"`
	CA          bool      `json:"ca"`
	Key         string    `json:"key"`
	Fingerprint string    `json:"fingerprint"`
}

func (a *app) certInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "print what stands in a PEM file; verifies nothing", Args: exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			certs, err := readCertificates(args[0])
			if err != nil {
				return err
			}
			all := make([]inspected, len(certs))
			for i, cert := range certs {
				all[i] = inspect(cert)
			}
			a.say("nothing here is verified: this is what the file says")
			return a.show(all, func(w *tabwriter.Writer) {
				for i, c := range all {
					if i > 0 {
						fmt.Fprintln(w)
					}
					row(w, "subject", c.Subject)
					row(w, "issuer", c.Issuer)
					row(w, "serial", c.Serial)
					row(w, "valid", c.NotBefore.UTC().Format(time.RFC3339)+" to "+a.moment(c.NotAfter))
					row(w, "names", dash(strings.Join(append(append(c.URIs, c.DNS...), c.IPs...), " ")))
					row(w, "key", c.Key)
					row(w, "SHA-256", c.Fingerprint)
				}
			})
		},
	}
}

func inspect(cert *x509.Certificate) inspected {
	sum := sha256.Sum256(cert.Raw)
	i := inspected{
		Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Serial: serialText(cert.SerialNumber),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, DNS: cert.DNSNames, CA: cert.IsCA,
		Key: cert.PublicKeyAlgorithm.String(), Fingerprint: hex.EncodeToString(sum[:]),
	}
	for _, u := range cert.URIs {
		i.URIs = append(i.URIs, u.String())
	}
	for _, ip := range cert.IPAddresses {
		i.IPs = append(i.IPs, ip.String())
	}
	return i
}

// serialText is the spelling of the inventory: 32 digits for our own serials of 128 bits.
func serialText(n *big.Int) string {
	if n.BitLen() > 64 && n.BitLen() <= 128 {
		return fmt.Sprintf("%032x", n)
	}
	return n.Text(16)
}
